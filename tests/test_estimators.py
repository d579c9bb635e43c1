import jax
import jax.numpy as jnp
import linear_gaussian as lg
import numpy as np
import pytest

from cvae_jax import inference
from cvae_jax.errors import UserError
from cvae_jax.estimators import ESTIMATORS, Estimate, log_mean_exp, mean_over_examples, paired_difference, plain_mean

SIGMAS = 4.5
X_, Y_ = lg.data(6)


def estimate(name, num_samples, scale=1.0, shift=0.0, x=X_, y=Y_):
    return inference.log_prob(
        lg.MODEL, lg.variables(scale, shift), lg.batch_of(x, y), name, num_samples, jax.random.key(0)
    )


# The summaries, by hand.


@pytest.mark.parametrize("offset", [0.0, -1e5, 1e5])
def test_log_mean_exp(offset):
    log_weights = np.random.default_rng(0).normal(size=(50, 3)) * 2
    weights = np.exp(log_weights)
    found = log_mean_exp(log_weights + offset)
    np.testing.assert_allclose(found.value - offset, np.log(weights.mean(0)), atol=1e-9)
    np.testing.assert_allclose(found.error, np.sqrt(weights.var(0, ddof=1) / 50) / weights.mean(0), rtol=1e-8)
    np.testing.assert_allclose(found.ess, weights.sum(0) ** 2 / (weights**2).sum(0), rtol=1e-8)


def test_log_mean_exp_of_equal_and_of_degenerate_weights():
    equal, degenerate = np.full(10, -1e5), np.array([0.0, *[-1e5] * 9])
    found = log_mean_exp(np.stack([equal, degenerate], 1))
    np.testing.assert_allclose(found.value, [-1e5, -np.log(10)])
    np.testing.assert_allclose(found.error, [0, 1])
    np.testing.assert_allclose(found.ess, [10, 1])


def test_summaries_are_float64_whatever_they_are_given():
    # In float32 the sum of so many would be off by more than the tolerance.
    scores = np.random.default_rng(0).normal(-100, 0.01, size=(100_000, 1)).astype(np.float32)
    exact = scores.astype(np.float64)
    for summarise, wanted in ((plain_mean, exact.mean()), (log_mean_exp, np.log(np.exp(exact + 100).mean()) - 100)):
        found = summarise(scores)
        assert {array.dtype for array in found} == {np.dtype(np.float64)}
        np.testing.assert_allclose(found.value, wanted, rtol=1e-12)


def test_plain_mean():
    scores = np.random.default_rng(0).normal(size=(50, 3))
    found = plain_mean(scores)
    np.testing.assert_allclose(found.value, scores.sum(0) / 50)
    np.testing.assert_allclose(found.error, np.sqrt(((scores - scores.mean(0)) ** 2).sum(0) / 49 / 50))
    np.testing.assert_array_equal(found.ess, 50)


@pytest.mark.parametrize("summarise", [log_mean_exp, plain_mean])
def test_one_sample_has_no_error(summarise):
    found = summarise(np.array([[-3.0, 2.0]]))
    np.testing.assert_array_equal(found.value, [-3, 2])
    assert np.isnan(found.error).all()
    np.testing.assert_array_equal(found.ess, 1)


def test_mean_over_examples():
    found = mean_over_examples(Estimate(np.array([1.0, 2.0, 6.0]), np.array([0.3, 0.4, 1.2]), np.ones(3)))
    assert found == pytest.approx((3.0, 1.3 / 3, np.sqrt(7 / 3)))


def test_differences_are_paired():
    rng = np.random.default_rng(0)
    common, difference = rng.normal(-100, 20, 400), rng.normal(1, 0.5, 400)
    a = Estimate(common + difference, np.full(400, 0.3), np.full(400, 9.0))
    b = Estimate(common, np.full(400, 0.4), np.full(400, 5.0))
    found = paired_difference(a, b)
    assert found.value == pytest.approx(difference.mean())
    assert found.standard_error == pytest.approx(difference.std(ddof=1) / 20)
    assert found.error == pytest.approx(0.5 / 20)
    unpaired = np.hypot(mean_over_examples(a).standard_error, mean_over_examples(b).standard_error)
    assert found.standard_error < unpaired / 20


# The estimators, against the linear-Gaussian model.


def test_importance_sampling_from_the_exact_posterior():
    found = estimate("is", 2000)
    np.testing.assert_allclose(found.value, lg.log_p_y(X_, Y_), rtol=0, atol=1e-5)
    np.testing.assert_allclose(found.ess, 2000, rtol=1e-6)
    assert (found.error < 1e-6).all()


@pytest.mark.parametrize(("scale", "shift"), [(1.2, 0.0), (2.0, 0.0), (1.2, 0.5)])
def test_importance_sampling_from_a_wide_proposal(scale, shift):
    found = estimate("is", 10_000, scale, shift)
    missed = np.abs(found.value - lg.log_p_y(X_, Y_))
    assert (missed < SIGMAS * found.error).all() and missed.max() < 0.1
    np.testing.assert_allclose(found.ess / 10_000, lg.relative_ess(scale, shift), rtol=0.1)


def test_importance_sampling_from_a_narrow_proposal():
    # The weights' variance is infinite below √½ = 0.707: the estimate errs, and its ESS says so.
    adequate, narrow, narrower = (estimate("is", 10_000, scale).ess / 10_000 for scale in (1.2, 0.7, 0.5))
    assert adequate.min() > 0.7
    assert narrow.max() < 0.5
    assert narrower.max() < 0.05
    bias = estimate("is", 10_000, 0.7).value - lg.log_p_y(X_, Y_)
    assert np.abs(bias).max() < 0.5


def test_monte_carlo():
    found = estimate("mc", 10_000)
    missed = np.abs(found.value - lg.log_p_y(X_, Y_))
    assert (missed < SIGMAS * found.error).all() and missed.max() < 0.2


@pytest.mark.parametrize(("scale", "shift"), [(0.5, 0.0), (0.7, 0.0), (1.0, 0.0), (1.2, 0.5), (2.0, 0.0)])
def test_elbo(scale, shift):
    found = estimate("elbo", 10_000, scale, shift)
    missed = np.abs(found.value - lg.elbo(X_, Y_, lg.proposal(X_, Y_, scale, shift)))
    assert (missed < SIGMAS * found.error).all() and missed.max() < 0.2


@pytest.mark.parametrize("name", ESTIMATORS)
def test_reported_errors_cover_the_truth(name):
    # Under other indices the same example is an independent replicate.
    repeats = 1000
    found = estimate(name, 1000, 1.2, 0.3, np.repeat(X_[:1], repeats, 0), np.repeat(Y_[:1], repeats, 0))
    truth = lg.log_p_y(X_[:1], Y_[:1])
    if name == "elbo":
        truth = lg.elbo(X_[:1], Y_[:1], lg.proposal(X_[:1], Y_[:1], 1.2, 0.3))
    z = (found.value - truth) / found.error
    assert abs((np.abs(z) < 1.96).mean() - 0.95) < SIGMAS * np.sqrt(0.95 * 0.05 / repeats)
    assert abs((z**2).mean() - 1) < SIGMAS * np.sqrt(2 / repeats)


# Scores depend on (key, index of the example, number of the sample) alone.


def scores(batch, num_samples=40, draws_per_call=2000):
    how, key = ESTIMATORS["is"], jax.random.key(0)
    return inference.scores(
        lg.MODEL, lg.variables(1.2), batch, how.proposal, how.score, num_samples, key, draws_per_call
    )


@pytest.mark.parametrize("draws_per_call", [1, 7, 100])
def test_scores_do_not_depend_on_draws_per_call(draws_per_call):
    batch = lg.batch_of(X_, Y_)
    np.testing.assert_allclose(scores(batch, draws_per_call=draws_per_call), scores(batch), rtol=0, atol=1e-5)


def test_scores_do_not_depend_on_the_batch():
    batch = lg.batch_of(X_, Y_)
    rows = jnp.array([4, 0])
    some = jax.tree.map(lambda leaf: leaf[rows], batch)
    np.testing.assert_allclose(scores(some), scores(batch)[:, [4, 0]], rtol=0, atol=1e-5)


@pytest.mark.parametrize("draws_per_call", [7, 2000])
def test_fewer_samples_are_the_first_of_more(draws_per_call):
    batch = lg.batch_of(X_, Y_)
    fewer = scores(batch, 13, draws_per_call)
    assert fewer.shape == (13, 6)
    np.testing.assert_allclose(fewer, scores(batch, 40, draws_per_call)[:13], rtol=0, atol=1e-5)


def test_scores_differ_between_samples_examples_and_keys():
    twins = lg.batch_of(np.repeat(X_[:1], 2, 0), np.repeat(Y_[:1], 2, 0))
    found = scores(twins)
    other = inference.scores(
        lg.MODEL, lg.variables(1.2), twins, ESTIMATORS["is"].proposal, ESTIMATORS["is"].score, 40, jax.random.key(1)
    )
    assert len(np.unique(np.stack([found, other]))) == 2 * 2 * 40


@pytest.mark.parametrize(
    ("arguments", "message"), [(("ais", 10), "estimator 'ais' .*elbo, mc, is"), (("is", 0), "num_samples=0")]
)
def test_errors(arguments, message):
    with pytest.raises(UserError, match=message):
        estimate(*arguments)
