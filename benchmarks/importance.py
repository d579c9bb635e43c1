"""Importance sampling of a trained model over a whole split: time, memory, share of the matmul rate, invariance.

python benchmarks/importance.py --workdir=runs/q1 [--num_samples=5000] [--num_examples=0] [--output=results.md]

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
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import contender_ours
import jax
import numpy as np

from cvae_jax import data, evaluation, experiment, parallel
from cvae_jax.evaluation import tables
from cvae_jax.inference import draws as inference
from cvae_jax.inference import estimators

CHUNKS, DEVICES = (10, 100, 1000), (1, 2, 8)


def load(arguments: argparse.Namespace) -> tuple[Any, Any, dict[str, np.ndarray]]:
    """The first seed's models, their last stage and the test split."""
    trained = experiment.load(arguments.workdir)
    arrays = data.load(trained.config.data, trained.task)["test"]
    return trained, trained.stages[-1], {name: arrays[name][: arguments.num_examples or None] for name in arrays}


def values_by_chunk(arguments: argparse.Namespace) -> None:
    """Writes the values of 200 examples for every chunk size, on the devices this process has: [chunks, examples]."""
    trained, stage, arrays = load(arguments)
    arrays, found = {name: array[:200] for name, array in arrays.items()}, []
    for chunk in CHUNKS:
        inference.DRAWS_PER_CALL = chunk * evaluation.EXAMPLES_PER_BATCH
        found.append(evaluation.measure(trained, stage, arrays, [("is", 1000)], 0).cells["is", 1000].value)
    np.save(arguments.values, np.stack(found))


def invariance(arguments: argparse.Namespace) -> str:
    """The greatest differences from one device with chunks of 10 samples."""
    lines, reference = [["devices", *(f"chunks of {chunk:,}" for chunk in CHUNKS)]], None
    with tempfile.TemporaryDirectory() as folder:
        for devices in DEVICES:
            path = f"{folder}/{devices}.npy"
            command = [sys.executable, __file__, f"--workdir={arguments.workdir}", f"--values={path}"]
            flags = f"--xla_force_host_platform_device_count={devices}"
            subprocess.run(command, check=True, env={**os.environ, "XLA_FLAGS": flags})
            found = np.load(path)
            reference = found[0] if reference is None else reference
            moved = [values - reference for values in found]
            lines.append([str(devices), *(f"{np.abs(one).max():.1e}, {one.mean():+.1e}" for one in moved)])
    text = "Differences from the values on one device in chunks of 10, nats: an example's greatest, and their mean"
    return f"{text}; 200 examples, 1,000 samples.\n\n" + "\n".join(tables.markdown(lines))


def speed(arguments: argparse.Namespace) -> str:
    """Time, memory and share of the matmul rate, each core a device, as eval.py does it."""
    parallel.use_every_core()
    trained, stage, arrays = load(arguments)
    square = [(2048, 2048, 2048)]
    few = {name: array[: evaluation.EXAMPLES_PER_BATCH] for name, array in arrays.items()}
    wanted = [("is", arguments.num_samples)]
    with jax.default_matmul_precision("highest"):
        before = contender_ours.matmul_rate(square, 4)
    began = time.perf_counter()
    evaluation.measure(trained, stage, few, wanted, 0)
    once = time.perf_counter() - began
    began = time.perf_counter()
    estimate = evaluation.measure(trained, stage, arrays, wanted, 0).cells[wanted[0]]
    took = time.perf_counter() - began
    with jax.default_matmul_precision("highest"):
        rate = max(before, contender_ours.matmul_rate(square, 4))
    kernels = [leaf for leaf in jax.tree.leaves(trained.params["generation_net"]) if leaf.ndim == 2]
    flops = 2 * sum(kernel.size for kernel in kernels) * len(estimate.value) * arguments.num_samples
    mean = estimators.mean_over_examples(estimate)
    doubted = estimators.unreliable(estimate, arguments.num_samples)
    rows = {
        "examples, samples": f"{len(estimate.value):,}, {arguments.num_samples:,}",
        "negative log p(y\\|x), nats": f"{-mean.value:.3f} ± {mean.standard_error:.3f}, MC {mean.error:.2g}",
        "median ESS; k̂ flags the error, the value": f"{np.median(estimate.ess):.0f}; "
        + ", ".join(f"{share.mean():.1%}" for share in doubted),
        "time (the first batch, compilation included)": f"{took:.0f} s ({once:.1f} s)",
        "draws per second": f"{len(estimate.value) * arguments.num_samples / took:,.0f}",
        "generation network's matmuls": f"{flops / took / 1e9:.0f} GFLOP/s",
        "2048 square matmul, float32 at highest precision": f"{rate / 1e9:.0f} GFLOP/s",
        "share of the matmul rate": f"{flops / took / rate:.0%}",
        "peak memory": f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MB",
    }
    return "\n".join(tables.markdown([["importance sampling", ""], *map(list, rows.items())]))


def main() -> None:
    """Prints both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--num_samples", type=int, default=5000)
    parser.add_argument("--num_examples", type=int, default=0, help="the first so many; 0: all")
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
