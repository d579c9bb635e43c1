"""RNA secondary structures as bounding boxes in the matrix of base pairs, and boxes as targets at every pixel.

A box is a row (type, x0, y0, wx, wy): rows x0 to x0 + wx - 1 and columns y0 to y0 + wy - 1 of the L x L matrix whose
pixel (i, j), i < j, stands for the pair of the bases i and j, counted from 0. So x counts rows, and y columns. A box's
top-right corner is the pair that closes it from outside. Multiloops and pseudoknots have no box.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from cvae_jax.errors import UserError

TYPES = ("stem", "internal loop", "hairpin")
CODES = STEM, INTERNAL, HAIRPIN = 1, 2, 3  # of TYPES; 0 is no box

MAX_LEN = 2**15 - 1  # bases: boxes are int16

FAR = 10  # offsets and sizes have a class each up to here, and one for all beyond

OPENING = "([{<ABCDEFGHIJKLMNOPQRSTUVWXYZ"
CLOSING = ")]}>abcdefghijklmnopqrstuvwxyz"
MATCH = dict(zip(CLOSING, OPENING, strict=True))


def parse(structure: str) -> tuple[np.ndarray, int]:
    """Returns the pairs of a structure in dot-bracket notation, and how many it leaves out.

    Args:
      structure: "(" and ")" for pairs, "." for a base without; other brackets and letters (Aa) mark pseudoknots.

    Returns:
      The pairs of the round brackets, int32 [n, 2], sorted, and how many pairs of the other kinds were left out.

    Raises:
      UserError: for brackets that do not match and unknown characters.
    """
    opened: list[int] = []  # round brackets
    knots: dict[str, list[int]] = {}  # of each other kind
    pairs = []
    num_dropped = 0
    for position, mark in enumerate(structure):
        if mark == ".":
            continue
        if mark == "(":
            opened.append(position)
        elif mark == ")" and opened:
            pairs.append((opened.pop(), position))
        elif mark in OPENING:
            knots.setdefault(mark, []).append(position)
        elif mark in MATCH and knots.get(MATCH[mark]):
            knots[MATCH[mark]].pop()
            num_dropped += 1
        elif mark in MATCH:
            raise UserError(f"structure: {mark!r} at position {position + 1} closes nothing; balance the brackets")
        else:
            raise UserError(f"structure: {mark!r} at position {position + 1} is unknown; write it as dots and brackets")
    left = sorted(opened + [position for positions in knots.values() for position in positions])
    if left:
        mark = structure[left[0]]
        raise UserError(f"structure: {mark!r} at position {left[0] + 1} is never closed; balance the brackets")
    return np.array(sorted(pairs), np.int32).reshape(-1, 2), num_dropped


def dot_bracket(pairs: np.ndarray, length: int) -> str:
    """Returns the structure of `length` bases with these pairs, int [n, 2], in dot-bracket notation.

    The pairs must not cross.
    """
    marks = ["."] * length
    for first, last in np.asarray(pairs).tolist():
        marks[first], marks[last] = "(", ")"
    return "".join(marks)


def boxes_of(pairs: np.ndarray) -> np.ndarray:
    """Returns the boxes of the structure with these base pairs; `parse` makes them of dot-bracket notation.

    A stem is a maximal run of stacked pairs (i, j), (i + 1, j - 1), ...: a square with the pairs on its anti-diagonal.
    An internal loop or bulge between an outer pair (p, q) and an inner one (r, s) has the rows p to r and the columns
    s to q. A hairpin closed by (i, j) is the square of the rows and columns i to j.

    Args:
      pairs: int [n, 2], the two bases of each, counted from 0.

    Returns:
      int16 [k, 5] of (type, x0, y0, wx, wy), sorted by (x0, -(y0 + wy), type): from the outside in.

    Raises:
      UserError: for pairs that cross or share a base.
    """
    ordered, num_inside = _nested(pairs)
    boxes = []
    start = 0
    for n, (i, j) in enumerate(ordered):
        inner = ordered[n + 1] if num_inside[n] else None
        if inner == (i + 1, j - 1):
            continue
        x0, size = ordered[start][0], n + 1 - start
        boxes.append((STEM, x0, j, size, size))
        if inner is None:
            boxes.append((HAIRPIN, i, i, j - i + 1, j - i + 1))
        elif num_inside[n] == 1:
            boxes.append((INTERNAL, i, inner[1], inner[0] - i + 1, j - inner[1] + 1))
        start = n + 1
    boxes.sort(key=_order)
    return np.array(boxes, np.int16).reshape(-1, 5)


def _order(box: tuple[int, ...]) -> tuple[int, int, int]:
    """Returns what boxes are sorted by."""
    kind, x0, y0, _, wy = box
    return x0, -(y0 + wy), kind


def _nested(pairs: np.ndarray) -> tuple[list[tuple[int, int]], list[int]]:
    """Returns the pairs sorted, those inside a pair after it, and how many pairs lie directly inside each."""
    ordered = sorted(map(tuple, np.asarray(pairs).tolist()))
    num_inside = [0] * len(ordered)
    enclosing: list[tuple[int, int]] = []  # (last base, position) of the pairs around here, outermost first
    previous = -1
    for n, (i, j) in enumerate(ordered):
        while enclosing and enclosing[-1][0] < i:
            previous = enclosing.pop()[0]
        if not previous < i < j or (enclosing and enclosing[-1][0] <= j):
            raise UserError(f"pair ({i}, {j}) crosses another or shares a base with it; leave pseudoknots out")
        if enclosing:
            num_inside[enclosing[-1][1]] += 1
        enclosing.append((j, n))
        previous = i
    return ordered, num_inside


def pairs_of(boxes: np.ndarray) -> np.ndarray:
    """Returns the pairs that lie in the stems among the boxes, int [k, 5]: int32 [n, 2], sorted."""
    stems = np.asarray(boxes, np.int32)
    stems = stems[stems[:, 0] == STEM]
    rows = np.repeat(stems, stems[:, 3], axis=0)
    step = np.arange(len(rows)) - np.repeat(np.cumsum(stems[:, 3]) - stems[:, 3], stems[:, 3])
    pairs = np.stack([rows[:, 1] + step, rows[:, 2] + rows[:, 4] - 1 - step], 1).astype(np.int32)
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]


def num_multiloops(pairs: np.ndarray) -> int:
    """Counts the loops of the structure that three pairs or more close: those that no box stands for."""
    return sum(number > 1 for number in _nested(pairs)[1])


def max_boxes(length: int) -> int:
    """Returns the most boxes that a structure of `length` bases may have, at least 1.

    Its hairpins leave two bases or more unpaired. Each stem closes one loop: a hairpin, with which it makes 2 boxes of
    at least 2 + 2 bases; an internal loop, 2 boxes of at least 2 + 1; or a multiloop, 1 box of at least 2 bases. For
    h, i and m of them, 3/2 (2h + 2i + m) is at most the length less h + m/2, and h >= 1; so there are at most
    2 (length - 1) / 3 boxes. Whole numbers of them reach no further than 2 (length // 3). ViennaRNA's hairpins leave
    three bases unpaired.
    """
    return max(1, 2 * (length // 3))


def targets(boxes: Array, side: int) -> dict[str, Array]:
    """Returns the training targets of every pixel: which boxes cover it, where it lies in them, how large they are.

    Only pixels i < j count; all is 0 elsewhere and outside boxes. A pixel that two boxes of a type cover describes the
    first.

    Args:
      boxes: int [..., K, 5], K >= 1, padded with type 0.
      side: L, no less than the longest structure.

    Returns:
      on: int8 [..., L, L, 3], 1 inside a box of each type.
      location: int8 [..., L, L, 6], how many rows below and columns left of the box's top-right corner, for the three
        types in turn, 11 for more than 10.
      size: int8 [..., L, L, 4], size - 1 up to 9, 10 for sizes above 10: of a stem, an internal loop's rows and its
        columns, of a hairpin.
      scalar: float32 [..., L, L, 4], these sizes.
    """
    flat = boxes.reshape(-1, *boxes.shape[-2:]).astype(jnp.int32)
    dense = jax.vmap(functools.partial(_targets, side=side))(flat)
    return {name: array.reshape(*boxes.shape[:-2], *array.shape[1:]) for name, array in dense.items()}


def _targets(boxes: Array, side: int) -> dict[str, Array]:
    """Returns the targets of one structure, int32 [K, 5]."""
    kind, x0, y0, wx, wy = boxes.T
    i = jnp.arange(side)[:, None]
    j = i.T
    rows = (i >= x0[None]) & (i < (x0 + wx)[None])  # [L, K]
    columns = (i >= y0[None]) & (i < (y0 + wy)[None])
    table = jnp.concatenate([boxes, jnp.zeros_like(boxes[:1])])  # the last stands for no box
    on, location, scalar = [], [], []
    for code in CODES:
        first = jnp.where(i < j, _first(rows & (kind == code)[None], columns), len(boxes))
        inside = first < len(boxes)
        _, top, left, height, width = jnp.moveaxis(table[first], -1, 0)
        on.append(inside)
        location += [jnp.where(inside, i - top, 0), jnp.where(inside, left + width - 1 - j, 0)]
        scalar += [height, width] if code == INTERNAL else [height]
    size = [jnp.maximum(bases - 1, 0) for bases in scalar]
    return {
        "on": jnp.stack(on, -1).astype(jnp.int8),
        "location": jnp.minimum(jnp.stack(location, -1), FAR + 1).astype(jnp.int8),
        "size": jnp.minimum(jnp.stack(size, -1), FAR).astype(jnp.int8),
        "scalar": jnp.stack(scalar, -1).astype(jnp.float32),
    }


def _first(rows: Array, columns: Array) -> Array:
    """Returns the first box whose rows and columns, bool [L, K], hold each pixel: int32 [L, L], K for none.

    Boxes are bits of words, so that a pixel costs K / 32 operations: 3 ms for 64 structures of 60 bases and 40 boxes,
    against 70 for the minimum over boxes.
    """
    number = rows.shape[1]
    first = jnp.full((len(rows), len(columns)), number)
    row_words, column_words = _words(rows), _words(columns)
    for n in reversed(range(row_words.shape[1])):
        both = row_words[:, n, None] & column_words[None, :, n]
        below_lowest = (both & (~both + jnp.uint32(1))) - jnp.uint32(1)  # ones below the lowest bit that is set
        lowest = jax.lax.population_count(below_lowest).astype(first.dtype)
        first = jnp.where(both > 0, 32 * n + lowest, first)
    return first


def _words(bits: Array) -> Array:
    """Packs bits, bool [L, K], into words uint32 [L, K / 32, rounded up]; the first is the first word's lowest bit."""
    whole = jnp.pad(bits, ((0, 0), (0, -bits.shape[1] % 32))).reshape(len(bits), -1, 32).astype(jnp.uint32)
    return (whole << jnp.arange(32, dtype=jnp.uint32)[None, None]).sum(-1, dtype=jnp.uint32)


def boxes_from_targets(targets: dict[str, np.ndarray]) -> np.ndarray:
    """Returns the boxes of one structure's targets [L, L, ...]: int16 [k, 5] in the order of `boxes_of`."""
    boxes: set[tuple[int, ...]] = set()
    for code, (first, last) in {STEM: (0, 0), INTERNAL: (1, 2), HAIRPIN: (3, 3)}.items():
        location = np.asarray(targets["location"])[..., 2 * code - 2 : 2 * code].astype(int)
        near = (np.asarray(targets["on"])[..., code - 1] > 0) & (location <= FAR).all(-1)
        i, j = np.nonzero(near)
        wx, wy = (np.rint(np.asarray(targets["scalar"])[near][:, size]).astype(int) for size in (first, last))
        corner = i - location[near][:, 0], j + location[near][:, 1]
        rows = np.stack([np.full_like(i, code), corner[0], corner[1] - wy + 1, wx, wy], 1)
        boxes.update(map(tuple, np.unique(rows, axis=0).tolist()))
    return np.array(sorted(boxes, key=_order), np.int16).reshape(-1, 5)


def shared_pixels(boxes: np.ndarray) -> int:
    """Counts the pixels i < j that lie in more than one of the boxes, int [k, 5], of the same type."""
    return sum(
        _shared(sorted(map(tuple, rows.tolist()))) for rows in (boxes[boxes[:, 0] == code, 1:] for code in CODES)
    )


def _shared(boxes: list[tuple[int, int, int, int]]) -> int:
    """Counts these pixels of the boxes (x0, y0, wx, wy) of a type, in bands of rows in which no box begins or ends."""
    edges = sorted({edge for x0, _, wx, _ in boxes for edge in (x0, x0 + wx)})
    waiting, total = boxes[::-1], 0
    inside: list[tuple[int, int, int, int]] = []
    for top, bottom in itertools.pairwise(edges):
        inside = [box for box in inside if box[0] + box[2] > top]
        while waiting and waiting[-1][0] == top:
            inside.append(waiting.pop())
        if len(inside) > 1:
            rows, columns = np.arange(top, bottom), [edge for _, y0, _, wy in inside for edge in (y0, y0 + wy)]
            for left, right in itertools.pairwise(sorted(set(columns))):
                if sum(y0 <= left < y0 + wy for _, y0, _, wy in inside) > 1:
                    total += int(np.maximum(0, right - np.maximum(left, rows + 1)).sum())
    return total
