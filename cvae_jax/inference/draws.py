"""Predictions and samples of y, and numbers of many draws of z, from any model of the contract."""

from collections.abc import Callable
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from cvae_jax import keys, parallel
from cvae_jax.errors import UserError
from cvae_jax.inference.estimators import PRIOR_SHARE, Origin
from cvae_jax.model import Batch, Draw, Fitted, PyTree

DRAWS_PER_CALL = 2_000  # samples times examples: enough to fill the cores, few enough to stay in cache
BYTES_PER_CALL = 2**25  # of the likelihoods p(y|x,z) of these draws, where they are large: at least a draw an example


def predict(fitted: Fitted, batch: Batch) -> PyTree:
    """Returns E[y | x, z = E[z|x]], one prediction for every example: leaves [batch, ...]."""
    return fitted.draw(fitted.encode(batch._replace(y=None)), keys.unused(batch.ids), "prior_mean").p_y.mean


def infer(fitted: Fitted, batch: Batch) -> tuple[PyTree, PyTree]:
    """Returns z = E[z|x,y], leaves [batch, ...] for each latent layer, and E[y|x,z] of it, leaves [batch, ...]."""
    drawn = fitted.draw(fitted.encode(batch), keys.unused(batch.ids), "recognition_mean")
    return drawn.z, drawn.p_y.mean


def sample(fitted: Fitted, batch: Batch, sample_keys: Array, noise: bool) -> PyTree:
    """Returns samples of y given x: leaves [samples, batch, ...].

    Args:
      fitted: a model that knows where its z comes from when it predicts.
      batch: what is known; its y is not looked at.
      sample_keys: [samples, batch].
      noise: draw y from the likelihood p(y|x,z); False gives its mean E[y|x,z], as images are usually shown.
    """
    return _samples(noise, _y, fitted, batch, fitted.encode(batch._replace(y=None)), sample_keys)


def _y(y: PyTree, batch: Batch) -> PyTree:
    return y


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
    keep: Callable[[PyTree, Batch], PyTree] = _y,
    samples_per_call: int = 0,
) -> PyTree:
    """Returns what `sample` does, compiled, on the host: NumPy leaves [samples, batch, ...].

    Every device takes the next few samples when it is free, and memory holds a few for each beside the result.

    Args:
      fitted: as in `sample`.
      batch: as in `sample`.
      sample_keys: [samples, batch], see `keys_of`.
      noise: as in `sample`.
      keep: what to return of a sample, given the batch: leaves [batch, ...]. A function of a module is compiled once
        for all batches.
      samples_per_call: how many a device holds at once; 0: as many as are quick.
    """

    @cache
    def placed(device: jax.Device) -> tuple[Fitted, Batch, PyTree]:
        own, examples = jax.device_put((fitted, batch), device)
        with jax.default_matmul_precision("highest"):
            return own, examples, _encode(own, examples._replace(y=None))

    def chunk(device: jax.Device, numbers: np.ndarray) -> PyTree:
        return _samples_jitted(noise, keep, *placed(device), jax.device_put(sample_keys[numbers], device))

    num_samples = len(sample_keys)
    size = min(num_samples, samples_per_call)
    if not size:
        own, _, encoding = placed(jax.local_devices()[0])
        size = _samples_at_once(own, encoding, sample_keys[0], num_samples)
    starts = range(0, num_samples, size)
    chunks = [np.minimum(np.arange(start, start + size), num_samples - 1) for start in starts]  # all of one shape
    return _joined(parallel.on_devices(chunk, chunks), num_samples)


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
    however many draws are made at once. Only the scores are kept, so memory hardly grows with the samples. Every
    device takes the next few samples of the whole batch when it is free: the numbers are the same, to the bit, however
    many devices there are.

    Args:
      fitted: a model with its variables.
      batch: of examples, with y where the score needs it.
      origin: where z comes from.
      score: a draw -> leaves [batch, *factors]. A function of a module is compiled once for all batches.
      num_samples: for every example.
      key: of all random numbers.
      draws_per_call: samples times examples that a device holds at once; None: as many as are quick.

    Returns:
      Leaves float32 [num_samples, batch, *factors].

    Raises:
      UserError: where z is to come from a recognition network and the model has none.
    """
    key = keys.substream(key, origin)  # estimates from different proposals are independent
    example_keys = keys.per_example(key, batch.ids)

    @cache
    def placed(device: jax.Device) -> tuple[Fitted, PyTree, Array]:
        own, examples, own_keys = jax.device_put((fitted, batch, example_keys), device)
        with jax.default_matmul_precision("highest"):
            return own, _encode(own, examples), own_keys

    first = placed(jax.local_devices()[0])
    if origin in ("recognition", "recognition_mean", "defensive") and _lacks_q(*first):
        raise UserError("this estimator draws from q(z|x,y), and the model has no recognition network; use mc")
    if draws_per_call:
        size = min(num_samples, max(1, draws_per_call // len(batch.ids)))
    else:
        size = _samples_at_once(*first, num_samples)

    def chunk(device: jax.Device, start: int) -> PyTree:
        return _scores(origin, score, size, *placed(device), np.int32(start))

    return _joined(parallel.on_devices(chunk, range(0, num_samples, size)), num_samples)


def _samples_at_once(fitted: Fitted, encoding: PyTree, example_keys: Array, num_samples: int) -> int:
    """Returns how many samples for each example make DRAWS_PER_CALL, or BYTES_PER_CALL of likelihoods."""
    p_y = _likelihood.eval_shape(fitted, encoding, example_keys)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(p_y))
    fitting = min(DRAWS_PER_CALL // len(example_keys), BYTES_PER_CALL // max(1, size))
    return min(num_samples, max(1, fitting))


def _joined(chunks: list[PyTree], num_samples: int) -> PyTree:
    """Joins leaves [size, batch, ...] of chunks of samples; the last may have too many."""
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:num_samples], *chunks)


@jax.jit
def _encode(fitted: Fitted, batch: Batch) -> PyTree:
    return fitted.encode(batch)


@jax.jit
def _likelihood(fitted: Fitted, encoding: PyTree, example_keys: Array) -> PyTree:
    """Returns p(y|x,z) of one draw for every example; its shape alone is asked for."""
    return fitted.draw(encoding, example_keys, "prior").p_y


@jax.jit
def _lacks_q(fitted: Fitted, encoding: PyTree, example_keys: Array) -> Array:
    """Returns whether log q(z|x,y) is NaN throughout, as it is for a model without a recognition network."""
    return jnp.isnan(fitted.draw(encoding, example_keys, "prior").log_q_z).all()


# On a device: a chunk of samples. Without a loop over chunks: XLA inlines one of a single trip and rounds otherwise.


def _samples(
    noise: bool,
    keep: Callable[[PyTree, Batch], PyTree],
    fitted: Fitted,
    batch: Batch,
    encoding: PyTree,
    sample_keys: Array,
) -> PyTree:
    """Returns what is kept of samples under keys [size, batch], vmapped: leaves [size, batch, ...]."""

    def draw(example_keys: Array) -> PyTree:
        z_keys, y_keys = jax.vmap(jax.random.split, out_axes=1)(example_keys)
        p_y = fitted.draw(encoding, z_keys, fitted.predicts_from).p_y
        return keep(p_y.sample(y_keys) if noise else p_y.mean, batch)

    return jax.vmap(draw)(sample_keys)


_samples_jitted = partial(jax.jit, static_argnums=(0, 1))(_samples)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _scores(
    origin: Origin,
    score: Callable[[Draw], PyTree],
    size: int,
    fitted: Fitted,
    encoding: PyTree,
    example_keys: Array,
    start: Array,
) -> PyTree:
    """Returns scores [size, batch, *factors] of `size` samples, vmapped, from number `start` on."""
    sample_keys = keys.per_sample(example_keys, start + jnp.arange(size))
    return jax.vmap(lambda k: score(_draw(fitted, encoding, k, origin)))(sample_keys)


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
