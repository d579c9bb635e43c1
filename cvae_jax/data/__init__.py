"""Sources of raw arrays: where they come from and how they are checked."""

from typing import Any

import numpy as np

from cvae_jax.data import digits, mnist, npz
from cvae_jax.errors import UserError
from cvae_jax.model import Task

# split -> name -> array whose first axis counts examples
Splits = dict[str, dict[str, np.ndarray]]

SPLITS = ("train", "valid", "test")
SOURCES = {"digits": digits.load, "mnist": mnist.load, "npz": npz.load}


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
        for name, wanted in task.raw.items():
            if name not in arrays:
                raise UserError(f"{settings.source}, split {split}: no array {name!r} among {', '.join(arrays)}")
            found = arrays[name]
            if found.dtype.kind in "iu" and wanted.dtype == np.int32:  # labels, in whatever width they were saved
                found = arrays[name] = found.astype(np.int32)
            if found.shape[1:] != wanted.shape or found.dtype != wanted.dtype:
                raise UserError(
                    f"{settings.source}, split {split}: {name} is {found.dtype}{list(found.shape[1:])} an example, "
                    f"the config expects {wanted.dtype}{list(wanted.shape)}; make image_shape match the data"
                )
        task.check(arrays)
    return splits


def num_examples(arrays: dict[str, np.ndarray]) -> int:
    """Number of examples in the arrays of a split."""
    return len(next(iter(arrays.values())))
