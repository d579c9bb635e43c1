"""What is made of boxes, against brute force, closed forms, scikit-learn and ViennaRNA; and what the figures show."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from sklearn import metrics

from cvae_jax.data import rna
from cvae_jax.errors import UserError
from cvae_jax.rna import boxes as layout
from cvae_jax.rna import figures as rna_figures
from cvae_jax.rna import folding

SEQUENCE = "ACUGACCAGACGCGGUCGGCAUCCUGCGAGCAGUCGCGGCUGGUC"
NONE = np.zeros((0, 2), np.int64)


def letters(rng, length):
    return "".join(rng.choice(list("ACGU"), length))


@pytest.fixture
def vienna():
    return pytest.importorskip("RNA", reason="needs ViennaRNA")


def drawn(count, seed=0, sequence=SEQUENCE):
    """Structures of the thermodynamic ensemble."""
    pytest.importorskip("RNA", reason="needs ViennaRNA")
    return [layout.parse(structure)[0] for structure in rna.sample(sequence, count, seed)]


def as_set(pairs):
    return set(map(tuple, np.asarray(pairs).tolist()))


def structures(start, end, pairs):
    """All structures of the bases start to end - 1 made of the given pairs, in which none cross or share a base."""
    if end - start < 5:
        return [()]
    found = structures(start + 1, end, pairs)
    for j in range(start + 4, end):
        if (start, j) in pairs:
            inner, outer = structures(start + 1, j, pairs), structures(j + 1, end, pairs)
            found = found + [((start, j), *one, *two) for one in inner for two in outer]
    return found


# The thermodynamic truth.


def test_ensemble_is_that_of_viennarna(vienna):
    found = folding.ensemble(SEQUENCE)
    fold = vienna.fold_compound(SEQUENCE)
    fold.pf()
    wanted = np.array(fold.bpp())[1:, 1:]
    np.testing.assert_allclose(found.probabilities, wanted, atol=1e-9)
    assert found.probabilities.dtype == np.float64 and found.probabilities.shape == (45, 45)
    assert layout.dot_bracket(found.mfe, 45) == fold.mfe()[0]
    assert layout.dot_bracket(found.mea, 45) == fold.MEA()[0]
    # Pair frequencies of samples approach the probabilities: five standard errors.
    samples = drawn(1000)
    share = np.zeros((45, 45))
    for pairs in samples:
        share[tuple(pairs.T)] += 1 / len(samples)
    assert (abs(share - wanted) <= 5 * np.sqrt(wanted * (1 - wanted) / 1000) + 1e-3).all()


def test_ensemble_is_kept_and_read_only(vienna):
    found = folding.ensemble(SEQUENCE)
    assert folding.ensemble(SEQUENCE) is found
    with pytest.raises(ValueError, match="read-only"):
        found.probabilities[0, 1] = 1


def test_ensemble_leaves_random_numbers_alone(vienna):
    wanted = rna.sample(SEQUENCE, 5, 3) + rna.sample(SEQUENCE, 5, 4)
    first = rna.sample(SEQUENCE, 5, 3)
    folding.ensemble.cache_clear()
    folding.ensemble(SEQUENCE)
    assert first + rna.sample(SEQUENCE, 5, 4) == wanted
    vienna.init_rand(5)
    number = vienna.urn()
    vienna.init_rand(5)
    folding.ensemble.cache_clear()
    folding.ensemble(SEQUENCE)
    assert vienna.urn() == number


@pytest.mark.parametrize("sequence", ["", "ACGX", "ACGU\n"])
def test_ensemble_of_no_sequence(vienna, sequence):
    with pytest.raises(UserError, match="letters"):
        folding.ensemble(sequence)


@pytest.mark.parametrize("sequence", ["A", "ACGU", "GGNNNNCC"])
def test_ensemble_of_short_sequences(vienna, sequence):
    found = folding.ensemble(sequence)
    assert found.probabilities.shape == (len(sequence),) * 2 and found.mfe.shape[1] == found.mea.shape[1] == 2


def test_ensemble_of_a_long_stable_sequence(vienna):
    """Whose partition function overflows unless it is scaled by the minimum free energy."""
    found = folding.ensemble("G" * 200 + "AAAA" + "C" * 200)
    assert len(found.mfe) >= 199
    assert found.probabilities.sum() == pytest.approx(200, abs=2)


def test_without_viennarna(monkeypatch):
    monkeypatch.setitem(sys.modules, "RNA", None)
    with pytest.raises(UserError, match=r"needs ViennaRNA; pip install -e '\.\[rna\]'"):
        folding.ensemble(SEQUENCE + "CC")


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
    found = []
    for of_sample, their in zip(codes, votes, strict=True):
        total = {}
        for code, vote in zip(of_sample.ravel().tolist(), their.ravel().tolist(), strict=True):
            if code >= 0 and vote >= threshold:
                total[code] = total.get(code, 0) + vote
        found.append(
            {c: min(1, sum_ / max(1, len(pixels(folding.decode_box(np.array(c), 9))))) for c, sum_ in total.items()}
        )
    return found


@pytest.mark.parametrize("seed", range(5))
def test_merge_against_a_loop(seed):
    codes, votes = votes_of(seed)
    each = slowly(codes, votes, 0.1)
    mean = {code: sum(one.get(code, 0) for one in each) / 7 for one in each for code in one}
    mean = {code: value for code, value in mean.items() if value >= 0.05}
    found = folding.merge(codes, votes, 9, floor=0.05)
    assert len(mean) > 3
    order = sorted(mean, key=lambda code: (-mean[code], code))
    np.testing.assert_array_equal(found.boxes, folding.decode_box(np.array(order), 9))
    np.testing.assert_allclose(found.probability, [mean[code] for code in order], rtol=1e-12)
    assert found.boxes.dtype == np.int16 and found.probability.dtype == np.float64

    for own, mean in zip(folding.of_samples(codes, votes, 9), each, strict=True):
        order = sorted(mean, key=lambda code: (-mean[code], code))
        np.testing.assert_array_equal(own.boxes, folding.decode_box(np.array(order, int), 9))
        np.testing.assert_allclose(own.probability, [mean[code] for code in order], rtol=1e-12)


def test_merge_of_nothing():
    codes, votes = np.full((3, 4), -1, np.int32), np.ones((3, 4), np.float32)
    for found in (folding.merge(codes, votes, 5), *folding.of_samples(codes, votes, 5)):
        assert found.boxes.shape == (0, 5) and found.probability.shape == (0,)
    assert len(folding.of_samples(codes, votes, 5)) == 3


def test_true_boxes_give_the_ensemble_back():
    """A model whose every sample names the boxes of a drawn structure has their frequencies, and these structures."""
    samples = drawn(50)
    codes = np.full((50, 20, 45, 45), -1, np.int32)
    for planes, pairs in zip(codes, samples, strict=True):
        found = layout.boxes_of(pairs)
        for plane, box, code in zip(planes, found, folding.encode_box(found, 45), strict=False):
            plane[tuple(np.transpose(pixels(box)))] = code
    votes = np.ones(codes.shape, np.float32)
    merged = folding.merge(codes, votes, 45, floor=0)
    frequencies = folding.box_frequencies(samples)
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
        found = folding.assemble_pairs(probabilities, gamma=gamma)
        possible = {(int(i), int(j)) for i, j in zip(*np.nonzero(np.triu(probabilities, 4)), strict=True)}
        every = structures(0, length, possible)
        assert tuple(sorted(as_set(found))) in {tuple(sorted(one)) for one in every} and found.dtype == np.int64
        best = max(accuracy(one, probabilities, gamma) for one in every)
        assert accuracy(list(map(tuple, found)), probabilities, gamma) == pytest.approx(best, abs=1e-12)
        np.testing.assert_array_equal(found, folding.assemble_pairs(probabilities, gamma=gamma))


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
    # A pair of two stems has the larger probability, wherever that stands.
    one, two = np.array([[1, 0, 9, 1, 1]] * 2), np.array([0.9, 0.2])
    for order in ([0, 1], [1, 0]):
        assert folding.assemble(one, two[order], 10).tolist() == [[0, 9]]


def test_true_stems_give_the_structure_back():
    for pairs in drawn(30, 1):
        boxes = layout.boxes_of(pairs)
        np.testing.assert_array_equal(folding.assemble(boxes, np.ones(len(boxes)), 45, SEQUENCE), pairs)


# Measures.


def random_pairs(rng, length, count):
    every = np.stack(np.triu_indices(length, 1), 1)
    return every[rng.permutation(len(every))[:count]]


def dense(pairs, length):
    matrix = np.zeros((length, length), int)
    matrix[tuple(pairs.T)] = 1
    return matrix[np.triu_indices(length, 1)]


def test_f1_and_mcc_against_scikit_learn():
    rng = np.random.default_rng(4)
    for _ in range(30):
        one, two = (random_pairs(rng, 8, rng.integers(1, 20)) for _ in range(2))
        first, second = dense(one, 8), dense(two, 8)
        assert folding.pair_f1(one, two) == pytest.approx(metrics.f1_score(second, first))
        assert folding.mcc(one, two, 8) == pytest.approx(metrics.matthews_corrcoef(second, first))


def test_f1_and_mcc_where_pairs_lack():
    some = np.array([[0, 5], [1, 4]])
    assert folding.pair_f1(NONE, NONE) == folding.mcc(NONE, NONE, 6) == 1
    assert folding.pair_f1(some, NONE) == folding.mcc(some, NONE, 6) == folding.mcc(NONE, some, 6) == 0
    assert folding.pair_f1(some, some[::-1]) == folding.mcc(some, some[::-1], 6) == 1
    assert folding.pair_f1(some, some[:1]) == pytest.approx(2 / 3)
    assert folding.mcc(np.array([[0, 1]]), np.array([[0, 1]]), 2) == 1  # all that is possible


def test_distances_against_sets():
    one, two = drawn(12, 2), [NONE, *drawn(8, 3), NONE]
    found = folding.distances(one, two)
    for i, a in enumerate(map(as_set, one)):
        for j, b in enumerate(map(as_set, two)):
            wanted = 1 - 2 * len(a & b) / (len(a) + len(b)) if a or b else 0
            assert found[i, j] == pytest.approx(wanted, abs=1e-12)
    assert folding.distances(two, two)[0, -1] == 0


def test_ged_of_equal_and_of_deterministic_models():
    truth = drawn(40, 5)
    assert folding.ged_squared(truth, truth) == pytest.approx(0, abs=1e-12)
    assert folding.ged_squared(truth[::-1] * 2, truth) == pytest.approx(0, abs=1e-12)  # the same shares
    mfe = folding.ensemble(SEQUENCE).mfe
    to_truth = np.mean([1 - folding.pair_f1(mfe, one) for one in truth])
    within = np.mean([[1 - folding.pair_f1(one, other) for other in truth] for one in truth])
    for copies in (1, 7):
        assert folding.ged_squared([mfe] * copies, truth) == pytest.approx(2 * to_truth - within, abs=1e-12)


def test_ged_is_never_negative():
    """As 1 - d is a kernel: also for the empty structure, and for draws of one distribution."""
    rng = np.random.default_rng(6)
    for _ in range(50):
        sets = [[random_pairs(rng, 5, rng.integers(0, 4)) for _ in range(rng.integers(1, 6))] for _ in range(2)]
        assert folding.ged_squared(*sets) >= -1e-12
    # Its bias, as documented: of two sets of n draws each it expects 2 E d / n.
    draws = drawn(2000, 7)
    expected = 2 * folding.diversity(draws) / 20
    mean = np.mean([folding.ged_squared(draws[k : k + 20], draws[k + 20 : k + 40]) for k in range(0, 2000, 40)])
    assert mean == pytest.approx(expected, rel=0.1)


def test_diversity():
    a, b = np.array([[0, 9], [1, 8]]), np.array([[0, 9]])  # d = 1/3
    assert folding.diversity([a]) == folding.diversity([a, a, a]) == 0
    assert folding.diversity([a, b]) == pytest.approx(1 / 3)
    assert folding.diversity([a, b, b]) == pytest.approx(2 / 9)


def test_correlation_pools_over_sequences():
    rng = np.random.default_rng(8)
    sums, ones, twos = [], [], []
    for length in (5, 9, 12):
        one, two = rng.random((2, 12, 12), np.float32)
        two += 0.5 * one
        sums.append(folding.correlation_sums(one, two, length))
        upper = np.triu_indices(length, 1)
        ones.append(one[upper].astype(float))
        twos.append(two[upper].astype(float))
    wanted = np.corrcoef(np.concatenate(ones), np.concatenate(twos))[0, 1]
    assert folding.correlation(np.sum(sums, 0)) == pytest.approx(wanted, abs=1e-12)
    each = folding.correlation(np.array(sums).reshape(3, 1, 6))
    assert each.shape == (3, 1)
    np.testing.assert_allclose(each[:, 0], [np.corrcoef(*both)[0, 1] for both in zip(ones, twos, strict=True)])


def test_correlation_of_constants():
    rng = np.random.default_rng(9)
    exact = rng.random((20, 20))
    for constant in (0.0, 0.1, 1 / 3):
        flat = np.full((20, 20), constant)
        assert np.isnan(folding.correlation(folding.correlation_sums(flat, exact, 20)))
        assert np.isnan(folding.correlation(folding.correlation_sums(exact, flat, 20)))
    assert np.isnan(folding.correlation(folding.correlation_sums(exact, exact, 1)))  # no pair
    assert folding.correlation(folding.correlation_sums(1e-9 * exact, exact, 20)) == pytest.approx(1)


def test_box_frequencies():
    one, two = np.array([[0, 9], [1, 8]]), np.array([[0, 9]])
    found = folding.box_frequencies([one, two, one, NONE])
    assert found == {(1, 0, 8, 2, 2): 0.5, (3, 1, 1, 8, 8): 0.5, (1, 0, 9, 1, 1): 0.25, (3, 0, 0, 10, 10): 0.25}


def test_box_counts():
    truth = {(1, 0, 9, 1, 1): 0.6, (1, 0, 8, 2, 2): 0.1, (1, 3, 8, 2, 2): 0.05, (3, 1, 1, 8, 8): 0.3}
    rows = [(1, 0, 9, 1, 1), (1, 0, 7, 1, 1), (1, 0, 8, 2, 2), (1, 3, 8, 2, 2), (2, 1, 1, 3, 3), (3, 1, 1, 8, 8)]
    predicted = folding.Boxes(np.array(rows, np.int16), np.array([0.9, 0.1, 0.05, 0.04, 0.5, 0.02]))
    counts = folding.box_counts(predicted, truth)
    # Stems: two are there; of two predicted, one is; of the first two, one; the other is third.
    # The hairpin is predicted too faintly.
    assert counts.tolist() == [[2, 2, 1, 1], [0, 1, 0, 0], [1, 0, 0, 1]] and counts.dtype == np.int64
    scores = folding.box_scores(counts)
    np.testing.assert_allclose(scores.sensitivity, [1 / 2, np.nan, 0])
    np.testing.assert_allclose(scores.precision, [1 / 2, 0, np.nan])
    np.testing.assert_allclose(scores.matched_precision, [1 / 2, np.nan, 1])
    # Over two sequences counts are added: the ratio of sums.
    pooled = folding.box_scores(counts + folding.box_counts(predicted, {}))
    assert pooled.sensitivity[0] == 1 / 2 and pooled.precision[0] == 1 / 4
    assert folding.box_scores(counts.sum(0)).sensitivity == 1 / 3
    shuffled = folding.Boxes(predicted.boxes[::-1], predicted.probability[::-1])
    np.testing.assert_array_equal(folding.box_counts(shuffled, truth), counts)
    nothing = folding.box_counts(folding.Boxes(predicted.boxes[:0], predicted.probability[:0]), truth)
    assert nothing.tolist() == [[2, 0, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]]


def test_the_ensemble_finds_its_own_boxes():
    frequencies = folding.box_frequencies(drawn(100, 10))
    boxes = folding.Boxes(np.array(list(frequencies), np.int16), np.array(list(frequencies.values())))
    scores = folding.box_scores(folding.box_counts(boxes, frequencies))
    for score in scores:
        np.testing.assert_array_equal(score, 1)


# Figures.


@pytest.fixture
def figure(monkeypatch):
    """The last figure that was saved."""
    saved = []
    savefig = rna_figures.Figure.savefig

    def save(self, *args, **kwargs):
        saved[:] = [self]
        savefig(self, *args, **kwargs)

    monkeypatch.setattr(rna_figures.Figure, "savefig", save)
    return saved


def colour_of(patch):
    return tuple(np.round(patch.get_edgecolor(), 3))


def test_arcs(tmp_path, figure):
    one, two = np.array([[0, 9], [1, 8]]), np.array([[0, 9]])
    path = tmp_path / "deep" / "arcs.png"
    rna_figures.arcs(path, "GGAAAAAACCA", {"truth": [one, two, two, two], "none": [NONE], "mfe": [one]}, "a title")
    with Image.open(path) as image:
        assert min(image.size) > 300
    truth, none, mfe = figure[0].axes[:3]
    assert [len(panel.patches) for panel in (truth, none, mfe)] == [2, 0, 2]
    assert [panel.get_title("left") for panel in (truth, mfe)] == ["truth: 4 structures", "mfe: 1 structure"]
    # From base to base; one of four structures has the inner pair, drawn below the other.
    assert [(arc.center[0], arc.width) for arc in truth.patches] == [(4.5, 7), (4.5, 9)]
    shades = [tuple(np.round(rna_figures.SHARES(share), 3)) for share in (0.25, 1.0)]
    assert [colour_of(arc) for arc in truth.patches] == shades
    assert "".join(label.get_text() for label in truth.get_xticklabels()) == "GGAAAAAACCA"


@pytest.mark.parametrize("length", [45, 30])
def test_matrices(vienna, tmp_path, figure, length):
    sequence = SEQUENCE[:length]
    found = folding.ensemble(sequence)
    frequencies = folding.box_frequencies(drawn(20, 11, sequence))
    boxes = folding.Boxes(np.array(list(frequencies), np.int16), np.array(list(frequencies.values())))
    panels = {"exact": found.probabilities, "padded": np.ones((50, 50)), "none": np.zeros((length, length))}
    rows = np.array([[2, 3, 20, 4, 5]])
    rna_figures.matrices(tmp_path / "matrices.png", sequence, panels, {"exact": boxes, "padded": rows}, "a title")
    assert (tmp_path / "matrices.png").stat().st_size > 10_000
    exact, padded, none = figure[0].axes[:3]
    assert [len(panel.patches) for panel in (exact, padded, none)] == [len(frequencies), 1, 0]
    box = padded.patches[0]
    assert (*box.get_xy(), box.get_width(), box.get_height()) == (19.5, 2.5, 5, 4)
    assert exact.images[0].get_array().shape == padded.images[0].get_array().shape == (length, length)
    np.testing.assert_array_equal(exact.images[0].get_array().filled(0), np.triu(found.probabilities, 1))
    letters_shown = "".join(label.get_text() for label in exact.get_xticklabels(minor=True))
    assert letters_shown == (sequence if length <= 40 else "")
    assert [text.get_text() for text in figure[0].legends[0].get_texts()] == list(layout.TYPES)
