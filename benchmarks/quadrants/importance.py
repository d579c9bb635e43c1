"""Importance sampling of a trained model over a whole split: time, memory, share of the matmul rate, invariance.

python -m benchmarks.quadrants.importance --workdir=runs/q1 [--num_samples=5000] [--num_examples=0] [--output=FILE.md]

First, on 200 examples with 1,000 samples, by how much values differ between numbers of samples drawn at once and of
devices. Then log p(y|x) of the split as eval.py measures it.
"""

import argparse
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np

from benchmarks.process import ROOT
from benchmarks.quadrants.ours import matmul_rate
from benchmarks.rounds import table
from cvae_jax import data, evaluation, trained
from cvae_jax.data.batches import EXAMPLES_PER_BATCH
from cvae_jax.evaluation import Plan
from cvae_jax.inference import draws, estimators
from cvae_jax.task import Arrays

CHUNKS = (10, 100, 1000)


def load(arguments: argparse.Namespace) -> tuple[trained.TrainedModel, str, Arrays]:
    """Returns the first seed's models, the name of their last stage, and the test split."""
    model = trained.load(arguments.workdir)
    settings = model.config.data
    splits = data.check(data.load(settings, model.task.sources), model.task, settings.source)
    arrays = data.of(splits, "test")
    return model, model.stages[-1].name, {name: arrays[name][: arguments.num_examples or None] for name in arrays}


def values_by_chunk(arguments: argparse.Namespace) -> None:
    """Writes the values of 200 examples for every chunk size, on the devices this process has: [chunks, examples]."""
    model, stage, arrays = load(arguments)
    arrays, values = {name: array[:200] for name, array in arrays.items()}, []
    draws.BYTES_PER_CALL = 2**40  # chunks are as large as they are called
    for chunk in CHUNKS:
        draws.DRAWS_PER_CALL = chunk * EXAMPLES_PER_BATCH
        values.append(evaluation.measure(model, stage, arrays, Plan([("is", 1000)])).cells["is", 1000].value)
    np.save(arguments.values, np.stack(values))


def invariance(arguments: argparse.Namespace) -> str:
    """Returns the greatest differences from one device with chunks of 10 samples."""
    lines, reference = [["devices", *(f"chunks of {chunk:,}" for chunk in CHUNKS)]], None
    with tempfile.TemporaryDirectory() as folder:
        for devices in arguments.devices.split(","):
            path = f"{folder}/{devices}.npy"
            command = [sys.executable, "-m", "benchmarks.quadrants.importance"]
            command += [f"--workdir={pathlib.Path(arguments.workdir).resolve()}", f"--values={path}"]
            flags = f"--xla_force_host_platform_device_count={devices}"
            subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, "XLA_FLAGS": flags})
            by_chunk = np.load(path)
            reference = by_chunk[0] if reference is None else reference
            moved = by_chunk - reference
            lines.append([devices, *(f"{np.abs(change).max():.1e}, {change.mean():+.1e}" for change in moved)])
    text = "Differences from the values on one device in chunks of 10, nats: an example's greatest, and their mean"
    return f"{text}; 200 examples, 1,000 samples.\n\n{table(lines)}"


def speed(arguments: argparse.Namespace) -> str:
    """Returns time, memory and share of the matmul rate, each core a device, as `trained.load` makes it."""
    model, stage, arrays = load(arguments)
    square = [(2048, 2048, 2048)]
    few = {name: array[:EXAMPLES_PER_BATCH] for name, array in arrays.items()}
    request = ("is", arguments.num_samples)
    with jax.default_matmul_precision("highest"):
        before = matmul_rate(square, 4)
    began = time.perf_counter()
    evaluation.measure(model, stage, few, Plan([request]))
    once = time.perf_counter() - began
    began = time.perf_counter()
    estimate = evaluation.measure(model, stage, arrays, Plan([request])).cells[request]
    took = time.perf_counter() - began
    with jax.default_matmul_precision("highest"):
        rate = max(before, matmul_rate(square, 4))
    kernels = [leaf for leaf in jax.tree.leaves(model.params["generation_net"]) if leaf.ndim == 2]
    flops = 2 * sum(kernel.size for kernel in kernels) * len(estimate.value) * arguments.num_samples
    mean = estimators.mean_over_examples(estimate)
    doubted = estimators.unreliable(estimate)
    rows = {
        "examples, samples": f"{len(estimate.value):,}, {arguments.num_samples:,}",
        "negative log p(y\\|x), nats": f"{-mean.value:.3f} ± {mean.standard_error:.3f}, MC {mean.error:.2g}",
        "median ESS; flagged": f"{np.median(estimate.ess):.0f}; {doubted.mean():.1%}",
        "time (the first batch, compilation included)": f"{took:.0f} s ({once:.1f} s)",
        "draws per second": f"{len(estimate.value) * arguments.num_samples / took:,.0f}",
        "generation network's matmuls": f"{flops / took / 1e9:.0f} GFLOP/s",
        "2048 square matmul, float32 at highest precision": f"{rate / 1e9:.0f} GFLOP/s",
        "share of the matmul rate": f"{flops / took / rate:.0%}",
        "peak memory": f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MB",
    }
    return table([["importance sampling", ""], *map(list, rows.items())])


def main() -> None:
    """Prints both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--num_samples", type=int, default=5000)
    parser.add_argument("--num_examples", type=int, default=0, help="the first so many; 0: all")
    parser.add_argument("--devices", default="1,2,8", help="numbers of them whose values are compared")
    parser.add_argument("--output", help="file that receives the tables, beside stdout")
    parser.add_argument("--values", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.values:
        values_by_chunk(arguments)
        return
    texts = [invariance(arguments), speed(arguments)]
    print("\n\n".join(texts))
    if arguments.output:
        pathlib.Path(arguments.output).write_text("\n\n".join(texts) + "\n")


if __name__ == "__main__":
    main()
