"""A CVAE over pairs of positions: whether each lies in boxes, where these begin and how large they are."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from cvae_jax.distributions import (
    Bernoulli,
    Categorical,
    Joint,
    Latent,
    Normal,
    bounded_normal,
    draw_latent,
    standard_normal,
)
from cvae_jax.networks.flax_model import given
from cvae_jax.task import Proposal, PyTree, Train
from cvae_jax.tasks.rna_boxes.boxes import FAR
from cvae_jax.tasks.rna_boxes.pairs import fold, upper

LATENTS = {"none": 0, "global": 1, "pixel": 3}  # where z is -> axes of factors: structures, or structures and pixels
# Heads of the likelihood: name -> (outputs a pixel, classes of each, the type of box that each is about).
HEADS = {
    "on": (3, 1, (0, 1, 2)),
    "location": (6, FAR + 2, (0, 0, 1, 1, 2, 2)),
    "size": (4, FAR + 1, (0, 1, 1, 2)),
    "scalar": (4, 1, (0, 1, 1, 2)),
}


class BoxNetworks(nn.Module):
    """A CVAE over pairs of positions: a tower reads x; what meets z or y after it is the same at every pixel.

    Attributes:
      tower: makes the network that reads x.
      heads: names of the likelihood's heads.
      z: a key of LATENTS.
      prior: "fixed", N(0, I), or "learned", p(z|x) by a network.
      latent: size of z.
      hidden: width of the recognition and prior networks' hidden layer.
      decoder: width of each head's hidden layer.
    """

    tower: Callable[[], nn.Module]
    heads: Sequence[str]
    z: str
    prior: str
    latent: int
    hidden: int
    decoder: int

    def setup(self) -> None:
        self.of_pairs = self.tower()
        self.generation_x = {name: nn.Dense(self.decoder) for name in self.heads}
        self.generation_out = {name: nn.Dense(HEADS[name][0] * HEADS[name][1]) for name in self.heads}
        if self.z == "none":
            return
        self.generation_z = {name: nn.Dense(self.decoder, use_bias=False) for name in self.heads}
        self.recognition_x = nn.Dense(self.hidden)
        self.recognition_y = nn.Dense(self.hidden, use_bias=False)
        self.recognition_out = nn.Dense(2 * self.latent)
        if self.prior == "learned":
            self.prior_x = nn.Dense(self.hidden)
            self.prior_out = nn.Dense(2 * self.latent)
        if self.z == "global":
            self.generation_scale = {name: nn.Dense(self.decoder, use_bias=False) for name in self.heads}
            self.recognition_all = nn.Dense(self.hidden)
            if self.prior == "learned":
                self.prior_all = nn.Dense(self.hidden)

    def encode(self, x: dict[str, Array], y: dict[str, Array] | None, train: Train | None) -> dict[str, PyTree]:
        """Returns p(z|x), q(z|x,y), and every head's part in x.

        A head of y is [batch, structures, length / 2, length, outputs]. There is one structure where y is None.
        """
        inside = jnp.arange(x["sequence"].shape[1])[None] < x["length"][:, None]
        letters = jax.nn.one_hot(x["sequence"] - 1, 4)  # N and padding are 0
        features = fold(self.of_pairs(letters, inside), 1)[:, None]  # with an axis of structures
        encoding: dict[str, PyTree] = {"x": {name: net(features) for name, net in self.generation_x.items()}}
        if self.z == "none":
            return encoding
        live = fold(upper(inside), 1)[:, None, :, :, None].astype(features.dtype)
        parameters = self._prior_parameters(features, live) if self.prior == "learned" else None
        encoding |= {
            "prior_parameters": parameters,
            "prior": _prior(parameters, (*features.shape[: 4 if self.z == "pixel" else 2], self.latent)),
            "posterior": None,
            "recognition_x": self.recognition_x(features),
            "live": live,
        }
        return encoding if y is None else self.recognise(encoding, y)

    def _prior_parameters(self, features: Array, live: Array) -> Array:
        """Returns mean and log scale of p(z|x), [batch, 1, 2 latent] or [batch, 1, length / 2, length, 2 latent]."""
        hidden = nn.gelu(self.prior_x(features))
        if self.z == "global":
            hidden = nn.gelu(self.prior_all(_mean(hidden, live)))
        return self.prior_out(hidden)

    def recognise(self, encoding: dict[str, PyTree], y: dict[str, Array]) -> dict[str, PyTree]:
        """Returns the encoding with q(z|x,y) of this y, and with a prior for each of its structures."""
        if self.z == "none":
            return encoding
        live = encoding["live"]
        hidden = nn.gelu(encoding["recognition_x"] + self.recognition_y(_as_features(y, self.heads)))
        if self.z == "global":
            # The boxes' pixels are few among all: their sum has a place of its own.
            on = y["on"].max(-1, keepdims=True)
            pooled = jnp.concatenate([_mean(hidden, live), (hidden * on).sum((2, 3)) / 32], -1)
            hidden = nn.gelu(self.recognition_all(pooled))
        posterior = bounded_normal(*jnp.split(self.recognition_out(hidden), 2, -1))
        prior = _prior(encoding["prior_parameters"], posterior.mean.shape)
        return {**encoding, "prior": prior, "posterior": posterior}

    def decode(
        self,
        encoding: dict[str, PyTree],
        keys: Array,
        proposal: Proposal,
        z: tuple[Array] | None,
        train: Train | None,
    ) -> tuple[tuple[Latent, ...], dict[str, Array]]:
        """Returns any latent layer, and every head's outputs [batch, structures, length / 2, length, outputs].

        Args:
          encoding: of `encode`.
          keys: [batch], of z.
          proposal: where z comes from.
          z: that of the latent layer, where the proposal is "given"; or None.
          train: not read.
        """
        hidden = encoding["x"]
        if self.z == "none":
            return (), self._outputs(hidden)
        live = encoding["live"][..., 0] if self.z == "pixel" else None  # other pixels have no z
        layer = draw_latent(
            encoding["prior"], encoding["posterior"], keys, proposal, given(z), num_factors=LATENTS[self.z], live=live
        )
        if self.z == "pixel":
            hidden = {name: hidden[name] + net(layer.z) for name, net in self.generation_z.items()}
        else:
            everywhere = layer.z[:, :, None, None]
            # A vector for all pixels must say which it is about: it scales their features, not only shifts them.
            hidden = {
                name: hidden[name] * (1 + self.generation_scale[name](everywhere)) + net(everywhere)
                for name, net in self.generation_z.items()
            }
        return (layer,), self._outputs(hidden)

    def _outputs(self, hidden: dict[str, Array]) -> dict[str, Array]:
        """Returns each head's outputs, of the layer before them."""
        return {name: net(nn.gelu(hidden[name])) for name, net in self.generation_out.items()}


def _prior(parameters: Array | None, shape: tuple[int, ...]) -> Normal:
    """Returns p(z|x) of that shape, [batch, structures, ..., latent]: alike for every structure; N(0, I) for None."""
    if parameters is None:
        return standard_normal(shape)
    mean, log_scale = jnp.split(parameters, 2, -1)
    return bounded_normal(jnp.broadcast_to(mean, shape), jnp.broadcast_to(log_scale, shape))


def _mean(pixels: Array, live: Array) -> Array:
    """Averages over live pixels: [batch, structures, rows, columns, features] -> [batch, structures, features]."""
    return (pixels * live).sum((2, 3)) / jnp.maximum(live.sum((2, 3)), 1)


def _as_features(y: dict[str, Array], heads: Sequence[str]) -> Array:
    """Returns what a recognition network sees of y at every pixel: 119 features, or 123 with the head "scalar".

    Classes are one-hot; all is 0 outside boxes.
    """
    parts = [y["on"]]
    for name in heads:
        if name != "on":
            on = y["on"][..., HEADS[name][2]]
            values = y[name] / 10 * on if name == "scalar" else jax.nn.one_hot(y[name], HEADS[name][1]) * on[..., None]
            parts.append(values.reshape(*on.shape[:-1], -1))
    return jnp.concatenate(parts, -1)


def likelihood(outputs: dict[str, Array]) -> Joint:
    """Returns p(y|x,z) of each head's outputs."""
    heads: dict[str, Bernoulli | Categorical | Normal] = {}
    for name, values in outputs.items():
        number, classes, _ = HEADS[name]
        if name == "on":
            heads[name] = Bernoulli(values)
        elif name == "scalar":
            heads[name] = Normal(values, jnp.ones_like(values))
        else:
            heads[name] = Categorical(values.reshape(*values.shape[:-1], number, classes))
    return Joint(heads)
