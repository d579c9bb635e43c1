"""The order of the training data: which examples stand in which batch, a function of (seed, epoch) alone."""

from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict


def order(seed: int, epoch: int, num_examples: int, bucket: int = 0) -> np.ndarray:
    """Returns the order in which an epoch visits the examples of a bucket, int32 [num_examples].

    Args:
      seed: of the run.
      epoch: its number.
      num_examples: of the bucket.
      bucket: its number.
    """
    generator = np.random.Generator(np.random.Philox(key=[seed, epoch + (bucket << 32)]))
    return generator.permutation(num_examples).astype(np.int32)


def batches(seeds: np.ndarray, epoch: int, num_examples: int, batch_size: int, bucket: int = 0) -> np.ndarray:
    """Returns rows of the examples in an epoch's whole batches of a bucket, int32 [seeds, steps, batch].

    Args:
      seeds: of the runs.
      epoch: its number.
      num_examples: of the bucket.
      batch_size: examples in a batch.
      bucket: its number.
    """
    orders = np.stack([order(int(seed), epoch, num_examples, bucket) for seed in seeds])
    steps = num_examples // batch_size
    return orders[:, : steps * batch_size].reshape(len(seeds), steps, batch_size)


def calls(settings: ConfigDict, counts: Sequence[int], epoch: int) -> list[tuple[int, np.ndarray]]:
    """Splits an epoch into compiled calls: the bucket of each, and which of its batches. Buckets take turns at random.

    Args:
      settings: of a stage; `batch_size` and `steps_per_call` are read.
      counts: training examples in every bucket.
      epoch: its number.
    """
    of_buckets: list[list[np.ndarray]] = []
    for count in counts:
        steps = count // settings.batch_size
        of_buckets.append(np.array_split(np.arange(steps), max(1, round(steps / settings.steps_per_call))))
    turns = np.repeat(np.arange(len(counts)), [len(own) for own in of_buckets])
    # Of the epoch alone: the seeds of an experiment take their calls together.
    turns = np.random.Generator(np.random.Philox(key=[epoch, 0])).permutation(turns)
    return [(int(bucket), of_buckets[bucket].pop(0)) for bucket in turns]


def num_steps(batch_size: int, counts: Sequence[int]) -> int:
    """Returns the number of whole batches in an epoch; what is left of a bucket stands in other epochs' batches."""
    return sum(count // batch_size for count in counts)
