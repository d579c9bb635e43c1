"""Examples of varying size in groups, each padded no further than to its own limit."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from cvae_jax.task import Arrays, Task


class Bucket(NamedTuple):
    """Some examples of a split, of one shape."""

    arrays: Arrays  # raw, cut to the bucket's limit
    ids: np.ndarray  # int32 [n], their positions in the split


def of_split(task: Task, arrays: Arrays, fewest: int = 1, names: Iterable[str] | None = None) -> list[Bucket]:
    """Groups the examples of a split; a task whose examples are of one size has one bucket.

    Args:
      task: whose raw arrays these are.
      arrays: of a split.
      fewest: examples in a bucket; those of one with less move on to the next larger one, or of the largest down.
      names: of the arrays to keep; None: those of `task.raw`.
    """
    arrays = {name: arrays[name] for name in (task.raw if names is None else names)}
    count = len(next(iter(arrays.values())))
    if task.buckets is None:
        return [Bucket(arrays, np.arange(count, dtype=np.int32))]
    numbers = np.searchsorted(task.buckets.limits, task.buckets.size(arrays))
    groups: list[tuple[int, np.ndarray]] = []  # limit, positions
    for number, limit in enumerate(task.buckets.limits[: numbers.max(initial=0) + 1]):
        positions = np.flatnonzero(numbers == number)
        if groups and len(groups[-1][1]) < fewest:
            positions = np.sort(np.concatenate([groups.pop()[1], positions]))
        if len(positions):
            groups.append((limit, positions))
    if len(groups) > 1 and len(groups[-1][1]) < fewest:
        limit, positions = groups.pop()
        groups[-1] = (limit, np.sort(np.concatenate([groups[-1][1], positions])))
    return [
        Bucket(task.buckets.cut({name: array[rows] for name, array in arrays.items()}, limit), rows.astype(np.int32))
        for limit, rows in groups
    ]


def together(task: Task, arrays: Arrays) -> Arrays:
    """Returns all examples in one group, padded no further than to the limit that the largest needs."""
    if task.buckets is None:
        return arrays
    limit = task.buckets.limits[int(np.searchsorted(task.buckets.limits, task.buckets.size(arrays)).max())]
    return task.buckets.cut(arrays, limit)
