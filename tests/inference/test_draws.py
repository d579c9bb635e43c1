"""Draws and their scores: the mixture, what they depend on, and what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import linear_gaussian as lg
import numpy as np
import pytest
from linear_estimates import FACTORED, SIGMAS, X_, Y_, estimate

from cvae_jax import inference
from cvae_jax.errors import UserError
from cvae_jax.inference.estimators import ESTIMATORS, PRIOR_SHARE, log_mean_exp, unreliable
from cvae_jax.model import Fitted

# The defensive mixture.


def of_mixture(of, score, num_samples, scale, shift, count=4):
    return inference.scores(
        of.fitted(scale, shift),
        of.batch_of(*of.data(count)),
        "defensive",
        score,
        num_samples,
        jax.random.key(0),
    )


@pytest.mark.parametrize("of", [lg.DEFAULT, FACTORED], ids=["plain", "factored"])
def test_defensive_weights_are_bounded(of):
    how = ESTIMATORS["defensive"]
    log_weights, log_p_y, by_q = of_mixture(
        of, lambda draw: (how.score(draw), draw.log_p_y, ESTIMATORS["is"].score(draw)), 2000, 0.5, 0.5
    )
    for excess, bound in ((log_weights - log_p_y, -np.log(PRIOR_SHARE)), (log_weights - by_q, -np.log1p(-PRIOR_SHARE))):
        assert 0.8 * bound < excess.max() < bound + 1e-4


def test_a_coin_for_every_factor_and_sample():
    # q so narrow and far away that no draw of the prior is taken for one of its own.
    from_prior = of_mixture(FACTORED, lambda draw: draw.log_q_z < draw.log_p_z - 100, 2000, 0.01, 30.0)
    assert from_prior.shape == (2000, 4, 6)
    np.testing.assert_allclose(from_prior.mean(), PRIOR_SHARE, atol=0.003)
    pairs = np.einsum("sbf,sbg->fg", from_prior.astype(float), from_prior) / from_prior[..., 0].size
    np.testing.assert_allclose(pairs[~np.eye(6, dtype=bool)], PRIOR_SHARE**2, atol=0.008)


# Factors.


def test_factors_need_few_samples_where_the_joint_estimate_needs_many():
    of = lg.LinearGaussian(x_size=3, z_size=100, y_size=100, factored=True)
    x, y = of.data(6)
    truth, num_samples = of.log_p_y(x, y), 200
    factored = estimate("mc", num_samples, 1.0, 0.0, x, y, of)
    assert np.abs(factored.value - truth).max() < SIGMAS * factored.error.max() < 5
    joint = log_mean_exp(scores(of, "mc", num_samples=num_samples).sum(-1))
    assert (joint.value - truth).max() < -10
    assert unreliable(joint).all()


# Scores depend on (key, id of the example, number of the sample) alone.


CASES = pytest.mark.parametrize(
    ("of", "name"), [(lg.DEFAULT, "is"), (lg.DEFAULT, "defensive"), (FACTORED, "defensive")]
)


def scores(of, name, batch=None, num_samples=40, draws_per_call=2000, seed=0):
    how = ESTIMATORS[name]
    batch = of.batch_of(*of.data(6)) if batch is None else batch
    return inference.scores(
        of.fitted(1.2), batch, how.proposal, how.score, num_samples, jax.random.key(seed), draws_per_call
    )


@pytest.mark.slow
@CASES
@pytest.mark.parametrize("draws_per_call", [1, 100])
def test_scores_do_not_depend_on_draws_per_call(of, name, draws_per_call):
    found = scores(of, name, draws_per_call=draws_per_call)
    assert found.shape == (40, 6, *[6] * of.factored)
    np.testing.assert_allclose(found, scores(of, name), rtol=0, atol=1e-5)


@CASES
def test_scores_do_not_depend_on_the_batch(of, name):
    batch = of.batch_of(*of.data(6))
    rows = jnp.array([4, 0])
    some = jax.tree.map(lambda leaf: leaf[rows], batch)
    np.testing.assert_allclose(scores(of, name, some), scores(of, name)[:, [4, 0]], rtol=0, atol=1e-5)


@pytest.mark.slow
@CASES
@pytest.mark.parametrize("draws_per_call", [18, 2000])
def test_fewer_samples_are_the_first_of_more(of, name, draws_per_call):
    fewer = scores(of, name, num_samples=13, draws_per_call=draws_per_call)
    assert len(fewer) == 13
    np.testing.assert_allclose(fewer, scores(of, name, draws_per_call=draws_per_call)[:13], rtol=0, atol=1e-5)


@CASES
def test_scores_differ_between_samples_examples_factors_and_keys(of, name):
    x, y = of.data(1)
    twins = of.batch_of(np.repeat(x, 2, 0), np.repeat(y, 2, 0))
    found = np.stack([scores(of, name, twins, seed=seed) for seed in (0, 1)])
    assert len(np.unique(found)) > 0.99 * found.size  # of so many float32 numbers two may be equal


def test_scores_and_samples_do_not_depend_on_the_number_of_devices(monkeypatch):
    """To the bit, of more chunks than devices and a batch that does not divide by their number."""
    batch, devices = FACTORED.batch_of(*FACTORED.data(7)), jax.local_devices()
    assert len(devices) > 1
    results = []
    for number in (1, len(devices)):
        monkeypatch.setattr(jax, "local_devices", lambda number=number: devices[:number])
        samples = samples_of(FACTORED.fitted(), batch, 40, samples_per_call=6)
        results.append((scores(FACTORED, "defensive", batch, draws_per_call=50), samples))
        assert all(type(leaf) is np.ndarray and len(leaf) == 40 for leaf in results[-1])
    for of_one_device, of_all in zip(*results, strict=True):
        np.testing.assert_array_equal(of_all, of_one_device)


# Where z comes from.


def _z(draw):
    return draw.z


def test_scores_of_the_means():
    x, y = lg.data(6)
    fitted, batch, key = lg.fitted(1.2, 0.5), lg.batch_of(x, y), jax.random.key(0)
    for origin, wanted in (
        ("recognition_mean", lg.proposal(x, y, 1.2, 0.5).mean),
        ("prior_mean", x @ lg.DEFAULT._numbers["A"].T),
    ):
        z = inference.scores(fitted, batch, origin, _z, 3, key)
        np.testing.assert_allclose(z, np.tile(wanted, (3, 1, 1)), rtol=1e-4, atol=1e-5)


# Predictions and samples.


def mean_y(x):
    n = lg.DEFAULT._numbers
    return x @ (n["B"] @ n["A"] + n["C"]).T


def test_predictions_are_means_and_look_at_no_y():
    batch = lg.batch_of(X_, Y_)
    predicted = jax.jit(inference.predict)(lg.fitted(), batch)
    np.testing.assert_allclose(predicted, mean_y(X_), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(predicted, jax.jit(inference.predict)(lg.fitted(), batch._replace(y=None)))


def samples_of(fitted, batch, count, noise=True, seed=0, **options):
    return inference.draw_samples(
        fitted, batch, inference.keys_of(batch, jax.random.key(seed), count), noise, **options
    )


@pytest.mark.parametrize("noise", [False, True])
def test_samples_have_the_moments_of_their_distribution(noise):
    n, count = lg.DEFAULT._numbers, 20_000
    samples = np.asarray(samples_of(lg.fitted(), lg.batch_of(X_[:2], Y_[:2]), count, noise), np.float64)
    covariance = (n["B"] * n["s_p"] ** 2) @ n["B"].T + noise * lg.S_Y**2 * np.eye(6)
    variance = np.diag(covariance)
    error, spread = np.sqrt(variance / count), np.sqrt((np.outer(variance, variance) + covariance**2) / count)
    for example in range(2):
        assert (np.abs(samples[:, example].mean(0) - mean_y(X_[example])) < SIGMAS * error).all()
        assert (np.abs(np.cov(samples[:, example].T) - covariance) < SIGMAS * spread).all()


def test_samples_of_a_model_that_predicts_from_the_mean_are_its_prediction():
    batch = lg.batch_of(X_, None)
    fitted = dataclasses.replace(lg.fitted(), predicts_from="prior_mean")
    samples = samples_of(fitted, batch, 3, noise=False)
    np.testing.assert_allclose(samples, np.tile(mean_y(X_), (3, 1, 1)), rtol=1e-4, atol=1e-5)


def first_two(y, batch):
    """Of every sample, beside the x it was drawn for."""
    return {"y": y[:, :2], "x": batch.x}


def test_samples_depend_on_key_id_and_number_alone():
    fitted, batch = lg.fitted(), lg.batch_of(X_, Y_)
    whole = np.asarray(samples_of(fitted, batch, 5))
    assert whole.shape == (5, 6, 6) and len(np.unique(whole)) == whole.size
    rows = jax.tree.map(lambda leaf: leaf[jnp.array([4, 0])], batch)
    np.testing.assert_allclose(samples_of(fitted, rows, 2), whole[:2, [4, 0]], rtol=1e-5, atol=1e-5)
    few = samples_of(fitted, batch._replace(y=None), 5, keep=first_two, samples_per_call=2)
    np.testing.assert_allclose(few["y"], whole[..., :2], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(few["x"], np.tile(batch.x, (5, 1, 1)))
    assert (np.asarray(samples_of(fitted, batch, 5, seed=1)) != whole).all()


def test_a_z_is_decoded_to_the_mean_of_y():
    n, z = lg.DEFAULT._numbers, np.random.default_rng(0).normal(size=(6, 4))
    wanted = z @ n["B"].T + X_ @ n["C"].T
    np.testing.assert_allclose(
        inference.decode(lg.fitted(), lg.batch_of(X_, Y_), jnp.float32(z)), wanted, rtol=1e-4, atol=1e-5
    )


# Errors.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("hmc", 10), "estimator 'hmc' .*elbo, mc, is, jackknife, defensive"),
        (("is", 0), "num_samples=0"),
        (("jackknife", 1), "num_samples=1 must be at least 2"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(UserError, match=message):
        estimate(*arguments)


@pytest.mark.parametrize("name", ["elbo", "is"])
def test_an_example_that_is_not_finite_is_named(name):
    y = Y_.copy()
    y[3, 1] = np.nan
    with pytest.raises(UserError, match="1 of 6 examples, first at position 3") as raised:
        estimate(name, 10, y=y)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_model_without_a_recognition_network(name):
    fitted = Fitted(lg.MODEL._replace(encode=_encode_without_q), lg.variables())
    arguments = (fitted, lg.batch_of(X_, Y_), name, 10_000, jax.random.key(0))
    if name == "mc":
        np.testing.assert_allclose(inference.log_prob(*arguments).value, lg.log_p_y(X_, Y_), atol=0.2)
    else:
        with pytest.raises(UserError, match="has no recognition network; use mc"):
            inference.log_prob(*arguments)


@pytest.mark.parametrize("origin", ["recognition", "recognition_mean", "defensive"])
def test_scores_without_a_recognition_network(origin):
    fitted = Fitted(lg.MODEL._replace(encode=_encode_without_q), lg.variables())
    with pytest.raises(UserError, match="has no recognition network; use mc"):
        inference.scores(fitted, lg.batch_of(X_, Y_), origin, _z, 3, jax.random.key(0))


def _encode_without_q(variables, batch, train=None):
    return {**lg.MODEL.encode(variables, batch), "q": None}
