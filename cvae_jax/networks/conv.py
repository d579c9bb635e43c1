"""Convolutions whose gradients are fast inside loops and branches on CPU too.

XLA's fast convolution for CPU takes NHWC images and HWIO kernels only. It brings other layouts to these, but only
outside `scan`, `while`, `map` and `cond` (its pass ConvCanonicalization visits a program's entry computation alone);
within them a convolution in another layout falls to plain loops, up to a hundred times slower. Both gradients that JAX
derives are in another layout. Here they are the same convolutions of transposed arrays.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jax import Array, lax
from jax.typing import DTypeLike

LAYOUT = ("NHWC", "HWIO", "NHWC")


def conv(
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    precision: lax.PrecisionLike = None,
    preferred_element_type: DTypeLike | None = None,
) -> Array:
    """`lax.conv_general_dilated` of [batch, height, width, in] and [height, width, in, out], for reverse mode only.

    The dimension numbers are to be `LAYOUT`, never None, which to JAX means NCHW. Forward-mode differentiation
    (`jax.jvp`, `jax.jacfwd`) raises a TypeError; `jax.jvp` of a gradient works.
    """
    if lhs.ndim != 4 or rhs.ndim != 4:
        raise ValueError(f"conv is two-dimensional: it takes 4-D arrays, not {lhs.ndim}-D and {rhs.ndim}-D")
    layout = lax.conv_dimension_numbers(lhs.shape, rhs.shape, LAYOUT)
    if lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers) != layout:
        raise ValueError(f"conv takes dimension_numbers={LAYOUT}, not {dimension_numbers}")
    if any(dilation != 1 for dilation in (*(lhs_dilation or ()), *(rhs_dilation or ()))):
        raise ValueError(f"conv does not dilate: lhs_dilation={lhs_dilation}, rhs_dilation={rhs_dilation}")
    if feature_group_count != 1:
        raise ValueError(f"conv has no groups: feature_group_count={feature_group_count}")
    strides = tuple(window_strides)
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], strides, padding)
    pads = tuple((low, high) for low, high in padding)
    return _conv(lhs, rhs, _Options(strides, pads, precision, preferred_element_type))


Conv = partial(nn.Conv, conv_general_dilated=conv)  # in two dimensions: Conv(features, (3, 3), strides=2)(x)


class TransposedConv(nn.Module):
    """The transpose of a convolution of 4x4 with stride 2 and padding 1: [n, height, width, in] -> twice the size.

    Every input pixel makes 2x2 blocks of 2x2 output pixels, each by a product of matrices; blocks that meet are added.
    XLA's own on CPU sets the inputs two apart, zeros between, and takes several times as long; and so do the gradients
    of one product for all four, whose parts are padded before they are added.

    Attributes:
      features: channels of the output.
      use_bias: whether it has one.
      dtype: in which it computes; None: that of its parameters and inputs.
    """

    features: int
    use_bias: bool = True
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        (batch, height, width, channels), features = inputs.shape, self.features
        # As of a convolution that each output goes through: a quarter of the 4x4 places.
        scale = nn.initializers.variance_scaling(4.0, "fan_in", "truncated_normal")
        kernel = self.param("kernel", scale, (4, 4, channels, features))
        inputs, kernel = promote_dtype(inputs, kernel, dtype=self.dtype)
        # Row k of the kernel takes pixel i of the input to row 2 i + k - 1 of the output: to block i + k // 2.
        blocks = kernel.reshape(2, 2, 2, 2, channels, features).transpose(0, 2, 4, 1, 3, 5)
        summed = jnp.zeros((batch, height + 1, width + 1, 4 * features), inputs.dtype)
        for down in (0, 1):
            for right in (0, 1):
                made = inputs.reshape(-1, channels) @ blocks[down, right].reshape(channels, -1)
                made = made.reshape(batch, height, width, -1)
                summed = summed + jnp.pad(made, ((0, 0), (down, 1 - down), (right, 1 - right), (0, 0)))
        summed = summed.reshape(batch, height + 1, width + 1, 2, 2, features).transpose(0, 1, 3, 2, 4, 5)
        summed = summed.reshape(batch, 2 * height + 2, 2 * width + 2, features)
        summed = summed[:, 1:-1, 1:-1]
        if not self.use_bias:
            return summed
        bias = self.param("bias", nn.initializers.zeros, (features,)).astype(summed.dtype)
        return summed + bias[None, None, None]


class _Options(NamedTuple):
    strides: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    precision: lax.PrecisionLike
    preferred: DTypeLike | None
    dilation: tuple[int, ...] = (1, 1)


def _stock(lhs: Array, rhs: Array, options: _Options) -> Array:
    return lax.conv_general_dilated(
        lhs,
        rhs,
        options.strides,
        options.pads,
        rhs_dilation=options.dilation,
        dimension_numbers=LAYOUT,
        precision=options.precision,
        preferred_element_type=options.preferred,
    )


_conv = jax.custom_vjp(_stock, nondiff_argnums=(2,))


def _forward(lhs: Array, rhs: Array, options: _Options) -> tuple[Array, tuple[Array, Array]]:
    return _stock(lhs, rhs, options), (lhs, rhs)


@partial(jax.jit, static_argnums=0)  # else each gradient taken outside jit would compile the branches anew
def _backward(options: _Options, saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    if not g.size:  # the kernel is larger than the input: the formulas below do not hold
        return jnp.zeros_like(saved[0]), jnp.zeros_like(saved[1])

    def in_layout(lhs: Array, rhs: Array, g: Array) -> tuple[Array, Array]:
        return _lhs_gradient(lhs, rhs, g, options), _rhs_gradient(lhs, rhs, g, options)

    def stock(lhs: Array, rhs: Array, g: Array) -> tuple[Array, Array]:
        return jax.vjp(lambda lhs, rhs: _stock(lhs, rhs, options), lhs, rhs)[1](g)

    # Elsewhere the stock gradients have kernels of their own. It is the platform compiled for that counts, not the
    # default one: the host of a GPU may compile for its CPU.
    return lax.platform_dependent(*saved, g, cpu=in_layout, default=stock)


_conv.defvjp(_forward, _backward)


def _lhs_gradient(lhs: Array, rhs: Array, g: Array, options: _Options) -> Array:
    """Every stride x stride block of the input becomes channels of one place (sub-pixel convolution).

    JAX sets the gradients a stride apart, zeros between, instead; for 4x4 kernels that took up to 4 times as long.
    """
    (batch, *sizes, channels), strides = lhs.shape, options.strides
    blocks = [-(-k // stride) for k, stride in zip(rhs.shape[:2], strides, strict=True)]
    short = [block * stride - k for block, stride, k in zip(blocks, strides, rhs.shape[:2], strict=True)]
    kernel = jnp.pad(rhs, [(0, short[0]), (0, short[1]), (0, 0), (0, 0)]).astype(g.dtype)
    kernel = kernel.reshape(blocks[0], strides[0], blocks[1], strides[1], *rhs.shape[2:])
    kernel = jnp.flip(kernel, (0, 2)).transpose(0, 2, 5, 1, 3, 4).reshape(*blocks, rhs.shape[3], -1)
    # Of the padded input's blocks, those from the first that holds any of the input to the last.
    pads = tuple(
        (block - 1 - low // stride, -(-(low + n) // stride) - m)
        for block, (low, _), stride, n, m in zip(blocks, options.pads, strides, sizes, g.shape[1:3], strict=True)
    )
    gradient = _stock(g, kernel, options._replace(strides=(1, 1), pads=pads)).astype(lhs.dtype)
    height, width = gradient.shape[1:3]
    gradient = gradient.reshape(batch, height, width, *strides, channels).transpose(0, 1, 3, 2, 4, 5)
    gradient = gradient.reshape(batch, height * strides[0], width * strides[1], channels)
    top, left = (low % stride for (low, _), stride in zip(options.pads, strides, strict=True))
    return gradient[:, top : top + sizes[0], left : left + sizes[1]]


def _rhs_gradient(lhs: Array, rhs: Array, g: Array, options: _Options) -> Array:
    """The input convolved with the gradients, a stride apart; channels serve as batch, the batch as channels."""
    pads = tuple(
        (low, k - n - low + (m - 1) * stride)
        for k, n, (low, _), m, stride in zip(
            rhs.shape[:2], lhs.shape[1:3], options.pads, g.shape[1:3], options.strides, strict=True
        )
    )
    images, kernel = lhs.transpose(3, 1, 2, 0).astype(g.dtype), g.transpose(1, 2, 0, 3)
    gradient = _stock(images, kernel, options._replace(strides=(1, 1), pads=pads, dilation=options.strides))
    return gradient.transpose(1, 2, 0, 3).astype(rhs.dtype)
