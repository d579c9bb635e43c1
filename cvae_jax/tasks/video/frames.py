"""Encoders and decoders of video frames, joined by skips: those of DCGAN and VGG as SVG has them.

A published decoder convolves its features and a skip together. Here each has a convolution of its own and the two are
added up, which is the same. So the skips' part is computed once, however many frames are drawn with them.
"""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from cvae_jax.networks.conv import Conv, TransposedConv

SMALLEST = 4  # pixels, height and width, where encoders end and decoders begin


def widths(width: int, size: int) -> tuple[int, ...]:
    """Returns the channels of every level of frames of size x size: `width`, and twice as many at half the size."""
    levels = (size // SMALLEST).bit_length() - 1
    return tuple(width * 2**level for level in range(levels))


def _float32(values: Array) -> Array:
    """Returns values of at least float32."""
    return values.astype(jnp.promote_types(values.dtype, jnp.float32))


class Normalised(nn.Module):
    """Batch normalisation and an activation. Layers before it have no bias, which it would take off again."""

    dtype: DTypeLike | None
    activation: Callable[[Array], Array] | None = None  # leaky ReLU of 0.2 by default

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        training = self.is_mutable_collection("batch_stats")
        outputs = nn.BatchNorm(use_running_average=not training, momentum=0.9, dtype=self.dtype)(inputs)
        return (self.activation or (lambda x: nn.leaky_relu(x, 0.2)))(outputs)


class Ending(nn.Module):
    """The last layer of an encoder: [n, 4, 4, channels] -> [n, features], between -1 and 1."""

    features: int
    dtype: DTypeLike | None

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        flat = inputs.reshape(len(inputs), -1)
        features = nn.Dense(self.features, use_bias=False, dtype=self.dtype)(flat)
        return _float32(Normalised(self.dtype, nn.tanh)(features))


class Beginning(nn.Module):
    """The first layer of a decoder: [n, features] -> [n, 4, 4, channels]."""

    channels: int
    dtype: DTypeLike | None

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        flat = nn.Dense(SMALLEST * SMALLEST * self.channels, use_bias=False, dtype=self.dtype)(inputs)
        return Normalised(self.dtype)(flat.reshape(-1, SMALLEST, SMALLEST, self.channels))


class Encoder(nn.Module):
    """Frames [n, size, size, channels] -> [n, features], and the skip of every level.

    Attributes:
      widths: channels of each level.
      features: of a frame.
      dtype: in which it computes; None: that of its parameters and frames.
    """

    widths: Sequence[int]
    features: int
    dtype: DTypeLike | None = None


class Decoder(nn.Module):
    """Features and encoded skips -> frames, in [0, 1]; `skip` holds a layer for the skip of every level.

    Attributes:
      widths: channels of each level, as the encoder's.
      channels: of a frame.
      dtype: in which it computes; None: that of its parameters and features.
    """

    widths: Sequence[int]
    channels: int
    dtype: DTypeLike | None = None

    def encode_skips(self, skips: Sequence[Array]) -> tuple[Array, ...]:
        """Returns each level's part in its skip."""
        return tuple(layer(skip) for layer, skip in zip(self.skip, skips, strict=True))


class DCGANEncoder(Encoder):
    """Convolutions of 4x4 with stride 2."""

    @nn.compact
    def __call__(self, frames: Array) -> tuple[Array, tuple[Array, ...]]:
        skips = []
        for channels in self.widths:
            pads = ((1, 1), (1, 1))
            layer = Conv(channels, (4, 4), strides=2, padding=pads, use_bias=False, dtype=self.dtype)
            frames = Normalised(self.dtype)(layer(frames))
            skips.append(frames)
        return Ending(self.features, self.dtype)(frames), tuple(skips)


class DCGANDecoder(Decoder):
    """Transposed convolutions of 4x4 with stride 2."""

    def setup(self) -> None:
        outputs = (self.channels, *self.widths[:-1])
        self.beginning = Beginning(self.widths[-1], self.dtype)
        self.below = [TransposedConv(channels, level == 0, self.dtype) for level, channels in enumerate(outputs)]
        self.skip = [TransposedConv(channels, False, self.dtype) for channels in outputs]
        self.normalised = [Normalised(self.dtype) for _ in self.widths[:-1]]

    def __call__(self, features: Array, encoded_skips: Sequence[Array]) -> Array:
        """Returns frames [n, size, size, channels].

        Args:
          features: [n, features].
          encoded_skips: of each level [k, ...], each of the k for n / k frames in a row.
        """
        frames = self.beginning(features)
        for level in reversed(range(len(self.widths))):
            frames = add(self.below[level](frames), encoded_skips[level])
            frames = self.normalised[level - 1](frames) if level else nn.sigmoid(frames)
        return _float32(frames)


class VGGLayers(nn.Module):
    """Convolutions of 3x3, each normalised: [n, height, width, channels] -> of as many channels as the last."""

    widths: Sequence[int]
    dtype: DTypeLike | None

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        for channels in self.widths:
            layer = Conv(channels, (3, 3), use_bias=False, dtype=self.dtype)
            inputs = Normalised(self.dtype)(layer(inputs))
        return inputs


class VGGEncoder(Encoder):
    """Two convolutions at each of the first two levels, three at the others, with maxima of 2x2 after each level."""

    @nn.compact
    def __call__(self, frames: Array) -> tuple[Array, tuple[Array, ...]]:
        skips = []
        for level, channels in enumerate(self.widths):
            frames = VGGLayers([channels] * (2 if level < 2 else 3), self.dtype)(frames)
            skips.append(frames)
            frames = nn.max_pool(frames, (2, 2), (2, 2))
        return Ending(self.features, self.dtype)(frames), tuple(skips)


class VGGDecoder(Decoder):
    """The mirror of VGGEncoder, with nearest neighbours for maxima."""

    def setup(self) -> None:
        self.beginning = Beginning(self.widths[-1], self.dtype)
        # The first convolution of a level, of what comes from below and of the skip; then the rest.
        self.below = [Conv(channels, (3, 3), use_bias=False, dtype=self.dtype) for channels in self.widths]
        self.skip = [Conv(channels, (3, 3), use_bias=False, dtype=self.dtype) for channels in self.widths]
        self.normalised = [Normalised(self.dtype) for _ in self.widths]
        self.rest = [
            VGGLayers([channels] * (level > 1) + [self.widths[level - 1]] * (level > 0), self.dtype)
            for level, channels in enumerate(self.widths)
        ]
        self.frame = Conv(self.channels, (3, 3), dtype=self.dtype)

    def __call__(self, features: Array, encoded_skips: Sequence[Array]) -> Array:
        """Returns frames, as DCGANDecoder does."""
        frames = self.beginning(features)
        for level in reversed(range(len(self.widths))):
            frames = add(self.below[level](jnp.repeat(jnp.repeat(frames, 2, 1), 2, 2)), encoded_skips[level])
            frames = self.rest[level](self.normalised[level](frames))
        return _float32(nn.sigmoid(self.frame(frames)))


def add(frames: Array, shared: Array) -> Array:
    """Returns frames [n, ...] plus shared [k, ...], each of the k for n / k frames in a row."""
    blocks = frames.reshape(len(shared), -1, *shared.shape[1:])
    return (blocks + shared[:, None]).reshape(frames.shape)


NETWORKS = {"dcgan": (DCGANEncoder, DCGANDecoder), "vgg": (VGGEncoder, VGGDecoder)}
