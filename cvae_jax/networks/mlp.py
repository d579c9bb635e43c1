"""Fully connected networks."""

from collections.abc import Sequence

import flax.linen as nn
from jax import Array

from cvae_jax.distributions import Normal, bounded_normal


class MLP(nn.Module):
    """Dense layers with an activation (its name in flax.linen) between them: [..., features] -> [..., num_outputs]."""

    hidden: Sequence[int]
    num_outputs: int
    activation: str = "relu"

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        for width in self.hidden:
            inputs = getattr(nn, self.activation)(nn.Dense(width)(inputs))
        return nn.Dense(self.num_outputs)(inputs)


class ConditionedMLP(nn.Module):
    """An MLP of [x, z]. The part of the first layer that sees x is computed once and reused for every sample of z.

    `first_layer_x(x)` takes [batch, features] to [batch, hidden[0]], or to None where x has no features. The call
    takes that and z [batch, latent] to [batch, num_outputs].
    """

    hidden: Sequence[int]
    num_outputs: int
    activation: str = "relu"

    def setup(self) -> None:
        self.first_x = nn.Dense(self.hidden[0], use_bias=False)
        self.first_z = nn.Dense(self.hidden[0])
        self.rest = MLP(self.hidden[1:], self.num_outputs, self.activation)

    def first_layer_x(self, x: Array) -> Array | None:
        """Returns the first layer's part in x."""
        return self.first_x(x) if x.shape[-1] else None

    def __call__(self, first_layer_x: Array | None, z: Array) -> Array:
        first = self.first_z(z)
        return self.rest(getattr(nn, self.activation)(first if first_layer_x is None else first + first_layer_x))


class GaussianMLP(nn.Module):
    """An MLP whose output is a diagonal Gaussian: [batch, features] -> Normal of [batch, size]."""

    hidden: Sequence[int]
    size: int
    activation: str = "relu"

    @nn.compact
    def __call__(self, inputs: Array) -> Normal:
        outputs = MLP(self.hidden, 2 * self.size, self.activation)(inputs)
        return bounded_normal(outputs[..., : self.size], outputs[..., self.size :])
