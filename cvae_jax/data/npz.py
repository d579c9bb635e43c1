"""A user's own arrays: a folder with train.npz, and perhaps valid.npz and test.npz."""

import logging
import math
import pathlib
import zipfile

import numpy as np
from ml_collections import ConfigDict

from cvae_jax.data import files
from cvae_jax.errors import UserError, reason, shortened

LOGGER = logging.getLogger(__name__)

OTHER_NAMES = {"val": "valid", "validate": "valid", "validation": "valid", "dev": "valid", "training": "train"}


def load(settings: ConfigDict) -> dict[str, dict[str, np.ndarray]]:
    """The arrays of each split by name, as `np.savez("train.npz", image=...)` writes them.

    Without valid.npz a tenth of the training examples is the validation split, always the same. Without test.npz there
    is no test split.

    Args:
      settings: `dir`, the folder of the files.

    Raises:
      UserError: for a missing or damaged file, pickled objects, or arrays of different lengths.
    """
    folder = pathlib.Path(settings.dir).expanduser()
    if not settings.dir or not folder.is_dir():
        raise UserError(
            f"data.dir={settings.dir!r} is not a folder; set --config.data.dir=FOLDER, which should hold train.npz, "
            "valid.npz and test.npz"
        )
    paths = {split: folder / f"{split}.npz" for split in ("train", "valid", "test")}
    for wrong, right in OTHER_NAMES.items():
        if (folder / f"{wrong}.npz").exists() and not paths[right].exists():
            raise UserError(f"found {folder / wrong}.npz; rename it to {right}.npz")
    if not paths["train"].exists():
        there = shortened(", ".join(sorted(path.name for path in folder.iterdir())), 80) or "nothing"
        raise UserError(f"{paths['train']} is missing; np.savez makes one, see the README; the folder holds {there}")
    splits = {split: _of_equal_lengths(path) for split, path in paths.items() if split == "train" or path.exists()}
    if "valid" not in splits:
        splits["train"], splits["valid"] = _held_out(paths["train"], splits["train"])
    return splits


def _of_equal_lengths(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads a split."""
    arrays = read(path)
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) != 1:
        raise UserError(f"{path}: every array needs the same number of examples; there are {shortened(str(lengths))}")
    return arrays


def _held_out(path: pathlib.Path, train: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Returns the training split without a tenth of its examples, at least one, and these."""
    number = len(next(iter(train.values())))
    if number < 2:
        raise UserError(f"{path} has 1 example, which leaves none for validation; add some, or valid.npz")
    num_valid = max(1, number // 10)
    LOGGER.info("%s: %d of %d examples are held out for validation, without valid.npz", path, num_valid, number)
    order = np.random.Generator(np.random.Philox(0)).permutation(number)
    valid, rest = np.sort(order[:num_valid]), np.sort(order[num_valid:])
    return {name: array[rest] for name, array in train.items()}, {name: array[valid] for name, array in train.items()}


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
    """All arrays of an .npz file, none of them pickled, each no larger than the file says it is.

    Raises:
      UserError: for a file that is missing or damaged, promises more than memory holds, or has an empty array.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            for entry in entries:
                _check_entry(path, archive, entry)
            promised = sum(entry.file_size for entry in entries)
            files.check_size(f"{path}, unpacked,", promised, "leave out arrays that are not read, or divide it")
            return {entry.filename.removesuffix(".npy"): _array(archive, entry) for entry in entries}
    except FileNotFoundError:
        raise UserError(f"{path} is missing; np.savez makes one, see the README") from None
    except UserError:
        raise
    except Exception as error:  # damaged archives and headers raise what their readers happen to stumble on
        raise UserError(f"{path} is no readable .npz file ({reason(error)}); write it again with np.savez") from None


def _check_entry(path: pathlib.Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> None:
    """Compares the size that an array's header promises with its entry, before NumPy allocates that much."""
    with archive.open(entry) as file:
        version = np.lib.format.read_magic(file)
        reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = reader(file)
        promised = math.prod(shape) * dtype.itemsize + file.tell()
    name = shortened(entry.filename, 40)
    if dtype.hasobject:
        raise UserError(f"{path}: {name} holds Python objects, which are never loaded; save plain arrays")
    if promised != entry.file_size:
        there = entry.file_size
        raise UserError(f"{path}: {name} promises {shortened(str(promised), 40)} bytes and has {there}; write it again")
    if not math.prod(shape) * dtype.itemsize:
        raise UserError(f"{path}: {name} is empty, {shortened(str(list(shape)), 80)}; save at least 1 example")


def _array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    """Reads an array, to the entry's end, where its checksum is compared."""
    with archive.open(entry) as file:
        array = np.lib.format.read_array(file, allow_pickle=False)
        file.read()
    return np.atleast_1d(array)
