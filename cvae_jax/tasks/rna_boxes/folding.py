"""Secondary structures made of the boxes, or of the pair probabilities, that a model gives.

Positions count from 0. `pairs` are int [n, 2]: a row (i, j), i < j, is a base pair. `length` is the number of bases.
"""

import functools
import itertools
from typing import NamedTuple, TypeVar

import numpy as np
from jax import Array

from cvae_jax.errors import UserError
from cvae_jax.tasks.rna_boxes.boxes import STEM
from cvae_jax.tasks.rna_boxes.sequences import LETTERS, encode

LEAST_HAIRPIN = 3  # unpaired bases that the closing pair of a hairpin needs between its two
CANONICAL = ("AU", "UA", "CG", "GC", "GU", "UG")
LARGEST_SIDE = 163  # the codes of boxes are int32: 3 side^4 must stay below 2^31

Integers = TypeVar("Integers", np.ndarray, Array)


class Boxes(NamedTuple):
    """Boxes with their probabilities, most probable first."""

    boxes: np.ndarray  # int16 [k, 5]: type, x0, y0, wx, wy, see boxes.py
    probability: np.ndarray  # float64 [k]


def encode_box(boxes: Integers, side: int) -> Integers:
    """Returns boxes [..., 5] as an integer each, int32 [...]: -1 for no type, or not inside the side x side matrix.

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
    """Returns the boxes, int16 [..., 5], of codes of `encode_box` other than -1."""
    kind, x0, y0, wx, wy = np.unravel_index(codes, (3, side, side, side, side))
    return np.stack([kind + 1, x0, y0, wx + 1, wy + 1], -1).astype(np.int16)


def merge(codes: np.ndarray, votes: np.ndarray, side: int, threshold: float = 0.1, floor: float = 0.01) -> Boxes:
    """Returns the boxes of one sequence over samples of z.

    Args:
      codes: int32 [samples, ...], the box that each pixel and type names, of `encode_box`; -1 names none.
      votes: float32 [samples, ...], the probability that the pixel gives it.
      side: of `encode_box`.
      threshold: of a vote; smaller ones are left out.
      floor: of a box's probability; less probable boxes are left out.

    Returns:
      The boxes. The probability of a box is the mean over samples of what its pixels give it, see `of_samples`.
    """
    _, code, vote = _mean_votes(codes, votes, side, threshold)
    distinct, which = np.unique(code, return_inverse=True)
    return _sorted(distinct, np.bincount(which, vote, len(distinct)) / len(codes), side, floor)


def of_samples(codes: np.ndarray, votes: np.ndarray, side: int, threshold: float = 0.1) -> list[Boxes]:
    """Returns the boxes of each sample of z alone, with the mean vote of all pixels i < j that lie in each.

    A pixel that names another box gives it 0, so a box counts as far as its pixels agree on it.

    Args:
      codes: as in `merge`.
      votes: as in `merge`.
      side: of `encode_box`.
      threshold: of a vote; smaller ones are left out.
    """
    sample, code, vote = _mean_votes(codes, votes, side, threshold)
    ends = np.searchsorted(sample, np.arange(len(codes) + 1))
    return [_sorted(code[start:end], vote[start:end], side, 0.0) for start, end in itertools.pairwise(ends)]


def _mean_votes(
    codes: np.ndarray, votes: np.ndarray, side: int, threshold: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns sample, code and mean vote of each box of each sample, sorted by the first two."""
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
    """Counts the pixels i < j that lie in each box, integers [k, 5]; at least 1."""
    _, x0, y0, wx, wy = boxes.astype(np.int64).T[..., None]
    row = np.arange(wx.max(initial=0))[None]
    columns = np.clip(y0 + wy - np.maximum(y0, x0 + row + 1), 0, None) * (row < wx)
    return np.maximum(columns.sum(1), 1)


def _sorted(code: np.ndarray, probability: np.ndarray, side: int, floor: float) -> Boxes:
    """Returns the boxes of at least that probability, equally probable ones in the order of their codes."""
    order = np.argsort(-probability, kind="stable")
    order = order[probability[order] >= floor]
    return Boxes(decode_box(code[order], side), probability[order])


def assemble(
    boxes: np.ndarray, probability: np.ndarray, length: int, sequence: str | None = None, gamma: float = 1.0
) -> np.ndarray:
    """Returns the pairs of a valid structure made of stem boxes: `assemble_pairs` of the pairs that the stems hold.

    Stems that share a pair exclude each other, so its probability is the sum of theirs, at most 1. Boxes of other
    types, and pairs outside the matrix, have no say.

    Args:
      boxes: integers [k, 5].
      probability: [k], of the boxes.
      length: of the sequence.
      sequence: see `assemble_pairs`.
      gamma: see `assemble_pairs`.
    """
    stem = boxes[:, 0] == STEM
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
    """Returns the structure of maximum expected accuracy.

    No two of its pairs cross or share a base, and its hairpins have at least 3 bases. It maximises the sum of 2 gamma p
    over its pairs, and of the probability to be unpaired over its other bases. That probability is 1 less those of the
    base's pairs, or 0 where these exceed 1, as a model's may. Ties are broken the same way at each call.

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
    intervals = [(0, length)]
    while intervals:
        i, end = intervals.pop()
        while end > i and best[end, i] == best[end - 1, i]:
            end -= 1
        if end > i:
            j, left = end - 1, partners[end - 1]
            k = int(left[np.argmax(best[left, i] + (gain[left, j] + best[j, left + 1]))])
            pairs.append((k, j))
            intervals += [(i, k), (k + 1, j)]
    return np.array(sorted(pairs), np.int64).reshape(-1, 2)


@functools.lru_cache(maxsize=64)  # every sample of a sequence asks again
def _canonical(sequence: str) -> np.ndarray:
    """Returns which bases can pair, bool [length, length]."""
    table = np.array([[first + second in CANONICAL for second in LETTERS] for first in LETTERS])
    codes = encode(sequence)
    return table[np.ix_(codes, codes)]
