"""What is made of boxes and of pair probabilities, against brute force, closed forms and ViennaRNA."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from structures import NONE, SEQUENCE, as_set, drawn

from cvae_jax.errors import UserError
from cvae_jax.tasks.rna_boxes import boxes as layout
from cvae_jax.tasks.rna_boxes import folding, scores


def letters(rng, length):
    return "".join(rng.choice(list("ACGU"), length))


def structures(start, end, pairs):
    """All structures of the bases start to end - 1 made of the given pairs, in which none cross or share a base."""
    if end - start < 5:
        return [()]
    together = structures(start + 1, end, pairs)
    for j in range(start + 4, end):
        if (start, j) in pairs:
            inner, outer = structures(start + 1, j, pairs), structures(j + 1, end, pairs)
            together = together + [((start, j), *a, *b) for a in inner for b in outer]
    return together


# Codes of boxes.


def test_codes_of_all_boxes():
    side = 6
    rows = np.stack(np.meshgrid(*map(np.arange, (5, 8, 8, 8, 8)), indexing="ij"), -1).reshape(-1, 5)
    rows[:, 1:] -= 1
    codes = folding.encode_box(rows, side)
    kind, x0, y0, wx, wy = rows.T
    inside = (kind >= 1) & (kind <= 3) & (wx >= 1) & (wy >= 1)
    inside &= (x0 >= 0) & (y0 >= 0) & (x0 + wx <= side) & (y0 + wy <= side)
    np.testing.assert_array_equal(codes >= 0, inside)
    assert (codes[~inside] == -1).all() and codes.dtype == np.int32
    assert len(np.unique(codes[inside])) == inside.sum()
    np.testing.assert_array_equal(folding.decode_box(codes[inside], side), rows[inside])
    traced = jax.jit(folding.encode_box, static_argnums=1)(jnp.asarray(rows, jnp.int32), side)
    assert traced.dtype == jnp.int32
    np.testing.assert_array_equal(traced, codes)


def test_codes_of_the_largest_matrix():
    side = folding.LARGEST_SIDE
    corner = np.array([[3, side - 1, side - 1, 1, 1], [3, 0, 0, side, side]], np.int16)
    for array in (corner, jnp.asarray(corner)):
        np.testing.assert_array_equal(folding.decode_box(np.asarray(folding.encode_box(array, side)), side), corner)
    with pytest.raises(UserError, match="163"):
        folding.encode_box(corner, side + 1)


# Merging.


def votes_of(seed, samples=7, side=9, distinct=12):
    """Random votes, most of them for a few boxes: codes and votes [samples, side, side, 3]."""
    rng = np.random.default_rng(seed)
    rows = np.stack(
        [rng.integers(1, 4, distinct), *rng.integers(0, 5, (2, distinct)), *rng.integers(1, 5, (2, distinct))]
    )
    few = np.append(folding.encode_box(rows.T, side), -1).astype(np.int32)
    shape = samples, side, side, 3
    return few[rng.integers(0, len(few), shape)], (rng.random(shape) ** 4).astype(np.float32) * (
        rng.random(shape) < 0.1
    )


def pixels(box):
    """The pixels i < j of a box."""
    _, x0, y0, wx, wy = (int(number) for number in box)
    return [(i, j) for i in range(x0, x0 + wx) for j in range(y0, y0 + wy) if i < j]


def slowly(codes, votes, threshold):
    """Of each sample, code -> mean vote of its box's pixels, by a loop over pixels."""
    means = []
    for of_sample, their in zip(codes, votes, strict=True):
        total = {}
        for code, vote in zip(of_sample.ravel().tolist(), their.ravel().tolist(), strict=True):
            if code >= 0 and vote >= threshold:
                total[code] = total.get(code, 0) + vote
        means.append(
            {c: min(1, sum_ / max(1, len(pixels(folding.decode_box(np.array(c), 9))))) for c, sum_ in total.items()}
        )
    return means


@pytest.mark.parametrize("seed", range(5))
def test_merge_against_a_loop(seed):
    codes, votes = votes_of(seed)
    each = slowly(codes, votes, 0.1)
    mean = {code: sum(own.get(code, 0) for own in each) / 7 for own in each for code in own}
    mean = {code: value for code, value in mean.items() if value >= 0.05}
    merged = folding.merge(codes, votes, 9, floor=0.05)
    assert len(mean) > 3
    order = sorted(mean, key=lambda code: (-mean[code], code))
    np.testing.assert_array_equal(merged.boxes, folding.decode_box(np.array(order), 9))
    np.testing.assert_allclose(merged.probability, [mean[code] for code in order], rtol=1e-12)
    assert merged.boxes.dtype == np.int16 and merged.probability.dtype == np.float64

    for own, mean in zip(folding.of_samples(codes, votes, 9), each, strict=True):
        order = sorted(mean, key=lambda code: (-mean[code], code))
        np.testing.assert_array_equal(own.boxes, folding.decode_box(np.array(order, int), 9))
        np.testing.assert_allclose(own.probability, [mean[code] for code in order], rtol=1e-12)


def test_merge_of_nothing():
    codes, votes = np.full((3, 4), -1, np.int32), np.ones((3, 4), np.float32)
    for nothing in (folding.merge(codes, votes, 5), *folding.of_samples(codes, votes, 5)):
        assert nothing.boxes.shape == (0, 5) and nothing.probability.shape == (0,)
    assert len(folding.of_samples(codes, votes, 5)) == 3


def test_true_boxes_give_the_ensemble_back():
    """A model whose every sample names the boxes of a drawn structure has their frequencies, and these structures."""
    samples = drawn(50)
    codes = np.full((50, 20, 45, 45), -1, np.int32)
    for planes, pairs in zip(codes, samples, strict=True):
        rows = layout.boxes_of(pairs)
        for plane, box, code in zip(planes, rows, folding.encode_box(rows, 45), strict=False):
            plane[tuple(np.transpose(pixels(box)))] = code
    votes = np.ones(codes.shape, np.float32)
    merged = folding.merge(codes, votes, 45, floor=0)
    frequencies = scores.box_frequencies(samples)
    assert dict(zip(map(tuple, merged.boxes.tolist()), merged.probability, strict=True)) == pytest.approx(frequencies)
    for own, pairs in zip(folding.of_samples(codes, votes, 45), samples, strict=True):
        np.testing.assert_array_equal(folding.assemble(*own, 45, SEQUENCE), pairs)


# Structures of pair probabilities.


def accuracy(pairs, probabilities, gamma):
    """Expected accuracy as documented, to a constant: of the structure with these pairs."""
    allowed = np.triu(probabilities, 4)
    unpaired = np.maximum(0, 1 - allowed.sum(0) - allowed.sum(1))
    bases = [base for pair in pairs for base in pair]
    return 2 * gamma * sum(allowed[pair] for pair in pairs) + unpaired.sum() - unpaired[bases].sum()


@pytest.mark.parametrize("gamma", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("kind", ["sparse", "tied", "dense"])
def test_assembled_structures_are_optimal(kind, gamma):
    rng = np.random.default_rng([3, len(kind)])
    for _ in range(40):
        length = int(rng.integers(5, 13))
        probabilities = rng.random((length, length)) ** 2
        if kind == "tied":
            probabilities = rng.integers(0, 4, (length, length)) / 4
        if kind != "dense":
            probabilities *= rng.random((length, length)) < 0.3
        assembled = folding.assemble_pairs(probabilities, gamma=gamma)
        possible = {(int(i), int(j)) for i, j in zip(*np.nonzero(np.triu(probabilities, 4)), strict=True)}
        every = structures(0, length, possible)
        assert (
            tuple(sorted(as_set(assembled))) in {tuple(sorted(structure)) for structure in every}
            and assembled.dtype == np.int64
        )
        best = max(accuracy(structure, probabilities, gamma) for structure in every)
        assert accuracy(list(map(tuple, assembled)), probabilities, gamma) == pytest.approx(best, abs=1e-12)
        np.testing.assert_array_equal(assembled, folding.assemble_pairs(probabilities, gamma=gamma))


def test_assembled_ensembles_are_as_accurate_as_viennarna(vienna):
    rng = np.random.default_rng(1)
    for length in (20, 60, 100):
        for _ in range(5):
            sequence = letters(rng, length)
            fold = vienna.fold_compound(sequence)
            fold.pf()
            structure, value = fold.MEA()
            probabilities = np.array(fold.bpp())[1:, 1:]
            own = accuracy(list(map(tuple, folding.assemble_pairs(probabilities, sequence))), probabilities, 1)
            theirs = accuracy(list(map(tuple, layout.parse(structure)[0])), probabilities, 1)
            assert own >= theirs - 1e-9
            assert own == pytest.approx(value, abs=length * 1e-3)  # ViennaRNA leaves out pairs below 5e-5


def test_assembled_structures_are_valid():
    """With sums of a base's probabilities far above 1, and with ties: where ViennaRNA's backtracking breaks."""
    rng = np.random.default_rng(2)
    for _ in range(20):
        length = int(rng.integers(1, 40))
        sequence = letters(rng, length)
        probabilities = rng.integers(0, 3, (length, length)) / 2
        pairs = folding.assemble_pairs(probabilities, sequence)
        assert layout.parse(layout.dot_bracket(pairs, length))[0].tolist() == pairs.tolist()
        assert (pairs[:, 1] - pairs[:, 0] > 3).all()
        assert {sequence[i] + sequence[j] for i, j in pairs.tolist()} <= set(folding.CANONICAL)
        np.testing.assert_array_equal(folding.assemble_pairs(probabilities, sequence.lower()), pairs)
    assert len(pairs)


@pytest.mark.parametrize("length", [0, 1, 4, 5, 30])
def test_nothing_to_assemble(length):
    np.testing.assert_array_equal(folding.assemble_pairs(np.zeros((length, length))), NONE)


def test_larger_gamma_gives_more_pairs():
    probabilities = np.zeros((9, 9))
    probabilities[0, 8] = 0.4  # worth it where 2 gamma 0.4 > 2 (1 - 0.4)
    assert len(folding.assemble_pairs(probabilities, gamma=1.49)) == 0
    assert len(folding.assemble_pairs(probabilities, gamma=1.51)) == 1


def test_sequence_of_another_length():
    with pytest.raises(UserError, match="5 bases"):
        folding.assemble_pairs(np.zeros((6, 6)), "ACGUA")


def test_stems_make_pairs():
    stem, weaker = (1, 1, 16, 3, 3), (1, 2, 14, 4, 4)  # (1, 18) (2, 17) (3, 16); and (2, 17) to (5, 14)
    loop, crossing, outside = (2, 3, 14, 3, 3), (1, 8, 26, 2, 2), (1, 27, 27, 5, 5)
    boxes = np.array([weaker, loop, stem, crossing, outside], np.int16)
    probability = np.array([0.7, 1.0, 0.9, 0.1, 0.9])
    wanted = [[1, 18], [2, 17], [3, 16], [4, 15], [5, 14]]
    assert folding.assemble(boxes, probability, 30).tolist() == wanted
    sequence = "".join("G" if i < 4 else "C" if i > 14 else "A" for i in range(30))
    assert folding.assemble(boxes, probability, 30, sequence).tolist() == wanted[:3]
    assert folding.assemble(boxes[:0], probability[:0], 30).tolist() == []
    loop_first = np.array([loop, stem])
    assert len(folding.assemble(loop_first, np.array([1, 0.3]), 30)) == 0  # each has its own probability
    assert len(folding.assemble(loop_first, np.array([0.3, 1]), 30)) == 3
    # A pair of two stems has the sum of their probabilities: one alone is not worth it.
    twice = np.array([[1, 0, 9, 1, 1]] * 2)
    assert folding.assemble(twice[:1], np.array([0.3]), 10).tolist() == []
    assert folding.assemble(twice, np.array([0.3, 0.3]), 10).tolist() == [[0, 9]]


def test_true_stems_give_the_structure_back():
    for pairs in drawn(30, 1):
        boxes = layout.boxes_of(pairs)
        np.testing.assert_array_equal(folding.assemble(boxes, np.ones(len(boxes)), 45, SEQUENCE), pairs)
