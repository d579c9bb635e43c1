"""Scores of structures, pair probabilities and boxes against those of the thermodynamic ensemble.

A structure is given by its pairs, see `folding`.
"""

from typing import NamedTuple

import numpy as np

from cvae_jax.metrics import sets
from cvae_jax.tasks.rna_boxes import boxes
from cvae_jax.tasks.rna_boxes.folding import Boxes

PROBABLE = 0.1  # from which a box counts as predicted, or as one that the ensemble has


def pair_f1(a: np.ndarray, b: np.ndarray) -> float:
    """Returns the harmonic mean of precision and recall of the pairs of two structures; 1 if both have none."""
    return float(1 - distances([a], [b])[0, 0])


def distances(a: list[np.ndarray], b: list[np.ndarray]) -> np.ndarray:
    """Returns 1 - `pair_f1` of all structures of one list and all of another, float64 [len(a), len(b)]."""
    every = [np.asarray(pairs, np.int64).reshape(-1, 2) for pairs in (*a, *b)]
    owner = np.repeat(np.arange(len(every)), [len(pairs) for pairs in every])
    i, j = np.concatenate(every).T
    distinct, which = np.unique(i << 32 | j, return_inverse=True)
    holds = np.zeros((len(every), len(distinct)))
    holds[owner, which] = 1
    first, second = holds[: len(a)], holds[len(a) :]
    both, total = first @ second.T, first.sum(1)[:, None] + second.sum(1)
    return np.where(total == 0, 0.0, 1 - 2 * both / np.maximum(total, 1))


def mcc(predicted: np.ndarray, truth: np.ndarray, length: int) -> float:
    """Returns Matthews' correlation coefficient of the pairs of two structures, over all i < j of `length` bases.

    It is 0 / 0 where one of the structures has no pair: then 1 if both have none, else 0.
    """
    named, real = set(map(tuple, predicted.tolist())), set(map(tuple, truth.tolist()))
    shared, positive, true, every = len(named & real), len(named), len(real), length * (length - 1) // 2
    scale = positive * (every - positive) * true * (every - true)
    if scale == 0:
        return float(positive == true == shared)
    return (shared * every - positive * true) / scale**0.5


def ged_squared(model: list[np.ndarray], truth: list[np.ndarray]) -> float:
    """Returns the GED² of a model's structures from the ensemble's under d = 1 - pair F1, see `sets.ged_squared`.

    1 - d is a positive semi-definite kernel, so it is never negative.
    """
    return sets.ged_squared(distances(model, truth), distances(model, model), distances(truth, truth))


def diversity(structures: list[np.ndarray]) -> float:
    """Returns the expected d = 1 - pair F1 of two draws, see `sets.diversity`."""
    return sets.diversity(distances(structures, structures))


def correlation_sums(predicted: np.ndarray, exact: np.ndarray, length: int) -> np.ndarray:
    """Returns what `correlation` needs of one sequence; add it over sequences to pool them.

    Args:
      predicted: [side, side], pair probabilities; side may exceed the length.
      exact: likewise.
      length: of the sequence.

    Returns:
      float64 [6]: number of i < j below the length, and the sums of a, b, a a, b b and a b over them.
    """
    upper = np.triu_indices(length, 1)
    a, b = np.asarray(predicted, np.float64)[upper], np.asarray(exact, np.float64)[upper]
    return np.array([len(a), a.sum(), b.sum(), a @ a, b @ b, a @ b])


def correlation(sums: np.ndarray) -> np.ndarray:
    """Returns Pearson's correlation of the numbers behind sums [..., 6]: float64 [...], NaN where one is constant."""
    n, a, b, aa, bb, ab = np.moveaxis(np.asarray(sums, np.float64), -1, 0)
    spread_a, spread_b = n * aa - a * a, n * bb - b * b
    varies = (spread_a > 1e-12 * n * aa) & (spread_b > 1e-12 * n * bb)  # else it is rounding
    scale = np.sqrt(np.where(varies, spread_a, 1)) * np.sqrt(np.where(varies, spread_b, 1))
    return np.where(varies, (n * ab - a * b) / scale, np.nan)


def box_frequencies(structures: list[np.ndarray]) -> dict[tuple[int, ...], float]:
    """Returns box (type, x0, y0, wx, wy) -> share of the structures, given by their pairs, that hold it."""
    counts: dict[tuple[int, ...], int] = {}
    for pairs in structures:
        for box in set(map(tuple, boxes.boxes_of(pairs).tolist())):
            counts[box] = counts.get(box, 0) + 1
    return {box: count / len(structures) for box, count in counts.items()}


def box_counts(predicted: Boxes, truth: dict[tuple[int, ...], float]) -> np.ndarray:
    """Returns what `box_scores` needs of one sequence; add it over sequences to pool them.

    Args:
      predicted: by a model; equally probable ones rank in the order in which they stand.
      truth: of `box_frequencies`; those of a frequency of at least PROBABLE are to be found.

    Returns:
      int64 [3, 4], a row a type (stem, internal loop, hairpin): numbers of boxes to be found, of boxes predicted, of
      hits among the latter, and of hits among as many most probable predictions as there are boxes to be found.
    """
    probable = {box for box, frequency in truth.items() if frequency >= PROBABLE}
    order = np.argsort(-predicted.probability, kind="stable")
    ranked = list(map(tuple, predicted.boxes[order].tolist()))
    hit = np.array([box in probable for box in ranked], bool)
    kind, there = predicted.boxes[order, 0], predicted.probability[order] >= PROBABLE
    counts = []
    for number in (1, 2, 3):
        of_type = kind == number
        true = sum(box[0] == number for box in probable)
        counts.append([true, (of_type & there).sum(), (of_type & there & hit).sum(), hit[of_type][:true].sum()])
    return np.array(counts, np.int64)


class BoxScores(NamedTuple):
    """Shares of boxes that are found, each float64 [...]; NaN where it is 0 / 0."""

    sensitivity: np.ndarray  # share of the boxes to be found that are predicted
    precision: np.ndarray  # share of the predicted boxes that were to be found
    matched_precision: np.ndarray  # share found, by predicting as many as are to be found: R-precision


def box_scores(counts: np.ndarray) -> BoxScores:
    """Returns the scores of counts [..., 4] of `box_counts`, or of their sums over sequences, types or both."""
    true, predicted, hits, matched = np.moveaxis(np.asarray(counts, np.float64), -1, 0)

    def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
        return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)

    return BoxScores(ratio(hits, true), ratio(hits, predicted), ratio(matched, true))
