"""How Flax networks meet the contract: what they see, what only training has, and what they return."""

import contract
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from cvae_jax.distributions import Normal, bounded_normal, draw_latent, standard_normal
from cvae_jax.errors import UserError
from cvae_jax.model import Batch, Fitted, Train
from cvae_jax.networks.cvae import one_layer, two_layers
from cvae_jax.networks.flax_model import flax_model, given, x_and_y

KEY = jax.random.key(0)
X, Y = np.random.default_rng(0).normal(size=(2, 6, 3)).astype(np.float32)
BATCH = Batch(jnp.asarray(X), jnp.asarray(Y), None, jnp.arange(6), jnp.ones(6))
TRAIN = Train(jax.random.split(jax.random.key(1), 6), jnp.int32(7))


def unit_normal(outputs):
    return Normal(outputs, jnp.ones_like(outputs))


class Noisy(nn.Module):
    """Networks with noise in both halves, and a share of the step, that only training has."""

    @nn.compact
    def whole(self, x):
        return nn.Dense(3)(x)

    def encode(self, x, y, train):
        features = self.whole(x)
        if train is None:
            return features
        return features + jax.vmap(lambda key: jax.random.normal(key, (3,)))(train.keys)

    def decode(self, encoding, keys, proposal, z, train):
        prior = standard_normal(encoding.shape)
        layer = draw_latent(prior, None, keys, proposal, given(z))
        return (layer,), encoding + layer.z + (0 if train is None else train.step.astype(jnp.float32))


def test_training_alone_has_noise_and_a_step():
    model = flax_model(Noisy(), unit_normal)
    variables = model.init(KEY, BATCH, {})
    keys, z = jax.random.split(KEY, 6), (jnp.zeros((6, 3)),)

    def mean_of(train):
        return model.draw(variables, model.encode(variables, BATCH, train), keys, "given", z, train).p_y.mean

    dense = variables["params"]["Dense_0"]
    plain = X @ np.asarray(dense["kernel"]) + np.asarray(dense["bias"])
    noise = jax.vmap(lambda key: jax.random.normal(key, (3,)))(TRAIN.keys)
    np.testing.assert_allclose(mean_of(None), plain, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(mean_of(TRAIN), plain + noise + 7, rtol=1e-5, atol=1e-6)
    only_encoded = model.draw(variables, model.encode(variables, BATCH, TRAIN), keys, "given", z)
    np.testing.assert_allclose(only_encoded.p_y.mean, plain + noise, rtol=1e-5, atol=1e-6)


class Normalised(nn.Module):
    """Batch statistics before and behind a z."""

    def setup(self):
        self.before, self.behind = (nn.BatchNorm(momentum=0.9, axis_name=None) for _ in range(2))

    def _average(self):
        return not self.is_mutable_collection("batch_stats")

    def encode(self, x, y, train):
        return self.before(x, use_running_average=self._average())

    def decode(self, encoding, keys, proposal, z, train):
        return (), self.behind(2 * encoding, use_running_average=self._average())


def test_batch_statistics_move_in_training_alone():
    model = flax_model(Normalised(), unit_normal)
    variables = model.init(KEY, BATCH, {})
    keys = jax.random.split(KEY, 6)
    measured = model.draw(variables, model.encode(variables, BATCH), keys, "prior")
    assert not jax.tree.leaves(measured.updates)
    np.testing.assert_allclose(measured.p_y.mean, 2 * X / (1 + 1e-5), rtol=1e-5)
    trained = model.draw(variables, model.encode(variables, BATCH, TRAIN), keys, "prior", train=TRAIN)
    statistics = trained.updates["batch_stats"]
    exact = X.astype(np.float64)
    scaled = (exact - exact.mean(0)) / np.sqrt(exact.var(0) + 1e-5)
    np.testing.assert_allclose(statistics["before"]["mean"], 0.1 * exact.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(statistics["before"]["var"], 0.9 + 0.1 * exact.var(0), rtol=1e-5)
    np.testing.assert_allclose(statistics["behind"]["var"], 0.9 + 0.1 * (2 * scaled).var(0), rtol=1e-5)
    wanted = 2 * scaled / np.sqrt(4 * scaled.var(0) + 1e-5)
    np.testing.assert_allclose(trained.p_y.mean, wanted, rtol=1e-4, atol=1e-5)


class Guided(nn.Module):
    """A layer of x beside what an earlier stage says."""

    @nn.compact
    def whole(self, x):
        return nn.Dense(3)(x)

    def encode(self, x, y, train):
        return self.whole(x)

    def decode(self, encoding, keys, proposal, z, train):
        return (), encoding


def beside_the_guess(batch, earlier):
    return jnp.concatenate([batch.x, earlier["guess"]["params"]["constant"] + 0 * batch.x], -1), batch.y


def test_networks_see_the_variables_of_earlier_stages():
    model, guess = flax_model(Guided(), unit_normal, beside_the_guess), {"params": {"constant": jnp.full((6, 3), 2.0)}}
    variables = model.init(KEY, BATCH, {"guess": guess})
    assert "frozen" not in variables
    dense = variables["params"]["Dense_0"]
    assert dense["kernel"].shape == (6, 3)
    fitted = Fitted(model, {**variables, "frozen": {"guess": guess}})
    wanted = np.concatenate([X, np.full((6, 3), 2.0)], 1) @ np.asarray(dense["kernel"]) + np.asarray(dense["bias"])
    draw = fitted.draw(fitted.encode(BATCH), jax.random.split(KEY, 6), "prior")
    np.testing.assert_allclose(draw.p_y.mean, wanted, rtol=1e-5, atol=1e-6)
    assert (draw.z, draw.kl) == ((), ())
    np.testing.assert_array_equal(draw.log_q_z, 0)


def test_networks_see_x_and_y_as_they_are():
    x, y = x_and_y(BATCH, {})
    assert x is BATCH.x and y is BATCH.y


def conditional(network, activation="tanh"):
    settings = ConfigDict({"hidden": (8,), "latent": 4, "activation": activation})
    networks = two_layers(settings, 6) if network == "residual" else one_layer(settings, 6, "learned")
    model = flax_model(networks, lambda outputs: bounded_normal(*jnp.split(outputs, 2, -1)))
    return Fitted(model, contract.moved(jax.jit(model.init)(KEY, BATCH, {})))


@pytest.mark.slow
@pytest.mark.parametrize("network", ["plain", "residual"])
def test_networks_of_vectors_keep_the_contract(network):
    near = BATCH._replace(x=BATCH.x / 2, y=BATCH.y / 2)  # far from the prior samples are few that count
    contract.check_model(conditional(network), near)


@pytest.mark.parametrize("network", ["plain", "residual"])
def test_another_y_changes_the_posterior_alone(network):
    fitted = conditional(network)
    contract.check_recognise(fitted, BATCH)
    encoding = fitted.encode(BATCH)
    other = fitted.model.recognise(fitted.variables, encoding, BATCH.y[::-1])
    keys = jax.random.split(KEY, 6)
    before, after = (fitted.draw(encoded, keys, "prior_mean") for encoded in (encoding, other))
    np.testing.assert_array_equal(before.p_y.mean, after.p_y.mean)
    np.testing.assert_array_equal(before.log_p_z, after.log_p_z)
    assert (before.log_q_z != after.log_q_z).all() and (before.log_p_y != after.log_p_y).all()
    unknown = fitted.encode(BATCH._replace(y=None))
    recognised = fitted.model.recognise(fitted.variables, unknown, BATCH.y)
    np.testing.assert_allclose(fitted.draw(recognised, keys, "prior_mean").log_q_z, before.log_q_z, rtol=1e-6)


def test_networks_that_cannot_recognise():
    assert flax_model(Guided(), unit_normal).recognise is None


def test_the_means_of_two_layers_follow_each_other():
    """Under "recognition_mean" the second layer's posterior is that of the first layer's mean."""
    fitted = conditional("residual")
    encoding, keys = fitted.encode(BATCH), jax.random.split(KEY, 6)
    mean = fitted.draw(encoding, keys, "recognition_mean")
    given_z = fitted.draw(encoding, jax.random.split(jax.random.key(5), 6), "given", mean.z)
    np.testing.assert_allclose(given_z.p_y.mean, mean.p_y.mean, rtol=1e-6)
    np.testing.assert_array_equal(fitted.draw(encoding, keys[::-1], "recognition_mean").z[1], mean.z[1])
    # No z is likelier under q than its mean, layer by layer.
    sampled = fitted.draw(encoding, keys, "given", (mean.z[0], mean.z[1] + 0.1))
    assert (sampled.log_q_z < mean.log_q_z).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden": ()}, r"cvae.hidden=\(\) must be whole numbers"),
        ({"latent": 0}, "cvae.latent=0 must be at least 1"),
        ({"activation": "sine"}, "cvae.activation='sine' is not known; choose from relu, tanh, gelu"),
    ],
)
def test_networks_that_cannot_be(changes, message):
    settings = ConfigDict({"hidden": (8,), "latent": 4, "activation": "relu"} | changes)
    with pytest.raises(UserError, match=message):
        one_layer(settings, 6)
    with pytest.raises(UserError, match=r"cvae.prior='flat' is not known; choose from fixed, learned"):
        one_layer(ConfigDict({"hidden": (8,), "latent": 4, "activation": "relu"}), 6, "flat")
