"""Metrics of images beside the true ones: PSNR and SSIM."""

from functools import partial

import dm_pix
import jax
import jax.numpy as jnp
from jax import Array

WINDOW = 11  # pixels, height and width, that SSIM compares at a time


def psnr(images: Array, truth: Array) -> Array:
    """Returns the peak signal-to-noise ratio in dB, at most 100: [..., height, width, channels] in [0, 1] -> [...]."""
    error = ((images - truth) ** 2).mean((-3, -2, -1))
    return -10 * jnp.log10(jnp.maximum(error, 1e-10))


def ssim(images: Array, truth: Array) -> Array:
    """Returns the structural similarity, at most 1: [..., height, width, channels] in [0, 1] -> [...].

    As published (Wang et al. 2004), it compares Gaussian windows of WINDOW pixels with a deviation of 1.5. Channels
    are averaged.
    """
    similarity = partial(dm_pix.ssim, filter_size=WINDOW)
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        values = similarity(images.reshape(-1, *images.shape[-3:]), truth.reshape(-1, *truth.shape[-3:]))
    return values.reshape(images.shape[:-3])
