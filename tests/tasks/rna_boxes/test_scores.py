"""How structures, pair probabilities and boxes compare: against sets, closed forms, NumPy and scikit-learn."""

import numpy as np
import pytest
from sklearn import metrics
from structures import NONE, SEQUENCE, as_set, drawn

from cvae_jax.tasks.rna_boxes import ensemble, folding, scores


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
        a, b = (random_pairs(rng, 8, rng.integers(1, 20)) for _ in range(2))
        first, second = dense(a, 8), dense(b, 8)
        assert scores.pair_f1(a, b) == pytest.approx(metrics.f1_score(second, first))
        assert scores.mcc(a, b, 8) == pytest.approx(metrics.matthews_corrcoef(second, first))


def test_f1_and_mcc_where_pairs_lack():
    some = np.array([[0, 5], [1, 4]])
    assert scores.pair_f1(NONE, NONE) == scores.mcc(NONE, NONE, 6) == 1
    assert scores.pair_f1(some, NONE) == scores.mcc(some, NONE, 6) == scores.mcc(NONE, some, 6) == 0
    assert scores.pair_f1(some, some[::-1]) == scores.mcc(some, some[::-1], 6) == 1
    assert scores.pair_f1(some, some[:1]) == pytest.approx(2 / 3)
    assert scores.mcc(np.array([[0, 1]]), np.array([[0, 1]]), 2) == 1  # all that is possible


def test_distances_against_sets():
    few, others = drawn(12, 2), [NONE, *drawn(8, 3), NONE]
    matrix = scores.distances(few, others)
    for i, a in enumerate(map(as_set, few)):
        for j, b in enumerate(map(as_set, others)):
            wanted = 1 - 2 * len(a & b) / (len(a) + len(b)) if a or b else 0
            assert matrix[i, j] == pytest.approx(wanted, abs=1e-12)
    assert scores.distances(others, others)[0, -1] == 0


def test_ged_of_equal_and_of_deterministic_models():
    truth = drawn(40, 5)
    assert scores.ged_squared(truth, truth) == pytest.approx(0, abs=1e-12)
    assert scores.ged_squared(truth[::-1] * 2, truth) == pytest.approx(0, abs=1e-12)  # the same shares
    mfe = ensemble.ensemble(SEQUENCE).mfe
    to_truth = np.mean([1 - scores.pair_f1(mfe, pairs) for pairs in truth])
    within = np.mean([[1 - scores.pair_f1(pairs, other) for other in truth] for pairs in truth])
    for copies in (1, 7):
        assert scores.ged_squared([mfe] * copies, truth) == pytest.approx(2 * to_truth - within, abs=1e-12)


def test_ged_is_never_negative():
    """As 1 - d is a kernel: also for the empty structure, and for draws of one distribution."""
    rng = np.random.default_rng(6)
    for _ in range(50):
        sets = [[random_pairs(rng, 5, rng.integers(0, 4)) for _ in range(rng.integers(1, 6))] for _ in range(2)]
        assert scores.ged_squared(*sets) >= -1e-12
    # Its bias, as documented: of two sets of n draws each it expects 2 E d / n.
    draws = drawn(2000, 7)
    expected = 2 * scores.diversity(draws) / 20
    mean = np.mean([scores.ged_squared(draws[k : k + 20], draws[k + 20 : k + 40]) for k in range(0, 2000, 40)])
    assert mean == pytest.approx(expected, rel=0.1)


def test_diversity():
    a, b = np.array([[0, 9], [1, 8]]), np.array([[0, 9]])  # d = 1/3
    assert scores.diversity([a]) == scores.diversity([a, a, a]) == 0
    assert scores.diversity([a, b]) == pytest.approx(1 / 3)
    assert scores.diversity([a, b, b]) == pytest.approx(2 / 9)


def test_correlation_pools_over_sequences():
    rng = np.random.default_rng(8)
    sums, ones, twos = [], [], []
    for length in (5, 9, 12):
        a, b = rng.random((2, 12, 12), np.float32)
        b += 0.5 * a
        sums.append(scores.correlation_sums(a, b, length))
        upper = np.triu_indices(length, 1)
        ones.append(a[upper].astype(float))
        twos.append(b[upper].astype(float))
    wanted = np.corrcoef(np.concatenate(ones), np.concatenate(twos))[0, 1]
    assert scores.correlation(np.sum(sums, 0)) == pytest.approx(wanted, abs=1e-12)
    each = scores.correlation(np.array(sums).reshape(3, 1, 6))
    assert each.shape == (3, 1)
    np.testing.assert_allclose(each[:, 0], [np.corrcoef(*both)[0, 1] for both in zip(ones, twos, strict=True)])


def test_correlation_of_constants():
    rng = np.random.default_rng(9)
    exact = rng.random((20, 20))
    for constant in (0.0, 0.1, 1 / 3):
        flat = np.full((20, 20), constant)
        assert np.isnan(scores.correlation(scores.correlation_sums(flat, exact, 20)))
        assert np.isnan(scores.correlation(scores.correlation_sums(exact, flat, 20)))
    assert np.isnan(scores.correlation(scores.correlation_sums(exact, exact, 1)))  # no pair
    assert scores.correlation(scores.correlation_sums(1e-9 * exact, exact, 20)) == pytest.approx(1)


def test_box_frequencies():
    both, outer = np.array([[0, 9], [1, 8]]), np.array([[0, 9]])
    shares = scores.box_frequencies([both, outer, both, NONE])
    assert shares == {(1, 0, 8, 2, 2): 0.5, (3, 1, 1, 8, 8): 0.5, (1, 0, 9, 1, 1): 0.25, (3, 0, 0, 10, 10): 0.25}


def test_box_counts():
    truth = {(1, 0, 9, 1, 1): 0.6, (1, 0, 8, 2, 2): 0.1, (1, 3, 8, 2, 2): 0.05, (3, 1, 1, 8, 8): 0.3}
    rows = [(1, 0, 9, 1, 1), (1, 0, 7, 1, 1), (1, 0, 8, 2, 2), (1, 3, 8, 2, 2), (2, 1, 1, 3, 3), (3, 1, 1, 8, 8)]
    predicted = folding.Boxes(np.array(rows, np.int16), np.array([0.9, 0.1, 0.05, 0.04, 0.5, 0.02]))
    counts = scores.box_counts(predicted, truth)
    # Stems: two are there; of two predicted, one is; of the first two, one; the other is third.
    # The hairpin is predicted too faintly.
    assert counts.tolist() == [[2, 2, 1, 1], [0, 1, 0, 0], [1, 0, 0, 1]] and counts.dtype == np.int64
    ratios = scores.box_scores(counts)
    np.testing.assert_allclose(ratios.sensitivity, [1 / 2, np.nan, 0])
    np.testing.assert_allclose(ratios.precision, [1 / 2, 0, np.nan])
    np.testing.assert_allclose(ratios.matched_precision, [1 / 2, np.nan, 1])
    # Over two sequences counts are added: the ratio of sums.
    pooled = scores.box_scores(counts + scores.box_counts(predicted, {}))
    assert pooled.sensitivity[0] == 1 / 2 and pooled.precision[0] == 1 / 4
    assert scores.box_scores(counts.sum(0)).sensitivity == 1 / 3
    shuffled = folding.Boxes(predicted.boxes[::-1], predicted.probability[::-1])
    np.testing.assert_array_equal(scores.box_counts(shuffled, truth), counts)
    nothing = scores.box_counts(folding.Boxes(predicted.boxes[:0], predicted.probability[:0]), truth)
    assert nothing.tolist() == [[2, 0, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]]


def test_the_ensemble_finds_its_own_boxes():
    frequencies = scores.box_frequencies(drawn(100, 10))
    boxes = folding.Boxes(np.array(list(frequencies), np.int16), np.array(list(frequencies.values())))
    for score in scores.box_scores(scores.box_counts(boxes, frequencies)):
        np.testing.assert_array_equal(score, 1)
