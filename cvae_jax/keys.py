"""Random keys are derived, never stored: seed -> stream name -> example -> sample."""

import zlib

import jax
import jax.numpy as jnp
from jax import Array


def stream(seed: int | Array, name: str) -> Array:
    """The key of a named stream: independent of every other name's."""
    return substream(jax.random.key(seed), name)


def substream(key: Array, name: str) -> Array:
    """The key of a named stream below `key`: independent of every other name's."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def per_example(key: Array, index: Array) -> Array:
    """Keys [batch] for examples of the given index [batch]: the same in whatever batch one stands."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, index)


def per_sample(keys: Array, samples: Array) -> Array:
    """Keys [samples, batch] for the given sample numbers [samples] of each example [batch]."""
    return jax.vmap(lambda s: jax.vmap(jax.random.fold_in, (0, None))(keys, s))(samples)


def unused(index: Array) -> Array:
    """Keys [batch] for a draw that draws nothing, such as that of a given z."""
    return jax.vmap(jax.random.key)(jnp.zeros_like(index))
