"""Examples of varying size in groups, each padded no further than to its own limit."""

from typing import Any, NamedTuple

import numpy as np

from cvae_jax.model import Task


class Bucket(NamedTuple):
    """Some examples of a split, of one shape."""

    arrays: dict[str, np.ndarray]  # raw, cut to the bucket's limit
    # Array [n] int32, their positions in the split. Any, as in Batch.
    index: Any


def of_split(task: Task, arrays: dict[str, np.ndarray], fewest: int = 1) -> list[Bucket]:
    """The examples of a split by bucket; all in one for a task whose examples are of one size.

    Args:
      task: whose raw arrays these are.
      arrays: of a split.
      fewest: examples in a bucket; those of one with less move on to the next larger one, or of the largest down.
    """
    arrays = {name: arrays[name] for name in task.raw}
    count = len(next(iter(arrays.values())))
    if task.buckets is None:
        return [Bucket(arrays, np.arange(count, dtype=np.int32))]
    number = np.searchsorted(task.buckets.limits, task.buckets.size(arrays))
    groups: list[tuple[int, np.ndarray]] = []  # limit, positions
    for one, limit in enumerate(task.buckets.limits[: number.max(initial=0) + 1]):
        positions = np.flatnonzero(number == one)
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


def together(task: Task, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All examples in one group, padded no further than to the limit that the largest needs."""
    if task.buckets is None:
        return {name: arrays[name] for name in task.raw}
    limit = task.buckets.limits[int(np.searchsorted(task.buckets.limits, task.buckets.size(arrays)).max())]
    return task.buckets.cut({name: arrays[name] for name in task.raw}, limit)
