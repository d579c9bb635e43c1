"""Networks of conditional VAEs whose y is a vector of numbers: one latent layer, or two with residual networks."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from ml_collections import ConfigDict

from cvae_jax.distributions import Latent, bounded_normal, draw_latent, standard_normal
from cvae_jax.errors import UserError
from cvae_jax.model import Proposal, PyTree, Train
from cvae_jax.networks.flax_model import given
from cvae_jax.networks.mlp import ConditionedMLP, GaussianMLP
from cvae_jax.networks.residual import SMALL_INIT, ResidualBlock, ResidualMLP
from cvae_jax.settings import WIDTH, Choice, Whole, Wholes, check

ACTIVATIONS = ("relu", "tanh", "gelu")
PRIORS = ("fixed", "learned")


class OneLayerCVAE(nn.Module):
    """A CVAE with one latent layer: q(z|x,y), p(z|x) or N(0, I), p(y|x,z). It is the VAE if x has no features.

    Attributes:
      hidden: widths of the layers of each network, at least one.
      latent: size of z.
      outputs: size of what the generation network gives.
      activation: of the hidden layers, its name in flax.linen.
      prior: "fixed", N(0, I), or "learned", p(z|x) by a network.
      x_encoder: makes the network that reads x before it meets y or z; None where x is features already.
      tie_weights: one `x_encoder` for all three networks, not one each.
    """

    hidden: Sequence[int]
    latent: int
    outputs: int
    activation: str = "relu"
    prior: str = "fixed"
    x_encoder: Callable[[], nn.Module] | None = None
    tie_weights: bool = False

    def setup(self) -> None:
        self.recognition_net = GaussianMLP(self.hidden, self.latent, self.activation)
        self.generation_net = ConditionedMLP(self.hidden, self.outputs, self.activation)
        if self.prior == "learned":
            self.prior_net = GaussianMLP(self.hidden, self.latent, self.activation)
        x_encoder: Callable[[], Any] = self.x_encoder or (lambda: lambda x: x)
        self.generation_reader = x_encoder()
        self.recognition_reader = self.generation_reader if self.tie_weights else x_encoder()
        self.prior_reader = self.generation_reader if self.tie_weights else x_encoder()

    def encode(self, x: Array, y: Array | None, train: Train | None) -> dict[str, PyTree]:
        """Returns p(z|x), q(z|x,y), and the generation network's first layer of x; y is [batch, features]."""
        if self.prior == "learned":
            prior = self.prior_net(self.prior_reader(x))
        else:
            prior = standard_normal((len(x), self.latent))
        encoding = {
            "prior": prior,
            "posterior": None,
            "recognition_x": self.recognition_reader(x),
            "x": self.generation_net.first_layer_x(self.generation_reader(x)),
        }
        return encoding if y is None else self.recognise(encoding, y)

    def recognise(self, encoding: dict[str, PyTree], y: Array) -> dict[str, PyTree]:
        """Returns the encoding with q(z|x,y) of this y, [batch, features]."""
        posterior = self.recognition_net(jnp.concatenate([y, encoding["recognition_x"]], -1))
        return {**encoding, "posterior": posterior}

    def decode(
        self,
        encoding: dict[str, PyTree],
        keys: Array,
        proposal: Proposal,
        z: tuple[Array] | None,
        train: Train | None,
    ) -> tuple[tuple[Latent], Array]:
        """Returns the latent layer, and the outputs [batch, outputs]."""
        layer = draw_latent(encoding["prior"], encoding["posterior"], keys, proposal, given(z))
        return (layer,), self.generation_net(encoding["x"], layer.z)


class TwoLayerCVAE(nn.Module):
    """A CVAE with two latent layers, p(z1|x) p(z2|x,z1), and residual networks that all see x.

    Each q is given by what y changes about its p (means and log standard deviations are sums), so it begins at
    the prior.

    Attributes:
      width: of all layers.
      latent: size of z, half of it each latent layer's.
      outputs: size of what the generation network gives.
    """

    width: int
    latent: int
    outputs: int

    def setup(self) -> None:
        dense, parameters = nn.Dense, self.latent  # mean and log scale of latent/2 dimensions
        self.x_net = ResidualMLP(self.width)
        self.y_net = ResidualMLP(self.width)
        self.prior_net = [dense(parameters, kernel_init=SMALL_INIT) for _ in range(2)]
        self.recognition_features = [dense(self.width) for _ in range(2)]
        self.recognition_state = dense(self.width, use_bias=False)
        self.recognition_net = [dense(parameters, kernel_init=SMALL_INIT) for _ in range(2)]
        self.generation_x = dense(self.width)
        self.generation_z = [dense(self.width, use_bias=False) for _ in range(2)]
        self.generation_norm = [nn.LayerNorm() for _ in range(2)]
        self.generation_block = ResidualBlock()
        self.generation_out = dense(self.outputs, kernel_init=SMALL_INIT)

    def encode(self, x: Array, y: Array | None, train: Train | None) -> dict[str, PyTree]:
        """Returns p(z1|x), the generation network's part in x, and the recognition networks' part in y.

        x and y are [batch, features], about 0.
        """
        features = self.x_net(x)
        encoding = {
            "prior": self.prior_net[0](features),
            "x": self.generation_x(features),
            "features": features,
            "change": None,
            "seen": None,
        }
        return encoding if y is None else self.recognise(encoding, y)

    def recognise(self, encoding: dict[str, PyTree], y: Array) -> dict[str, PyTree]:
        """Returns the encoding with the recognition networks' part in this y, [batch, features]."""
        seen = self.y_net(y)
        both = nn.gelu(self.recognition_features[0](jnp.concatenate([seen, encoding["features"]], -1)))
        return {**encoding, "change": self.recognition_net[0](both), "seen": self.recognition_features[1](seen)}

    def decode(
        self,
        encoding: dict[str, PyTree],
        keys: Array,
        proposal: Proposal,
        z: tuple[Array, Array] | None,
        train: Train | None,
    ) -> tuple[tuple[Latent, Latent], Array]:
        """Returns both latent layers, and the outputs [batch, outputs]."""
        first_keys, second_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
        first = self._layer(encoding["prior"], encoding["change"], first_keys, proposal, given(z, 0))
        state = encoding["x"] + self.generation_z[0](first.z)
        features = nn.gelu(self.generation_norm[0](state))
        change = None
        if encoding["seen"] is not None:
            change = self.recognition_net[1](nn.gelu(encoding["seen"] + self.recognition_state(features)))
        second = self._layer(self.prior_net[1](features), change, second_keys, proposal, given(z, 1))
        state = self.generation_block(state + self.generation_z[1](second.z))
        return (first, second), self.generation_out(nn.gelu(self.generation_norm[1](state)))

    def _layer(self, prior: Array, change: Array | None, keys: Array, proposal: Proposal, z: Array | None) -> Latent:
        """Draws a latent layer whose posterior is the prior with its parameters changed."""
        posterior = None if change is None else bounded_normal(*jnp.split(prior + change, 2, -1))
        return draw_latent(bounded_normal(*jnp.split(prior, 2, -1)), posterior, keys, proposal, z)


class TwoLayerControl(nn.Module):
    """What is left of a TwoLayerCVAE without z: the residual networks from x to the outputs, with no latent layer.

    Attributes:
      width: of all layers.
      outputs: size of what it gives.
    """

    width: int
    outputs: int

    def setup(self) -> None:
        self.x_net = ResidualMLP(self.width)
        self.generation_x = nn.Dense(self.width)
        self.generation_norm = nn.LayerNorm()
        self.generation_block = ResidualBlock()
        self.generation_out = nn.Dense(self.outputs, kernel_init=SMALL_INIT)

    def encode(self, x: Array, y: Array | None, train: Train | None) -> Array:
        """Returns the outputs [batch, outputs] for x, [batch, features], about 0."""
        state = self.generation_block(self.generation_x(self.x_net(x)))
        return self.generation_out(nn.gelu(self.generation_norm(state)))

    def decode(
        self, encoding: Array, keys: Array, proposal: Proposal, z: PyTree, train: Train | None
    ) -> tuple[tuple[()], Array]:
        """Returns no latent layer, and the outputs."""
        return (), encoding


def check_widths(section: str, settings: ConfigDict) -> None:
    """Raises a UserError where a stage's `hidden`, or its `latent` if it has one, is no size of a layer."""
    check(settings, {"hidden": Wholes(), **({"latent": Whole(1, WIDTH)} if "latent" in settings else {})}, section)


def one_layer(
    settings: ConfigDict,
    outputs: int,
    prior: str = "fixed",
    x_encoder: Callable[[], nn.Module] | None = None,
    tie_weights: bool = False,
    section: str = "cvae",
) -> OneLayerCVAE:
    """Makes the plain networks of a stage's `hidden`, `latent` and `activation`.

    Args:
      settings: of the stage.
      outputs: size of what the generation network gives.
      prior: as in OneLayerCVAE.
      x_encoder: as in OneLayerCVAE.
      tie_weights: as in OneLayerCVAE.
      section: of the config, for messages.

    Raises:
      UserError: for a value that cannot be.
    """
    check_widths(section, settings)
    check(settings, {"activation": Choice(ACTIVATIONS)}, section)
    if prior not in PRIORS:
        raise UserError(f"{section}.prior={prior!r} is not known; choose from {', '.join(PRIORS)}")
    return OneLayerCVAE(settings.hidden, settings.latent, outputs, settings.activation, prior, x_encoder, tie_weights)


def two_layers(settings: ConfigDict, outputs: int, section: str = "cvae") -> TwoLayerCVAE:
    """Makes the residual networks of a stage's `hidden` and `latent`.

    Raises:
      UserError: where these cannot be; names the key in `section`.
    """
    check_widths(section, settings)
    if len(settings.hidden) != 1 or settings.latent % 2:
        raise UserError(f"{section}.network=residual takes one width in {section}.hidden and an even {section}.latent")
    return TwoLayerCVAE(settings.hidden[0], settings.latent, outputs)
