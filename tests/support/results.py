"""Results of two examples or more, made by hand, and the cells of their table."""

import numpy as np

from cvae_jax.evaluation.tables import Result
from cvae_jax.inference.estimators import Estimate


def estimate(value, error=0.0, ess=1.0, k_hat=np.nan, bias=0.0, flagged=0.0):
    """Flagged examples are doubted, as of a single factor."""
    return Estimate(
        np.asarray(value, float), *(np.zeros(len(value)) + of for of in (error, ess, k_hat, bias, flagged, flagged))
    )


def result(column, model, estimator, num_samples, *estimates):
    return Result("w", "grey targets", column, model, estimator, num_samples, tuple(range(len(estimates))), estimates)


def cells(text):
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
