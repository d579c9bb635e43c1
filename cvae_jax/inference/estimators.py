"""Estimates of log p(y|x) from log weights, with their errors and with signs of whether to believe them.

A weight w_s is unbiased for p(y|x); log p(y|x) is estimated by the log of their mean. The weights are kept whole and
summarised here in float64, as plain arrays: streamed float32 sums would err by more than is promised. Parts of z and y
that are independent given x are estimated by themselves, and their sum is returned.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from arviz_stats.base import array_stats
from jax import Array

from cvae_jax.distributions import sum_per_example
from cvae_jax.errors import UserError
from cvae_jax.model import Draw, Proposal
from cvae_jax.objectives import total_kl

# The share of the prior in the defensive mixture. Its weights are at most 1 / (1 - a) = 1.1 times those of the
# recognition network alone, so where that fits little is lost; and at most 1 / a = 10 times p(y|x,z), so where it does
# not, the estimate is as good as Monte Carlo with a tenth of the samples (Hesterberg 1995).
PRIOR_SHARE = 0.1
# Where z comes from: a proposal of the models' contract, or the mixture, made of two of these by `draws.scores`.
Origin = Proposal | Literal["defensive"]

# Log weights within so many nats of each other are equal but for the rounding of float32: they have no tail.
ROUNDING = 1e-3
# Of fewer samples the fit to the largest fifth says more of its prior than of them: of 32 weights that are all alike
# but for a standard deviation of 0.05 it would doubt 30%, of 100 1%.
FEWEST_SAMPLES = 100
FEWEST_EFFECTIVE = 5  # of fewer samples, below which they cannot be believed: a bias of 0.1 nats
SMALLEST_UNIT = 1e-290  # of the weights in the tail, the largest being 1: its reciprocal is still far from overflow
INFINITE_VARIANCE = 0.5  # the shape of a Pareto tail beyond which it has no variance
LARGEST_SHAPE = 0.7  # beyond which no affordable number of samples suffices


class Estimate(NamedTuple):
    """An estimate for every example, float64 [batch]; over factors the sum, the least ess and the greatest k_hat."""

    value: np.ndarray  # nats
    error: np.ndarray  # its Monte Carlo standard error, nats; 0 where the value is exact
    ess: np.ndarray  # effective sample size; a few only: neither value nor error can be believed
    k_hat: np.ndarray  # shape of the weights' Pareto tail, see `pareto_k`; NaN without weights, or with equal ones
    # float64 [batch, targets]: a number for each index of the first axis of factors, such as several y of one x, the
    # other axes added up; their sum is the value, before `per_target`. [batch, 1] of the ELBO, whose score adds factors
    # up. None where estimates of several models were put together.
    per_factor: np.ndarray | None = None


class Estimator(NamedTuple):
    """How a draw becomes a number, and numbers an estimate."""

    proposal: Origin
    score: Callable[[Draw], Array]  # a draw's number for every example, [batch, *factors]
    summarise: Callable[[np.ndarray], Estimate]  # of [samples, batch, *factors]


def _by_factor(numbers: np.ndarray) -> tuple[np.ndarray, int]:
    """Returns [samples, batch, *factors] as float64 [samples, batch, factors], and the length of the first such axis.

    Both have one factor where there are no such axes.
    """
    numbers = np.asarray(numbers, np.float64)
    return numbers.reshape(*numbers.shape[:2], -1), numbers.shape[2] if numbers.ndim > 2 else 1


def _total(factors: Estimate, num_targets: int) -> Estimate:
    """Returns the estimate of a sum over independent factors: [batch, factors] -> [batch]."""
    error = np.sqrt((factors.error**2).sum(1))
    k_hat = np.fmax.reduce(factors.k_hat, 1)
    per_factor = factors.value.reshape(len(factors.value), num_targets, -1).sum(2)
    return Estimate(factors.value.sum(1), error, factors.ess.min(1), k_hat, per_factor)


def _refuse(bad: np.ndarray, what: str) -> None:
    """Raises a UserError where examples are bad, bool [batch, factors]."""
    examples = bad.any(1)
    if examples.any():
        raise UserError(
            f"{what} for {examples.sum()} of {len(bad)} examples, first at position {examples.argmax()} of the "
            "batch: look there for x or y that are not finite or that the likelihood rules out; if it is so for all, "
            "at the model's weights"
        )


def log_mean_exp(log_weights: np.ndarray) -> Estimate:
    """Returns the log of the mean weight over samples, [samples, batch, *factors] -> [batch].

    The error is that of the delta method, sd(w) / (mean(w) √S); ESS = (Σw)² / Σw² (Kong 1992). Jensen's inequality
    biases the value down by about error²/2.

    Raises:
      UserError: for a weight that is NaN or infinite, or an example whose weights are all 0.
    """
    log_weights, num_targets = _by_factor(log_weights)
    return _total(_log_mean_exp(log_weights), num_targets)


def _log_mean_exp(log_weights: np.ndarray) -> Estimate:
    """[samples, batch, factors] -> [batch, factors]."""
    num_samples = len(log_weights)
    top = log_weights.max(0)
    _refuse(~np.isfinite(top), "the log weights are NaN, infinite or all -inf")
    weights = np.exp(log_weights - top)
    total = weights.sum(0)
    ess = total**2 / np.einsum("sbf,sbf->bf", weights, weights)
    # (S / ESS - 1) S / (S - 1) is the variance of the weights over their squared mean.
    error = np.sqrt(np.maximum(num_samples / ess - 1, 0) / (num_samples - 1)) if num_samples > 1 else np.nan * top
    return Estimate(top + np.log(total / num_samples), error, ess, pareto_k(log_weights))


def jackknife(log_weights: np.ndarray) -> Estimate:
    """Returns the log of the mean weight, its bias removed to first order: [samples, batch, *factors] -> [batch].

    JVI of order 1 (Nowozin 2018, "Debiasing evidence approximations"): S l(S) - (S - 1) l(S - 1), with l(S) the log of
    the mean and l(S - 1) its average over leaving out one sample. Leaving out a weight that is the share v of the sum
    adds log(S / (S - 1)) + log(1 - v) to l. All this moves the value by O(1/S), so its error, to first order, is that
    of `log_mean_exp`.

    The correction is infinite if one weight is the whole sum: the value stops at the largest log weight, which no
    mean exceeds; ESS and k̂ flag such examples.

    Raises:
      UserError: as `log_mean_exp`, and for fewer than two samples.
    """
    log_weights, num_targets = _by_factor(log_weights)
    num_samples = len(log_weights)
    if num_samples < 2:
        raise UserError(f"num_samples={num_samples} must be at least 2 for the jackknife")
    plain = _log_mean_exp(log_weights)
    shares = np.minimum(np.exp(log_weights - plain.value) / num_samples, 1)
    with np.errstate(divide="ignore"):
        moved = math.log(num_samples / (num_samples - 1)) + np.log1p(-shares).mean(0)
    value = np.minimum(plain.value - (num_samples - 1) * moved, log_weights.max(0))
    return _total(plain._replace(value=value), num_targets)


def plain_mean(scores: np.ndarray) -> Estimate:
    """Returns the mean over samples, [samples, batch, *factors] -> [batch], with its standard error.

    Every sample counts in full: their effective number is how many there are.

    Raises:
      UserError: for a score that is not finite.
    """
    scores, num_targets = _by_factor(scores)
    _refuse(~np.isfinite(scores).all(0), "the scores are not finite")
    num_samples, mean = len(scores), scores.mean(0)
    error = scores.std(0, ddof=1) / math.sqrt(num_samples) if num_samples > 1 else np.nan * mean
    return _total(Estimate(mean, error, np.full_like(mean, num_samples), np.full_like(mean, np.nan)), num_targets)


def pareto_k(log_weights: np.ndarray) -> np.ndarray:
    """Returns the shape of the generalised Pareto distribution fitted to the largest weights, [samples, ...] -> [...].

    k̂ of Pareto-smoothed importance sampling (Vehtari et al. 2024): moments of the weights beyond the 1/k̂-th do not
    exist. NaN where the largest weights are equal but for rounding: there is no tail. inf, the worst, where in float64
    much of the tail is 0, or equal, beside the largest weight. To fewer than FEWEST_SAMPLES nothing can be fitted: inf
    where their effective number is below FEWEST_EFFECTIVE, NaN elsewhere.
    """
    num_samples, shape = len(log_weights), log_weights.shape[1:]
    if num_samples < FEWEST_SAMPLES:
        weights = np.exp(log_weights - log_weights.max(0))
        return np.where(weights.sum(0) ** 2 < FEWEST_EFFECTIVE * (weights**2).sum(0), np.inf, np.nan)
    columns = np.ascontiguousarray(log_weights.reshape(num_samples, -1).T)
    tail = int(3 * math.sqrt(num_samples)) if num_samples > 225 else num_samples // 5
    # The largest weight below the tail, and the tail's lower quartile: the fit is in units of how far these are apart,
    # and where that is 0 arviz returns a k̂ near 0.
    ranks = [num_samples - tail - 1, num_samples - tail + round(tail / 4) - 1]
    below, quartile = np.partition(columns, ranks)[:, ranks].T
    top = columns.max(1)
    tailless = top - below < ROUNDING
    fitted = (np.exp(quartile - top) - np.exp(below - top) > SMALLEST_UNIT) & ~tailless
    k_hat = np.where(tailless, np.nan, np.inf)
    # It takes log likelihoods, as for leave-one-out cross-validation, whose negatives are the log weights.
    k_hat[fitted] = array_stats.psislw(-columns[fitted])[1]
    return k_hat.reshape(shape)


class Unreliable(NamedTuple):
    """Which examples' estimates cannot be believed, bool [batch]."""

    error: np.ndarray  # the Monte Carlo error: the weights' variance is infinite
    value: np.ndarray  # the value, and the error with it: more samples than these would be needed


def largest_shape(num_samples: int) -> float:
    """Returns the k̂ up to which so many samples suffice: min(1 - 1 / log10 S, 0.7) (Vehtari et al. 2024)."""
    return min(1 - 1 / math.log10(num_samples), LARGEST_SHAPE)


def unreliable(estimate: Estimate, num_samples: int) -> Unreliable:
    """Returns which examples' estimates cannot be believed, by the k̂ of `num_samples` weights."""
    limit = largest_shape(max(num_samples, FEWEST_SAMPLES))
    return Unreliable(estimate.k_hat > min(limit, INFINITE_VARIANCE), estimate.k_hat > limit)


def cautions(estimate: Estimate, num_samples: int) -> list[str]:
    """Returns warnings for whoever reads the estimate: a line for its values, one for its errors, or none."""
    doubted, count = unreliable(estimate, num_samples), len(estimate.value)
    lines = []
    if doubted.value.any() and num_samples < FEWEST_SAMPLES:
        lines.append(
            f"fewer than {FEWEST_EFFECTIVE} effective samples for {doubted.value.sum()} of {count} examples: "
            "neither their values nor their errors can be believed"
        )
    elif doubted.value.any():
        lines.append(
            f"k-hat above {largest_shape(num_samples):.2f} for {doubted.value.sum()} of {count} examples: "
            "neither their values nor their errors can be believed"
        )
    only_error = doubted.error & ~doubted.value
    if only_error.any():
        lines.append(
            f"k-hat above {INFINITE_VARIANCE:.2f} for {only_error.sum()} of {count} examples: "
            "their Monte Carlo errors cannot be believed"
        )
    return lines


def elbo_score(draw: Draw) -> Array:
    """Returns log p(y|x,z) - KL(q || p) of one draw, [batch]: its mean is the evidence lower bound."""
    return sum_per_example(draw.log_p_y) - total_kl(draw)


def importance_score(draw: Draw) -> Array:
    """Returns the log weight p(y|x,z) p(z|x) / q(z|x,y) of a draw from the recognition network, [batch, *factors]."""
    return draw.log_p_y + draw.log_p_z - draw.log_q_z


def defensive_score(draw: Draw) -> Array:
    """Returns the log weight p(y|x,z) p(z|x) / (a p(z|x) + (1 - a) q(z|x,y)), a = PRIOR_SHARE, [batch, *factors].

    The draw is one from that mixture: defensive importance sampling (Hesterberg 1995). The weight is at most
    log p(y|x,z) - log a.
    """
    ratio = draw.log_q_z - draw.log_p_z
    return draw.log_p_y - jnp.logaddexp(math.log(PRIOR_SHARE), math.log1p(-PRIOR_SHARE) + ratio)


ESTIMATORS = {
    "elbo": Estimator("recognition", elbo_score, plain_mean),
    "mc": Estimator("prior", lambda draw: draw.log_p_y, log_mean_exp),
    "is": Estimator("recognition", importance_score, log_mean_exp),
    "jackknife": Estimator("recognition", importance_score, jackknife),
    "defensive": Estimator("defensive", defensive_score, log_mean_exp),
}


class Mean(NamedTuple):
    """A mean over examples, nats."""

    value: float
    error: float  # Monte Carlo standard error of the mean: what more samples would lower
    standard_error: float  # over examples: what more examples would lower


def standard_error(values: np.ndarray, clusters: np.ndarray | None = None) -> float:
    """Returns the standard error of the mean of values [examples]; NaN of a single one.

    Args:
      values: NaN where an example has none: it is left out.
      clusters: [examples], equal for examples that belong together (the images of a patient). The error is then over
        clusters, with the correction for few of them (Liang and Zeger 1986; G / (G - 1) for G clusters).
    """
    there = ~np.isnan(values)
    values = values[there]
    if clusters is None:
        return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else math.nan
    _, members = np.unique(clusters[there], return_inverse=True)
    sums = np.bincount(members, values - values.mean()) if len(values) else values
    count = len(sums)
    return float(np.sqrt(count / (count - 1) * (sums**2).sum()) / len(values)) if count > 1 else math.nan


def mean_over_examples(estimate: Estimate, clusters: np.ndarray | None = None) -> Mean:
    """Returns the mean of an estimate over its examples with both of its errors; `clusters` as in `standard_error`."""
    count = len(estimate.value)
    spread = standard_error(estimate.value, clusters)
    return Mean(float(estimate.value.mean()), float(np.sqrt((estimate.error**2).sum()) / count), spread)


def mean_over_seeds(estimates: Sequence[Estimate]) -> Estimate:
    """Returns the mean of independent models' estimates of the same examples; the least ess, the greatest k_hat."""
    value, error = np.mean([seed.value for seed in estimates], 0), np.sqrt(sum(seed.error**2 for seed in estimates))
    ess, k_hat = np.min([seed.ess for seed in estimates], 0), np.fmax.reduce([seed.k_hat for seed in estimates])
    return Estimate(value, error / len(estimates), ess, k_hat)


def paired_difference(a: Estimate, b: Estimate, clusters: np.ndarray | None = None) -> Mean:
    """Returns the mean of a - b over the examples both were measured on, with the errors of that difference.

    The Monte Carlo errors are added as if independent; with common random numbers the true one is smaller. `clusters`
    are those of `standard_error`.
    """
    error, ess, k_hat = np.hypot(a.error, b.error), np.minimum(a.ess, b.ess), np.fmax(a.k_hat, b.k_hat)
    return mean_over_examples(Estimate(a.value - b.value, error, ess, k_hat), clusters)


def shifted(estimate: Estimate, shift: np.ndarray) -> Estimate:
    """Returns an estimate to which known numbers are added, [batch, *factors], such as the log of a change of units."""
    factors, num_targets = _by_factor(np.asarray(shift)[None])
    by_target = factors[0].reshape(len(estimate.value), num_targets, -1).sum(2)
    per_factor = estimate.per_factor
    if per_factor is not None:
        per_factor = per_factor + (by_target if per_factor.shape[1] == num_targets else by_target.sum(1, keepdims=True))
    return estimate._replace(value=estimate.value + by_target.sum(1), per_factor=per_factor)


def per_target(estimate: Estimate, num_targets: np.ndarray) -> Estimate:
    """Returns an estimate of log p of several y of one x as that of one of them: divided by their number [batch].

    `per_factor` stays as it is: each of its numbers is of one y already.
    """
    number = np.maximum(np.asarray(num_targets, np.float64), 1)
    return estimate._replace(value=estimate.value / number, error=estimate.error / number)
