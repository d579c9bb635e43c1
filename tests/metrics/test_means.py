"""Metrics that are no mean over examples, against loops in float64."""

import math

import numpy as np
import pytest

from cvae_jax.evaluation.report import Measurement
from cvae_jax.metrics.means import ratio_of_sums
from cvae_jax.task import Metric


def test_ratio_of_sums_is_the_mean_weighted_by_example():
    rng = np.random.default_rng(0)
    values, weights = rng.normal(size=20), rng.integers(1, 9, 20).astype(float)
    total = weight = 0.0
    for value, count in zip(values, weights, strict=True):
        total += value * count
        weight += count
    sums = np.stack([values * weights, weights], -1).sum(0)
    assert ratio_of_sums(sums) == pytest.approx(total / weight, rel=1e-12)
    assert abs(total / weight - values.mean()) > 1e-3


@pytest.mark.parametrize("shape", [(), (4,), (2, 3)])
def test_ratios_of_many_sums(shape):
    sums = np.random.default_rng(1).uniform(1, 2, (*shape, 2))
    ratios = ratio_of_sums(sums)
    assert np.shape(ratios) == shape and ratios.dtype == np.float64
    for place in np.ndindex(shape):
        assert ratios[place] == pytest.approx(float(sums[place][0]) / float(sums[place][1]), rel=1e-12)


def test_the_ratio_of_nothing_is_not_a_number():
    """And no warning, which would be an error here."""
    ratios = ratio_of_sums(np.array([[0.0, 0.0], [3.0, 2.0], [0.0, 5.0]]))
    assert math.isnan(ratios[0]) and ratios[1:].tolist() == [1.5, 0.0]


def test_a_metric_that_is_pooled_so():
    """Each example counts by its weight; those without a value are left out."""
    values = np.array([[[6.0, 2.0], [np.nan, np.nan], [1.0, 8.0]]])  # [seeds, examples, (value, weight)]
    mean, _ = Measurement("w", "column", "m", "error", (0,), Metric(values, pool=ratio_of_sums)).mean()
    assert mean.value == pytest.approx(7 / 10)
    # Leaving out either of the two examples: 1/8 and 3.
    assert mean.standard_error == pytest.approx(math.sqrt(1 / 2 * 2 * ((3 - 1 / 8) / 2) ** 2))
