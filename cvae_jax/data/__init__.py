"""Sources of raw arrays: where they come from and how they are checked."""

from typing import Any

import numpy as np

from cvae_jax.data import digits, mnist, npz
from cvae_jax.errors import UserError
from cvae_jax.model import Task
from cvae_jax.tasks.video import folders as videos
from cvae_jax.tasks.video import moving_digits

# split -> name -> array whose first axis counts examples
Splits = dict[str, dict[str, np.ndarray]]


def _rna(settings: Any) -> dict[str, dict[str, np.ndarray]]:
    from cvae_jax.tasks.rna_boxes import data as rna

    return rna.load(settings)


SPLITS = ("train", "valid", "test")
SOURCES = {
    "digits": digits.load,
    "mnist": mnist.load,
    "moving_digits": moving_digits.load,
    "npz": npz.load,
    "rna": _rna,
    "videos": videos.load,
}


def load(settings: Any, task: Task) -> Splits:
    """The arrays of the source that the config names, checked against what the task reads.

    Args:
      settings: the config's section `data`: source, dir, and what the source needs.
      task: of the same config.

    Raises:
      UserError: for an unknown source, missing or damaged files, or arrays of another shape.
    """
    if settings.source not in SOURCES:
        raise UserError(f"data.source={settings.source!r} is not known; choose from {', '.join(SOURCES)}")
    splits = SOURCES[settings.source](settings)
    for split, arrays in splits.items():
        where = f"{settings.source}, split {split}"
        for name, wanted in task.raw.items():
            if name not in arrays:
                raise UserError(f"{where}: no array {name!r} among {', '.join(arrays)}")
            _check(where, name, arrays[name], wanted)
        try:
            task.check(arrays)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        for name, wanted in task.raw.items():
            arrays[name] = arrays[name].astype(wanted.dtype, copy=False)
    return splits


def _check(where: str, name: str, found: np.ndarray, wanted: Any) -> None:
    """Raises where an array's examples are not of the wanted kind; whole numbers may be saved in any width."""
    integers = found.dtype.kind in "iu" and wanted.dtype == np.int32
    if found.shape[1:] == wanted.shape and (integers or found.dtype == wanted.dtype):
        return
    mend = "make image_shape match the data"
    if wanted.dtype == np.int32:
        mend = f"save whole numbers {['n', *wanted.shape]}".replace("'", "")
    elif found.dtype != wanted.dtype or found.ndim != 1 + len(wanted.shape):
        mend = f"save {wanted.dtype} {['n', *wanted.shape]}".replace("'", "")
    raise UserError(
        f"{where}: {name} is {found.dtype}{list(found.shape[1:])} an example, the config expects "
        f"{wanted.dtype}{list(wanted.shape)}; {mend}"
    )


def of(splits: Splits, name: str) -> dict[str, np.ndarray]:
    """The arrays of one split.

    Raises:
      UserError: where the data have no such split.
    """
    if name not in splits:
        raise UserError(f"the data have no split {name!r}, only {', '.join(splits)}; add it, or name another")
    return splits[name]


def num_examples(arrays: dict[str, np.ndarray]) -> int:
    """Number of examples in the arrays of a split."""
    return len(next(iter(arrays.values())))
