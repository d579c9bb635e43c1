"""A data set of RNA on disk: the folder of train.npz, valid.npz and test.npz.

A split has these arrays:
  sequence: int8 [n, max_len], letters as in LETTERS, 0 beyond the sequence;
  length: int32 [n], in bases;
  boxes: int16 [n, num_sample, max_boxes(max_len), 5], see boxes.py, rows of 0 beyond the boxes;
  count: int32 [n], how many of the num_sample structures there are.
"""

import os
import pathlib
from typing import Any

import numpy as np

from cvae_jax.data import npz
from cvae_jax.errors import UserError, shortened
from cvae_jax.task import Arrays, Splits
from cvae_jax.tasks.rna_boxes import boxes, tables
from cvae_jax.tasks.rna_boxes.sequences import LETTERS

SPLITS = ("train", "valid", "test")


def fit(arrays: Arrays, max_length: int, num_sample: int) -> Arrays:
    """Pads or cuts a split's arrays to sequences of max_length, num_sample structures and the boxes of that length.

    Raises:
      UserError: for a longer sequence.
    """
    longest = int(arrays["length"].max())
    if longest > max_length:
        raise UserError(
            f"a sequence has {longest} bases, more than data.max_length={max_length}; train with "
            f"--config.data.max_length={longest + longest % 2}, or make or convert the data with --max_len={max_length}"
        )
    shape = (num_sample, boxes.max_boxes(max_length), 5)
    if arrays["boxes"][:, :num_sample, shape[1] :, 0].any():
        raise UserError(f"a structure has more than the {shape[1]} boxes of max_length={max_length}; set a larger one")
    return {
        "sequence": _resize(arrays["sequence"], (max_length,)),
        "length": arrays["length"],
        "boxes": _resize(arrays["boxes"], shape),
        "count": np.minimum(arrays["count"], num_sample),
    }


def _resize(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Returns examples of this shape: what lies beyond it is cut, and what lacks is 0."""
    resized = np.zeros((len(array), *shape), array.dtype)
    both = (slice(None), *(slice(min(sides)) for sides in zip(shape, array.shape[1:], strict=True)))
    resized[both] = array[both]
    return resized


def read(folder: pathlib.Path) -> Splits:
    """Reads and checks the arrays of the splits in a folder.

    Raises:
      UserError: for missing or damaged files, or arrays that are no such data.
    """
    tables.refuse_pickle(folder)
    paths = {split: folder / f"{split}.npz" for split in SPLITS if (folder / f"{split}.npz").exists()}
    if not paths:
        for path in sorted(folder.glob("*.*")) if folder.is_dir() else ():
            tables.refuse_pickle(path)
        raise UserError(
            f"data.dir={str(folder)!r} is no folder with train.npz; python -m cvae_jax rna_boxes make "
            "--out=FOLDER writes one"
        )
    splits: Splits = {}
    for split, path in paths.items():
        arrays = npz.read(path)
        try:
            splits[split] = _checked(arrays)
        except UserError as error:
            mend = "write it with python -m cvae_jax rna_boxes make, or convert"
            raise UserError(f"{path}: {error}; {mend}") from None
    return splits


def _checked(arrays: Arrays) -> Arrays:
    """Returns the arrays of a file in their dtypes, once all that the rest of the program relies on is checked."""
    axes = {"sequence": 2, "length": 1, "boxes": 4, "count": 1}
    if sorted(arrays) != sorted(axes):
        raise UserError(f"the arrays are {shortened(', '.join(arrays))}, expected {', '.join(axes)}")
    for name, number in axes.items():
        if arrays[name].ndim != number or arrays[name].dtype.kind not in "iu" or not arrays[name].size:
            raise UserError(
                f"{name} is {arrays[name].dtype}{list(arrays[name].shape)}, no whole numbers of {number} axes"
            )
    sequence, length, rows, count = (arrays[name] for name in axes)
    if len({len(array) for array in arrays.values()}) != 1:
        raise UserError(f"the arrays differ in length: {[len(array) for array in arrays.values()]}")
    if rows.shape[-1] != 5:
        raise UserError(f"boxes have {rows.shape[-1]} numbers, expected 5")
    if sequence.min() < 0 or sequence.max() >= len(LETTERS):
        raise UserError(f"sequence has codes outside 0 to {len(LETTERS) - 1}")
    if length.min() < 1 or length.max() > sequence.shape[1]:
        raise UserError(f"length is outside 1 to {sequence.shape[1]}")
    if (sequence * (np.arange(sequence.shape[1]) >= length[:, None])).any():
        raise UserError("sequence is not 0 beyond its length")
    if count.min() < 1 or count.max() > rows.shape[1]:
        raise UserError(f"count is outside 1 to {rows.shape[1]}")
    _check_boxes(length, rows, count)
    dtypes = {"sequence": np.int8, "length": np.int32, "boxes": np.int16, "count": np.int32}
    return {name: arrays[name].astype(dtype, copy=False) for name, dtype in dtypes.items()}


def _check_boxes(length: np.ndarray, rows: np.ndarray, count: np.ndarray) -> None:
    """Raises a UserError for boxes [n, num_sample, k, 5] that cannot be, for sequences of these lengths and counts."""
    kind = rows[..., 0]
    room = np.array([boxes.max_boxes(bases) for bases in length.tolist()])
    if ((kind != 0) * np.arange(1, kind.shape[-1] + 1) > room[:, None, None]).any():
        raise UserError("a structure has more boxes than its sequence has room for")
    if (kind[np.arange(rows.shape[1]) >= count[:, None]] != 0).any():
        raise UserError("there are boxes in structures beyond count")
    real = rows[kind != 0].astype(np.int64)
    ends = np.broadcast_to(length[:, None, None], kind.shape)[kind != 0]
    low, high = real[:, 1:3], real[:, 1:3] + real[:, 3:]
    if (real[:, 0] < 0).any() or (real[:, 0] > len(boxes.TYPES)).any():
        raise UserError(f"boxes have types outside 0 to {len(boxes.TYPES)}")
    if (low < 0).any() or (high <= low).any() or (high > ends[:, None]).any() or (low[:, 0] >= high[:, 1] - 1).any():
        raise UserError("boxes reach beyond their sequence or its upper triangle")


def save(splits: dict[str, dict[str, Any]], folder: str | os.PathLike[str]) -> None:
    """Writes train.npz, valid.npz and test.npz of those splits, each as a whole or not at all.

    Raises:
      UserError: for a folder that has one of them already, or cannot be written.
    """
    path = pathlib.Path(folder).expanduser()
    check_empty(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        for split, arrays in splits.items():
            unfinished = path / f".{split}.npz.unfinished"
            with open(unfinished, "wb") as file:
                np.savez_compressed(file, **arrays)
            unfinished.replace(path / f"{split}.npz")
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); choose another folder") from None


def check_empty(folder: pathlib.Path) -> None:
    """Raises a UserError for a folder that has one of the splits already."""
    for split in SPLITS:
        if (folder / f"{split}.npz").exists():
            raise UserError(f"{folder / split}.npz exists; choose another folder, or remove the data set there")
