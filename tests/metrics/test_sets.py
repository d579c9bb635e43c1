"""Metrics of sets of samples, against loops over their members in float64 and against what they promise."""

import itertools

import numpy as np
import pytest

from cvae_jax.metrics import sets


def points(seed, *counts, dims=3):
    """Sets of points, [count, dims] each."""
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(count, dims)) for count in counts]


def euclidean(a, b):
    return np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1))


def gaussian(a, b):
    """1 less a Gaussian kernel."""
    return 1 - np.exp(-(((a[:, None] - b[None]) ** 2).sum(-1)))


def cosine(a, b):
    """1 less the cosine of the angle: up to 2."""
    a, b = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in (a, b))
    return 1 - a @ b.T


def jaccard(a, b):
    """1 less the share of what two subsets have in common; two empty ones are alike."""
    a, b = a[:, None] > 0.5, b[None] > 0.5
    either = (a | b).sum(-1)
    return np.where(either == 0, 0.0, 1 - (a & b).sum(-1) / np.maximum(either, 1))


KERNELS = [gaussian, cosine, jaccard]  # 1 - d is positive semi-definite


def ged_squared(distance, model, truth):
    return sets.ged_squared(distance(model, truth), distance(model, model), distance(truth, truth))


@pytest.mark.parametrize(("num_model", "num_truth"), [(1, 1), (1, 4), (5, 1), (6, 9)])
def test_against_loops(num_model, num_truth):
    model, truth = points(0, num_model, num_truth)

    def mean(a, b):
        return sum(float(np.linalg.norm(u - v)) for u in a for v in b) / (len(a) * len(b))

    wanted = 2 * mean(model, truth) - mean(model, model) - mean(truth, truth)
    result = ged_squared(euclidean, model, truth)
    assert isinstance(result, float) and result == pytest.approx(wanted, abs=1e-12)
    different = [np.linalg.norm(model[i] - model[j]) for i in range(num_model) for j in range(num_model) if i != j]
    result = sets.diversity(euclidean(model, model))
    assert isinstance(result, float) and result == pytest.approx(np.mean(different) if different else 0, abs=1e-12)


@pytest.mark.parametrize("distance", [euclidean, *KERNELS])
def test_equal_sets_have_no_distance(distance):
    """Where every member has the same share of both: in any order, and however often all are repeated."""
    (truth,) = points(1, 7)
    for model in (truth, truth[::-1], np.tile(truth, (3, 1)), np.repeat(truth, 2, 0)):
        assert ged_squared(distance, model, truth) == pytest.approx(0, abs=1e-12)
    assert ged_squared(distance, truth[:6], truth) > 1e-3
    assert ged_squared(distance, np.concatenate([truth, truth[:1]]), truth) > 1e-4  # other shares


@pytest.mark.parametrize("distance", KERNELS)
def test_ged_is_never_negative_where_similarity_is_a_kernel(distance):
    rng = np.random.default_rng(2)
    for seed in range(300):
        counts = rng.integers(1, 6, 2)
        model, truth = points(seed, *counts, dims=2)
        if seed % 3 == 0:
            truth[0] = model[0]  # members in common
        assert ged_squared(distance, model, truth) >= -1e-12


def test_ged_may_be_negative_where_similarity_is_no_kernel():
    """Two that are far from each other and near to a third break the triangle inequality."""
    near, apart = 0.1, 1.0
    within = np.array([[0, apart], [apart, 0]])
    assert sets.ged_squared(np.full((2, 1), near), within, np.zeros((1, 1))) == pytest.approx(2 * near - apart / 2)


def test_ged_does_not_depend_on_which_set_is_the_model():
    model, truth = points(3, 4, 9)
    assert ged_squared(euclidean, model, truth) == pytest.approx(ged_squared(euclidean, truth, model), abs=1e-12)


def expectation(values, probabilities, number, function):
    """The expectation of a function of `number` independent draws of indices, by all of their outcomes."""
    outcomes = itertools.product(range(len(values)), repeat=number)
    return sum(np.prod(probabilities[list(drawn)]) * function(list(drawn)) for drawn in outcomes)


@pytest.mark.parametrize("number", [2, 3, 4])
def test_diversity_is_unbiased(number):
    """Its expectation over draws, equal ones among them, is that of d(y, y') of two draws, however many are made."""
    (values,) = points(4, 4)
    d, p = euclidean(values, values), np.array([0.4, 0.3, 0.2, 0.1])
    mean = expectation(values, p, number, lambda drawn: sets.diversity(d[np.ix_(drawn, drawn)]))
    assert mean == pytest.approx(p @ d @ p, abs=1e-12)


@pytest.mark.parametrize("number", [2, 3, 6])
def test_diversity_of_parts_is_on_average_that_of_all_pairs(number):
    (values,) = points(5, 7)
    d = euclidean(values, values)
    parts = [list(part) for part in itertools.combinations(range(7), number)]
    mean = np.mean([sets.diversity(d[np.ix_(part, part)]) for part in parts])
    assert mean == pytest.approx(np.mean([d[i, j] for i in range(7) for j in range(7) if i != j]), abs=1e-12)
    assert sets.diversity(d) == pytest.approx(mean, abs=1e-12)


def test_diversity_of_a_single_draw_and_of_equal_ones():
    assert sets.diversity(np.zeros((1, 1))) == 0
    assert sets.diversity(np.zeros((5, 5))) == 0


def test_the_bias_of_ged_is_as_documented():
    """Of m and n draws of one distribution it expects E d / m + E d / n, and 0 of infinitely many."""
    (values,) = points(6, 3)
    d, p = gaussian(values, values), np.array([0.5, 0.3, 0.2])
    num_model, num_truth = 2, 3

    def ged(drawn):
        model, truth = drawn[:num_model], drawn[num_model:]
        return sets.ged_squared(d[np.ix_(model, truth)], d[np.ix_(model, model)], d[np.ix_(truth, truth)])

    mean = expectation(values, p, num_model + num_truth, ged)
    assert mean == pytest.approx(p @ d @ p * (1 / num_model + 1 / num_truth), abs=1e-12)
