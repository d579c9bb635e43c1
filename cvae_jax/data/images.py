"""Images as outputs: how grey values become targets of a Bernoulli likelihood, and a user's own images."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from cvae_jax.errors import UserError

TARGETS = ("grey", "threshold", "dynamic")


def check_settings(config: Any) -> tuple[int, int]:
    """The height and width of a config's `image_shape`, after a look at what it says of images and their labels.

    Raises:
      UserError: for one of them that cannot be.
    """
    shape = tuple(config.image_shape)
    if len(shape) != 2 or not all(isinstance(side, int) and side >= 2 for side in shape):
        raise UserError(f"image_shape={shape} must be a height and a width of at least 2")
    if config.targets not in TARGETS:
        raise UserError(f"targets={config.targets!r} is not known; choose from {', '.join(TARGETS)}")
    for key, least in (("num_classes", 2), ("measure_samples", 1)):
        if key in config and config[key] < least:
            raise UserError(f"{key}={config[key]} must be at least {least}")
    return shape


def targets(image: Array, kind: str, keys: Array) -> Array:
    """Raw images, uint8 [batch, height, width], as targets in [0, 1].

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
    """What a user gave as an array, float32, all of it finite.

    Raises:
      UserError: for what is none; begins with `name`.
    """
    try:
        found = jnp.asarray(values, jnp.float32)
    except (TypeError, ValueError):
        raise UserError(f"{name} is no array of numbers, but {type(values).__name__}") from None
    if not bool(jnp.isfinite(found).all()):
        raise UserError(f"{name} has values that are NaN or infinite")
    return found


def own(name: str, image: Any, shape: tuple[int, int], kind: str, bounded: bool = True) -> Array:
    """A user's images, float32 [batch, height, width] in [0, 1], or beyond unless `bounded`, as targets of that kind.

    Raises:
      UserError: for what is no such array; begins with `name`.
    """
    found = numbers(name, image)
    if found.ndim != 3 or found.shape[1:] != shape:
        raise UserError(f"{name} has shape {found.shape}, expected [batch, {shape[0]}, {shape[1]}]")
    if len(found) == 0:
        raise UserError(f"{name} holds no image")
    if bounded and not bool(((found >= 0) & (found <= 1)).all()):
        raise UserError(f"{name} has values outside [0, 1]; scale grey values by 1/255")
    if kind == "threshold":
        return (found > 0.5).astype(jnp.float32)
    if kind == "dynamic" and not bool(((found == 0) | (found == 1)).all()):
        raise UserError(f"{name} has grey values, but the model was trained on binary ones; binarise it")
    return found


def own_frames(name: str, frames: Any, size: int, channels: int) -> Array:
    """A user's videos, float32 [batch, frames, size, size, channels] in [0, 1].

    Raises:
      UserError: for what is no such array; begins with `name`.
    """
    found = numbers(name, frames)
    if found.ndim != 5 or found.shape[2:] != (size, size, channels):
        raise UserError(f"{name} has shape {found.shape}, expected [batch, frames, {size}, {size}, {channels}]")
    if not found.size:
        raise UserError(f"{name} holds no video")
    if not bool(((found >= 0) & (found <= 1)).all()):
        raise UserError(f"{name} has values outside [0, 1]; scale them by 1/255")
    return found


def own_labels(name: str, labels: Any, num_classes: int) -> Array:
    """A user's labels, int32 [batch], from 0 to num_classes - 1.

    Raises:
      UserError: for what is no such array; begins with `name`.
    """
    try:
        found = np.asarray(labels)  # in NumPy, which has integers of 64 bits
    except (TypeError, ValueError):
        raise UserError(f"{name} is no array of labels, but {type(labels).__name__}") from None
    if found.ndim != 1 or found.dtype.kind not in "iu":
        raise UserError(f"{name} is {found.dtype} {found.shape}, expected whole numbers [batch]")
    if len(found) == 0:
        raise UserError(f"{name} holds no label")
    if not ((found >= 0) & (found < num_classes)).all():
        raise UserError(f"{name} has labels outside 0 to {num_classes - 1}")
    return jnp.asarray(found, jnp.int32)


def check_labels(labels: np.ndarray, num_classes: int) -> None:
    """Raises a UserError for raw labels outside 0 to num_classes - 1."""
    if not 0 <= labels.min() <= labels.max() < num_classes:
        raise UserError(
            f"label has values from {labels.min()} to {labels.max()}, expected 0 to {num_classes - 1}; set num_classes"
        )
