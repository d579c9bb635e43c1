"""Gradients of convolutions on this machine: JAX's own against cvae_jax.networks.conv's, outside a loop and inside one.

python benchmarks/convolution.py [--rounds=5]

Both gradients, of the input and of the kernel, with the convolution itself: in one compiled program, and as a step of
`lax.scan`. The four take turns; medians over the rounds, and of the ratios taken round by round: above 1, cvae_jax is
the faster. Padding is SAME.
"""

import argparse
import pathlib
import sys
from collections.abc import Callable
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import jax
import jax.numpy as jnp
import numpy as np
from timing import seconds

from cvae_jax.evaluation import tables
from cvae_jax.networks.conv import LAYOUT, conv

STEPS = 2  # of the loop; in one trip XLA finds no loop
SIZES = (  # input, kernel, stride
    ((16, 32, 32, 32), (3, 3, 32, 32), 1),
    ((16, 32, 32, 32), (4, 4, 32, 64), 2),
    ((128, 28, 28, 1), (9, 9, 1, 16), 2),
)


def programs(convolve: Callable[..., Any], stride: int) -> list[Callable[..., Any]]:
    """Compiled, [x, kernel] -> [x, kernel]: one step down the gradients, and `STEPS` of them in a loop."""

    def loss(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jnp.square(convolve(x, kernel, (stride, stride), "SAME", dimension_numbers=LAYOUT)).mean()

    def step(point: Any, _: None) -> tuple[Any, None]:
        gradients = jax.grad(loss, (0, 1))(*point)
        return jax.tree.map(lambda leaf, gradient: leaf - 0.01 * gradient, point, gradients), None

    return [
        jax.jit(lambda *point: step(point, None)[0]),
        jax.jit(lambda *point: jax.lax.scan(step, point, None, STEPS)[0]),
    ]


def measure(rounds: int) -> list[list[str]]:
    """Lines of a table."""
    lines = [["input", "kernel", "stride", "", "JAX", "cvae_jax", "ratio"]]
    for shape, kernel_shape, stride in SIZES:
        keys = jax.random.split(jax.random.key(0))
        point = [jax.random.normal(key, of) for key, of in zip(keys, (shape, kernel_shape), strict=True)]
        contenders = [program for one in (jax.lax.conv_general_dilated, conv) for program in programs(one, stride)]
        runs = [lambda program=program, point=point: jax.block_until_ready(program(*point)) for program in contenders]
        for run in runs:
            run()  # compiles
        taken = [[seconds(run) for run in runs] for _ in range(rounds)]
        both = np.reshape(taken, (rounds, 2, 2)) / [1, STEPS] * 1e3  # [round, contender, outside or inside], ms
        for place, name in enumerate(("outside", "in a scan")):
            stock, ours = np.median(both[:, :, place], 0)
            ratio = np.median(both[:, 0, place] / both[:, 1, place])
            sizes = ["x".join(map(str, of)) for of in (shape, kernel_shape)]
            lines.append([*sizes, str(stride), name, f"{stock:.1f} ms", f"{ours:.1f} ms", f"{ratio:.3g}"])
    return lines


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    device = jax.devices()[0]
    print(f"{device.device_kind}, JAX {jax.__version__}; one step, median of {arguments.rounds} rounds.\n")
    print("\n".join(tables.markdown(measure(arguments.rounds))))


if __name__ == "__main__":
    main()
