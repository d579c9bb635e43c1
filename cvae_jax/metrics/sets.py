"""Metrics of sets of samples, of a model and of the truth, from the distances between their members."""

import numpy as np


def ged_squared(between: np.ndarray, within_model: np.ndarray, within_truth: np.ndarray) -> float:
    """Returns the squared generalised energy distance of a model's samples from those of the truth.

    2 E d(model, truth) - E d(model, model') - E d(truth, truth'). Each mean is over all pairs, those of a sample with
    itself included (a V-statistic, as of Kohl et al. 2018). It is 0 exactly where every member has the same share of
    both sets, and never negative where 1 - d is a positive semi-definite kernel. Leaving self pairs out would make it
    unbiased, but negative for a good model. Its bias is E d(model, model') / m, and likewise of the truth: compare
    models by equal numbers m of samples.

    Args:
      between: [m, n], the distance of every sample of the model from every one of the truth.
      within_model: [m, m], the distances of the model's samples from each other.
      within_truth: [n, n], those of the truth's.
    """
    return float(2 * between.mean() - within_model.mean() - within_truth.mean())


def diversity(within: np.ndarray) -> float:
    """Returns the expected distance of two draws: the mean over pairs of different draws, equal or not.

    It is unbiased, so that it does not depend on how many were drawn; 0 of a single one.

    Args:
      within: [m, m], the distances of the draws from each other.
    """
    count = len(within)
    return float(within.sum() / max(count * (count - 1), 1))
