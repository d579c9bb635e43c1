"""RNA data a second: cvae_jax, which calls ViennaRNA's library, against its program RNAsubopt, run once per sequence.

python benchmarks/rna_data.py [--program=RNAsubopt] [--num_seq=200] [--min_len=10] [--max_len=100] [--num_sample=10]
    [--rounds=5]

The same random sequences for both. Structures alone: `ensemble.sample` against `RNAsubopt -p 10` with the sequence on
its standard input, its dot-brackets parsed. With boxes: all of `rna.make`, which draws the sequences and packs arrays
too, against the program and the package's boxes of what it printed. The four take turns; medians over the rounds, and
of the ratios taken round by round: above 1, cvae_jax is the faster. One process works at a time. How many pairs the
structures of either have on average shows that they are of one distribution.
"""

import argparse
import pathlib
import shutil
import statistics
import subprocess
import sys
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from timing import seconds

from cvae_jax.evaluation import tables
from cvae_jax.tasks.rna_boxes import boxes, ensemble
from cvae_jax.tasks.rna_boxes import data as rna
from cvae_jax.tasks.rna_boxes.sequences import decode


def make(arguments: argparse.Namespace) -> dict[str, Any]:
    """The package's arrays, all of them in one split."""
    numbers = (arguments.num_seq, arguments.min_len, arguments.max_len, arguments.num_sample)
    return rna.make(*numbers, seed=0, valid_share=0, test_share=0)["train"]


def printed(program: str, sequence: str, count: int) -> list[str]:
    """The structures that one run of RNAsubopt prints, below the sequence."""
    command = [program, "-p", str(count)]
    done = subprocess.run(command, input=f"{sequence}\n", stdout=subprocess.PIPE, check=True, text=True)
    structures = [line.split()[0] for line in done.stdout.splitlines()[1:]]
    if len(structures) != count:
        sys.exit(f"{program}: {len(structures)} structures where {count} were asked for; is it RNAsubopt?")
    return structures


def boxed(structures: list[str]) -> list[Any]:
    """The boxes of one sequence's structures, made once for equal ones, as the package does."""
    known = {one: boxes.boxes_of(boxes.parse(one)[0]) for one in set(structures)}
    return [known[one] for one in structures]


def measure(arguments: argparse.Namespace) -> tuple[list[list[str]], list[float]]:
    """Lines of a table, and the mean number of pairs in a structure of either."""
    arrays, count = make(arguments), arguments.num_sample
    todo = [decode(codes[:length]) for codes, length in zip(arrays["sequence"], arrays["length"], strict=True)]

    def theirs() -> list[list[str]]:
        return [printed(arguments.program, one, count) for one in todo]

    def ours() -> list[list[str]]:
        return [ensemble.sample(one, count, seed) for seed, one in enumerate(todo)]

    contenders = (theirs, ours, lambda: [boxed(one) for one in theirs()], lambda: make(arguments))
    taken = [[seconds(one) for one in contenders] for _ in range(arguments.rounds)]
    lines = [["sequences per second", "RNAsubopt", "cvae_jax", "ratio (least - greatest)"]]
    for name, place in (("structures", 0), ("with boxes", 2)):
        pairs = [of_round[place : place + 2] for of_round in taken]
        rates = [f"{len(todo) / statistics.median(column):,.0f}" for column in zip(*pairs, strict=True)]
        ratios = [program / package for program, package in pairs]
        lines.append([name, *rates, f"{statistics.median(ratios):.2f} ({min(ratios):.2f} - {max(ratios):.2f})"])
    means = [statistics.mean(each.count("(") for of_one in drawn for each in of_one) for drawn in (theirs(), ours())]
    return lines, means


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default="RNAsubopt", help="its name or path")
    parser.add_argument("--num_seq", type=int, default=200)
    parser.add_argument("--min_len", type=int, default=10)
    parser.add_argument("--max_len", type=int, default=100)
    parser.add_argument("--num_sample", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    if not shutil.which(arguments.program):
        sys.exit(f"--program: {arguments.program} is not there; install the ViennaRNA programs, or give its path")
    version = subprocess.run([arguments.program, "--version"], stdout=subprocess.PIPE, check=True, text=True).stdout
    lengths = f"{arguments.min_len} to {arguments.max_len} bases"
    print(f"{version.strip()}; {arguments.num_seq} sequences of {lengths}, {arguments.num_sample} structures of each;")
    print(f"median of {arguments.rounds} rounds.\n")
    lines, means = measure(arguments)
    print("\n".join(tables.markdown(lines)))
    print(f"\nPairs in a structure: RNAsubopt {means[0]:.2f}, cvae_jax {means[1]:.2f}.")


if __name__ == "__main__":
    main()
