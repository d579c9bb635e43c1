"""Gradients of convolutions on this machine: JAX's own against cvae_jax.networks.conv's, outside a loop and inside one.

python -m benchmarks.compare convolution [--rounds=5]

Both gradients, of the input and of the kernel, with the convolution itself: in one compiled program, and as a step of
`lax.scan`. All take turns; medians over the rounds, and of the ratios taken round by round: above 1, cvae_jax is
the faster. Padding is SAME.
"""

import argparse
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.rounds import Comparison, Results, Turn, of_step, ratios, seconds, summary, table
from cvae_jax.networks.conv import LAYOUT, conv

ROUNDS, PAUSE = 5, 0.0
STEPS = 2  # of the loop; in one trip XLA finds no loop
SIZES = (  # input, kernel, stride
    ((16, 32, 32, 32), (3, 3, 32, 32), 1),
    ((16, 32, 32, 32), (4, 4, 32, 64), 2),
    ((128, 28, 28, 1), (9, 9, 1, 16), 2),
)
STOCK, OURS = "JAX", "cvae_jax"
PLACES = {"outside": 1, "in a scan": STEPS}  # steps of each


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this comparison's flags."""
    parser.add_argument("--batch_size", type=int, default=0, help="of every input; 0: each its own")


def programs(convolve: Callable[..., Any], stride: int) -> dict[str, Callable[..., Any]]:
    """Returns [x, kernel] -> [x, kernel], compiled: one step down the gradients, and `STEPS` of them in a loop."""

    def loss(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jnp.square(convolve(x, kernel, (stride, stride), "SAME", dimension_numbers=LAYOUT)).mean()

    def step(point: Any, _: None) -> tuple[Any, None]:
        gradients = jax.grad(loss, (0, 1))(*point)
        return jax.tree.map(lambda leaf, gradient: leaf - 0.01 * gradient, point, gradients), None

    outside = jax.jit(lambda *point: step(point, None)[0])
    in_scan = jax.jit(lambda *point: jax.lax.scan(step, point, None, STEPS)[0])
    return dict(zip(PLACES, (outside, in_scan), strict=True))


def comparisons(arguments: argparse.Namespace) -> Iterator[Comparison]:
    """Yields the one comparison."""
    turns, titles = [], []
    for shape, kernel_shape, stride in SIZES:
        shape = (arguments.batch_size or shape[0], *shape[1:])
        titles.append(["x".join(map(str, shape)), "x".join(map(str, kernel_shape)), str(stride)])
        random_keys = jax.random.split(jax.random.key(0))
        point = [jax.random.normal(key, of) for key, of in zip(random_keys, (shape, kernel_shape), strict=True)]
        for name, convolve in ((STOCK, jax.lax.conv_general_dilated), (OURS, conv)):
            for place, program in programs(convolve, stride).items():

                def work(program: Any = program, point: Any = point) -> None:
                    jax.block_until_ready(program(*point))

                work()  # compiles

                def run(work: Callable[[], None] = work, steps: int = PLACES[place]) -> dict[str, float]:
                    return {"seconds": seconds(work), "steps": steps}

                turns.append(Turn(name, " ".join([*titles[-1], place]), run))
    kind = jax.devices()[0].device_kind
    heading = f"{kind}, JAX {jax.__version__}; one step, median (least - greatest) of {arguments.rounds} rounds."
    yield Comparison(turns, lambda results: report(titles, results), heading)


def report(titles: list[list[str]], results: Results) -> str:
    """Returns the table."""
    lines = [["input", "kernel", "stride", "", f"{STOCK}, ms", f"{OURS}, ms", "ratio"]]
    for title in titles:
        for place in PLACES:
            stock, ours = (of_step(results[name, " ".join([*title, place])]) for name in (STOCK, OURS))
            ratio = summary(ratios(stock, ours), ".3g")
            lines.append([*title, place, summary(stock, ".1f"), summary(ours, ".1f"), ratio])
    return table(lines)
