"""Videos, each in a folder of its own: 0.png, 1.png, ... and CSV files with a row of numbers a frame.

The folders lie in DIR/train, DIR/validate and DIR/test, at any depth, as those of robots that push things do:

    train/traj_000/0/0.png ... 29.png, actions.csv, endeffector_positions.csv

Row k of a CSV file, counted from 0 as frames are, is what a model is given when it predicts k.png; row 0 is not read.

If no folder is named, videos are those of BAIR's robot that pushes things, from TensorFlow Datasets.
"""

import itertools
import logging
import math
import pathlib
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict
from PIL import Image
from tqdm import tqdm

from cvae_jax.data import files, pictures, tfds
from cvae_jax.errors import UserError, shortened
from cvae_jax.settings import WIDTH, Whole, check
from cvae_jax.task import Arrays, Splits

LOGGER = logging.getLogger(__name__)

FOLDERS = {"train": "train", "valid": "validate", "test": "test"}

MOST_FRAMES = 10_000  # of a video
LARGEST_SIDE = 4096  # on a side
LARGEST = float(np.finfo(np.float32).max)

BAIR = "bair_robot_pushing_small"  # 43,264 videos of 30 frames of 64x64 to train on, 256 to test
BAIR_TABLES = {"actions.csv": "action", "endeffector_positions.csv": "endeffector_pos"}


def check_settings(settings: ConfigDict) -> None:
    """Raises a UserError for a number in a config's section `data` that cannot be."""
    sizes = {"num_frames": Whole(1, MOST_FRAMES), "size": Whole(1, LARGEST_SIDE), "num_columns": Whole(0, WIDTH)}
    check(settings, {**sizes, "num_train": Whole()}, "data")


def load(settings: ConfigDict) -> Splits:
    """Loads the videos of each split.

    Args:
      settings: `dir`, or "" for BAIR's; `num_train`, the first so many training videos, 0: all; `num_frames`, how many
        each video has; `size`, the height and width to which frames are reduced by averaging; `conditions`, the names
        of the CSV files whose columns stand side by side, and `num_columns`, how many these are together; `num_valid`,
        how many training videos are held out where there is no "validate", half of them at most.

    Returns:
      For each split `frames`, uint8 [n, num_frames, size, size, 3], `condition`, float32 [n, num_frames, columns], and
      `other_condition`, that of the video before in the split: whether conditions matter shows where they are wrong.

    Raises:
      UserError: for what is missing, damaged or of another size; names the file, and the row of a CSV file.
    """
    check_settings(settings)
    if not settings.dir:
        return _bair(settings)
    folder = pathlib.Path(settings.dir).expanduser()
    if not folder.is_dir():
        raise UserError(f"data.dir={settings.dir!r} is not a folder; it should hold train, validate and test")
    videos = {split: _videos(folder / name) for split, name in FOLDERS.items() if (folder / name).is_dir()}
    for split in ("train", "test", *(["valid"] if "valid" in videos else [])):
        if not videos.get(split):
            raise UserError(f"{folder / FOLDERS[split]} holds no video, a folder with 0.png; put some there")
    videos["train"] = videos["train"][: settings.num_train or None]
    if "valid" not in videos:
        num_train = len(videos["train"])
        num_valid = _held_out(num_train, settings.num_valid)
        order = np.random.Generator(np.random.Philox(0)).permutation(num_train).tolist()
        valid, train = sorted(order[:num_valid]), sorted(order[num_valid:])
        videos["train"], videos["valid"] = ([videos["train"][number] for number in rows] for rows in (train, valid))
    return {split: _with_other_condition(_stack(videos[split], split, settings)) for split in FOLDERS}


def _with_other_condition(arrays: Arrays) -> Arrays:
    return {**arrays, "other_condition": np.roll(arrays["condition"], 1, 0)}


def _held_out(num_train: int, num_valid: int) -> int:
    """Returns how many of the training videos are held out for validation: no more than half of them."""
    if num_valid < 1:
        raise UserError(f"data.num_valid={num_valid} must be at least 1")
    if num_train < 2:
        raise UserError(f"{num_train} training video leaves none to hold out for validation; add some")
    most = num_train // 2
    if num_valid > most:
        message = "data.num_valid=%d is more than half of %d training videos: %d %s held out"
        LOGGER.warning(message, num_valid, num_train, most, "is" if most == 1 else "are")
    return min(num_valid, most)


def _bair(settings: ConfigDict) -> Splits:
    """Returns BAIR's videos. They take 16 GB at 64x64, uint8, so one half of them is read at a time."""
    unknown = [name for name in settings.conditions if name not in BAIR_TABLES]
    if unknown:
        raise UserError(f"data.conditions={unknown[0]!r} is none of BAIR's {', '.join(BAIR_TABLES)}; or set data.dir")
    halves = {}
    for half in ("train", "test"):
        rows = tfds.rows(BAIR, half, "name a folder of videos with data.dir")
        count = min(len(rows), settings.num_train or len(rows)) if half == "train" else len(rows)
        frames = np.zeros((count, settings.num_frames, settings.size, settings.size, 3), np.uint8)
        condition = np.zeros((count, settings.num_frames, settings.num_columns), np.float32)
        for number in tqdm(range(count), desc=f"reading videos, {half}", disable=None):
            row = rows[number]
            images, tables = row["image_main"], [row[BAIR_TABLES[name]] for name in settings.conditions]
            columns = np.concatenate([np.zeros((len(images), 0), np.float32), *tables], 1)
            side = images.shape[1]
            if len(images) < settings.num_frames or side % settings.size or columns.shape[1] != settings.num_columns:
                raise UserError(
                    f"BAIR has {len(images)} frames of {side} x {side} pixels and {columns.shape[1]} columns of "
                    f"{', '.join(settings.conditions) or 'no conditions'}; set data.num_frames, size and num_columns so"
                )
            for place, image in enumerate(images[: settings.num_frames]):
                frames[number, place] = np.asarray(Image.fromarray(image).reduce(side // settings.size))
            condition[number] = columns[: settings.num_frames]
        halves[half] = {"frames": frames, "condition": condition}
    num_train = len(halves["train"]["frames"])
    cut = num_train - _held_out(num_train, settings.num_valid)
    return {  # the last for validation: slices, which are no copies
        "train": _with_other_condition({name: array[:cut] for name, array in halves["train"].items()}),
        "valid": _with_other_condition({name: array[cut:] for name, array in halves["train"].items()}),
        "test": _with_other_condition(halves["test"]),
    }


def _videos(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the folders that hold frames, in the order of their names."""
    return sorted({path.parent for path in folder.rglob("*.png")})


def _stack(folders: Sequence[pathlib.Path], split: str, settings: ConfigDict) -> Arrays:
    """Reads the videos of these folders."""
    num_frames, num_columns = settings.num_frames, settings.num_columns
    frames, condition = [], []
    for folder in tqdm(folders, desc=f"reading videos, {split}", disable=None):
        frames.append(read_frames(folder, num_frames, settings.size))
        tables = [read_table(folder / name, num_frames) for name in settings.conditions]
        condition.append(np.concatenate([np.zeros((num_frames, 0), np.float32), *tables], 1))
        columns = condition[-1].shape[1]
        if columns != num_columns:
            raise UserError(
                f"{folder}: columns of {', '.join(settings.conditions) or 'no conditions'}: {columns}, the config "
                f"expects {num_columns}; set data.num_columns={columns}, or data.conditions to the files that it counts"
            )
    return {"frames": np.stack(frames), "condition": np.stack(condition)}


def read_frames(folder: pathlib.Path, num_frames: int, size: int) -> np.ndarray:
    """Reads the frames 0.png to <num_frames - 1>.png: uint8 [num_frames, size, size, 3].

    Raises:
      UserError: for a frame that is missing, cannot be read, has another size than the first, or is no square of a
        multiple of `size`.
    """
    frames = np.zeros((num_frames, size, size, 3), np.uint8)
    first = None
    for number in range(num_frames):
        path = folder / f"{number}.png"
        try:
            frame = pictures.read(path)
        except FileNotFoundError:
            raise UserError(
                f"{path} is missing, the config expects {num_frames} frames; complete the video, or set data.num_frames"
            ) from None
        first = first or frame.size
        if frame.size != first:
            raise UserError(
                f"{path} is {frame.width} pixels wide and {frame.height} high, 0.png {first[0]} and {first[1]}; make "
                "the frames of a video of one size"
            )
        if frame.width != frame.height or frame.width % size:
            raise UserError(
                f"{path} is {frame.width} pixels wide and {frame.height} high, the config expects squares of a "
                f"multiple of {size} pixels; resize the frames, or set data.size"
            )
        frames[number] = np.asarray(frame.reduce(frame.width // size))
    return frames


def read_table(path: pathlib.Path, num_frames: int) -> np.ndarray:
    """Reads the first rows of a CSV file without a heading, one a frame: float32 [num_frames, columns].

    Raises:
      UserError: for a missing file, fewer rows, rows of different lengths, or what is no finite number.
    """
    if not path.exists():
        raise UserError(f"{path} is missing; put it there, or leave its name out of data.conditions")
    rows = list(itertools.islice(files.rows(path), num_frames))
    if len(rows) < num_frames:
        raise UserError(f"{path} has {len(rows)} rows for {num_frames} frames; add what is missing, a row a frame")
    table = np.zeros((num_frames, len(rows[0])), np.float32)
    for number, row in enumerate(rows):
        if len(row) != len(rows[0]):
            raise UserError(f"{path}, row {number + 1}: {len(row)} columns where the first row has {len(rows[0])}")
        for column, word in enumerate(row):
            try:
                value = float(word)
            except ValueError:
                raise UserError(
                    f"{path}, row {number + 1}: {shortened(repr(word), 40)} is no number; rows are numbers and commas, "
                    "without a heading"
                ) from None
            if math.isfinite(value) and abs(value) <= LARGEST:
                table[number, column] = value
            else:
                raise UserError(f"{path}, row {number + 1}: {shortened(repr(word), 40)} is not finite")
    return table
