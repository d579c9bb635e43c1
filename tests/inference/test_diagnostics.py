"""What a latent code carries: its KL by dimension, and draws from its posterior and its prior, whatever its shape."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import linear_gaussian as lg
import numpy as np
import pytest
from linear_estimates import FACTORED
from scipy import stats

from cvae_jax.distributions import Normal, draw_latent
from cvae_jax.errors import UserError
from cvae_jax.inference import diagnostics
from cvae_jax.inference.diagnostics import LatentCode
from cvae_jax.model import Batch, Fitted
from cvae_jax.networks.flax_model import flax_model, given

KEY = jax.random.key(0)


class MapNetworks(nn.Module):
    """z is a map [4, 4, 3], whose prior and posterior are convolutions of x and of x and y, [batch, 4, 4, 1]."""

    def setup(self):
        self.prior_net = nn.Conv(6, (3, 3))
        self.recognition_net = nn.Conv(6, (3, 3))
        self.generation_net = nn.Conv(1, (1, 1))

    def encode(self, x, y, train):
        def normal(outputs):
            return Normal(outputs[..., :3], jnp.exp(0.3 * outputs[..., 3:]))

        seen = None if y is None else normal(self.recognition_net(jnp.concatenate([x, y], -1)))
        return {"prior": normal(self.prior_net(x)), "posterior": seen}

    def decode(self, encoding, keys, proposal, z, train):
        layer = draw_latent(encoding["prior"], encoding["posterior"], keys, proposal, given(z))
        return (layer,), self.generation_net(layer.z)


def images(count, seed=0):
    values = np.random.default_rng(seed).normal(size=(2, count, 4, 4, 1))
    return Batch(jnp.float32(values[0]), jnp.float32(values[1]), None, jnp.arange(count), jnp.ones(count))


@pytest.fixture(scope="module")
def map_model():
    model = flax_model(MapNetworks(), lambda outputs: Normal(outputs, jnp.ones_like(outputs)))
    return Fitted(model, jax.jit(model.init)(KEY, images(1), {}))


@jax.jit
def networks_encode(fitted, batch):
    return fitted.encode(batch)["networks"]


def kl_of(posterior, prior):
    """KL of Gaussians (mean, scale), float64."""
    (mean, scale), (other, width) = ([np.asarray(part, np.float64) for part in pair] for pair in (posterior, prior))
    return np.log(width / scale) + (scale**2 + (mean - other) ** 2) / (2 * width**2) - 0.5


def test_a_map_of_latent_variables_is_laid_flat(map_model):
    batch = images(5)
    code = diagnostics.latent_code(map_model, batch, KEY)
    encoding = networks_encode(map_model, batch)
    wanted = kl_of(encoding["posterior"], encoding["prior"])
    assert wanted.shape == (5, 4, 4, 3)
    for values in code:
        assert (values.shape, values.dtype) == ((5, 1, 48), np.float64)
    np.testing.assert_allclose(code.kl, wanted.reshape(5, 1, 48), rtol=1e-4, atol=1e-5)


def test_draws_of_a_map_are_from_its_posterior_and_its_prior(map_model):
    alike = jax.tree.map(lambda leaf: jnp.repeat(leaf, 300, 0), images(1))._replace(ids=jnp.arange(300))
    code = diagnostics.latent_code(map_model, alike, KEY)
    encoding = networks_encode(map_model, alike)
    for values, normal in ((code.posterior, encoding["posterior"]), (code.prior, encoding["prior"])):
        mean, scale = (np.asarray(part, np.float64).reshape(300, 1, 48) for part in normal)
        noise = (values - mean) / scale
        assert stats.kstest(noise.ravel(), "norm").pvalue > 1e-4
        assert len(np.unique(noise)) > 0.99 * noise.size


def test_two_latent_layers_stand_side_by_side():
    def draw(variables, encoding, keys, proposal, z=None, train=None):
        whole = lg.MODEL.draw(variables, encoding, keys, proposal)
        return whole._replace(z=(whole.z[:, :1], whole.z[:, 1:]), kl=(whole.kl[:, :1], whole.kl[:, 1:]))

    batch = lg.batch_of(*lg.data(6))
    fitted = lg.fitted(1.2, 0.3)
    apart = diagnostics.latent_code(Fitted(lg.MODEL._replace(draw=draw), fitted.variables), batch, KEY)
    whole = diagnostics.latent_code(fitted, batch, KEY)
    for values, wanted in zip(apart, whole, strict=True):
        assert values.shape == (6, 1, 4)
        np.testing.assert_allclose(values, wanted, rtol=1e-5)


@pytest.mark.parametrize(("of", "shape"), [(lg.DEFAULT, (6, 1, 4)), (FACTORED, (6, 6, 1))], ids=["plain", "factored"])
def test_every_dimension_has_the_kl_of_its_closed_form(of, shape):
    x, y = of.data(6)
    q, n = of.proposal(x, y, 1.2, 0.3), of._numbers
    code = diagnostics.latent_code(of.fitted(1.2, 0.3), of.batch_of(x, y), KEY)
    assert code.kl.shape == code.posterior.shape == code.prior.shape == shape
    np.testing.assert_allclose(code.kl.reshape(q.mean.shape), kl_of(q, (x @ n["A"].T, n["s_p"])), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(code.kl.sum((1, 2)), of.kl(x, q), rtol=1e-5)


def test_factors_that_are_places_in_y_have_no_code():
    model = FACTORED.model._replace(num_factors=2)
    fitted = Fitted(model, FACTORED.variables())
    assert diagnostics.latent_code(fitted, FACTORED.batch_of(*FACTORED.data(3)), KEY) is None


def test_a_model_without_a_recognition_network():
    def encode(variables, batch, train=None):
        return {**lg.MODEL.encode(variables, batch), "q": None}

    fitted = Fitted(lg.MODEL._replace(encode=encode), lg.variables())
    with pytest.raises(UserError, match="has no recognition network"):
        diagnostics.latent_code(fitted, lg.batch_of(*lg.data(3)), KEY)


def test_active_dimensions_and_the_mismatch_of_their_draws():
    rng = np.random.default_rng(0)
    kl = np.tile([0.0, 0.009, 0.011, 3.0], (20_000, 1))
    prior, posterior = rng.normal(size=(2, 20_000, 4))
    posterior[:, 3] += 1
    posterior[:, 2] = prior[:, 2]
    code = LatentCode(kl, posterior, prior)
    assert diagnostics.active_dimensions(code) == 2
    distance = diagnostics.mismatch(code)
    # Of N(1, 1) and N(0, 1) the distributions differ most half way between the means.
    np.testing.assert_allclose(distance, [0, 0, 0, 2 * stats.norm.cdf(0.5) - 1], atol=0.02)
    assert distance[2] == 0
