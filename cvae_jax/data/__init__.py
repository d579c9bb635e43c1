"""Raw arrays: where they come from, how they are checked, and what the training split says of them."""

import pathlib
from collections.abc import Mapping
from types import MappingProxyType

import jax
import numpy as np
from ml_collections import ConfigDict

from cvae_jax.data import digits, glyphs, images, mnist, npz
from cvae_jax.errors import UserError, shortened
from cvae_jax.task import Arrays, Source, Spec, Splits, Task

# Sources that every task has, beside its own `Task.sources`.
SHARED: Mapping[str, Source] = MappingProxyType(
    {"digits": digits.load, "glyphs": glyphs.load, "mnist": mnist.load, "npz": npz.load}
)

ROWS_AT_ONCE = 4096  # of which statistics are computed at a time, in float64


def load(settings: ConfigDict, sources: Mapping[str, Source]) -> Splits:
    """Loads the arrays of the source that the config names.

    Floats become float32, and one float an example a vector of one; whole numbers of more than 16 bits become int32.

    Args:
      settings: the config's section `data`: source, dir, and what the source needs.
      sources: of the task, beside SHARED.

    Raises:
      UserError: for an unknown source, missing or damaged files, or numbers that int32 does not hold.
    """
    known = {**SHARED, **sources}
    if settings.source not in known:
        raise UserError(f"data.source={settings.source!r} is not known; choose from {', '.join(known)}")
    if settings.source in ("digits", "mnist"):
        _check_source(getattr(settings, "dir", ""))
    splits: Splits = {}
    for split, arrays in known[settings.source](settings).items():
        where = f"{settings.source}, split {split}"
        splits[split] = {name: _plain(where, name, np.asarray(array)) for name, array in arrays.items()}
        lengths = {name: len(array) for name, array in splits[split].items()}
        if len(set(lengths.values())) != 1:
            raise UserError(f"{where}: every array needs the same number of examples; there are {lengths}")
    return splits


def _check_source(folder: str) -> None:
    """Raises a UserError where a user's own arrays or images lie in a folder, and no IDX files."""
    path = pathlib.Path(folder).expanduser()
    if not folder or not path.is_dir() or any(path.glob("*-ubyte*")):
        return
    mends = {"*.npz": "add", "*.png": "save the images as the array image in train.npz with np.savez, and add"}
    mends["*/*.png"] = mends["*.png"]
    for pattern, mend in mends.items():
        first = next(path.glob(pattern), None)
        if first is not None:
            raise UserError(f"found {first}: {mend} --config.data.source=npz")


def _plain(where: str, name: str, array: np.ndarray) -> np.ndarray:
    """Returns the array in one of the few dtypes that tasks read."""
    if not array.ndim:
        raise UserError(f"{where}: {name} is one value, not an array with a row for every example")
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):  # beyond float32: infinite, which tasks refuse
            array = array.astype(np.float32, copy=False)
        return array[:, None] if array.ndim == 1 else array
    if array.dtype.kind in "iu" and array.dtype.itemsize > 2 and array.dtype != np.int32:
        if array.size and not -(2**31) <= array.min() <= array.max() < 2**31:
            raise UserError(f"{where}: {name} has whole numbers beyond 32 bits; number them anew")
        return array.astype(np.int32)
    return array


def spec(splits: Splits) -> Spec:
    """Returns what the training split says of the data: shapes, dtypes, numbers of classes, means and deviations.

    Raises:
      UserError: where there is no training split.
    """
    arrays = {name: array for name, array in of(splits, "train").items() if array.dtype.kind in "biuf"}
    raw = {name: jax.ShapeDtypeStruct(array.shape[1:], array.dtype) for name, array in arrays.items()}
    integers = {name: array for name, array in arrays.items() if array.dtype.kind in "iu"}
    num_classes = {name: int(array.max()) + 1 for name, array in integers.items() if array.size and array.min() >= 0}
    numbers = {name: array for name, array in arrays.items() if array.dtype.kind == "f" or _is_vector(array)}
    moments = {name: _moments(array) for name, array in numbers.items()}
    mean = {name: moment[0] for name, moment in moments.items()}
    return Spec(raw, num_classes, mean, {name: moment[1] for name, moment in moments.items()})


def _is_vector(array: np.ndarray) -> bool:
    """Returns whether examples are whole numbers, or vectors of them: images and the like are no statistic's matter."""
    return array.dtype.kind in "iu" and array.ndim <= 2


def _moments(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean and the standard deviation of each element over the examples, float64; 1 where it is constant.

    NaN, which is no value, is left out.
    """
    count, total = np.zeros(array.shape[1:]), np.zeros(array.shape[1:])
    parts = [array[start : start + ROWS_AT_ONCE] for start in range(0, len(array), ROWS_AT_ONCE)]
    for part in parts:
        count += (~np.isnan(part)).sum(0)
        total += np.nansum(part, 0, dtype=np.float64)
    mean = total / np.maximum(count, 1)
    with np.errstate(invalid="ignore"):  # infinite values are the task's to refuse
        squares = sum((np.nansum((part - mean) ** 2, 0) for part in parts), np.zeros_like(mean))
    scale = np.sqrt(squares / np.maximum(count, 1))
    return mean, np.where(scale > 0, scale, 1.0)


def check(splits: Splits, task: Task, source: str) -> Splits:
    """Returns the arrays in the dtypes that the task reads, once they are checked against it.

    Args:
      splits: of `load`.
      task: whose `raw`, `measured` and `check` they have to fit.
      source: name of where they come from, for messages.

    Raises:
      UserError: for arrays of another name, shape or kind, or values that the task refuses.
    """
    checked: Splits = {}
    for split, arrays in splits.items():
        where = f"{source}, split {split}"
        fitting = dict(arrays)
        for name, expected in {**task.raw, **task.measured}.items():
            if name not in arrays:
                raise UserError(f"{where}: no array {name!r} among {shortened(', '.join(arrays))}")
            fitting[name] = _fitted(where, name, arrays[name], expected)
        if task.cluster:
            _check_cluster(where, task.cluster, arrays)
        try:
            task.check(fitting)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        checked[split] = fitting
    return checked


def _check_cluster(where: str, name: str, arrays: Arrays) -> None:
    """Raises where the array over whose values errors are taken is missing, or has no value for every example."""
    if name not in arrays:
        raise UserError(f"{where}: no array {name!r}, over which errors are taken, among {', '.join(arrays)}")
    if arrays[name].ndim != 1 or arrays[name].dtype.kind not in "iuSU":
        raise UserError(f"{where}: {name}, over which errors are taken, must be whole numbers or strings [n]")


def _fitted(where: str, name: str, array: np.ndarray, expected: jax.ShapeDtypeStruct) -> np.ndarray:
    """Returns an array in the expected dtype: whole numbers may be saved in any width, grey values as floats too.

    Raises:
      UserError: where its examples are not of the expected kind.
    """
    if array.shape[1:] == expected.shape and expected.dtype == np.uint8 and array.dtype.kind in "biuf" and array.size:
        return images.as_bytes(f"{where}: {name}", array)
    whole = array.dtype.kind in "iu" and np.issubdtype(expected.dtype, np.integer)
    held = whole and (not array.size or np.array_equal([array.min(), array.max()], _cast_ends(array, expected.dtype)))
    if array.shape[1:] == expected.shape and (held or array.dtype == expected.dtype):
        return array.astype(expected.dtype, copy=False)
    raise UserError(
        f"{where}: {name} is {shortened(str(array.dtype), 40)}{shortened(str(list(array.shape[1:])), 80)} per example, "
        f"the config expects {expected.dtype}{list(expected.shape)}; {_mend(name, array, expected)}"
    )


def _mend(name: str, array: np.ndarray, expected: jax.ShapeDtypeStruct) -> str:
    """Returns what a user may do about an array of another shape or kind."""
    shape = f"{['n', *expected.shape]}".replace("'", "")
    if expected.dtype == np.int32:
        return f"save whole numbers {shape}"
    if expected.dtype != np.uint8 or array.dtype.kind not in "biuf":
        return f"save {expected.dtype} {shape}"
    channels = array.shape[-1] if array.ndim == 2 + len(expected.shape) else 0
    if channels == 1:
        return f"drop the last axis: {name}[..., 0]"
    if channels in (3, 4):
        mean = f"{name}[..., :3].mean(-1)"
        mean = mean if array.dtype.kind == "f" else f"np.rint({mean}).astype(np.uint8)"
        return f"colour is not supported: take the mean over the last axis, {mean}"
    if array.shape[1:] == (int(np.prod(expected.shape)),):
        return f"reshape it to {shape}"
    if array.ndim == 1 + len(expected.shape):
        return f"make image_shape match the data: --config.image_shape='{array.shape[1:]}'"
    return f"save uint8 {shape}"


def _cast_ends(array: np.ndarray, dtype: np.typing.DTypeLike) -> list[int]:
    """Returns the smallest and the largest value as that dtype holds them."""
    return [int(array.min().astype(dtype)), int(array.max().astype(dtype))]


def of(splits: Splits, name: str) -> Arrays:
    """Returns the arrays of one split.

    Raises:
      UserError: where the data have no such split.
    """
    if name not in splits:
        mend = "add it" + ", or measure another with --split=valid" * (name == "test" and "valid" in splits)
        raise UserError(f"the data have no split {name!r}, only {', '.join(splits)}; {mend}")
    return splits[name]


def num_examples(arrays: Arrays) -> int:
    """Returns the number of examples in the arrays of a split."""
    return len(next(iter(arrays.values())))
