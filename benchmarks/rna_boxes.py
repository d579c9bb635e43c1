"""A training step of configs/rna_boxes.py: against PyTorch, and with buckets of lengths against padding to the longest.

python benchmarks/rna_boxes.py [--only=pytorch|buckets] [--rounds=5] [--steps=8] [--length=60] [--filters=16,16]
    [--width=9] [--batch_size=20] [--min_len=10] [--buckets=24,36,48,60] [--num_seq=400]

PyTorch: the seed's network and loss, those of `:debug` with the scalar head, z of each pixel and the fixed prior; one
structure of each sequence, all sequences of one length. A step is forward, backward and Adam. Ours is `train_steps` as
training calls it, and makes the targets and their weights from boxes on the device, of a structure drawn anew. PyTorch
gets the same sequences' batches ready made: tiled letters, what the recognition network sees of y, targets, weights
and which of them count, of upper-triangle pixels alone. It takes the faster of two memory formats, found by a trial.
First of all, with our weights in PyTorch's network and z at the posterior's mean, the losses of one batch and each
parameter's gradients must agree within 1e-3; else nothing is timed, and the exit code is 1.

Buckets: the config's own network, z for the whole structure. The time of a step in each bucket, weighted by the share
of lengths from min_len to the last bucket's, all equally likely, against a step at the last.

Contenders take turns; medians over the rounds, and of the ratios taken round by round: above 1, ours is the faster.
All run in this process on the cores that it may use. The machine should have nothing else to do.
"""

import argparse
import pathlib
import sys
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import jax
import numpy as np
from rna_boxes_torch import InTorch, converted, given
from steps import BATCHES, TOLERANCE, Trainer, difference, rounds_of, spread
from timing import num_threads

from configs import rna_boxes
from cvae_jax.errors import UserError
from cvae_jax.evaluation import tables
from cvae_jax.tasks.rna_boxes import data as rna
from cvae_jax.tasks.rna_boxes.networks import HEADS


def against_pytorch(torch: Any, arguments: argparse.Namespace) -> str:
    """A report; exits where the two do not compute the same."""
    config = rna_boxes.get_config("debug")
    config.structures, config.buckets = 1, ()
    config.data.max_length = arguments.length
    config.cvae.update(
        network="conv",
        z="pixel",
        prior="fixed",
        filters=arguments.filters,
        width=arguments.width,
        batch_size=arguments.batch_size,
    )
    heads = [name for name in HEADS if name != "scalar" or config.scalar_sizes]
    sizes = (BATCHES * arguments.batch_size, arguments.length, arguments.length, config.data.num_sample)
    ours = Trainer(config, rna.make(*sizes, seed=0, valid_share=0, test_share=0)["train"])
    batches = [ours.batch(number) for number in range(BATCHES)]
    ready = [given(batch, heads) for batch in batches]
    theirs = InTorch(torch, config.cvae, heads, ready, ready[0]["seen"].shape[-1])

    # The same weights, the same loss and gradient.
    variables = ours.variables()
    weights = {name: torch.from_numpy(array) for name, array in converted(variables["params"], heads).items()}
    missing, unknown = theirs.network.load_state_dict(weights, strict=False)
    if unknown or not all("running" in name or "num_batches" in name for name in missing):
        sys.exit(f"error: PyTorch's network lacks {unknown}, and ours {missing}")
    counts = [sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))]
    counts.append(sum(one.numel() for one in theirs.network.parameters()))
    value, gradient = ours.at_mean(variables, batches[0], lambda encoding: (encoding["posterior"].mean,))
    their_value = theirs.network(theirs.given[0], noise=False)
    their_value.backward()
    losses = [float(value), float(their_value.detach())]
    of_ours = converted(gradient, heads)
    of_loss = abs(losses[1] / losses[0] - 1)
    of_gradient = max(difference(of_ours[name], one.grad.numpy()) for name, one in theirs.network.named_parameters())
    report = (
        f"Parameters: cvae_jax {counts[0]:,}, PyTorch {counts[1]:,}. Loss of the first batch with the same weights, z "
        f"at its mean:\ncvae_jax {losses[0]:.6g}, PyTorch {losses[1]:.6g}, {of_loss:.1e} apart; gradients at most "
        f"{of_gradient:.1e} apart."
    )
    if counts[0] != counts[1] or not max(of_loss, of_gradient) < TOLERANCE:
        sys.exit(f"{report}\nerror: the two do not compute the same within {TOLERANCE:g}")

    memory = theirs.choose(max(2, arguments.steps // 2))
    taken = rounds_of([lambda steps: ours.run(0, steps), theirs.run], arguments.rounds, arguments.steps)
    filters = ", ".join(map(str, arguments.filters))
    title = f"{arguments.batch_size} sequences of {arguments.length}, {filters} filters of width {arguments.width}"
    lines = [
        ["a training step", "cvae_jax, ms", "PyTorch, ms", "ratio"],
        [title, *(spread(column, ".1f") for column in taken.T), spread(taken[:, 1] / taken[:, 0], ".2f")],
    ]
    fixed = f"PyTorch {torch.__version__}, fused Adam, {memory}, on {BATCHES} batches ready made."
    return "\n".join([fixed, report, "", *tables.markdown(lines)])


def of_buckets(arguments: argparse.Namespace) -> str:
    """A report."""
    config = rna_boxes.get_config()
    longest = arguments.buckets[-1]
    config.buckets, config.data.max_length = arguments.buckets[:-1], longest
    config.cvae.update(network="axial", z="global")
    sizes = (arguments.num_seq, arguments.min_len, longest, config.data.num_sample)
    ours = Trainer(config, rna.make(*sizes, seed=0, valid_share=0, test_share=0)["train"])
    limits = [bucket.arrays["sequence"].shape[1] for bucket in ours.buckets]
    if limits != list(arguments.buckets):
        sys.exit(f"error: --num_seq={arguments.num_seq} has no batch of each bucket; take more")
    lengths = np.arange(arguments.min_len, longest + 1)
    shares = np.bincount(np.searchsorted(limits, lengths), minlength=len(limits)) / len(lengths)
    contenders = [lambda steps, number=number: ours.run(number, steps) for number in range(len(limits))]
    taken = rounds_of(contenders, arguments.rounds, arguments.steps)
    weighted = taken @ shares
    lines = [["padded to", "share of examples", "a training step, ms"]]
    for limit, share, column in zip(limits, shares, taken.T, strict=True):
        lines.append([str(limit), f"{share:.1%}", spread(column, ".1f")])
    lines.append(["mean", "100%", spread(weighted, ".1f")])
    title = f"Batches of {config.cvae.batch_size}, {config.structures} structures each, the default network."
    ratio = f"Padding all to {longest} over buckets: {spread(taken[:, -1] / weighted, '.2f')}."
    return "\n".join([title, "", *tables.markdown(lines), "", ratio])


def numbers(text: str) -> tuple[int, ...]:
    """Of a flag, with commas between."""
    return tuple(int(one) for one in text.split(","))


def main() -> None:
    """Prints the reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("pytorch", "buckets"), help="one of the two comparisons")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8, help="of a contender in a round")
    parser.add_argument("--length", type=int, default=60, help="pytorch: of all sequences; even")
    parser.add_argument("--filters", type=numbers, default=(16, 16), help="pytorch: of each layer")
    parser.add_argument("--width", type=int, default=9, help="pytorch: of the kernels")
    parser.add_argument("--batch_size", type=int, default=20, help="pytorch: sequences in a step")
    parser.add_argument("--min_len", type=int, default=10, help="buckets: of the shortest sequence")
    parser.add_argument("--buckets", type=numbers, default=(24, 36, 48, 60), help="buckets: lengths padded to")
    parser.add_argument("--num_seq", type=int, default=400, help="buckets: sequences that batches are drawn from")
    arguments = parser.parse_args()
    torch: Any = None
    if arguments.only != "buckets":
        try:
            import torch
        except ImportError:
            sys.exit("error: the comparison with PyTorch needs it; pip install torch, or set --only=buckets")
    print(
        f"Threads: {num_threads()}. JAX {jax.__version__}, devices: {jax.device_count()} {jax.default_backend()}; "
        f"median (least - greatest) of {arguments.rounds} rounds of {arguments.steps} steps."
    )
    try:
        if arguments.only != "buckets":
            print(f"\n{against_pytorch(torch, arguments)}", flush=True)
        if arguments.only != "pytorch":
            print(f"\n{of_buckets(arguments)}")
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
