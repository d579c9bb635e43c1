"""Features of every pair of positions of a sequence: [batch, length, length, channels], padding masked out."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from cvae_jax.networks.conv import Conv

FARTHEST = 31  # positions apart, beyond which distances are alike
BONDS = ((0, 3), (1, 2), (2, 1), (2, 3), (3, 0), (3, 2))  # which of A, C, G, U bond, as (letter, letter)
LARGEST_LOGIT = 8.0  # of pooling weights, so that their exponentials are safe in float32


class ConvTower(nn.Module):
    """Convolutions with batch normalisation and ReLU over rows and columns tiled with their letters.

    Attributes:
      filters: channels of each layer.
      width: of the square kernels.
    """

    filters: Sequence[int]
    width: int

    @nn.compact
    def __call__(self, letters: Array, inside: Array) -> Array:
        """letters [batch, length, 4], one-hot or 0; inside: bool [batch, length], which positions are no padding."""
        square = _square(inside)
        mask = square[..., None].astype(letters.dtype)
        shape = (*square.shape, letters.shape[-1])
        rows, columns = jnp.broadcast_to(letters[:, :, None], shape), jnp.broadcast_to(letters[:, None], shape)
        features = jnp.concatenate([rows, columns], -1) * mask
        training = self.is_mutable_collection("batch_stats")
        for channels in self.filters:
            # Without a bias, which the normalisation would take off again: Adam would blow up its zero gradients.
            features = Conv(channels, (self.width, self.width), use_bias=False)(features)
            normalise = nn.BatchNorm(use_running_average=not training, momentum=0.9)
            features = nn.relu(normalise(features, mask=square[..., None])) * mask
        return features


class AxialTower(nn.Module):
    """Residual blocks of a convolution, and of pooling over rows and columns that tells pairs of their rivals.

    Pairs stack: before the blocks, each pixel gets the sum of learned features over the run of pairs that bond inside
    of it, (i + 1, j - 1), (i + 2, j - 2), ..., and over that outside of it. A position pairs with one other at most, so
    whether (i, j) pair depends on all (i, k) and (k, j): in each block a pixel gets summaries of its row and its
    column, softmax-weighted means of their features and the log of the weights' sum.

    Attributes:
      filters: channels of each block, the same for all and a multiple of HEADS.
      width: of the square kernels.
    """

    filters: Sequence[int]
    width: int

    HEADS = 8
    STACKED = 8  # features that are summed along a run of pairs

    @nn.compact
    def __call__(self, letters: Array, inside: Array) -> Array:
        """letters [batch, length, 4], one-hot or 0; inside: bool [batch, length], which positions are no padding."""
        channels, length = self.filters[0], letters.shape[1]
        mask = _square(inside)[..., None].astype(letters.dtype)
        pairs = (letters[:, :, None, :, None] * letters[:, None, :, None, :]).reshape(*mask.shape[:3], -1)
        apart = jnp.clip(jnp.arange(length)[None, :] - jnp.arange(length)[:, None], -FARTHEST, FARTHEST) + FARTHEST
        bond = pairs[..., np.array([4 * row + column for row, column in BONDS])].sum(-1)
        # A pair and the one inside it: their letters make the energy of the stack.
        stacks = Conv(self.STACKED, (3, 3), use_bias=False)(pairs) * bond[..., None]
        runs = jnp.concatenate([stacks, run_sums(stacks, bond), run_sums(stacks, bond, outside=True)], -1)
        features = Conv(channels, (self.width, self.width))(pairs) + nn.Dense(channels, use_bias=False)(runs)
        features = features + nn.Embed(2 * FARTHEST + 1, channels)(apart)[None]
        for _ in self.filters:
            features = self._block(features, mask)
        return nn.LayerNorm()(features) * mask

    def _block(self, features: Array, mask: Array) -> Array:
        """Returns the features [batch, length, length, channels] after one residual block."""
        batch, length, _, channels = features.shape
        normal = nn.LayerNorm()(features) * mask
        local = nn.gelu(Conv(channels, (self.width, self.width))(normal))
        logits, values = nn.Dense(self.HEADS)(normal), nn.Dense(channels)(normal)
        weights = jnp.exp(LARGEST_LOGIT * jnp.tanh(logits / LARGEST_LOGIT)) * mask
        weighted = weights[..., None] * values.reshape(batch, length, length, self.HEADS, -1)
        lines = []
        for axis, position in ((2, (slice(None), slice(None), None)), (1, (slice(None), None))):
            total = weights.sum(axis) + 1e-6  # the weights of a row of padding are 0
            means = (weighted.sum(axis) / total[..., None]).reshape(batch, length, channels)
            line = nn.gelu(nn.Dense(2 * channels)(jnp.concatenate([means, jnp.log(total)], -1)))
            lines.append(nn.Dense(channels)(line)[position])
        # Padding is masked where it is read, above; masked here it would make training 2.5 times as slow on CPU.
        return features + nn.Dense(channels)(local) + (lines[0] + lines[1])


def run_sums(values: Array, bond: Array, outside: bool = False) -> Array:
    """Sums values over the run of bonded pairs inside of each pixel, or outside, its own among them.

    Args:
      values: [batch, length, length, features].
      bond: [batch, length, length], 1 where a run goes on and 0 where it ends.
      outside: (i - 1, j + 1), (i - 2, j + 2), ... instead of (i + 1, j - 1), (i + 2, j - 2), ...
    """
    if outside:  # turned around, rows and columns change places in what is inside
        return jnp.flip(run_sums(jnp.flip(values, (1, 2)), jnp.flip(bond, (1, 2))), (1, 2))

    def add_row(inner: Array, own: tuple[Array, Array]) -> tuple[Array, Array]:
        value, goes_on = own
        shifted = jnp.pad(inner, ((0, 0), (1, 0), (0, 0)))[:, :-1]
        total = (value + shifted) * goes_on[..., None]
        return total, total

    rows = jnp.moveaxis(values, 1, 0), jnp.moveaxis(bond, 1, 0)
    _, sums = jax.lax.scan(add_row, jnp.zeros_like(values[:, 0]), rows, reverse=True)
    return jnp.moveaxis(sums, 0, 1)


def _square(inside: Array) -> Array:
    """Returns which pairs have both positions inside, bool [batch, length, length]."""
    return inside[:, :, None] & inside[:, None, :]


def upper(inside: Array) -> Array:
    """Returns which pairs (i, j), i < j, have both positions inside, bool [batch, length, length]."""
    position = jnp.arange(inside.shape[1])
    return _square(inside) & (position[:, None] < position[None, :])[None]


def fold(square: Array, axis: int) -> Array:
    """Folds the upper triangle of a square into a rectangle of half its size.

    Row r of the rectangle holds the pixels j > r of row r in their places, and before them, turned around, those of
    row length - 1 - r; its pixel j = r is left over.

    Args:
      square: [..., length, length, ...], of even length.
      axis: of the rows; the columns follow.

    Returns:
      [..., length / 2, length, ...].
    """
    length = square.shape[axis]
    top, bottom = jnp.split(square, 2, axis)
    return jnp.where(_upper_of_fold(length, axis, square.ndim), top, jnp.flip(bottom, (axis, axis + 1)))


def unfold(rectangle: Array, axis: int) -> Array:
    """Returns the square [..., length, length, ...] that `fold` makes this of, 0 on and below the diagonal."""
    length = rectangle.shape[axis + 1]
    own = _upper_of_fold(length, axis, rectangle.ndim)
    turned = jnp.flip(jnp.where(own, jnp.zeros_like(rectangle), rectangle), (axis, axis + 1))
    square = jnp.concatenate([jnp.where(own, rectangle, jnp.zeros_like(rectangle)), turned], axis)
    position = jnp.arange(length)
    upper_part = position[:, None] < position[None, :]
    shape = (*(1,) * axis, length, length, *(1,) * (square.ndim - axis - 2))
    return jnp.where(upper_part.reshape(shape), square, jnp.zeros_like(square))


@jax.jit
def unfold_first(heads: dict[str, Array]) -> dict[str, Array]:
    """Returns what each head says of an example's first structure, as squares [batch, length, length, ...].

    Args:
      heads: name -> [batch, structures, length / 2, length, ...], such as y.
    """
    return {name: unfold(values[:, 0], 1) for name, values in heads.items()}


def _upper_of_fold(length: int, axis: int, ndim: int) -> Array:
    """Returns where the rectangle holds the square's pixel of the same place."""
    own = jnp.arange(length // 2)[:, None] < jnp.arange(length)[None, :]
    return own.reshape(*(1,) * axis, length // 2, length, *(1,) * (ndim - axis - 2))


TOWERS = {"conv": ConvTower, "axial": AxialTower}
