"""Structures -> boxes -> dense targets -> boxes -> pairs, and how many come back changed.

python benchmarks/rna_round_trip.py --num_seq=1000 --num_sample=10 --max_len=100

Multiloops have no box, and ViennaRNA draws no pseudoknots; both are counted. Pairs come back from the stems.
"""

import argparse
import collections
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import jax
import numpy as np

from cvae_jax.tasks.rna_boxes import boxes, ensemble
from cvae_jax.tasks.rna_boxes.sequences import decode


def main() -> None:
    """Prints the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num_seq", type=int, default=1000)
    parser.add_argument("--num_sample", type=int, default=10)
    parser.add_argument("--min_len", type=int, default=10)
    parser.add_argument("--max_len", type=int, default=100)
    flags = parser.parse_args()
    rng = np.random.default_rng(0)
    to_targets = jax.jit(boxes.targets, static_argnums=1)
    counts: collections.Counter[str] = collections.Counter()
    most = boxes.max_boxes(flags.max_len)
    for number in range(flags.num_seq):
        letters = rng.integers(1, 5, rng.integers(flags.min_len, flags.max_len + 1))
        drawn = [boxes.parse(one) for one in ensemble.sample(decode(letters), flags.num_sample, number)]
        found = [boxes.boxes_of(pairs) for pairs, _ in drawn]
        padded = np.stack([np.pad(one, ((0, most - len(one)), (0, 0))) for one in found])
        of_pixels = jax.device_get(to_targets(padded, flags.max_len))
        for place, ((pairs, knots), wanted) in enumerate(zip(drawn, found, strict=True)):
            again = boxes.boxes_from_targets({name: values[place] for name, values in of_pixels.items()})
            counts["structures"] += 1
            counts["boxes"] += len(wanted)
            counts["pairs"] += len(pairs)
            counts["structures whose boxes come back changed"] += not np.array_equal(again, wanted)
            counts["structures whose pairs come back changed"] += not np.array_equal(boxes.pairs_of(again), pairs)
            counts["multiloops (no box)"] += boxes.num_multiloops(pairs)
            counts["pairs in pseudoknots (dropped)"] += knots
            counts["pixels of two boxes of a type (the first's targets)"] += boxes.shared_pixels(wanted)
    for name, count in counts.items():
        print(f"{count:>8,} {name}")


if __name__ == "__main__":
    main()
