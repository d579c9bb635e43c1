"""A training step of configs/rna_boxes.py: against PyTorch, and with buckets of lengths against padding to the longest.

python -m benchmarks.compare rna_boxes [--only=pytorch|buckets] [--rounds=5] [--steps=8] [--length=60] [--filters=16,16]
    [--width=9] [--batch_size=20] [--min_len=10] [--buckets=24,36,48,60] [--num_seq=400]

PyTorch: the seed's network and loss, those of `:debug` with the scalar head, z of each pixel and the fixed prior; one
structure of each sequence, all sequences of one length. A step is forward, backward and Adam. Ours is `train_steps` as
training calls it, and makes the targets and their weights from boxes on the device, of a structure drawn anew. PyTorch
gets the same sequences' batches ready made: tiled letters, what the recognition network sees of y, targets, weights
and which of them count, of upper-triangle pixels alone. It takes the faster of two memory formats, found by a trial.
First of all, with our weights in PyTorch's network and z at the posterior's mean, the losses of one batch and each
parameter's gradients must agree within 1e-3; else nothing is timed, and the exit code is 1. With --skip=torch ours
alone is timed.

Buckets: the config's own network, z for the whole structure. The time of a step in each bucket, weighted by the share
of lengths from min_len to the last bucket's, all equally likely, against a step at the last.

Contenders take turns; medians over the rounds, and of the ratios taken round by round: above 1, ours is the faster.
All run in this process on the cores that it may use. The machine should have nothing else to do.
"""

import argparse
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.rna_boxes import ours
from benchmarks.rna_boxes.torch_plain import InTorch, given
from benchmarks.rounds import Comparison, Results, of_step, ratios, summary, table, turn_of_steps
from benchmarks.training import BATCHES, agreement, load_weights, machine
from cvae_jax.errors import UserError

ROUNDS, PAUSE = 5, 0.2
OURS, TORCH = "cvae_jax", "PyTorch"


def numbers(text: str) -> tuple[int, ...]:
    """Returns a flag's numbers, which have commas between them."""
    return tuple(int(number) for number in text.split(","))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this comparison's flags."""
    parser.add_argument("--only", choices=("pytorch", "buckets"), help="one of the two comparisons")
    parser.add_argument("--skip", choices=("torch",), help="contender to leave out")
    parser.add_argument("--steps", type=int, default=8, help="of a contender in a round")
    parser.add_argument("--length", type=int, default=60, help="pytorch: of all sequences; even")
    parser.add_argument("--filters", type=numbers, default=(16, 16), help="pytorch: of each layer")
    parser.add_argument("--width", type=int, default=9, help="pytorch: of the kernels")
    parser.add_argument("--batch_size", type=int, default=20, help="pytorch: sequences in a step")
    parser.add_argument("--min_len", type=int, default=10, help="buckets: of the shortest sequence")
    parser.add_argument("--buckets", type=numbers, default=(24, 36, 48, 60), help="buckets: lengths padded to")
    parser.add_argument("--num_seq", type=int, default=400, help="buckets: sequences that batches are drawn from")


def comparisons(arguments: argparse.Namespace) -> Iterator[Comparison]:
    """Yields the comparison with PyTorch, and that of buckets with padding."""
    torch: Any = None
    if arguments.only != "buckets" and not arguments.skip:
        try:
            import torch
        except ImportError:
            sys.exit(
                "error: the comparison with PyTorch needs it; pip install torch, or set --only=buckets or --skip=torch"
            )
    try:
        if arguments.only != "buckets":
            yield against_pytorch(torch, arguments)
        if arguments.only != "pytorch":
            yield of_buckets(arguments)
    except UserError as error:
        sys.exit(f"error: {error}")


def against_pytorch(torch: Any, arguments: argparse.Namespace) -> Comparison:
    """Returns the comparison with PyTorch, or ours alone without it; exits where the two do not compute the same."""
    config, heads, trainer = ours.pixel_trainer(arguments)
    ready = [given(trainer.batch(number), heads) for number in range(BATCHES)]
    measured = ours.measured_at_mean(trainer, heads)
    titles, lines = [OURS], [machine(arguments)]
    if torch is None:
        lines.append(measured.describe())
    else:
        theirs = InTorch(torch, config.cvae, heads, ready, ready[0]["seen"].shape[-1])
        # The same weights, the same loss and gradient.
        load_weights(torch, theirs.network, measured.weights)
        loss = theirs.network(theirs.given[0], noise=False)
        loss.backward()
        sentence = agreement(measured, theirs.network, float(loss.detach()))
        memory = theirs.choose(max(2, arguments.steps // 2))
        titles.append(TORCH)
        version = f"PyTorch {torch.__version__}, fused Adam, {memory}, on {BATCHES} batches ready made."
        lines += [version, sentence]
    turns = [turn_of_steps(OURS, "step", lambda steps: trainer.run(0, steps), arguments.steps)]
    if torch is not None:
        turns.append(turn_of_steps(TORCH, "step", theirs.run, arguments.steps))

    def report(results: Results) -> str:
        columns = [of_step(results[title, "step"]) for title in titles]
        filters = ", ".join(map(str, arguments.filters))
        what = f"{arguments.batch_size} sequences of {arguments.length}, {filters} filters of width {arguments.width}"
        row = [what, *(summary(column, ".1f") for column in columns)]
        head = ["a training step", *(f"{title}, ms" for title in titles)]
        if len(columns) > 1:
            head, row = [*head, "ratio"], [*row, summary(ratios(columns[1], columns[0]))]
        return table([head, row])

    return Comparison(turns, report, "\n".join(lines))


def of_buckets(arguments: argparse.Namespace) -> Comparison:
    """Returns the comparison of steps in buckets with steps that pad to the longest."""
    config, trainer = ours.bucket_trainer(arguments)
    limits = [bucket.arrays["sequence"].shape[1] for bucket in trainer.buckets]
    if limits != list(arguments.buckets):
        sys.exit(f"error: --num_seq={arguments.num_seq} has no batch of each bucket; take more")
    lengths = np.arange(arguments.min_len, limits[-1] + 1)
    shares = np.bincount(np.searchsorted(limits, lengths), minlength=len(limits)) / len(lengths)
    titles = [str(limit) for limit in limits]
    turns = [
        turn_of_steps(title, "step", lambda steps, number=number: trainer.run(number, steps), arguments.steps)
        for number, title in enumerate(titles)
    ]

    def report(results: Results) -> str:
        taken = np.array([of_step(results[title, "step"]) for title in titles])  # [buckets, rounds]
        weighted = (shares @ taken).tolist()
        lines = [["padded to", "share of examples", "a training step, ms"]]
        for title, share, row in zip(titles, shares, taken.tolist(), strict=True):
            lines.append([title, f"{share:.1%}", summary(row, ".1f")])
        lines.append(["mean", "100%", summary(weighted, ".1f")])
        padding = summary(ratios(taken[-1].tolist(), weighted))
        return f"{table(lines)}\n\nPadding all to {limits[-1]} over buckets: {padding}."

    what = f"Batches of {config.cvae.batch_size}, {config.structures} structures each, the default network."
    return Comparison(turns, report, f"{machine(arguments)}\n{what}")
