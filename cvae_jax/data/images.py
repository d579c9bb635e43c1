"""Images as outputs: how grey values become targets of a Bernoulli likelihood, and a user's own images."""

import logging
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from ml_collections import ConfigDict

from cvae_jax.errors import UserError
from cvae_jax.settings import WIDTH, Choice, Whole, Wholes, check
from cvae_jax.task import Spec

LOGGER = logging.getLogger(__name__)

LARGEST_SIDE = 4096  # on a side

# Kinds of targets, and what a table says beside their likelihoods.
TARGETS = {
    "grey": "cross-entropy of grey targets, no density",
    "threshold": "targets binarised at 0.5",
    "dynamic": "targets binarised at random",
}


def check_settings(config: ConfigDict) -> tuple[int, int]:
    """Returns the height and width of a config's `image_shape`, once what it says of images and labels is checked.

    Raises:
      UserError: for one of them that cannot be.
    """
    shape = tuple(config.image_shape)
    if len(shape) != 2 or Wholes(2, LARGEST_SIDE).refuse(shape):
        raise UserError(f"image_shape={shape} must be a height and a width of at least 2, at most {LARGEST_SIDE}")
    kinds = {"num_classes": Whole(2, WIDTH), "measure_samples": Whole(1)}
    check(config, {"targets": Choice(TARGETS), **{key: kind for key, kind in kinds.items() if key in config}})
    return shape


def warn_of_empty_classes(num_classes: int, spec: Spec) -> None:
    """Warns where the training labels fill fewer classes than the config counts."""
    there = spec.num_classes.get("label", num_classes)
    if there < num_classes:
        message = "label: the training data have classes 0 to %d, so %d of num_classes=%d are empty; set num_classes=%d"
        LOGGER.warning(message, there - 1, num_classes - there, num_classes, there)


def as_bytes(name: str, values: np.ndarray) -> np.ndarray:
    """Returns grey values as uint8, black 0 and white 255, of the same shape.

    Args:
      name: of the array, with which messages begin.
      values: whole numbers from 0 to 255, floats in [0, 1], or bool.

    Raises:
      UserError: for other values, NaN, or whole numbers from 0 to 1, which are all but black.
    """
    if values.dtype.kind == "b":
        return values.astype(np.uint8) * np.uint8(255)
    low, high = values.min(), values.max()
    shown = f"{name} is {values.dtype} with values from {low:g} to {high:g}"
    if np.isnan(low):
        raise UserError(f"{name} has values that are NaN; fill them in, or leave these examples out")
    if values.dtype.kind == "f":
        if low >= 0 and high <= 1:
            return np.rint(values * np.float32(255)).astype(np.uint8)
        mend = "save np.rint(image).astype(np.uint8)" if low >= 0 and high <= 255 else "scale them to 0 to 1"
        raise UserError(f"{shown}, expected floats in [0, 1] or whole numbers from 0 to 255; {mend}")
    if low < 0 or high > 255:
        mend = "divide 16 bits by 257" if low >= 0 else "scale them"
        raise UserError(f"{shown}, expected 0 to 255; {mend}")
    if high <= 1:
        raise UserError(
            f"{shown}, of 255: all but black; save floats in [0, 1] as they are, zeros and ones as bool, or both times "
            "255, rounded, as uint8"
        )
    return values.astype(np.uint8, copy=False)


def targets(image: Array, kind: str, keys: Array) -> Array:
    """Turns raw images, uint8 [batch, height, width], into targets in [0, 1].

    Args:
      image: raw.
      kind: "grey", as they are; "threshold", 1 above one half; "dynamic", ones drawn with the grey value as their
        probability.
      keys: [batch], of the draws.
    """
    grey = image.astype(jnp.float32) / 255
    if kind == "threshold":
        return (grey > 0.5).astype(jnp.float32)
    if kind == "dynamic":
        return jax.vmap(jax.random.bernoulli)(keys, grey).astype(jnp.float32)
    return grey


def numbers(name: str, values: Any) -> Array:
    """Returns what a user gave as a float32 array, all of it finite.

    Raises:
      UserError: for what is none; begins with `name`.
    """
    try:
        array = jnp.asarray(values, jnp.float32)
    except (TypeError, ValueError):
        raise UserError(f"{name} is no array of numbers, but {type(values).__name__}") from None
    if not bool(jnp.isfinite(array).all()):
        raise UserError(f"{name} has values that are NaN or infinite")
    return array


def as_images(name: str, image: Any, shape: tuple[int, int], kind: str, bounded: bool = True) -> Array:
    """Returns a user's images, float32 [batch, height, width] in [0, 1], as targets of that kind.

    Args:
      name: of the argument, with which messages begin.
      image: what the user gave.
      shape: height and width.
      kind: as in `targets`.
      bounded: whether values outside [0, 1] are refused.

    Raises:
      UserError: for what is no such array.
    """
    array = numbers(name, image)
    if array.ndim != 3 or array.shape[1:] != shape:
        raise UserError(f"{name} has shape {array.shape}, expected [batch, {shape[0]}, {shape[1]}]")
    if len(array) == 0:
        raise UserError(f"{name} holds no image")
    if bounded and not bool(((array >= 0) & (array <= 1)).all()):
        raise UserError(f"{name} has values outside [0, 1]; scale grey values by 1/255")
    if kind == "threshold":
        return (array > 0.5).astype(jnp.float32)
    if kind == "dynamic" and not bool(((array == 0) | (array == 1)).all()):
        raise UserError(f"{name} has grey values, but the model was trained on binary ones; binarise it")
    return array


def as_labels(name: str, labels: Any, num_classes: int) -> Array:
    """Returns a user's labels, int32 [batch], from 0 to num_classes - 1.

    Raises:
      UserError: for what is no such array; begins with `name`.
    """
    try:
        array = np.asarray(labels)  # in NumPy, which has integers of 64 bits
    except (TypeError, ValueError):
        raise UserError(f"{name} is no array of labels, but {type(labels).__name__}") from None
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise UserError(f"{name} is {array.dtype} {array.shape}, expected whole numbers [batch]")
    if len(array) == 0:
        raise UserError(f"{name} holds no label")
    if not ((array >= 0) & (array < num_classes)).all():
        raise UserError(f"{name} has labels outside 0 to {num_classes - 1}")
    return jnp.asarray(array, jnp.int32)


def check_labels(labels: np.ndarray, num_classes: int, name: str = "label", mend: str = "") -> None:
    """Raises a UserError for raw labels outside 0 to num_classes - 1.

    Args:
      labels: whole numbers.
      num_classes: how many there may be.
      name: of the array, for the message.
      mend: what a user may do, for the message; "": subtract 1, set num_classes, or number them anew.
    """
    low, high = int(labels.min()), int(labels.max())
    if 0 <= low <= high < num_classes:
        return
    if not mend:
        mend = f"set num_classes={high + 1}" if low >= 0 else "number them from 0"
        mend = f"subtract 1, or {mend}" if low > 0 and high == num_classes else mend
    raise UserError(f"{name} has values from {low} to {high}, expected 0 to {num_classes - 1}; {mend}")
