"""Metrics that are no mean over examples, from sums over examples."""

import numpy as np


def ratio_of_sums(sums: np.ndarray) -> np.ndarray:
    """Returns a mean weighted by example, for `Metric.pool`: sums [..., 2] of values and weights; NaN of 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return sums[..., 0] / sums[..., 1]
