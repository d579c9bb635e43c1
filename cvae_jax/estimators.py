"""Estimates of log p(y|x) from log weights, with their errors, over plain arrays.

A weight w_s is unbiased for p(y|x); log p(y|x) is estimated by the log of their mean. The weights are kept
whole and summarised here in float64: streamed float32 sums would err by more than is promised.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jax import Array

from cvae_jax.model import Draw, Proposal
from cvae_jax.objectives import total_kl


class Estimate(NamedTuple):
    """An estimate for every example, float64 [batch]."""

    value: np.ndarray  # nats
    error: np.ndarray  # its Monte Carlo standard error, nats; 0 where the value is exact
    ess: np.ndarray  # effective sample size; a few only: neither value nor error can be believed


class Estimator(NamedTuple):
    """How a draw becomes a number, and numbers an estimate."""

    title: str
    proposal: Proposal
    score: Callable[[Draw], Array]  # a draw's number for every example, [batch]
    summarise: Callable[[np.ndarray], Estimate]  # of [samples, batch]


def log_mean_exp(log_weights: np.ndarray) -> Estimate:
    """log of the mean weight over samples, [samples, batch] -> [batch].

    The error is that of the delta method, sd(w) / (mean(w) √S); ESS = (Σw)² / Σw² (Kong 1992). Jensen's
    inequality biases the value down by about error²/2.
    """
    log_weights = np.asarray(log_weights, np.float64)
    num_samples = len(log_weights)
    top = log_weights.max(0)
    weights = np.exp(log_weights - top)
    mean = weights.mean(0)
    spread = weights.std(0, ddof=1) if num_samples > 1 else np.full_like(mean, np.nan)
    error = spread / (mean * np.sqrt(num_samples))
    return Estimate(top + np.log(mean), error, weights.sum(0) ** 2 / (weights**2).sum(0))


def plain_mean(scores: np.ndarray) -> Estimate:
    """Mean over samples, [samples, batch] -> [batch], with its standard error; every sample counts in full."""
    scores = np.asarray(scores, np.float64)
    num_samples = len(scores)
    error = scores.std(0, ddof=1) / np.sqrt(num_samples) if num_samples > 1 else np.full(scores.shape[1:], np.nan)
    return Estimate(scores.mean(0), error, np.full(scores.shape[1:], float(num_samples)))


def elbo_score(draw: Draw) -> Array:
    """log p(y|x,z) - KL(q || p) of one draw, [batch]: its mean is the evidence lower bound."""
    return draw.log_p_y - total_kl(draw)


ESTIMATORS = {
    "elbo": Estimator("ELBO", "recognition", elbo_score, plain_mean),
    "mc": Estimator("Monte Carlo", "prior", lambda draw: draw.log_p_y, log_mean_exp),
    "is": Estimator(
        "importance sampling",
        "recognition",
        lambda draw: draw.log_p_y + draw.log_p_z - draw.log_q_z,
        log_mean_exp,
    ),
}


class Mean(NamedTuple):
    """A mean over examples, nats."""

    value: float
    error: float  # Monte Carlo standard error of the mean: what more samples would lower
    standard_error: float  # over examples: what more examples would lower


def mean_over_examples(estimate: Estimate) -> Mean:
    """The mean of an estimate over its examples with both of its errors."""
    n = len(estimate.value)
    spread = estimate.value.std(ddof=1) / np.sqrt(n) if n > 1 else np.nan
    return Mean(float(estimate.value.mean()), float(np.sqrt((estimate.error**2).sum()) / n), float(spread))


def paired_difference(a: Estimate, b: Estimate) -> Mean:
    """Mean of a - b over the examples both were measured on, with the errors of that difference.

    The Monte Carlo errors are added as if independent; with common random numbers the true one is smaller.
    """
    both = Estimate(a.value - b.value, np.hypot(a.error, b.error), np.minimum(a.ess, b.ess))
    return mean_over_examples(both)
