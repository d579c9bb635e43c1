"""A CVAE over pairs of positions: whether each lies in boxes, where these begin and how large they are."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from cvae_jax.distributions import Bernoulli, Categorical, Joint, Latent, Normal, bounded_normal, draw_latent
from cvae_jax.model import Proposal
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

    def encode(self, x: dict[str, Array], y: dict[str, Array] | None) -> dict[str, Any]:
        """p(z|x), q(z|x,y), and what each head makes of x; y is [batch, structures, length / 2, length, outputs]."""
        inside = jnp.arange(x["sequence"].shape[1])[None] < x["length"][:, None]
        letters = jax.nn.one_hot(x["sequence"] - 1, 4)  # N and padding are 0
        features = fold(self.of_pairs(letters, inside), 1)[:, None]  # with an axis of structures
        encoding = {"x": {name: net(features) for name, net in self.generation_x.items()}}
        if self.z == "none":
            return encoding
        live = fold(upper(inside), 1)[:, None, :, :, None].astype(features.dtype)
        structures = 1 if y is None else y["on"].shape[1]
        pixels = features.shape[2:4] if self.z == "pixel" else ()
        shape = (len(features), structures, *pixels, self.latent)
        if self.prior == "learned":
            of_x = nn.gelu(self.prior_x(features))
            if self.z == "global":
                of_x = nn.gelu(self.prior_all(_mean(of_x, live)))
            mean, log_scale = jnp.split(self.prior_out(of_x), 2, -1)
            prior = bounded_normal(jnp.broadcast_to(mean, shape), jnp.broadcast_to(log_scale, shape))
        else:
            prior = Normal(jnp.zeros(shape), jnp.ones(shape))
        posterior = None
        if y is not None:
            told = nn.gelu(self.recognition_x(features) + self.recognition_y(_as_features(y, self.heads)))
            if self.z == "global":
                # The boxes' pixels are few among all: their sum has a place of its own.
                on = y["on"].max(-1, keepdims=True)
                pooled = jnp.concatenate([_mean(told, live), (told * on).sum((2, 3)) / 32], -1)
                told = nn.gelu(self.recognition_all(pooled))
            posterior = bounded_normal(*jnp.split(self.recognition_out(told), 2, -1))
        return {**encoding, "prior": prior, "posterior": posterior, "live": live}

    def decode(
        self, encoding: dict[str, Any], keys: Array, proposal: Proposal, z: tuple[Array] | None
    ) -> tuple[tuple[Latent, ...], dict[str, Array]]:
        """The stochastic unit, and each head's outputs [batch, structures, length / 2, length, outputs]."""
        hidden = encoding["x"]
        if self.z == "none":
            return (), self._outputs(hidden)
        given = None if z is None else z[0]
        factors = LATENTS[self.z]
        unit = draw_latent(encoding["prior"], encoding["posterior"], keys, proposal, given, factors)
        if self.z == "pixel":
            live = encoding["live"]  # other pixels have no z: it is 0 there, with certainty
            of_pixel = live[..., 0]
            unit = Latent(unit.z * live, unit.log_p_z * of_pixel, unit.log_q_z * of_pixel, unit.kl * live)
            hidden = {name: hidden[name] + net(unit.z) for name, net in self.generation_z.items()}
        else:
            everywhere = unit.z[:, :, None, None]
            # A vector for all pixels must say which it is about: it scales their features, not only shifts them.
            hidden = {
                name: hidden[name] * (1 + self.generation_scale[name](everywhere)) + net(everywhere)
                for name, net in self.generation_z.items()
            }
        return (unit,), self._outputs(hidden)

    def _outputs(self, hidden: dict[str, Array]) -> dict[str, Array]:
        return {name: net(nn.gelu(hidden[name])) for name, net in self.generation_out.items()}


def _mean(pixels: Array, live: Array) -> Array:
    """The mean over live pixels, [batch, structures, rows, columns, features] -> [batch, structures, features]."""
    return (pixels * live).sum((2, 3)) / jnp.maximum(live.sum((2, 3)), 1)


def _as_features(y: dict[str, Array], heads: Sequence[str]) -> Array:
    """What a recognition network sees of y at every pixel, classes one-hot, 0 outside boxes: 119 features, or 123."""
    parts = [y["on"]]
    for name in heads:
        if name != "on":
            on = y["on"][..., HEADS[name][2]]
            values = y[name] / 10 * on if name == "scalar" else jax.nn.one_hot(y[name], HEADS[name][1]) * on[..., None]
            parts.append(values.reshape(*on.shape[:-1], -1))
    return jnp.concatenate(parts, -1)


def likelihood(outputs: dict[str, Array]) -> Joint:
    """p(y|x,z) of each head's outputs."""
    heads: dict[str, Any] = {}
    for name, values in outputs.items():
        number, classes, _ = HEADS[name]
        if name == "on":
            heads[name] = Bernoulli(values)
        elif name == "scalar":
            heads[name] = Normal(values, jnp.ones_like(values))
        else:
            heads[name] = Categorical(values.reshape(*values.shape[:-1], number, classes))
    return Joint(heads)
