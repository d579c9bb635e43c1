"""Predictions and samples of y, and numbers of many draws of z, from any model of the contract."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from cvae_jax import keys, parallel
from cvae_jax.errors import UserError
from cvae_jax.inference.estimators import PRIOR_SHARE, Origin
from cvae_jax.model import Batch, Draw, Fitted, PyTree

DRAWS_PER_CALL = 2_000  # samples times examples: enough to fill the cores, few enough to stay in cache
BYTES_PER_CALL = 2**28  # of the likelihoods p(y|x,z) of these draws, where they are large: at least a draw an example


def predict(fitted: Fitted, batch: Batch) -> PyTree:
    """Returns E[y | x, z = E[z|x]], one prediction for every example: leaves [batch, ...]."""
    return fitted.draw(fitted.encode(batch._replace(y=None)), keys.unused(batch.ids), "prior_mean").p_y.mean


def sample(
    fitted: Fitted,
    batch: Batch,
    sample_keys: Array,
    noise: bool,
    keep: Callable[[PyTree, Batch], PyTree] = lambda y, batch: y,
    samples_per_call: int = 0,
) -> PyTree:
    """Returns samples of y given x: leaves [samples, batch, ...].

    Args:
      fitted: a model that knows where its z comes from when it predicts.
      batch: what is known; its y is not looked at.
      sample_keys: [samples, batch].
      noise: draw y from the likelihood p(y|x,z); False gives its mean E[y|x,z], as images are usually shown.
      keep: what to return of a sample, given the batch: leaves [batch, ...].
      samples_per_call: how many are held at once before that; 0: all.
    """
    encoding = fitted.encode(batch._replace(y=None))

    def draw(example_keys: Array) -> PyTree:
        z_keys, y_keys = jax.vmap(jax.random.split, out_axes=1)(example_keys)
        p_y = fitted.draw(encoding, z_keys, fitted.predicts_from).p_y
        return keep(p_y.sample(y_keys) if noise else p_y.mean, batch)

    if samples_per_call:
        return jax.lax.map(draw, sample_keys, batch_size=samples_per_call)
    return jax.vmap(draw)(sample_keys)


_sample = jax.jit(sample, static_argnames=("noise", "keep", "samples_per_call"))


def keys_of(batch: Batch, key: Array, num_samples: int) -> Array:
    """Returns keys [num_samples, batch], which depend on (key, id of the example, number of the sample) alone."""
    return keys.per_sample(keys.per_example(key, batch.ids), jnp.arange(num_samples))


@jax.jit
def decode(fitted: Fitted, batch: Batch, z: PyTree) -> PyTree:
    """Returns E[y|x,z] of a z for every example: leaves [batch, ...]."""
    return fitted.draw(fitted.encode(batch), keys.unused(batch.ids), "given", z).p_y.mean


def draw_samples(
    fitted: Fitted,
    batch: Batch,
    sample_keys: Array,
    noise: bool,
    keep: Callable[[PyTree, Batch], PyTree] = lambda y, batch: y,
    samples_per_call: int = 0,
) -> PyTree:
    """Returns what `sample` does, compiled, with the examples spread over all devices when they divide.

    Products are of the highest precision.

    Args:
      fitted: as in `sample`.
      batch: as in `sample`.
      sample_keys: [samples, batch], see `keys_of`.
      noise: as in `sample`.
      keep: as in `sample`; a function of a module is compiled once for all batches.
      samples_per_call: as in `sample`.
    """
    mesh = parallel.make_mesh()
    fitted, batch = jax.device_put(fitted, parallel.replicated(mesh)), parallel.place_batch(mesh, batch)
    with jax.default_matmul_precision("highest"):
        return _sample(fitted, batch, sample_keys, noise, keep, samples_per_call)


def scores(
    fitted: Fitted,
    batch: Batch,
    origin: Origin,
    score: Callable[[Draw], PyTree],
    num_samples: int,
    key: Array,
    draws_per_call: int | None = None,
) -> PyTree:
    """Applies `score` to every draw: `num_samples` draws for each example.

    Each score depends on (key, id of the example, number of the sample) alone, whatever else is in the batch and
    however many draws are made at once. Only the scores are kept, so memory hardly grows with the samples. The
    examples are spread over all devices when they divide.

    Args:
      fitted: a model with its variables.
      batch: of examples, with y where the score needs it.
      origin: where z comes from.
      score: a draw -> leaves [batch, *factors]. A function of a module is compiled once for all batches.
      num_samples: for every example.
      key: of all random numbers.
      draws_per_call: samples times examples that are held at once; None: as many as are quick.

    Returns:
      Leaves float32 [num_samples, batch, *factors].

    Raises:
      UserError: where z is to come from a recognition network and the model has none.
    """
    key = keys.substream(key, origin)  # estimates from different proposals are independent
    mesh = parallel.make_mesh()
    fitted = jax.device_put(fitted, parallel.replicated(mesh))
    batch = parallel.place_batch(mesh, batch)
    with jax.default_matmul_precision("highest"):
        encoding = _encode(fitted, batch)
        example_keys = keys.per_example(key, batch.ids)
        draws = draws_per_call or min(DRAWS_PER_CALL, _draws_that_fit(fitted, encoding, example_keys))
        size = min(num_samples, max(1, draws // len(batch.ids)))
        starts = jnp.arange(0, num_samples, size)
        if origin in ("recognition", "recognition_mean", "defensive") and _lacks_q(fitted, encoding, example_keys):
            raise UserError("this estimator draws from q(z|x,y), and the model has no recognition network; use mc")
        values = _scores(origin, score, size, fitted, encoding, example_keys, starts)
    return jax.tree.map(lambda leaf: np.asarray(leaf).reshape(-1, *leaf.shape[2:])[:num_samples], values)


def _draws_that_fit(fitted: Fitted, encoding: PyTree, example_keys: Array) -> int:
    """Returns how many draws make BYTES_PER_CALL of likelihoods."""
    p_y = jax.eval_shape(lambda f, e, k: f.draw(e, k, "prior").p_y, fitted, encoding, example_keys)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(p_y))
    return BYTES_PER_CALL * len(example_keys) // max(1, size)


@jax.jit
def _encode(fitted: Fitted, batch: Batch) -> PyTree:
    return fitted.encode(batch)


@jax.jit
def _lacks_q(fitted: Fitted, encoding: PyTree, example_keys: Array) -> Array:
    """Returns whether log q(z|x,y) is NaN throughout, as it is for a model without a recognition network."""
    return jnp.isnan(fitted.draw(encoding, example_keys, "prior").log_q_z).all()


@partial(jax.jit, static_argnums=(0, 1, 2))
def _scores(
    origin: Origin,
    score: Callable[[Draw], PyTree],
    size: int,
    fitted: Fitted,
    encoding: PyTree,
    example_keys: Array,
    starts: Array,
) -> PyTree:
    """Returns scores [len(starts), size, batch, *factors]: `size` samples at once, vmapped, from each start in turn."""

    def from_start(start: Array) -> PyTree:
        sample_keys = keys.per_sample(example_keys, start + jnp.arange(size))
        return jax.vmap(lambda k: score(_draw(fitted, encoding, k, origin)))(sample_keys)

    return jax.lax.map(from_start, starts)


def _draw(fitted: Fitted, encoding: PyTree, example_keys: Array, origin: Origin) -> Draw:
    """Returns a draw of the model, or one from the mixture of prior and recognition network."""
    if origin != "defensive":
        return fitted.draw(encoding, example_keys, origin)
    # Nothing but z is taken from these two, so the compiler leaves out their likelihoods.
    z_keys, coin_keys = jax.vmap(jax.random.split, out_axes=1)(example_keys)
    prior, recognition = fitted.draw(encoding, z_keys, "prior"), fitted.draw(encoding, z_keys, "recognition")
    # A coin for every factor. Fixed shares of the samples would do with less variance, but a sample would then depend
    # on how many there are, and the first few would not be drawn from the mixture.
    factors = prior.log_p_z.shape[1:]
    from_prior = jax.vmap(lambda key: jax.random.bernoulli(key, PRIOR_SHARE, factors))(coin_keys)

    def choose(a: Array, b: Array) -> Array:
        return jnp.where(jnp.expand_dims(from_prior, range(from_prior.ndim, a.ndim)), a, b)

    return fitted.draw(encoding, example_keys, "given", jax.tree.map(choose, prior.z, recognition.z))
