"""Fully connected residual networks."""

import flax.linen as nn
from jax import Array

# A tenth of the usual variance: a block begins near the identity, an output layer near its bias.
SMALL_INIT = nn.initializers.variance_scaling(0.1, "fan_in", "truncated_normal")


class ResidualBlock(nn.Module):
    """h + Dense(gelu(Dense(LayerNorm(h)))), [..., width] -> [..., width]."""

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        width = inputs.shape[-1]
        hidden = nn.gelu(nn.Dense(width)(nn.LayerNorm()(inputs)))
        return inputs + nn.Dense(width, kernel_init=SMALL_INIT)(hidden)


class ResidualMLP(nn.Module):
    """A Dense layer to `width`, one residual block, and its normalised activation: [..., features] -> [..., width]."""

    width: int

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        return nn.gelu(nn.LayerNorm()(ResidualBlock()(nn.Dense(self.width)(inputs))))
