"""The one way from raw arrays to a batch, for training, evaluation and figures."""

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from cvae_jax import keys
from cvae_jax.data import buckets
from cvae_jax.task import Arrays, Batch, Task

EXAMPLES_PER_BATCH = 100  # that are measured at once


def make(task: Task, raw: dict[str, Array], ids: Array, num_targets: Array, key: Array, step: Array | None) -> Batch:
    """Makes a batch; what is drawn for an example depends on `key` and its id alone.

    Args:
      task: whose batch.
      raw: name -> [batch, ...].
      ids: int32 [batch], positions in the split.
      num_targets: float32 [batch], 1, or 0 for padding rows; a row that holds several y raises it.
      key: of all that is drawn.
      step: how many steps were taken; None when measuring.
    """
    return task.batch(raw, ids, num_targets, keys.per_example(key, ids), step)


make_jitted = partial(jax.jit, static_argnums=0)(make)  # op by op it would be dozens of programs


def example(task: Task, seed: Array | int = 0) -> Batch:
    """Makes a batch of one example of zeros, as training has it, from which shapes can be taken."""
    raw = {name: jnp.zeros((1, *array.shape), array.dtype) for name, array in task.raw.items()}
    ids = jnp.zeros(1, jnp.int32)
    return make(task, raw, ids, jnp.ones(1), keys.stream(seed, "init"), jnp.zeros((), jnp.int32))


def measured(task: Task, raw: Arrays, ids: np.ndarray, count: int, seed: int) -> Batch:
    """Makes a batch that is measured or shown; binarised targets depend on (seed, id of the example) alone.

    Args:
      task: whose batch.
      raw: the rows' arrays, as `task.raw` and `task.measured` have them.
      ids: of each row in the split.
      count: how many rows count; those after them are padding.
      seed: of the targets.
    """
    rows = {name: jnp.asarray(array) for name, array in raw.items()}
    live = jnp.asarray(np.arange(len(ids)) < count, jnp.float32)
    return make_jitted(task, rows, jnp.asarray(ids, jnp.int32), live, keys.stream(seed, "targets"), None)


def of_split(task: Task, arrays: Arrays, seed: int) -> Iterator[tuple[Batch, int]]:
    """Yields batches of all examples, each with the number of its rows that are no padding.

    Binarised targets depend on (seed, id of the example) alone, so every model is measured on the same y.
    """
    for bucket in buckets.of_split(task, arrays, names=(*task.raw, *task.measured)):
        num_examples = len(bucket.ids)
        size = min(num_examples, EXAMPLES_PER_BATCH)
        for start in range(0, num_examples, size):
            # The last batch is filled up with its last example, so that every batch of a bucket has one shape.
            rows = np.minimum(np.arange(start, start + size), num_examples - 1)
            count = min(num_examples - start, size)
            raw = {name: array[rows] for name, array in bucket.arrays.items()}
            yield measured(task, raw, bucket.ids[rows], count, seed), count


def first(task: Task, arrays: Arrays, count: int) -> Batch:
    """Makes a batch of the first examples of a split, at most `count`, for figures."""
    ids = np.arange(min(count, len(next(iter(arrays.values())))))
    shown = {name: arrays[name][: len(ids)] for name in (*task.raw, *task.measured)}
    return measured(task, buckets.together(task, shown), ids, len(ids), seed=0)
