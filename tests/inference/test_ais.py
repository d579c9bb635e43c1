import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import linear_gaussian as lg
import numpy as np
import pytest
from chains import FROM_Q, KEY, log_weights
from command import ROOT
from scipy import stats

from cvae_jax import inference
from cvae_jax.distributions import Normal, sum_per_example
from cvae_jax.errors import UserError
from cvae_jax.inference import ais
from cvae_jax.inference.ais import Ais
from cvae_jax.inference.estimators import (
    log_mean_exp,
    mean_over_examples,
    mean_over_seeds,
    paired_difference,
    unreliable,
)
from cvae_jax.model import Batch, Draw, Fitted, Model

SIGMAS = 4.5
FROM_PRIOR = Ais("prior", 100)
X_, Y_ = lg.data(6)


def rows(batch, numbers):
    return jax.tree.map(lambda leaf: leaf[np.asarray(numbers)], batch)


def repeated(x, y, times):
    """Under other ids the same example is an independent replicate."""
    return np.repeat(x, times, 0), np.repeat(y, times, 0)


def assert_unbiased(log_ratios, sure=0.1):
    """exp(log_ratios) [chains, replicates, ...] are 1 on average, known to `sure`; replicates are independent."""
    means = np.exp(log_ratios).mean(0)
    error = means.std(0, ddof=1) / np.sqrt(len(means))
    assert (error < sure).all(), "too few chains to tell"
    assert (np.abs(means.mean(0) - 1) < SIGMAS * error).all()


# Models of which p(y|x) is known, without a recognition network.

NO_Q = jnp.nan


def model_of(draw_z, log_p_z, p_y, num_factors=0):
    """z from the prior by `draw_z(x, keys)`; `log_p_z(x, z)` and log p_y(x, z).log_prob(y) are [batch, *factors]."""

    def encode(variables, batch, train=None):
        return batch

    def draw(variables, batch, keys, proposal, z=None, train=None):
        if proposal == "recognition":
            raise ValueError("there is no recognition network")
        z = draw_z(batch.x, keys) if proposal == "prior" else z
        likelihood, scored = p_y(batch.x, z), log_p_z(batch.x, z)
        log_p_y = None if batch.y is None else likelihood.log_prob(batch.y)
        return Draw(z, log_p_y, scored, jnp.full_like(scored, NO_Q), (), likelihood)

    return Fitted(Model(lambda key, batch, earlier: {}, encode, draw, num_factors), {}, has_recognition=False)


def batch_of(x, y):
    return Batch(jnp.float32(x), None if y is None else jnp.float32(y), None, jnp.arange(len(x)), jnp.ones(len(x)))


def standard(x, keys, shape):
    return Normal(jnp.zeros((len(x), *shape)), jnp.ones((len(x), *shape)))


GAINS = np.array([0.1, 1.0, 10.0])  # of each factor: y_i = x_i + gain_i (z_i1 + z_i2) + noise
FACTORED = model_of(
    lambda x, keys: standard(x, keys, (3, 2)).sample(keys),
    lambda x, z: standard(x, None, (3, 2)).log_prob(z).sum(-1),
    lambda x, z: Normal(x + jnp.float32(GAINS)[None] * z.sum(-1), jnp.ones_like(x)),
    num_factors=1,
)


def factored_log_p_y(x, y):
    return stats.norm.logpdf(y, x, np.sqrt(2 * GAINS**2 + 1))


class TotalNormal(Normal):
    def log_prob(self, value):
        return sum_per_example(super().log_prob(value))


RNG = np.random.default_rng(1)
W, B = RNG.normal(size=(3, 2)), RNG.normal(size=(4, 3))


def second_layer(z):
    mean = z @ jnp.float32(W).T
    return Normal(mean, jnp.full_like(mean, 0.5))


def two_layers(x, keys):
    first_keys, second_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
    first = standard(x, None, (2,)).sample(first_keys)
    return {"first": first, "second": second_layer(first).sample(second_keys)}


TWO_LAYERS = model_of(  # z1 ~ N(0, 1), z2 ~ N(W z1, 0.5²), y ~ N(x + B z2, 1)
    two_layers,
    lambda x, z: (
        sum_per_example(standard(x, None, (2,)).log_prob(z["first"]))
        + sum_per_example(second_layer(z["first"]).log_prob(z["second"]))
    ),
    lambda x, z: TotalNormal(x + z["second"] @ jnp.float32(B).T, jnp.ones_like(x)),
)


def two_layers_log_p_y(x, y):
    covariance = B @ (W @ W.T + 0.25 * np.eye(3)) @ B.T + np.eye(4)
    return stats.multivariate_normal(np.zeros(4), covariance).logpdf(y - x)


class Discount:
    """p(y = 1|z) = exp(-3 z)."""

    def __init__(self, z):
        self.z = z

    def log_prob(self, y):
        return jnp.where(self.z > 0, -3 * self.z, jnp.nan)[:, 0]


WALLED = model_of(  # z is exponential: NaN below 0, its gradient too
    lambda x, keys: jax.vmap(lambda key: jax.random.exponential(key, (1,)))(keys),
    lambda x, z: jnp.where(z > 0, -z, jnp.nan)[:, 0],
    lambda x, z: Discount(z),
)


@pytest.fixture
def one_block(monkeypatch):
    """All examples on one device: one compilation."""
    monkeypatch.setattr(ais, "BLOCK_EXAMPLES", 120)


# Weights, against closed forms.


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "scale", "shift"),
    [(FROM_Q, 0.5, 0.0), (FROM_Q, 0.7, 0.0), (FROM_Q, 2.0, 0.0), (FROM_Q, 1.2, 1.0), (FROM_PRIOR, 1.0, 0.0)],
)
def test_weights_are_unbiased(request, settings, scale, shift):
    if settings is FROM_PRIOR:
        request.getfixturevalue("one_block")
    x, y = repeated(X_[:2], Y_[:2], 60)
    chains = ais.ais(lg.fitted(scale, shift), lg.batch_of(x, y), 16, KEY, settings)
    assert chains.log_weights.shape == chains.acceptance.shape == (16, 120)
    assert chains.log_weights.dtype == np.float64
    assert_unbiased((chains.log_weights - lg.log_p_y(x, y)).reshape(16, 2, 60).transpose(0, 2, 1))
    # Of each example 60 pilots: on average they hit the target.
    assert np.abs(chains.acceptance.mean() - ais.TARGET_ACCEPTANCE) < 0.06
    missed = log_mean_exp(chains.log_weights).value - lg.log_p_y(x, y)
    assert np.sqrt((missed**2).mean()) < 0.35


def test_one_step_is_importance_sampling():
    batch = lg.batch_of(X_, Y_)
    chains = ais.ais(lg.fitted(1.2), batch, 2000, KEY, Ais("recognition", 1))
    found = log_mean_exp(chains.log_weights)
    assert (np.abs(found.value - lg.log_p_y(X_, Y_)) < SIGMAS * found.error).all()
    np.testing.assert_allclose(found.ess / 2000, lg.relative_ess(1.2), rtol=0.15)
    assert np.isnan(chains.acceptance).all()


def test_more_steps_are_better(one_block):
    batch, truth = lg.batch_of(X_, Y_), lg.log_p_y(X_, Y_)
    spreads = []
    for settings in (Ais("prior", 1), FROM_PRIOR):
        spreads.append((ais.ais(lg.fitted(), batch, 64, KEY, settings).log_weights - truth).std())
    assert spreads[1] < 0.25 * spreads[0]


def test_far_values_are_precise():
    # From the exact posterior every weight is p(y|x): what is left is rounding.
    y = Y_ + 20
    truth = lg.log_p_y(X_, y)
    assert truth.max() < -150
    chains = ais.ais(lg.fitted(), lg.batch_of(X_, y), 16, KEY, FROM_Q)
    np.testing.assert_allclose(chains.log_weights, np.broadcast_to(truth, (16, 6)), rtol=0, atol=1e-4 * 2)


def test_temperatures():
    for num_steps in (1, 2, 7, 500):
        ladder = ais.temperatures(num_steps)
        assert ladder.shape == (num_steps + 1,) and ladder[0] == 0 and ladder[-1] == 1
        assert (np.diff(ladder) > 0).all()


@pytest.mark.slow
def test_factors(one_block):
    found = ais.bdmc(FACTORED, batch_of(RNG.normal(size=(60, 3)), None), 16, KEY, FROM_PRIOR)
    truth = factored_log_p_y(np.asarray(found.batch.x, np.float64), np.asarray(found.batch.y, np.float64))
    assert_unbiased(found.forward.log_weights - truth, 0.2)
    assert_unbiased(truth - found.reverse.log_weights, 0.2)
    for chains in (found.forward, found.reverse):
        assert chains.log_weights.shape == chains.acceptance.shape == (16, 60, 3)
        # Each has its own step size: where p(z|x,y) is a tenth as wide for one, no other would do.
        np.testing.assert_allclose(chains.acceptance.mean((0, 1)), ais.TARGET_ACCEPTANCE, atol=0.06)
    # One factor knows nothing of the others' y.
    y = found.batch.y + np.float32([0, 0, 5])
    other = ais.ais(FACTORED, found.batch._replace(y=y), 16, KEY, FROM_PRIOR)
    np.testing.assert_array_equal(other.log_weights[..., :2], found.forward.log_weights[..., :2])
    assert (other.log_weights[..., 2] != found.forward.log_weights[..., 2]).all()


@pytest.mark.slow
def test_z_of_two_layers(one_block):
    x = RNG.normal(size=(60, 4))
    z1 = RNG.normal(size=(60, 2))
    y = x + (z1 @ W.T + 0.5 * RNG.normal(size=(60, 3))) @ B.T + RNG.normal(size=(60, 4))
    chains = ais.ais(TWO_LAYERS, batch_of(x, y), 16, KEY, FROM_PRIOR)
    assert_unbiased((chains.log_weights - two_layers_log_p_y(x, y))[..., None])
    assert chains.log_weights.std(0).mean() < 1


def test_trajectories_that_run_away_are_rejected(one_block):
    chains = ais.ais(WALLED, batch_of(np.zeros((60, 1)), np.ones((60, 1))), 16, KEY, FROM_PRIOR)
    assert np.isfinite(chains.log_weights).all() and np.isfinite(chains.acceptance).all()
    assert_unbiased((chains.log_weights + np.log(4))[..., None])
    assert chains.acceptance.mean() > 0.4


# Bidirectional Monte Carlo.


@pytest.mark.slow
@pytest.mark.parametrize("settings", [FROM_Q, FROM_PRIOR])
def test_bdmc(request, settings):
    if settings is FROM_PRIOR:
        request.getfixturevalue("one_block")
    count = 120
    batch = lg.batch_of(lg.data(count)[0], None)
    found = ais.bdmc(lg.fitted(0.7, 0.3), batch, 16, KEY, settings)
    x, y = np.asarray(batch.x, np.float64), np.asarray(found.batch.y, np.float64)
    truth = lg.log_p_y(x, y)
    assert_unbiased((found.forward.log_weights - truth)[..., None])
    assert_unbiased((truth - found.reverse.log_weights)[..., None])
    lower, upper = (bound.value for bound in ais.bounds(found))
    for bound in (lower, upper):
        assert np.sqrt(((bound - truth) ** 2).mean()) < 0.35
    gap = upper - lower
    assert -SIGMAS * gap.std() / np.sqrt(count) < gap.mean() < 0.2
    # Single chains are further off, each to its own side.
    assert found.forward.log_weights.mean() < truth.mean() - 0.02
    assert found.reverse.log_weights.mean() > truth.mean() + 0.02
    assert np.abs(found.reverse.acceptance.mean() - ais.TARGET_ACCEPTANCE) < 0.06


@pytest.mark.slow
def test_few_steps_show_a_weight_at_the_wrong_temperature(one_block):
    batch = lg.batch_of(lg.data(600)[0], None)
    found = ais.bdmc(lg.fitted(1.4, 0.7), batch, 16, KEY, Ais("recognition", 4))
    truth = lg.log_p_y(np.asarray(batch.x, np.float64), np.asarray(found.batch.y, np.float64))
    assert_unbiased((found.forward.log_weights - truth)[..., None], 0.04)
    assert_unbiased((truth - found.reverse.log_weights)[..., None], 0.04)


def test_bounds_of_every_factor():
    forward, reverse = np.random.default_rng(0).normal(-3, 1, size=(2, 16, 5, 3))
    acceptance = np.ones_like(forward)
    lower, upper = ais.bounds(ais.Bidirectional(None, ais.Chains(forward, acceptance), ais.Chains(reverse, acceptance)))
    np.testing.assert_allclose(lower.per_factor, np.log(np.exp(forward).mean(0)), rtol=1e-12)
    np.testing.assert_allclose(upper.per_factor, -np.log(np.exp(-reverse).mean(0)), rtol=1e-12)
    for bound in (lower, upper):
        np.testing.assert_allclose(bound.per_factor.sum(1), bound.value, rtol=1e-12)
    assert (lower.error > 0).all() and (lower.bias == upper.bias).all() and (upper.bias == 0).all()
    # The reverse chains of an example begin at one z. Of several examples the distance to the lower bound says more.
    assert np.isnan(upper.error).all()
    for bound in (upper, mean_over_seeds([upper])):  # where chains hardly move in one direction, they do not in both
        np.testing.assert_array_equal(unreliable(bound), unreliable(lower))
    spread, of_lower = (upper.value - lower.value).var(ddof=1), (lower.error**2).mean()
    variance = max(spread - of_lower, spread / 2) / 5
    assert mean_over_examples(upper).error == pytest.approx(np.sqrt(variance))
    # Of a single chain the lower bound's own error is not known either.
    few = [ais.Chains(chains[:1], acceptance[:1]) for chains in (forward, reverse)]
    assert mean_over_examples(ais.bounds(ais.Bidirectional(None, *few))[1]).error > 0
    assert np.isnan(paired_difference(upper, lower).error)
    single = jax.tree.map(lambda leaf: leaf[:1], upper)
    assert np.isnan(mean_over_examples(single).error)


@pytest.mark.slow
@pytest.mark.parametrize("num_steps", [5, 20, 100])
def test_errors_of_mean_bounds(num_steps):
    """Of 20 repeats of the mean over 60 y; q is 0.7 times as wide, and chains hardly move at few temperatures."""
    repeats, count, of = 20, 60, lg.LinearGaussian(3, 8, 16)
    batch = of.batch_of(of.data(repeats * count)[0], None)
    bidirectional = ais.bdmc(of.fitted(0.7, 0.3), batch, 16, KEY, Ais("recognition", num_steps, 2))
    truth = of.log_p_y(np.asarray(batch.x, np.float64), np.asarray(bidirectional.batch.y, np.float64))
    lower, upper = ais.bounds(bidirectional)
    of_repeats = np.array_split(np.arange(repeats * count), repeats)
    for bound, side in ((lower, -1), (upper, 1)):
        means = [mean_over_examples(jax.tree.map(lambda leaf, rows=rows: leaf[rows], bound)) for rows in of_repeats]
        missed = [(bound.value - truth)[rows].mean() for rows in of_repeats]
        ratio = np.std(missed, ddof=1) / np.sqrt(np.mean([mean.error**2 for mean in means]))
        # The standard deviation of 20 numbers is known to 16%.
        assert 0.6 < ratio < 1.5
        # And the truth lies inside, up to the errors.
        assert np.mean([side * miss > -1.96 * mean.error for miss, mean in zip(missed, means, strict=True)]) >= 0.9


@pytest.mark.slow
def test_every_factor_is_annealed_by_itself(one_block):
    x, y = (np.float32(RNG.normal(size=(4, 3))) for _ in range(2))
    estimates = inference.log_prob(FACTORED, batch_of(x, y), "ais", 16, KEY, Ais("prior", 30))
    assert estimates.per_factor.shape == (4, 3)
    np.testing.assert_allclose(estimates.per_factor.sum(1), estimates.value, rtol=1e-12)
    np.testing.assert_allclose(estimates.per_factor[:, :2], factored_log_p_y(x, y)[:, :2], atol=0.3)


def test_simulated_z_and_y_are_drawn_from_the_model():
    count = 2000
    x = np.repeat(X_[:1], count, 0)
    batch, z = ais.simulate(lg.fitted(), lg.batch_of(x, None), KEY)
    exact = lg.posterior(x, np.asarray(batch.y, np.float64))
    standardised = (z - exact.mean) / exact.scale
    assert stats.kstest(standardised.ravel(), "norm").pvalue > 1e-5
    covariance = np.cov(np.asarray(batch.y).T)
    wanted = lg.log_p_y(x, np.asarray(batch.y, np.float64)).mean()
    entropy = -0.5 * (lg.DEFAULT.y_size * np.log(2 * np.pi * np.e) + np.linalg.slogdet(covariance)[1])
    assert abs(wanted - entropy) < 0.15


# Each chain depends on (key, id of the example, number of the chain) alone.


@pytest.fixture(scope="module")
def whole(optimized):
    batch = lg.batch_of(*lg.data(23))
    return batch, log_weights(batch)


@pytest.mark.slow
@pytest.mark.parametrize("numbers", [[4], [22, 3, 11], range(22, -1, -1), [7] * 12])
def test_chains_do_not_depend_on_the_batch(whole, numbers):
    batch, wanted = whole
    np.testing.assert_array_equal(log_weights(rows(batch, list(numbers))), wanted[:, list(numbers)])


@pytest.mark.slow
def test_fewer_chains_are_the_first_of_more(whole):
    batch, wanted = whole
    np.testing.assert_array_equal(log_weights(batch, 3), wanted[:3])
    np.testing.assert_array_equal(log_weights(batch, 20)[:16], wanted)


@pytest.mark.slow
def test_chains_differ_between_chains_examples_keys_and_directions():
    twins = lg.batch_of(*repeated(X_[:1], Y_[:1], 2))
    found = [log_weights(twins, 20, key) for key in (KEY, jax.random.key(1))]
    both = ais.bdmc(lg.fitted(1.2, 0.5), twins, 20, KEY, FROM_Q)
    found += [both.forward.log_weights, both.reverse.log_weights]
    assert len(np.unique(np.stack(found))) == 4 * 2 * 20


PROGRAM = """
import sys
import jax, numpy as np
import chains, linear_gaussian as lg
assert jax.device_count() == 1
np.save(sys.argv[1], chains.log_weights(lg.batch_of(*lg.data(23))))
"""


@pytest.mark.slow
def test_chains_do_not_depend_on_the_number_of_devices(whole, tmp_path):
    assert jax.device_count() > 1
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "false",
        "PYTHONPATH": f"{ROOT / 'tests' / 'support'}:{ROOT}",
    }
    subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path / "one.npy")], check=True, env=environment)
    np.testing.assert_array_equal(np.load(tmp_path / "one.npy"), whole[1])


# Errors.


@pytest.mark.parametrize(
    ("num_chains", "settings", "message"),
    [
        (0, Ais(), "num_chains=0 must be at least 1"),
        (1, Ais(num_steps=0), "num_steps=0"),
        (1, Ais(num_leapfrog=0), "num_leapfrog=0"),
        (1, Ais("posterior"), "start='posterior' .*recognition or prior"),
    ],
)
@pytest.mark.parametrize("function", [ais.ais, ais.bdmc])
def test_wrong_settings(function, num_chains, settings, message):
    with pytest.raises(UserError, match=message):
        function(lg.fitted(), lg.batch_of(X_, Y_), num_chains, KEY, settings)


def test_both_directions_need_a_temperature_between():
    with pytest.raises(UserError, match="num_steps=1 leaves bdmc no temperature between"):
        ais.bdmc(lg.fitted(), lg.batch_of(X_, None), 2, KEY, Ais(num_steps=1))


def test_the_weight_is_that_of_the_y_that_is_drawn():
    """The first half of y says which elements of the other half there are."""

    def weight(batch):
        there = (batch.y[:, :3] > 0).astype(jnp.float32)
        return jnp.concatenate([jnp.ones_like(there), there], 1)

    def score(y, weight, mean):
        return (stats.norm.logpdf(y, mean, lg.S_Y) * weight).sum(-1)

    def draw(variables, batch, keys, proposal, z=None, train=None):
        mean = batch.x[:, :1] + jnp.zeros((1, 6))
        p_y, nothing = Normal(mean, jnp.full_like(mean, lg.S_Y)), jnp.zeros(len(batch.x))
        log_p_y = None if batch.y is None else (p_y.log_prob(batch.y) * batch.weight).sum(1)
        return Draw(nothing[:, None], log_p_y, nothing, nothing, (), p_y)

    model = Model(lambda key, batch, earlier: {}, lambda variables, batch, train=None: batch, draw, weight=weight)
    x = np.random.default_rng(0).normal(size=(200, 3))
    batch = batch_of(x, None)._replace(weight=jnp.ones((200, 6)))
    simulated, _ = ais.simulate(Fitted(model, {}), batch, KEY)
    y = np.asarray(simulated.y)
    np.testing.assert_array_equal(simulated.weight, weight(simulated))
    there = np.asarray(simulated.weight)[:, 3:] == 1
    assert (y[:, 3:] != 0)[there].all() and not y[:, 3:][~there].any() and 0.3 < there.mean() < 0.7


def test_y_is_needed():
    with pytest.raises(UserError, match="needs y"):
        ais.ais(lg.fitted(), lg.batch_of(X_, None), 1, KEY, Ais())


@pytest.mark.parametrize("function", [ais.ais, ais.bdmc])
def test_no_recognition_network(function):
    with pytest.raises(UserError, match=r'no recognition network.*start="prior"'):
        function(TWO_LAYERS, batch_of(np.zeros((2, 4)), np.zeros((2, 4))), 1, KEY, Ais())


@pytest.mark.parametrize("function", [ais.ais, ais.bdmc])
def test_no_latent_variables(function):
    def draw(variables, batch, keys, proposal, z=None, train=None):
        p_y, nothing = Normal(batch.x, jnp.ones_like(batch.x)), jnp.zeros(len(batch.x))
        return Draw((), None if batch.y is None else nothing, nothing, nothing, (), p_y)

    fitted = Fitted(Model(lambda key, batch, earlier: {}, lambda variables, batch, train=None: batch, draw), {})
    with pytest.raises(UserError, match=r"no latent variables.*exact"):
        function(fitted, batch_of(np.zeros((2, 4)), np.zeros((2, 4))), 1, KEY, Ais())
