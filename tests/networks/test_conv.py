import re
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from cvae_jax.networks.conv import LAYOUT, Conv, TransposedConv, conv

pytestmark = pytest.mark.usefixtures("optimized")

OURS = partial(conv, dimension_numbers=LAYOUT)
STOCK = partial(lax.conv_general_dilated, dimension_numbers=LAYOUT)
RNG = np.random.default_rng(0)
ROUNDING = 2e-5  # of the greatest entry


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def assert_close(found, wanted):
    """Every leaf to within rounding of its greatest entry."""
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert one.shape == other.shape
        assert np.abs(one - other).max(initial=0) <= ROUNDING * max(1, np.abs(other).max(initial=0))


def by_loops(x, kernel, weights, strides, pads):
    """In float64, place by place: the convolution, and the gradients of its sum weighted by `weights`."""
    x, kernel, weights = (np.asarray(array, np.float64) for array in (x, kernel, weights))
    y, by_x, by_kernel = np.zeros(weights.shape), np.zeros(x.shape), np.zeros(kernel.shape)
    for i, j, p, q in np.ndindex(*y.shape[1:3], *kernel.shape[:2]):
        row, column = i * strides[0] - pads[0][0] + p, j * strides[1] - pads[1][0] + q
        if 0 <= row < x.shape[1] and 0 <= column < x.shape[2]:
            y[:, i, j] += x[:, row, column] @ kernel[p, q]
            by_x[:, row, column] += weights[:, i, j] @ kernel[p, q].T
            by_kernel[p, q] += x[:, row, column].T @ weights[:, i, j]
    return y, (by_x, by_kernel)


def pull_back(function, x, kernel, weights):
    """The value, and both gradients of its sum weighted by `weights`."""
    value, pull = jax.vjp(function, x, kernel)
    return value, pull(weights)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "kernel", "strides", "padding"),
    [
        ((8, 8), (3, 3), (1, 1), "SAME"),
        ((7, 6), (4, 2), (1, 1), "SAME"),
        ((7, 6), (2, 5), (1, 1), "VALID"),
        ((6, 7), (3, 3), (1, 1), ((4, 0), (1, 5))),  # wider than the kernel
        ((8, 8), (4, 4), (2, 2), "SAME"),
        ((9, 8), (3, 5), (2, 2), "SAME"),
        ((9, 8), (3, 4), (2, 2), "VALID"),  # the last rows or columns are never read
        ((9, 8), (1, 1), (2, 2), "SAME"),  # more stride than kernel
        ((10, 9), (9, 9), (2, 2), "SAME_LOWER"),
        ((10, 11), (4, 3), (3, 3), "SAME"),
        ((10, 11), (2, 5), (3, 3), "VALID"),
        ((8, 9), (3, 4), (3, 1), ((5, 2), (0, 3))),
        ((8, 9), (3, 3), (2, 3), ((-1, 2), (4, -3))),  # a negative padding crops
        ((2, 2), (3, 3), (1, 2), "VALID"),  # nothing comes out
    ],
)
def test_values_and_gradients(size, kernel, strides, padding):
    x, kernel = normal(2, *size, 3), normal(*kernel, 3, 4)
    ours, stock = (partial(one, window_strides=strides, padding=padding) for one in (OURS, STOCK))
    weights = normal(*jax.eval_shape(stock, x, kernel).shape)
    pads = lax.padtype_to_pads(size, kernel.shape[:2], strides, padding) if isinstance(padding, str) else padding
    found, by_jax = jax.jit(lambda *args: [pull_back(one, *args) for one in (ours, stock)])(x, kernel, weights)
    assert_close(found, by_jax)
    assert_close(found, by_loops(x, kernel, weights, strides, pads))


def loss(convolve, strides, x, kernel):
    return jnp.square(jnp.tanh(convolve(x, kernel, strides, "SAME"))).mean()


@pytest.mark.parametrize("strides", [(1, 1), (2, 2)])
def test_inside_a_loop(strides):
    def descend(convolve, x, kernel):
        def step(point, _):
            value, gradients = jax.value_and_grad(partial(loss, convolve, strides), (0, 1))(*point)
            return jax.tree.map(lambda leaf, gradient: leaf - gradient, point, gradients), value

        return lax.scan(step, (x, kernel), length=5)

    x, kernel = normal(4, 9, 8, 3), normal(4, 3, 3, 5)
    moved, values = jax.jit(partial(descend, OURS))(x, kernel)
    assert_close((moved, values), jax.jit(partial(descend, STOCK))(x, kernel))
    assert np.all(np.diff(values) < 0)


@pytest.mark.parametrize("axes", [(None, 0), (0, 0)])
def test_many_kernels_at_once(axes):
    x, kernel = normal(*(3,) * (axes[0] == 0), 4, 9, 8, 3), normal(3, 3, 3, 3, 5)
    gradients = [jax.value_and_grad(partial(loss, one, (2, 2)), (0, 1)) for one in (OURS, STOCK)]
    found, by_jax = jax.jit(lambda *args: [jax.vmap(one, axes)(*args) for one in gradients])(x, kernel)
    assert_close(found, by_jax)
    one_by_one = [jax.jit(gradients[0])(x if axes[0] is None else x[i], kernel[i]) for i in range(3)]
    assert_close(found, jax.tree.map(lambda *leaves: np.stack(leaves), *one_by_one))


@pytest.mark.parametrize(
    ("dtype", "preferred"), [(jnp.bfloat16, None), (jnp.bfloat16, jnp.float32), (jnp.float16, None)]
)
def test_dtypes_are_those_of_jax(dtype, preferred):
    x, kernel = (jnp.asarray(array, dtype) for array in (normal(2, 6, 6, 3), normal(3, 3, 3, 4)))

    def both(convolve):
        convolved = partial(convolve, window_strides=(2, 2), padding="SAME", preferred_element_type=preferred)
        value, pull = jax.vjp(convolved, x, kernel)
        return value, pull(jnp.ones_like(value))

    for found, wanted in zip(*map(jax.tree.leaves, jax.jit(lambda: (both(OURS), both(STOCK)))()), strict=True):
        assert found.dtype == wanted.dtype
        np.testing.assert_allclose(*(one.astype(jnp.float32) for one in (found, wanted)), rtol=0.02, atol=0.02)


class Net(nn.Module):
    layer: Any

    @nn.compact
    def __call__(self, inputs):
        hidden = nn.relu(self.layer(6, (3, 3), strides=2)(inputs))
        return self.layer(2, (4, 4), padding="VALID", use_bias=False)(hidden)


def test_as_a_layer():
    x = normal(2, 2, 9, 9, 3)  # two axes of batches
    nets = [Net(layer) for layer in (Conv, nn.Conv)]
    shapes, others = (jax.eval_shape(net.init, jax.random.key(0), x) for net in nets)
    assert shapes == others
    params = jax.tree.map(lambda leaf: normal(*leaf.shape), shapes)

    def squares(net, params):
        return jnp.square(net.apply(params, x)).sum()

    gradients = [jax.value_and_grad(partial(squares, net)) for net in nets]
    assert_close(*jax.jit(lambda params: [gradient(params) for gradient in gradients])(params))


def convolutions(function):
    """Of the program for x and a kernel, by platform: each convolution's layouts and the number of its precisions."""
    found = {}
    traced = jax.jit(function).trace(normal(2, 8, 8, 3), normal(3, 3, 3, 4))
    for platform in ("cpu", "cuda", "tpu"):
        lines = traced.lower(lowering_platforms=(platform,)).as_text().splitlines()
        found[platform] = sorted(
            (re.search(r"dim_numbers = (.*?), window", line)[1], line.count("<precision HIGHEST>"))
            for line in lines
            if "stablehlo.convolution" in line
        )
    return found


def test_programs():
    """On CPU all is in the one layout that is fast in loops, elsewhere the gradients are JAX's; precision is kept."""
    losses = [partial(loss, partial(convolve, precision="highest"), (2, 2)) for convolve in (OURS, STOCK)]
    (layouts, precisions), *more = convolutions(losses[1])["cpu"]
    assert precisions == 2 and not more
    found, by_jax = (convolutions(jax.grad(one, (0, 1))) for one in losses)
    assert found["cpu"] == [(layouts, precisions)] * 3 != by_jax["cpu"]
    assert found["cuda"] == by_jax["cuda"] and found["tpu"] == by_jax["tpu"]


def test_what_is_not_needed_is_not_computed():
    """Nor is the choice of platform left to run time."""

    def program(wanted):
        gradient = jax.grad(partial(loss, OURS, (2, 2)), wanted)
        return jax.jit(gradient).lower(normal(2, 8, 8, 3), normal(3, 3, 3, 4)).compile().as_text()

    assert [program(wanted).count(" convolution(") for wanted in ((0, 1), 0, 1)] == [3, 2, 2]
    assert " conditional(" not in program((0, 1))


def test_second_derivatives():
    x, kernel, along = normal(2, 6, 6, 3), normal(3, 3, 3, 4), normal(2, 6, 6, 3)

    def both(convolve):
        gradient = jax.grad(lambda x: loss(convolve, (2, 2), x, kernel))
        return jax.jvp(gradient, (x,), (along,))[1], jax.grad(lambda x: jnp.vdot(gradient(x), along))(x)

    found, by_jax = jax.jit(lambda: (both(OURS), both(STOCK)))()
    assert_close(found, by_jax)
    assert_close(found[0], found[1])


def test_refusals():
    x, kernel = jnp.zeros((1, 4, 4, 2)), jnp.zeros((3, 3, 2, 2))
    for message, attempt in {
        "not None": lambda: conv(x, kernel, (1, 1), "SAME"),
        "NCHW": lambda: conv(x, kernel, (1, 1), "SAME", dimension_numbers=("NCHW", "HWIO", "NCHW")),
        "rhs_dilation": lambda: OURS(x, kernel, (1, 1), "SAME", rhs_dilation=(1, 2)),
        "lhs_dilation": lambda: OURS(x, kernel, (1, 1), "SAME", lhs_dilation=(2, 2)),
        "groups": lambda: OURS(x, kernel[:, :, :1], (1, 1), "SAME", feature_group_count=2),
        "two-dimensional": lambda: Conv(2, (3,)).init(jax.random.key(0), x),
    }.items():
        with pytest.raises(ValueError, match=message) as caught:
            attempt()
        assert "\n" not in str(caught.value)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(partial(loss, OURS, (1, 1)), (x, kernel), (x, kernel))


@pytest.mark.parametrize(("height", "width"), [(4, 4), (3, 5), (1, 1)])
def test_transposed_convolution(height, width):
    """The transpose of 4x4 with stride 2, as JAX derives it, and both of its gradients."""
    inputs, kernel = normal(3, height, width, 5), normal(4, 4, 5, 2)
    weights = normal(3, 2 * height, 2 * width, 2)

    def transposed(inputs, kernel):
        """The gradient of the convolution [.., 2] -> [.., 5] by its input."""
        pads, flipped = ((1, 1), (1, 1)), kernel.transpose(0, 1, 3, 2)
        return jax.vjp(lambda large: STOCK(large, flipped, (2, 2), pads), jnp.zeros_like(weights))[1](inputs)[0]

    def ours(inputs, kernel):
        return TransposedConv(2, use_bias=False).apply({"params": {"kernel": kernel}}, inputs)

    found, wanted = (jax.jit(partial(pull_back, one))(inputs, kernel, weights) for one in (ours, transposed))
    assert_close(found, wanted)
    variables = TransposedConv(2).init(jax.random.key(0), inputs)
    shifted = jax.tree.map(lambda leaf: leaf + 1 if leaf.ndim == 1 else leaf, variables)
    assert_close(TransposedConv(2).apply(shifted, inputs), TransposedConv(2).apply(variables, inputs) + 1)


def test_initial_transposed_convolutions_keep_the_scale():
    """Each output sees 2x2 of the 4x4 places, so the variance of what goes in is that of what comes out."""
    inputs = normal(4, 32, 32, 64)
    outputs = TransposedConv(64).init_with_output(jax.random.key(0), inputs)[0][:, 2:-2, 2:-2]
    assert float(outputs.var()) == pytest.approx(1, abs=0.1)
