"""Random keys are derived, never stored: seed -> stream name -> example -> sample."""

import zlib

import jax
import jax.numpy as jnp
from jax import Array


def stream(seed: int | Array, name: str) -> Array:
    """Returns the key of a named stream, independent of every other name's."""
    return substream(jax.random.key(seed), name)


def substream(key: Array, name: str) -> Array:
    """Returns the key of a named stream below `key`, independent of every other name's."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def per_example(key: Array, ids: Array) -> Array:
    """Returns keys [batch] for the examples of these ids [batch]; each is the same in whatever batch it stands."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, ids)


def per_sample(example_keys: Array, samples: Array) -> Array:
    """Returns keys [samples, batch] for the sample numbers `samples`, [samples], of each example's key [batch]."""
    return jax.vmap(lambda s: jax.vmap(jax.random.fold_in, (0, None))(example_keys, s))(samples)


def unused(ids: Array) -> Array:
    """Returns keys [batch] for a draw that draws nothing, such as that of a given z."""
    return jax.vmap(jax.random.key)(jnp.zeros_like(ids))
