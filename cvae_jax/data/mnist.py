"""MNIST, from a folder of its four IDX files or through TensorFlow Datasets.

The last 5,000 of the 60,000 training images are the validation split.
"""

import hashlib
import math
import pathlib

import numpy as np
from ml_collections import ConfigDict

from cvae_jax.data import files, tfds
from cvae_jax.errors import UserError

NUM_VALID = 5_000

MOST_AXES = 3  # of an IDX file

# SHA-256 of the files once unpacked.
CHECKSUMS = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


def load(settings: ConfigDict) -> dict[str, dict[str, np.ndarray]]:
    """Images uint8 [n, 28, 28] and labels int32 [n]: 55,000 / 5,000 / 10,000.

    Args:
      settings: `dir`, the folder of the IDX files (gzipped or not), or "" for TensorFlow Datasets, whose own
        folder is set by the environment variable TFDS_DATA_DIR; `verify_checksums`, for IDX files.

    Raises:
      UserError: for a missing, truncated or altered file, or when TensorFlow Datasets cannot deliver.
    """
    if settings.dir:
        train, test = from_idx(settings.dir, settings.verify_checksums)
    else:
        train, test = from_tfds()
    cut = len(train["label"]) - NUM_VALID
    if cut <= 0:
        raise UserError(f"{len(train['label'])} training images leave none beside {NUM_VALID} for validation")
    return {
        "train": {name: array[:cut] for name, array in train.items()},
        "valid": {name: array[cut:] for name, array in train.items()},
        "test": test,
    }


def from_idx(folder: str, verify_checksums: bool) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Train and test arrays from the four files in the folder."""
    path = pathlib.Path(folder).expanduser()
    if not path.is_dir():
        raise UserError(f"data.dir={folder!r} is not a folder; it should hold the four MNIST IDX files")
    halves = []
    for half in ("train", "t10k"):
        images = read_idx(path, f"{half}-images-idx3-ubyte", verify_checksums)
        labels = read_idx(path, f"{half}-labels-idx1-ubyte", verify_checksums)
        if len(images) != len(labels):
            raise UserError(f"{path}: {len(images)} images but {len(labels)} labels in the {half} files")
        halves.append({"image": images, "label": labels.astype(np.int32)})
    return halves[0], halves[1]


def read_idx(folder: pathlib.Path, name: str, verify_checksum: bool) -> np.ndarray:
    """One IDX file of unsigned bytes, gzipped or not, as an array of the shape in its header."""
    packed, plain = folder / f"{name}.gz", folder / name
    path = packed if packed.exists() else plain
    if not path.exists():
        raise UserError(f"{packed} is missing (nor is there {name} unpacked); put the file there")
    with files.opened(path) as file:
        header = bytes(files.read(file, 4))
        if header[:3] != b"\0\0\x08" or not 1 <= header[-1] <= MOST_AXES:
            raise UserError(f"{path} is no IDX file of unsigned bytes with 1 to {MOST_AXES} axes; get the file again")
        header += files.read(file, 4 * header[3])
        shape = tuple(np.frombuffer(header, ">u4", len(header) // 4 - 1, 4).tolist())
        promised = math.prod(shape)
        files.check_size(f"{path}, unpacked,", promised, "get the file again")
        content = files.read(file, promised + 1)
    if len(shape) != header[3] or not promised or len(content) != promised:
        raise UserError(
            f"{path} is truncated, too long or empty: its header promises {shape}, {len(content)} bytes are there; get "
            "the file again"
        )
    if verify_checksum and hashlib.sha256(header + content).hexdigest() != CHECKSUMS[name]:
        raise UserError(
            f"{path} is not the original MNIST (its checksum differs); get the file again, or set "
            "data.verify_checksums=False for another data set of that format"
        )
    return np.frombuffer(content, np.uint8).reshape(shape)


def from_tfds() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Train and test arrays through TensorFlow Datasets."""
    halves: list[dict[str, np.ndarray]] = []
    for split in ("train", "test"):
        rows = tfds.rows("mnist", split, "name a folder of the four IDX files with data.dir")
        images = np.stack([np.asarray(row["image"], np.uint8)[..., 0] for row in rows])
        labels = np.asarray([row["label"] for row in rows], np.int32)
        halves.append({"image": images, "label": labels})
    return halves[0], halves[1]
