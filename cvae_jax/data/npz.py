"""A user's own arrays: a folder with train.npz, valid.npz and test.npz."""

import math
import pathlib
import zipfile

import numpy as np
from ml_collections import ConfigDict

from cvae_jax.errors import UserError


def load(settings: ConfigDict) -> dict[str, dict[str, np.ndarray]]:
    """The arrays of each split by name, as `np.savez("train.npz", image=...)` writes them.

    Args:
      settings: `dir`, the folder of the three files.

    Raises:
      UserError: for a missing or damaged file, pickled objects, or arrays of different lengths.
    """
    folder = pathlib.Path(settings.dir).expanduser()
    if not settings.dir or not folder.is_dir():
        raise UserError(f"data.dir={settings.dir!r} is not a folder; it should hold train.npz, valid.npz and test.npz")
    splits = {}
    for split in ("train", "valid", "test"):
        path = folder / f"{split}.npz"
        splits[split] = read(path)
        lengths = {name: len(array) for name, array in splits[split].items()}
        if len(set(lengths.values())) != 1 or 0 in lengths.values():
            raise UserError(f"{path}: every array needs the same number of examples, at least 1; found {lengths}")
    return splits


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
    """All arrays of an .npz file, none of them pickled, each no larger than the file says it is."""
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                _check_entry(path, archive, entry)
        with np.load(path, allow_pickle=False) as arrays:
            return {name: np.atleast_1d(arrays[name]) for name in arrays.files}
    except FileNotFoundError:
        raise UserError(f"{path} is missing; np.savez makes one, see the README") from None
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is no readable .npz file ({error}); write it again with np.savez") from None


def _check_entry(path: pathlib.Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> None:
    """Compares the size that an array's header promises with its entry, before NumPy allocates that much."""
    with archive.open(entry) as file:
        version = np.lib.format.read_magic(file)
        reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = reader(file)
        promised = math.prod(shape) * dtype.itemsize + file.tell()
    if dtype.hasobject:
        raise UserError(f"{path}: {entry.filename} holds Python objects, which are never loaded; save plain arrays")
    if promised != entry.file_size:
        raise UserError(f"{path}: {entry.filename} promises {promised} bytes and has {entry.file_size}; write it again")
