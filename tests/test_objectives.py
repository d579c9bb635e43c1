from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import linear_gaussian as lg
import numpy as np
import pytest

from cvae_jax import keys, objectives
from cvae_jax.errors import UserError

SIGMAS = 4.5
X_, Y_ = lg.data(5)
NUM_DRAWS = 6000


@jax.jit
def many_draws(variables):
    """Draws from q, densities [NUM_DRAWS, batch]."""
    batch = lg.batch_of(X_, Y_)
    sample_keys = keys.per_sample(keys.per_example(jax.random.key(0), batch.index), jnp.arange(NUM_DRAWS))
    return lg.draw_many(variables, batch, "recognition", sample_keys)


def values(objective, variables, num_samples):
    """The objective and its terms, [repeats, batch], of as many repeats as there are draws for."""
    repeats = jax.tree.map(lambda leaf: leaf.reshape(-1, num_samples, *leaf.shape[1:]), many_draws(variables))
    return jax.vmap(lambda drawn: objective(lambda proposal: drawn))(repeats)


def assert_mean_is(found, wanted):
    found = np.asarray(found, np.float64)
    error = found.std(0, ddof=1) / np.sqrt(len(found))
    assert (error > 0).all() and error.max() < 0.1
    assert (np.abs(found.mean(0) - wanted) < SIGMAS * error).all()


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0, 2.0])
@pytest.mark.parametrize("num_samples", [1, 3])
def test_elbo(beta, num_samples):
    found, terms = values(partial(objectives.elbo, beta=beta), lg.variables(1.2, 0.3), num_samples)
    q = lg.proposal(X_, Y_, 1.2, 0.3)
    assert_mean_is(found, lg.elbo(X_, Y_, q, beta))
    assert_mean_is(terms["log_p_y"], lg.elbo(X_, Y_, q, 0.0))
    np.testing.assert_allclose(terms["kl"][0], lg.kl(X_, q), rtol=1e-5)


@pytest.mark.parametrize("num_samples", [1, 2, 50])
def test_iwae_with_the_exact_posterior_is_log_p_y(num_samples):
    found, _ = values(objectives.iwae, lg.variables(), num_samples)
    np.testing.assert_allclose(found, np.tile(lg.log_p_y(X_, Y_), (len(found), 1)), rtol=0, atol=2e-5)


def test_iwae_of_one_sample_is_the_elbo_in_expectation():
    found, terms = values(objectives.iwae, lg.variables(1.2, 0.3), 1)
    q = lg.proposal(X_, Y_, 1.2, 0.3)
    assert_mean_is(found, lg.elbo(X_, Y_, q))
    assert_mean_is(terms["log_p_y"], lg.elbo(X_, Y_, q, 0.0))
    np.testing.assert_allclose(terms["kl"][0], lg.kl(X_, q), rtol=1e-5)


def test_iwae_is_the_log_of_the_mean_weight():
    drawn = many_draws(lg.variables(1.2, 0.3))
    log_p_y, log_p_z, log_q_z = (np.asarray(one, np.float64) for one in (drawn.log_p_y, drawn.log_p_z, drawn.log_q_z))
    weights = np.exp(log_p_y + log_p_z - log_q_z).reshape(-1, 10, len(X_))
    found, _ = values(objectives.iwae, lg.variables(1.2, 0.3), 10)
    np.testing.assert_allclose(found, np.log(weights.mean(1)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("beta", [0.5, 1.0])
def test_gradient_of_the_elbo(beta):
    batch = lg.batch_of(X_, Y_)

    @jax.jit
    @partial(jax.vmap, in_axes=(None, 0))
    @jax.grad
    def gradients(variables, repeat):
        sample_keys = keys.per_example(jax.random.fold_in(jax.random.key(0), repeat), batch.index)[None]
        objective, _ = objectives.elbo(lambda p: lg.draw_many(variables, batch, p, sample_keys), beta=beta)
        return objective.mean()

    found = gradients(lg.variables(1.2, 0.3), jnp.arange(NUM_DRAWS))["params"]
    wanted = lg.elbo_gradients(X_, Y_, lg.proposal(X_, Y_, 1.2, 0.3), beta)
    for name in ("C", "bias"):
        assert_mean_is(found[name], wanted[name])


def test_without_latents_the_elbo_is_log_p_y():
    log_p_y = jnp.arange(3.0)
    drawn = lg.Draw((), log_p_y[None], jnp.zeros((1, 3)), jnp.zeros((1, 3)), (), None)
    objective, terms = objectives.elbo(lambda proposal: drawn)
    np.testing.assert_array_equal(objective, log_p_y)
    assert terms == {}


def config(**changes):
    return SimpleNamespace(**{"name": "elbo", "num_samples": 1, "beta": 1.0, **changes})


def test_from_config():
    drawn = jax.tree.map(lambda leaf: leaf[:2], many_draws(lg.variables(1.2)))
    for settings, wanted in (
        (config(beta=0.3), partial(objectives.elbo, beta=0.3)),
        (config(name="iwae"), objectives.iwae),
    ):
        np.testing.assert_array_equal(objectives.from_config(settings)(lambda p: drawn)[0], wanted(lambda p: drawn)[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"name": "vae"}, "objective.name='vae' .*elbo, iwae"), ({"num_samples": 0}, "objective.num_samples=0")],
)
def test_from_config_errors(changes, message):
    with pytest.raises(UserError, match=message):
        objectives.from_config(config(**changes))
