"""Stochastic Moving MNIST (Denton and Fergus 2018): digits that move straight until they hit a wall, then anywhere.

The arrays hold still digits. Clips are made of them on the device, anew each time, so that no training run sees a clip
twice.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from ml_collections import ConfigDict
from PIL import Image

from cvae_jax.data import digits, mnist
from cvae_jax.errors import UserError
from cvae_jax.settings import Whole, check
from cvae_jax.task import Splits

Pair = tuple[Array, Array]

SOURCES = {"digits": digits.load, "mnist": mnist.load}


def load(settings: ConfigDict) -> Splits:
    """Loads still digits, those that share a clip together.

    Args:
      settings: `of`, where digits come from, "mnist" or the embedded "digits", and what that source reads;
        `num_digits` in a clip; `digit_size`, their height and width in pixels.

    Returns:
      For each split `digits`, uint8 [n, num_digits, digit_size, digit_size]: n that of the source, each of whose
      digits comes first in one clip.

    Raises:
      UserError: for an unknown source, or numbers that cannot be.
    """
    if settings.of not in SOURCES:
        raise UserError(f"data.of={settings.of!r} is not known; choose from {', '.join(SOURCES)}")
    check(settings, {"num_digits": Whole(1, 100), "digit_size": Whole(1, 4096)}, "data")
    splits = {}
    for split, arrays in SOURCES[settings.of](settings).items():
        shape = (settings.digit_size, settings.digit_size)
        still = [Image.fromarray(image).resize(shape, Image.Resampling.BILINEAR) for image in arrays["image"]]
        images = np.stack([np.asarray(image) for image in still])
        generator = np.random.Generator(np.random.Philox(0))
        orders = [generator.permutation(len(images)) for _ in range(settings.num_digits - 1)]
        splits[split] = {"digits": np.stack([images, *(images[order] for order in orders)], 1)}
    return splits


def clips(still: Array, keys: Array, num_frames: int, size: int, max_speed: int) -> Pair:
    """Makes clips of moving digits.

    A digit begins anywhere within the frame, with any velocity of whole pixels a frame. When it would leave, it stops
    at the wall and takes a new velocity, away from that wall.

    Args:
      still: uint8 [batch, digits, height, width].
      keys: [batch], of all that is random.
      num_frames: of a clip.
      size: height and width of a frame, more than a digit's.
      max_speed: pixels a frame, in each direction.

    Returns:
      Frames uint8 [batch, num_frames, size, size], where digits overlap their sum, at most 255; and whether a digit
      takes a new velocity at that frame, bool [batch, num_frames].
    """
    room = jnp.array([size - still.shape[2], size - still.shape[3]], jnp.int32)

    def digit_clip(digit: Array, key: Array) -> Pair:
        place_key, speed_key, any_key, away_key = jax.random.split(key, 4)
        place = jax.random.randint(place_key, (2,), 0, room + 1)
        velocity = jax.random.randint(speed_key, (2,), -max_speed, max_speed + 1)
        # Velocities for every frame, should it be one at which the digit turns: along a wall any, and away from it.
        along = jax.random.randint(any_key, (num_frames, 2), -max_speed, max_speed + 1)
        away = jax.random.randint(away_key, (num_frames, 2), 1, max_speed + 1)

        def move(state: Pair, new: Pair) -> tuple[Pair, Pair]:
            place, velocity = state
            low, high = place < 0, place > room
            hit = low | high
            turned = jnp.where(hit, jnp.where(low, new[1], -new[1]), new[0])
            velocity = jnp.where(hit.any(), turned, velocity)
            place = jnp.clip(place, 0, room)
            return (place + velocity, velocity), (place, hit.any())

        _, (places, turns) = jax.lax.scan(move, (place, velocity), (along, away))
        empty = jnp.zeros((size, size), jnp.int32)
        frames = jax.vmap(lambda place: jax.lax.dynamic_update_slice(empty, digit, tuple(place)))(places)
        return frames, turns

    def clip(digits: Array, key: Array) -> Pair:
        frames, hits = jax.vmap(digit_clip)(digits.astype(jnp.int32), jax.random.split(key, len(digits)))
        return jnp.minimum(frames.sum(0), 255).astype(jnp.uint8), hits.any(0)

    return jax.vmap(clip)(still, keys)
