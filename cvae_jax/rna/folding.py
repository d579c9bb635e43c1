"""Secondary structures made of the boxes that a model draws, and how they compare with the thermodynamic ensemble.

Positions count from 0. `pairs` are int [n, 2], a row (i, j) with i < j a base pair; `length` is the number of bases.
"""

import functools
import itertools
from typing import Any, NamedTuple

import numpy as np

from cvae_jax.data import rna
from cvae_jax.errors import UserError
from cvae_jax.rna import boxes as layout

PROBABLE = 0.1  # from which a box counts as predicted, or as one that the ensemble has
LEAST_HAIRPIN = 3  # unpaired bases that the closing pair of a hairpin needs between its two
CANONICAL = ("AU", "UA", "CG", "GC", "GU", "UG")
LARGEST_SIDE = 163  # the codes of boxes are int32: 3 side^4 must stay below 2^31


class Ensemble(NamedTuple):
    """The thermodynamic truth of one sequence of `length` bases. Read-only: it is shared between callers."""

    probabilities: np.ndarray  # float64 [length, length]: of each pair i < j in the Boltzmann ensemble, 0 below
    mfe: np.ndarray  # pairs of the structure of minimum free energy
    mea: np.ndarray  # pairs of the structure of maximum expected accuracy, see `assemble_pairs`


@functools.lru_cache(maxsize=4096)  # several models are measured on the same sequences
def ensemble(sequence: str) -> Ensemble:
    """Exact pair probabilities, MFE and MEA structure of a sequence by ViennaRNA, at 37 °C. Draws no random numbers.

    Raises:
      UserError: for what is no sequence, or without ViennaRNA.
    """
    fold = rna.vienna().fold_compound(rna.decode(rna.encode(sequence)))
    structure, energy = fold.mfe()
    fold.exp_params_rescale(energy)  # else the partition function of a long sequence overflows
    fold.pf()
    probabilities = np.triu(np.array(fold.bpp(), np.float64)[1:, 1:], 1)
    # Not fold.MEA(): see `assemble_pairs`.
    found = Ensemble(probabilities, layout.parse(structure)[0], assemble_pairs(probabilities))
    for array in found:
        array.flags.writeable = False
    return found


class Boxes(NamedTuple):
    """Boxes with their probabilities, most probable first."""

    boxes: np.ndarray  # int16 [k, 5]: type, x0, y0, wx, wy, see `cvae_jax.rna.boxes`
    probability: np.ndarray  # float64 [k]


def encode_box(boxes: Any, side: int) -> Any:
    """Boxes [..., 5] as one integer each, int32 [...]: -1 for those of no type or not inside the side x side matrix.

    Args:
      boxes: integers, of NumPy or of JAX, traced or not.
      side: of the matrix.

    Raises:
      UserError: for a matrix too large for such codes.
    """
    if side > LARGEST_SIDE:
        raise UserError(f"boxes of a matrix of {side} x {side} do not fit into int32; the largest side: {LARGEST_SIDE}")
    kind, x0, y0, wx, wy = (boxes[..., column].astype(np.int32) for column in range(5))
    known = (kind >= 1) & (kind <= 3) & (wx >= 1) & (wy >= 1)
    inside = (x0 >= 0) & (y0 >= 0) & (x0 + wx <= side) & (y0 + wy <= side)
    code = ((((kind - 1) * side + x0) * side + y0) * side + wx - 1) * side + wy - 1
    return (code + 1) * (known & inside).astype(np.int32) - 1


def decode_box(codes: np.ndarray, side: int) -> np.ndarray:
    """The boxes, int16 [..., 5], of codes of `encode_box` other than -1."""
    kind, x0, y0, wx, wy = np.unravel_index(codes, (3, side, side, side, side))
    return np.stack([kind + 1, x0, y0, wx + 1, wy + 1], -1).astype(np.int16)


def merge(codes: np.ndarray, votes: np.ndarray, side: int, threshold: float = 0.1, floor: float = 0.01) -> Boxes:
    """The boxes of one sequence over samples of z.

    Args:
      codes: int32 [samples, ...], the box that each pixel and type names, of `encode_box`; -1 names none.
      votes: float32 [samples, ...], the probability that the pixel gives it.
      side: of `encode_box`.
      threshold: of a vote; smaller ones are left out.
      floor: of a box's probability; less probable boxes are left out.

    Returns:
      The boxes: one's probability is the mean over samples of what its pixels give it, see `of_samples`.
    """
    _, code, vote = _mean_votes(codes, votes, side, threshold)
    distinct, which = np.unique(code, return_inverse=True)
    return _sorted(distinct, np.bincount(which, vote, len(distinct)) / len(codes), side, floor)


def of_samples(codes: np.ndarray, votes: np.ndarray, side: int, threshold: float = 0.1) -> list[Boxes]:
    """The boxes of each sample of z alone, with the mean vote of all pixels i < j that lie in each.

    A pixel that names another box gives it 0, so a box counts as far as its pixels agree on it. Arguments as of
    `merge`.
    """
    sample, code, vote = _mean_votes(codes, votes, side, threshold)
    ends = np.searchsorted(sample, np.arange(len(codes) + 1))
    return [_sorted(code[start:end], vote[start:end], side, 0.0) for start, end in itertools.pairwise(ends)]


def _mean_votes(
    codes: np.ndarray, votes: np.ndarray, side: int, threshold: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sample, code and mean vote of each box of each sample, sorted by the first two."""
    codes, votes = codes.reshape(len(codes), -1), votes.reshape(len(votes), -1)
    sample, pixel = np.nonzero((codes >= 0) & (votes >= threshold))
    key = sample << 31 | codes[sample, pixel]
    order = np.argsort(key, kind="stable")
    key, vote = key[order], votes[sample, pixel][order].astype(np.float64)
    starts = np.flatnonzero(np.diff(key, prepend=-1))
    if len(starts):
        vote = np.add.reduceat(vote, starts)
    key = key[starts]
    sample, code = key >> 31, key & (1 << 31) - 1
    return sample, code, np.minimum(vote / _num_pixels(decode_box(code, side)), 1)


def _num_pixels(boxes: np.ndarray) -> np.ndarray:
    """How many pixels i < j lie in each box, integers [k, 5], at least 1."""
    _, x0, y0, wx, wy = boxes.astype(np.int64).T[..., None]
    row = np.arange(wx.max(initial=0))[None]
    columns = np.clip(y0 + wy - np.maximum(y0, x0 + row + 1), 0, None) * (row < wx)
    return np.maximum(columns.sum(1), 1)


def _sorted(code: np.ndarray, probability: np.ndarray, side: int, floor: float) -> Boxes:
    """Boxes of at least that probability; equally probable ones stand in order of their ascending codes."""
    order = np.argsort(-probability, kind="stable")
    order = order[probability[order] >= floor]
    return Boxes(decode_box(code[order], side), probability[order])


def assemble(
    boxes: np.ndarray, probability: np.ndarray, length: int, sequence: str | None = None, gamma: float = 1.0
) -> np.ndarray:
    """The pairs of a valid structure made of stem boxes: `assemble_pairs` of the pairs that the stems hold.

    Stems that share a pair exclude each other, so its probability is the sum of theirs, at most 1. Boxes of other
    types, and pairs outside the matrix, have no say.

    Args:
      boxes: integers [k, 5].
      probability: [k], of the boxes.
      length: of the sequence.
      sequence: see `assemble_pairs`.
      gamma: see `assemble_pairs`.
    """
    stem = boxes[:, 0] == layout.STEM
    _, x0, y0, wx, wy = boxes[stem].astype(np.int64).T
    count = np.minimum(wx, wy)
    which = np.repeat(np.arange(len(count)), count)
    step = np.arange(len(which)) - (np.cumsum(count) - count)[which]
    i, j = x0[which] + step, (y0 + wy - 1)[which] - step  # from the top right corner, down the anti-diagonal
    inside = (i >= 0) & (i < length) & (j >= 0) & (j < length)
    probabilities = np.zeros((length, length))
    np.add.at(probabilities, (i[inside], j[inside]), probability[stem][which][inside])
    return assemble_pairs(np.minimum(probabilities, 1), sequence, gamma)


def assemble_pairs(probabilities: np.ndarray, sequence: str | None = None, gamma: float = 1.0) -> np.ndarray:
    """The structure of maximum expected accuracy: no two pairs cross or share a base, hairpins of at least 3 bases.

    It maximises the sum of 2 gamma p over its pairs, and of the probability to be unpaired over its other bases. That
    probability is 1 less those of the base's pairs, or 0 where these exceed 1, as a model's may. Ties are
    broken the same way at each call.

    ViennaRNA's MEA_from_plist maximises the same, but allows hairpins of any size, and where structures tie or
    probabilities of a base exceed 1 its backtracking fails or returns a worse structure (2.7.2).

    Args:
      probabilities: float [length, length], of pairs i < j; what lies elsewhere is not read.
      sequence: where given, pairs of bases other than AU, CG and GU are left out.
      gamma: larger ones give more pairs.

    Returns:
      The pairs, int64 [n, 2], sorted.

    Raises:
      UserError: for a sequence of another length, and for what is none.
    """
    length = len(probabilities)
    allowed = np.triu(np.asarray(probabilities, np.float64), LEAST_HAIRPIN + 1)
    if sequence is not None:
        if len(sequence) != length:
            raise UserError(f"a sequence of {len(sequence)} bases has pair probabilities of {length} x {length}")
        allowed = allowed * _canonical(sequence)
    unpaired = np.maximum(1 - allowed.sum(0) - allowed.sum(1), 0)
    gain = 2 * gamma * allowed - unpaired[:, None] - unpaired
    partners = [np.flatnonzero(column) for column in (gain > 0).T]  # of each j, those i that are worth a pair
    # best[j, i] is the gain of the best structure of the bases i to j - 1, none for i > j (Nussinov & Jacobson 1980).
    best = np.full((length + 1, length + 1), -np.inf)
    best[0, 0] = 0
    for j, left in enumerate(partners):
        best[j + 1] = best[j]
        best[j + 1, j + 1] = 0
        if len(left):
            enclosed = gain[left, j] + best[j, left + 1]
            np.maximum(best[j + 1], (best[left] + enclosed[:, None]).max(0), out=best[j + 1])
    pairs = []
    open_ = [(0, length)]
    while open_:
        i, end = open_.pop()
        while end > i and best[end, i] == best[end - 1, i]:
            end -= 1
        if end > i:
            j, left = end - 1, partners[end - 1]
            k = int(left[np.argmax(best[left, i] + (gain[left, j] + best[j, left + 1]))])
            pairs.append((k, j))
            open_ += [(i, k), (k + 1, j)]
    return np.array(sorted(pairs), np.int64).reshape(-1, 2)


@functools.lru_cache(maxsize=64)  # every sample of a sequence asks again
def _canonical(sequence: str) -> np.ndarray:
    """Which bases can pair, bool [length, length]."""
    table = np.array([[first + second in CANONICAL for second in rna.LETTERS] for first in rna.LETTERS])
    codes = rna.encode(sequence)
    return table[np.ix_(codes, codes)]


def pair_f1(a: np.ndarray, b: np.ndarray) -> float:
    """Harmonic mean of the shares of either structure's pairs that the other has too; 1 if both have none."""
    return float(1 - distances([a], [b])[0, 0])


def distances(a: list[np.ndarray], b: list[np.ndarray]) -> np.ndarray:
    """1 - `pair_f1` of all structures of one list and all of another, float64 [len(a), len(b)]."""
    every = [np.asarray(pairs, np.int64).reshape(-1, 2) for pairs in (*a, *b)]
    owner = np.repeat(np.arange(len(every)), [len(pairs) for pairs in every])
    i, j = np.concatenate(every).T
    distinct, which = np.unique(i << 32 | j, return_inverse=True)
    holds = np.zeros((len(every), len(distinct)))
    holds[owner, which] = 1
    one, two = holds[: len(a)], holds[len(a) :]
    both, total = one @ two.T, one.sum(1)[:, None] + two.sum(1)
    return np.where(total == 0, 0.0, 1 - 2 * both / np.maximum(total, 1))


def mcc(predicted: np.ndarray, truth: np.ndarray, length: int) -> float:
    """Matthews' correlation coefficient of the pairs of two structures, over all i < j of `length` bases.

    Where it is 0 / 0, as one of the structures has no pair: 1 if both have none, else 0.
    """
    one, two = set(map(tuple, predicted.tolist())), set(map(tuple, truth.tolist()))
    shared, positive, true, every = len(one & two), len(one), len(two), length * (length - 1) // 2
    scale = positive * (every - positive) * true * (every - true)
    if scale == 0:
        return float(positive == true == shared)
    return (shared * every - positive * true) / scale**0.5


def ged_squared(model: list[np.ndarray], truth: list[np.ndarray]) -> float:
    """Squared generalised energy distance of a model's structures from the ensemble's, under d = 1 - pair F1.

    2 E d(model, truth) - E d(model, model') - E d(truth, truth'), each the mean over all pairs of structures, those of
    a structure with itself included (a V-statistic, as of Kohl et al. 2018). Since 1 - d is a positive semi-definite
    kernel, that is never negative, and 0 exactly where every structure has the same share of both lists. Leaving self
    pairs out would make it unbiased, but negative for a good model. Its bias is E d(model, model') / len(model) and
    likewise of the truth: compare models by equal numbers of structures.
    """
    return float(2 * distances(model, truth).mean() - distances(model, model).mean() - distances(truth, truth).mean())


def diversity(structures: list[np.ndarray]) -> float:
    """Expected d = 1 - pair F1 of two draws: the mean over pairs of different draws, equal or not; 0 of a single one.

    Unbiased, so that it does not depend on how many were drawn.
    """
    count = len(structures)
    return float(distances(structures, structures).sum() / max(count * (count - 1), 1))


def correlation_sums(predicted: np.ndarray, exact: np.ndarray, length: int) -> np.ndarray:
    """What `correlation` needs of one sequence; add it over sequences to pool them.

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
    """Pearson's correlation of the numbers behind sums [..., 6]: float64 [...], NaN where either is constant."""
    n, a, b, aa, bb, ab = np.moveaxis(np.asarray(sums, np.float64), -1, 0)
    spread_a, spread_b = n * aa - a * a, n * bb - b * b
    varies = (spread_a > 1e-12 * n * aa) & (spread_b > 1e-12 * n * bb)  # else it is rounding
    scale = np.sqrt(np.where(varies, spread_a, 1)) * np.sqrt(np.where(varies, spread_b, 1))
    return np.where(varies, (n * ab - a * b) / scale, np.nan)


def box_frequencies(structures: list[np.ndarray]) -> dict[tuple[int, ...], float]:
    """Box (type, x0, y0, wx, wy) -> share of the structures, given by their pairs, that hold it."""
    counts: dict[tuple[int, ...], int] = {}
    for pairs in structures:
        for box in set(map(tuple, layout.boxes_of(pairs).tolist())):
            counts[box] = counts.get(box, 0) + 1
    return {box: count / len(structures) for box, count in counts.items()}


def box_counts(predicted: Boxes, truth: dict[tuple[int, ...], float], level: float = PROBABLE) -> np.ndarray:
    """What `box_scores` needs of one sequence; add it over sequences to pool them.

    Args:
      predicted: by a model; equally probable ones rank in the order in which they stand.
      truth: of `box_frequencies`; those of a frequency of at least `level` are to be found.
      level: from which a box counts as there, of the truth and of the prediction.

    Returns:
      int64 [3, 4], a row a type (stem, internal loop, hairpin): numbers of boxes to be found, of boxes predicted, of
      hits among the latter, and of hits among as many most probable predictions as there are boxes to be found.
    """
    wanted = {box for box, frequency in truth.items() if frequency >= level}
    order = np.argsort(-predicted.probability, kind="stable")
    ranked = list(map(tuple, predicted.boxes[order].tolist()))
    hit = np.array([box in wanted for box in ranked], bool)
    kind, there = predicted.boxes[order, 0], predicted.probability[order] >= level
    counts = []
    for number in (1, 2, 3):
        of_type = kind == number
        true = sum(box[0] == number for box in wanted)
        counts.append([true, (of_type & there).sum(), (of_type & there & hit).sum(), hit[of_type][:true].sum()])
    return np.array(counts, np.int64)


class BoxScores(NamedTuple):
    """How well boxes are found, each float64 [...]; NaN where it is 0 / 0."""

    sensitivity: np.ndarray  # share of the boxes to be found that are predicted
    precision: np.ndarray  # share of the predicted boxes that were to be found
    matched_precision: np.ndarray  # share found, by predicting as many as are to be found: R-precision


def box_scores(counts: np.ndarray) -> BoxScores:
    """The scores of counts [..., 4] of `box_counts`, or of their sums over sequences, types or both."""
    true, predicted, hits, matched = np.moveaxis(np.asarray(counts, np.float64), -1, 0)

    def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
        return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)

    return BoxScores(ratio(hits, true), ratio(hits, predicted), ratio(matched, true))
