"""Predictions of a model of RNA boxes: boxes with their probabilities, structures and pair probabilities."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from ml_collections import ConfigDict

from cvae_jax import inference
from cvae_jax.errors import UserError
from cvae_jax.task import Batch, Draw, Fitted, Task
from cvae_jax.tasks.rna_boxes import boxes, folding
from cvae_jax.tasks.rna_boxes.pairs import unfold
from cvae_jax.tasks.rna_boxes.sequences import decode

EXAMPLES_PER_CALL = 8  # at least, whose samples are held at once: 100 of 60 bases take 10 MB each


class Prediction(NamedTuple):
    """The prediction for a sequence, from samples of z."""

    sequence: str
    boxes: folding.Boxes  # those that pixels name, each with its probability, the mean over z
    probabilities: np.ndarray  # float64 [length, length], of pairs i < j: of all stems that may hold each
    pairs: np.ndarray  # int [n, 2], the structure of maximum expected accuracy under these probabilities
    structures: list[np.ndarray]  # likewise, one for each z


class Trained(Protocol):
    """A trained model, as `cvae_jax.load` gives it."""

    @property
    def config(self) -> ConfigDict:
        """The config of its run."""

    @property
    def task(self) -> Task:
        """The task that the config names."""

    def fitted(self) -> Fitted:
        """Returns the model with its variables."""


def named_boxes(on: Array, location: Array, size: Array) -> Array:
    """Returns the box that every pixel names for each type: codes of `folding.encode_box`.

    It is -1 where the pixel names none: beyond FAR neither corner nor size is known, and a box has to hold the pixel.
    A hairpin's size follows from its corner, since it lies on the diagonal.

    Args:
      on: anything of the shape [..., length, length, 3].
      location: classes, integers [..., length, length, 6].
      size: classes, integers [..., length, length, 4].

    Returns:
      int32 [..., length, length, 3].
    """
    side = on.shape[-2]
    shape = on.shape[:-1]
    row, column = (jax.lax.broadcasted_iota(jnp.int32, shape, len(shape) - back) for back in (2, 1))
    codes = []
    for kind, (first, last) in enumerate(((0, 0), (1, 2), (3, 3))):
        down, left = location[..., 2 * kind], location[..., 2 * kind + 1]
        height, width = size[..., first] + 1, size[..., last] + 1
        top, right = row - down, column + left
        known = (height <= boxes.FAR) & (width <= boxes.FAR)
        if kind + 1 == boxes.HAIRPIN:
            known, height = jnp.ones_like(known), jnp.where(known, height, right - top + 1)
            width = height
        box = jnp.stack([jnp.full_like(top, kind + 1), top, right - width + 1, height, width], -1)
        holds = (down <= boxes.FAR) & (left <= boxes.FAR) & (down < height) & (left < width)
        codes.append(jnp.where(known & holds, folding.encode_box(box, side), -1))
    return jnp.stack(codes, -1)


def answers(draw: Draw) -> dict[str, Array]:
    """Returns the most probable boxes of every pixel for one z, their probabilities, and that of the pixel's pair.

    (i, j) is a pair where it lies in a stem as far below its corner as left of it; further than FAR that is not known.
    """
    heads = draw.p_y.heads
    on, location, size = (unfold(heads[name].mean[:, 0], 1) for name in ("on", "location", "size"))
    row, column, *_ = jnp.moveaxis(location, -2, 0)
    of_location, of_size = location.max(-1), size.max(-1)
    votes = [
        on[..., kind] * of_location[..., 2 * kind] * of_location[..., 2 * kind + 1] * of_size[..., list(sizes)].prod(-1)
        for kind, sizes in enumerate(((0,), (1, 2), (3,)))
    ]
    return {
        "codes": named_boxes(on, location.argmax(-1), size.argmax(-1)),
        "votes": jnp.stack(votes, -1),
        "pairs": jnp.triu(on[..., 0] * (row * column)[..., : boxes.FAR + 1].sum(-1), 1),
    }


def sequence_of(batch: Batch, row: int) -> str:
    """Returns the sequence of an example."""
    return decode(np.asarray(batch.x["sequence"][row, : int(batch.x["length"][row])]))


def in_parts(batch: Batch) -> Iterator[tuple[Batch, int]]:
    """Yields a few examples at a time that are no padding, and how many of them count.

    The last part is filled up with its last example.
    """
    count = int((np.asarray(batch.num_targets) > 0).sum())
    size = -(-EXAMPLES_PER_CALL // jax.device_count()) * jax.device_count()  # the same number for every device
    for start in range(0, count, size):
        rows = np.minimum(np.arange(start, start + size), count - 1)
        yield _rows_of(batch, rows), min(size, count - start)


@jax.jit
def _rows_of(batch: Batch, rows: np.ndarray) -> Batch:
    return jax.tree.map(lambda leaf: leaf[rows], batch)


def predictions(fitted: Fitted, batch: Batch, key: Array, num_samples: int) -> Iterator[Prediction]:
    """Yields the prediction for every example that is no padding.

    Args:
      fitted: a model with its variables.
      batch: of sequences.
      key: of all random numbers.
      num_samples: draws of z for each example; one is made where there is no z.
    """
    num_draws = 1 if fitted.exact else num_samples
    for part, count in in_parts(batch):
        drawn: dict[str, np.ndarray] = inference.scores(fitted, part, fitted.predicts_from, answers, num_draws, key)
        side = part.x["sequence"].shape[1]
        for row in range(count):
            sequence = sequence_of(part, row)
            pairs = drawn["pairs"][:, row, : len(sequence), : len(sequence)].astype(np.float64)
            mean = pairs.mean(0)
            yield Prediction(
                sequence,
                folding.merge(drawn["codes"][:, row], drawn["votes"][:, row], side),
                mean,
                # Of the pair probabilities, not of the named boxes alone: a stem that is sure but for its size has its
                # probability spread over boxes, none of which need be more probable than not.
                folding.assemble_pairs(mean, sequence),
                [folding.assemble_pairs(probabilities, sequence) for probabilities in pairs],
            )


def predict(trained: Trained, sequences: Sequence[str], num_samples: int, key: Array) -> list[Prediction]:
    """Returns the predictions of a trained model for a user's sequences::

        trained = cvae_jax.load("runs/rna")
        predict(trained, ["GGGGAAAACCCC"], 100, jax.random.key(0))[0].boxes

    Args:
      trained: from `cvae_jax.load`.
      sequences: of letters.
      num_samples: draws of z for each.
      key: of all random numbers.

    Raises:
      UserError: for what is no sequence, one that is too long, or a model of something else.
    """
    if trained.config.task != "rna_boxes":
        raise UserError(f"{trained.config.name} is no model of RNA; train configs/rna_boxes.py")
    if num_samples < 1:
        raise UserError(f"num_samples={num_samples} must be at least 1")
    return list(predictions(trained.fitted(), trained.task.from_user(sequences), key, num_samples))
