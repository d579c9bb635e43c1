"""Estimates of log p(y|x) from log weights, with their errors and with signs of whether to believe them.

A weight w_s is unbiased for p(y|x); log p(y|x) is estimated by the log of their mean. The weights are kept whole and
summarised here in float64, as plain arrays: streamed float32 sums would err by more than is promised. Parts of z and y
that are independent given x are estimated by themselves, and their sum is returned.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import jax
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
# Of fewer samples a fit to the largest weights selects backwards: it sees a heavy tail only where a large weight was
# drawn, and there log p is too high. What it does not flag is then too low.
FEWEST_SAMPLES = 1000
# Of fewer samples than these. Below it, or below half of them all, the estimate rests on too few. No rule sees a tail
# that was not drawn.
FEWEST_EFFECTIVE = 10
SMALLEST_UNIT = 1e-290  # of the weights in the tail, the largest being 1: its reciprocal is still far from overflow
LARGEST_SHAPE = 0.7  # of a Pareto tail, beyond which no affordable number of samples suffices
LARGEST_DOUBT = 1 / 3  # the share of the squared error that may come from parts whose weights are flagged
LARGEST_SHARE = 1 - 2**-53  # of a weight in the sum of all, in float64
NUMBERS_AT_ONCE = 2**24  # weights of which a copy is held in float64, some ten times


class Estimate(NamedTuple):
    """An estimate for every example, float64 [batch]; over factors the sum, the least ess and the greatest k_hat.

    The truth is within value - bias ± 2 error in 95% of cases, unless that is `unreliable`.
    """

    value: np.ndarray  # nats
    error: np.ndarray  # Monte Carlo standard error of value - bias, nats; 0 where the value is exact, NaN where unknown
    ess: np.ndarray  # effective sample size
    k_hat: np.ndarray  # shape of the weights' Pareto tail, see `pareto_k`; NaN without a fit
    bias: np.ndarray  # estimate of how far the value is off on average, nats; 0 of means, bounds and the jackknife
    flagged: np.ndarray  # the share of factors, of those with an error, whose weights say that they cannot be believed
    doubt: np.ndarray  # the share of the squared error that comes from flagged factors
    # float64 [batch, targets]: a number for each index of the first axis of factors, such as several y of one x, the
    # other axes added up; their sum is the value, before `per_target`. [batch, 1] of the ELBO, whose score adds factors
    # up. None where estimates of several models were put together.
    per_factor: np.ndarray | None = None
    lower: "Estimate | None" = None  # of an upper bound: the lower one of the same y, see `ais.bounds`


class Estimator(NamedTuple):
    """How a draw becomes a number, and numbers an estimate."""

    proposal: Origin
    score: Callable[[Draw], Array]  # a draw's number for every example, [batch, *factors]
    summarise: Callable[[np.ndarray], Estimate]  # of [samples, batch, *factors]


def _by_factor(numbers: np.ndarray) -> tuple[np.ndarray, int]:
    """Returns [samples, batch, *factors] as [samples, batch, factors], and the length of the first such axis.

    Both have one factor where there are no such axes.
    """
    numbers = np.asarray(numbers)
    return numbers.reshape(*numbers.shape[:2], -1), numbers.shape[2] if numbers.ndim > 2 else 1


def _total(factors: Estimate, num_targets: int) -> Estimate:
    """Returns the estimate of a sum over independent factors: [batch, factors] -> [batch]."""
    return Estimate(
        factors.value.sum(1),
        np.sqrt((factors.error**2).sum(1)),
        factors.ess.min(1),
        np.fmax.reduce(factors.k_hat, 1),
        factors.bias.sum(1),
        factors.flagged.sum(1) / np.maximum((factors.error != 0).sum(1), 1),  # padding has no error
        _doubt(factors, 1),
        factors.value.reshape(len(factors.value), num_targets, -1).sum(2),
    )


def _doubt(parts: Estimate, axis: int) -> np.ndarray:
    """Returns the doubt about a sum of independent parts, which lie along that axis."""
    weights = np.where(np.isnan(parts.error).any(axis, keepdims=True), 1, parts.error**2)
    total = weights.sum(axis)
    return (weights * parts.doubt).sum(axis) / np.where(total > 0, total, 1)


def _unweighted(value: np.ndarray, error: np.ndarray, ess: np.ndarray) -> Estimate:
    """Returns an estimate without weights: nothing tells that it cannot be believed."""
    zero = np.zeros_like(value)
    return Estimate(value, error, ess, zero + np.nan, zero, zero, zero)


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

    Jensen's inequality biases it down: the bias is estimated by the jackknife, JVI of order 1 (Nowozin 2018,
    "Debiasing evidence approximations"). With l(S) the log of the mean of S weights and l(S - 1) its average over
    leaving out one of them, it is (S - 1) (l(S - 1) - l(S)). The error is the jackknife's too (Tukey 1958), from the
    spread of the same S logs: unlike that of the delta method, sd(w) / (mean(w) √S), to which it is equal where weights
    are alike, it does not stop at 1 nat where one weight is the whole sum. ESS = (Σw)² / Σw² (Kong 1992).

    The bias is infinite if one weight is the whole sum: value - bias stops at the largest log weight, which no mean
    exceeds; ESS and k̂ flag such examples.

    Raises:
      UserError: for a weight that is NaN or infinite, or an example whose weights are all 0.
    """
    log_weights, num_targets = _by_factor(log_weights)
    return _total(_log_mean_exp(log_weights), num_targets)


def _log_mean_exp(log_weights: np.ndarray) -> Estimate:
    """[samples, batch, factors] -> [batch, factors], a few examples at once."""
    _refuse(~np.isfinite(log_weights.max(0)), "the log weights are NaN, infinite or all -inf")
    rows = max(1, NUMBERS_AT_ONCE // max(1, log_weights[:, :1].size))
    parts = [log_weights[:, first : first + rows] for first in range(0, log_weights.shape[1], rows)]
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *map(_log_mean_exp_of_few, parts))


def _log_mean_exp_of_few(log_weights: np.ndarray) -> Estimate:
    log_weights = log_weights.astype(np.float64)
    num_samples = len(log_weights)
    top = log_weights.max(0)
    weights = np.exp(log_weights - top)
    total = weights.sum(0)
    ess = total**2 / np.einsum("sbf,sbf->bf", weights, weights)
    value, k_hat = top + np.log(total / num_samples), pareto_k(log_weights)
    if num_samples == 1:
        unknown, flagged = np.full_like(value, np.nan), np.ones_like(value)
        return Estimate(value, unknown, ess, k_hat, unknown, flagged, flagged)
    # Leaving out a weight that is the share v of the sum adds log(S / (S - 1)) + log(1 - v) to the value.
    changes = np.log1p(-np.minimum(weights / total, LARGEST_SHARE))
    mean = changes.mean(0)
    moved = math.log(num_samples / (num_samples - 1)) + mean
    bias = np.clip((num_samples - 1) * moved, value - top, 0)  # above 0 by rounding alone
    error = np.sqrt((num_samples - 1) / num_samples * ((changes - mean) ** 2).sum(0))
    if num_samples < FEWEST_SAMPLES:
        bad = (ess < min(FEWEST_EFFECTIVE, num_samples / 2)) & (top - log_weights.min(0) > ROUNDING)
    else:
        bad = k_hat > largest_shape(num_samples)
    flagged, equal = bad.astype(np.float64), top == log_weights.min(0)
    error, bias = (np.where(equal, 0, numbers) for numbers in (error, bias))
    return Estimate(value, error, ess, k_hat, bias, flagged, flagged)


def jackknife(log_weights: np.ndarray) -> Estimate:
    """Returns the log of the mean weight less its bias, see `log_mean_exp`: [samples, batch, *factors] -> [batch].

    Raises:
      UserError: as `log_mean_exp`, and for fewer than two samples.
    """
    log_weights, num_targets = _by_factor(log_weights)
    if len(log_weights) < 2:
        raise UserError(f"num_samples={len(log_weights)} must be at least 2 for the jackknife")
    plain = _log_mean_exp(log_weights)
    return _total(plain._replace(value=plain.value - plain.bias, bias=np.zeros_like(plain.bias)), num_targets)


def plain_mean(scores: np.ndarray) -> Estimate:
    """Returns the mean over samples, [samples, batch, *factors] -> [batch], with its standard error.

    Every sample counts in full: their effective number is how many there are.

    Raises:
      UserError: for a score that is not finite.
    """
    scores, num_targets = _by_factor(np.asarray(scores, np.float64))
    _refuse(~np.isfinite(scores).all(0), "the scores are not finite")
    num_samples, mean = len(scores), scores.mean(0)
    error = scores.std(0, ddof=1) / math.sqrt(num_samples) if num_samples > 1 else np.nan * mean
    return _total(_unweighted(mean, error, np.full_like(mean, num_samples)), num_targets)


def exact(log_p: np.ndarray) -> Estimate:
    """Returns the estimate of numbers that are known, nats: [batch, *factors] -> [batch]."""
    log_p, num_targets = _by_factor(np.asarray(log_p, np.float64)[None])
    _refuse(~np.isfinite(log_p[0]), "log p(y|x) is not finite")
    return _total(_unweighted(log_p[0], np.zeros_like(log_p[0]), np.ones_like(log_p[0])), num_targets)


def pareto_k(log_weights: np.ndarray) -> np.ndarray:
    """Returns the shape of the generalised Pareto distribution fitted to the largest weights, [samples, ...] -> [...].

    k̂ of Pareto-smoothed importance sampling (Vehtari et al. 2024): moments of the weights beyond the 1/k̂-th do not
    exist. NaN where there are fewer than FEWEST_SAMPLES, or where the largest weights are equal but for rounding: there
    is no tail. inf, the worst, where in float64 much of the tail is 0, or equal, beside the largest weight.
    """
    num_samples, shape = len(log_weights), log_weights.shape[1:]
    if num_samples < FEWEST_SAMPLES:
        return np.full(shape, np.nan)
    columns = np.ascontiguousarray(log_weights.reshape(num_samples, -1).T)
    tail = int(3 * math.sqrt(num_samples))
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


def largest_shape(num_samples: int) -> float:
    """Returns the k̂ up to which so many samples suffice: min(1 - 1 / log10 S, 0.7) (Vehtari et al. 2024)."""
    return min(1 - 1 / math.log10(num_samples), LARGEST_SHAPE)


def unreliable(estimate: Estimate) -> np.ndarray:
    """Returns of which examples neither value nor error can be believed, bool [batch].

    Flagged factors make up more than LARGEST_DOUBT of the squared error: among thousands of factors a few are flagged
    by chance, and a few that are bad may not matter.
    """
    return estimate.doubt > LARGEST_DOUBT


def cautions(estimate: Estimate, num_samples: int) -> list[str]:
    """Returns warnings for whoever reads the estimate: a line, or none."""
    doubted, count = unreliable(estimate), len(estimate.value)
    if not doubted.any():
        return []
    if num_samples < FEWEST_SAMPLES:
        sign = f"fewer than {FEWEST_EFFECTIVE} effective samples"
    else:
        sign = f"k-hat above {largest_shape(num_samples):.2f}"
    return [f"{sign} for {doubted.sum()} of {count} examples: neither their values nor their errors can be believed"]


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
    error: float  # Monte Carlo standard error of value - bias: what more samples would lower
    standard_error: float  # over examples: what more examples would lower
    bias: float = 0.0  # as in Estimate; it falls with more samples, but not with more examples
    unreliable: bool = False  # error and bias cannot be believed: flagged examples make up too much of them


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
    """Returns the mean of an estimate over its examples with all of its errors; `clusters` as in `standard_error`."""
    spread = standard_error(estimate.value, clusters)
    doubted = bool(_doubt(estimate, 0) > LARGEST_DOUBT)
    return Mean(float(estimate.value.mean()), _error_of_mean(estimate), spread, float(estimate.bias.mean()), doubted)


def _error_of_mean(estimate: Estimate) -> float:
    """Returns the Monte Carlo standard error of the mean over examples.

    That of an upper bound is from the spread over examples of its distance to the lower one, less the lower one's own
    error. Chains in reverse begin at a z that they share, so the upper bound errs by no less than the lower one, and
    by half of that spread's variance at least.
    """
    count, lower = len(estimate.value), estimate.lower
    if lower is None:
        return float(np.sqrt((estimate.error**2).sum()) / count)
    if count == 1:
        return math.nan
    of_distance = (estimate.value - lower.value).var(ddof=1)
    return float(np.sqrt(np.fmax(of_distance - (lower.error**2).mean(), of_distance / 2) / count))


def mean_over_seeds(estimates: Sequence[Estimate]) -> Estimate:
    """Returns the mean of independent models' estimates of the same examples; the least ess, the greatest k_hat."""
    return _combined(estimates, np.full(len(estimates), 1 / len(estimates)))


def paired_difference(a: Estimate, b: Estimate, clusters: np.ndarray | None = None) -> Mean:
    """Returns the mean of a - b over the examples both were measured on, with the errors of that difference.

    The Monte Carlo errors are added as if independent; with common random numbers the true one is smaller. `clusters`
    are those of `standard_error`.
    """
    return mean_over_examples(_combined([a, b], np.array([1.0, -1.0])), clusters)


def _combined(estimates: Sequence[Estimate], factors: np.ndarray) -> Estimate:
    """Returns the sum of factors [estimates] times independent estimates of the same examples."""
    bare = [estimate._replace(per_factor=None, lower=None) for estimate in estimates]
    parts: Estimate = jax.tree.map(lambda *arrays: np.stack(arrays), *bare)
    by = factors[:, None]
    parts = parts._replace(value=by * parts.value, error=np.abs(by) * parts.error, bias=by * parts.bias)
    lower = [estimate.lower for estimate in estimates if estimate.lower is not None]
    return Estimate(
        parts.value.sum(0),
        np.sqrt((parts.error**2).sum(0)),
        parts.ess.min(0),
        np.fmax.reduce(parts.k_hat),
        parts.bias.sum(0),
        parts.flagged.mean(0),
        _doubt(parts, 0),
        lower=_combined(lower, factors) if len(lower) == len(estimates) else None,
    )


def shifted(estimate: Estimate, shift: np.ndarray) -> Estimate:
    """Returns an estimate to which known numbers are added, [batch, *factors], such as the log of a change of units."""
    factors, num_targets = _by_factor(np.asarray(shift, np.float64)[None])
    by_target = factors[0].reshape(len(estimate.value), num_targets, -1).sum(2)
    per_factor = estimate.per_factor
    if per_factor is not None:
        per_factor = per_factor + (by_target if per_factor.shape[1] == num_targets else by_target.sum(1, keepdims=True))
    lower = None if estimate.lower is None else shifted(estimate.lower, shift)
    return estimate._replace(value=estimate.value + by_target.sum(1), per_factor=per_factor, lower=lower)


def per_target(estimate: Estimate, num_targets: np.ndarray) -> Estimate:
    """Returns an estimate of log p of several y of one x as that of one of them: divided by their number [batch].

    `per_factor` stays as it is: each of its numbers is of one y already.
    """
    number = np.maximum(np.asarray(num_targets, np.float64), 1)
    return estimate._replace(
        value=estimate.value / number,
        error=estimate.error / number,
        bias=estimate.bias / number,
        lower=None if estimate.lower is None else per_target(estimate.lower, num_targets),
    )
