"""Predictions, samples and likelihoods from any model of the contract."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from cvae_jax import keys, parallel
from cvae_jax.errors import UserError
from cvae_jax.estimators import ESTIMATORS, Estimate
from cvae_jax.model import Batch, Draw, Model, Proposal, PyTree, Variables

DRAWS_PER_CALL = 2_000  # samples times examples: enough to fill the cores, few enough to stay in cache


def predict(model: Model, variables: Variables, batch: Batch) -> PyTree:
    """E[y | x, z = E[z|x]], one prediction for every example: leaves [batch, ...]."""
    encoding = model.encode(variables, batch._replace(y=None))
    unused = jax.vmap(jax.random.key)(jnp.zeros_like(batch.index))
    return model.draw(variables, encoding, unused, "prior_mean").p_y.mean


def sample(model: Model, variables: Variables, batch: Batch, keys: Array, noise: bool) -> PyTree:
    """Samples of y given x: leaves [samples, batch, ...].

    Args:
      model: any model of the contract.
      variables: its variables.
      batch: what is known; its y is not looked at.
      keys: [samples, batch].
      noise: draw y from the likelihood p(y|x,z); False gives its mean E[y|x,z], as images are usually shown.
    """
    encoding = model.encode(variables, batch._replace(y=None))

    def one(keys: Array) -> PyTree:
        z_keys, y_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
        p_y = model.draw(variables, encoding, z_keys, "prior").p_y
        return p_y.sample(y_keys) if noise else p_y.mean

    return jax.vmap(one)(keys)


def has_latents(model: Model, variables: Variables, batch: Batch) -> bool:
    """Whether the model draws a z at all; without one its log p(y|x) is exact."""
    keys = jax.vmap(jax.random.key)(jnp.zeros_like(batch.index))
    draw = jax.eval_shape(lambda v, b: model.draw(v, model.encode(v, b), keys, "prior"), variables, batch)
    return bool(jax.tree.leaves(draw.z))


def scores(
    model: Model,
    variables: Variables,
    batch: Batch,
    proposal: Proposal,
    score: Callable[[Draw], PyTree],
    num_samples: int,
    key: Array,
    draws_per_call: int = DRAWS_PER_CALL,
) -> PyTree:
    """What `score` makes of every sample of every example: [batch] -> float32 [num_samples, batch], leaf by leaf.

    Each depends on (key, index of the example, number of the sample) alone, whatever else is in the batch and
    however many draws are made at once; only the numbers are kept, so memory hardly grows with the samples.
    The examples are spread over all devices when they divide.
    """
    key = keys.substream(key, proposal)  # estimates from different proposals are independent
    mesh = parallel.make_mesh()
    variables = jax.device_put(variables, parallel.replicated(mesh))
    batch = parallel.place_batch(mesh, batch)
    with jax.default_matmul_precision("highest"):
        encoding = _encode(model, variables, batch)
        size = min(num_samples, max(1, draws_per_call // len(batch.index)))
        starts = jnp.arange(0, num_samples, size)
        example_keys = keys.per_example(key, batch.index)
        values = _scores(model, proposal, score, size, variables, encoding, example_keys, starts)
    return jax.tree.map(lambda leaf: np.asarray(leaf).reshape(-1, len(batch.index))[:num_samples], values)


@partial(jax.jit, static_argnums=0)
def _encode(model: Model, variables: Variables, batch: Batch) -> PyTree:
    return model.encode(variables, batch)


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _scores(
    model: Model,
    proposal: Proposal,
    score: Callable[[Draw], PyTree],
    size: int,
    variables: Variables,
    encoding: PyTree,
    example_keys: Array,
    starts: Array,
) -> PyTree:
    """Scores [len(starts), size, batch]: `size` samples at once, vmapped, from each start in turn."""

    def from_start(start: Array) -> PyTree:
        sample_keys = keys.per_sample(example_keys, start + jnp.arange(size))
        return jax.vmap(lambda k: score(model.draw(variables, encoding, k, proposal)))(sample_keys)

    return jax.lax.map(from_start, starts)


def log_prob(
    model: Model, variables: Variables, batch: Batch, estimator: str, num_samples: int, key: Array
) -> Estimate:
    """Estimates log p(y|x) of every example: float64 [batch], nats.

    Raises:
      UserError: for an estimator that is not in `estimators.ESTIMATORS`, or fewer than one sample.
    """
    if estimator not in ESTIMATORS:
        raise UserError(f"estimator {estimator!r} is not known; choose from {', '.join(ESTIMATORS)}")
    if num_samples < 1:
        raise UserError(f"num_samples={num_samples} must be at least 1")
    if batch.y is None:
        raise UserError("log p(y|x) needs y")
    how = ESTIMATORS[estimator]
    return how.summarise(scores(model, variables, batch, how.proposal, how.score, num_samples, key))
