"""A training step of configs/video.py with teacher forcing: against PyTorch, and against a frame at a time.

python -m benchmarks.compare video [--rounds=5] [--steps=6] [--size=32] [--width=16] [--batch_size=16]
    [--num_future=10]

Clips of 2 + 10 colour frames with 7 conditions, of noise, on which the time does not depend. A step is forward,
backward and Adam. Contenders:

- cvae_jax, `train_steps` as training calls it, which cuts clips out of videos on the device;
- the same networks in JAX a frame at a time, as the papers' code has it: encoder and decoder in the loop over time;
- PyTorch written plainly, a frame at a time, on clips ready made;
- PyTorch with all frames in one batch, as ours has them.

First of all, with our weights in PyTorch's network and z at the posterior's mean, the losses of one batch and each
parameter's gradients must agree within 1e-3; else nothing is timed, and the exit code is 1. (A frame at a time, batch
normalisation has other statistics: what these compute is not the same, and takes the same operations.) --skip=torch
leaves PyTorch out.

Contenders take turns; medians over the rounds, and of the ratios taken round by round: above 1, ours is the faster.
All run in this process on the cores that it may use. The machine should have nothing else to do.
"""

import argparse
import statistics
import sys
from collections.abc import Iterator
from typing import Any

import jax

from benchmarks.rounds import Comparison, Results, of_step, ratios, summary, table, turn_of_steps
from benchmarks.training import BATCHES, agreement, load_weights, machine
from benchmarks.video import ours
from benchmarks.video.torch_plain import InTorch
from cvae_jax.errors import UserError
from cvae_jax.tasks.video.frames import widths

ROUNDS, PAUSE = 5, 0.2
OURS = "cvae_jax"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this comparison's flags."""
    parser.add_argument("--skip", choices=("torch",), help="contenders to leave out")
    parser.add_argument("--steps", type=int, default=6, help="of a contender in a round")
    parser.add_argument("--size", type=int, default=32, help="height and width of frames")
    parser.add_argument("--width", type=int, default=16, help="channels of the first level")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--num_future", type=int, default=10, help="frames behind the two of the past")


def comparisons(arguments: argparse.Namespace) -> Iterator[Comparison]:
    """Yields the one comparison; exits where cvae_jax and PyTorch do not compute the same."""
    torch: Any = None
    if not arguments.skip:
        try:
            import torch
        except ImportError:
            sys.exit("error: the comparison with PyTorch needs it; pip install torch, or set --skip=torch")
    try:
        config, trainer = ours.make_trainer(arguments)
    except UserError as error:
        sys.exit(f"error: {error}")
    levels = widths(arguments.width, arguments.size)
    measured = ours.measured_at_mean(trainer, len(levels))
    contenders = {
        OURS: lambda steps: trainer.run(0, steps),
        "the same networks, a frame at a time": ours.frame_by_frame(config, trainer),
    }
    lines = [machine(arguments)]
    if torch is None:
        lines.append(measured.describe())
    else:
        batches = [jax.device_get(trainer.batch(number)) for number in range(BATCHES)]
        theirs = InTorch(torch, config, levels, config.data.num_columns, batches)
        # The same weights, the same loss and gradient.
        load_weights(torch, theirs.network, measured.weights, absent="bias_ih")
        theirs.network.double()
        loss = theirs.network(*(array.double() for array in theirs.given[0]), at_once=True, noise=False)
        loss.backward()
        theirs.network.float()
        note = " (and a second bias of every LSTM cell)"
        sentence = agreement(measured, theirs.network, float(loss.detach()), absent="bias_ih", note=note)
        lines += [f"PyTorch {torch.__version__}, fused Adam.", sentence]
        contenders["PyTorch, a frame at a time"] = lambda steps: theirs.run(steps, False)
        contenders["PyTorch, all frames at once"] = lambda steps: theirs.run(steps, True)
    turns = [turn_of_steps(name, "step", run, arguments.steps) for name, run in contenders.items()]

    def report(results: Results) -> str:
        rows = [["a training step", "ms", "clips/s", "over cvae_jax's"]]
        for name in contenders:
            taken = of_step(results[name, "step"])
            rate = statistics.median(1e3 * arguments.batch_size / milliseconds for milliseconds in taken)
            ratio = summary(ratios(taken, of_step(results[OURS, "step"])))
            rows.append([name, summary(taken, ".0f"), f"{rate:.1f}", ratio])
        return table(rows)

    yield Comparison(turns, report, "\n".join(lines))
