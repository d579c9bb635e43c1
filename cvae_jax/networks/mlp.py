"""Fully connected networks."""

from collections.abc import Sequence

import flax.linen as nn
from jax import Array

from cvae_jax.distributions import Normal, bounded_normal


class MLP(nn.Module):
    """Dense layers with ReLU between them: [..., features] -> [..., num_outputs]."""

    hidden: Sequence[int]
    num_outputs: int

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        for width in self.hidden:
            inputs = nn.relu(nn.Dense(width)(inputs))
        return nn.Dense(self.num_outputs)(inputs)


class GaussianMLP(nn.Module):
    """An MLP whose output is a diagonal Gaussian: [batch, features] -> Normal of [batch, units]."""

    hidden: Sequence[int]
    units: int

    @nn.compact
    def __call__(self, inputs: Array) -> Normal:
        outputs = MLP(self.hidden, 2 * self.units)(inputs)
        return bounded_normal(outputs[..., : self.units], outputs[..., self.units :])
