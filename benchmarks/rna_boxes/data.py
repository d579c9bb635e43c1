"""RNA data a second: cvae_jax, which calls ViennaRNA's library, against its program RNAsubopt, run once per sequence.

python -m benchmarks.compare rna_data [--program=RNAsubopt] [--num_seq=200] [--min_len=10] [--max_len=100]
    [--num_sample=10] [--rounds=5]

The same random sequences for both. Structures alone: `ensemble.sample` against `RNAsubopt -p 10` with the sequence on
its standard input, its dot-brackets parsed. With boxes: all of `data.make`, which draws the sequences and packs arrays
too, against the program and the package's boxes of what it printed. The four take turns; medians over the rounds, and
of the ratios taken round by round: above 1, cvae_jax is the faster. One process works at a time. How many pairs the
structures of either have on average shows that they are of one distribution.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from benchmarks.rounds import Comparison, Results, Turn, ratios, seconds, summary, table
from cvae_jax.task import Arrays
from cvae_jax.tasks.rna_boxes import boxes, ensemble
from cvae_jax.tasks.rna_boxes import data as rna
from cvae_jax.tasks.rna_boxes.sequences import decode

ROUNDS, PAUSE = 5, 0.0
PROGRAM, OURS = "RNAsubopt", "cvae_jax"
STRUCTURES, WITH_BOXES = "structures", "with boxes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this comparison's flags."""
    parser.add_argument("--program", default="RNAsubopt", help="its name or path")
    parser.add_argument("--num_seq", type=int, default=200)
    parser.add_argument("--min_len", type=int, default=10)
    parser.add_argument("--max_len", type=int, default=100)
    parser.add_argument("--num_sample", type=int, default=10)


def make(arguments: argparse.Namespace) -> Arrays:
    """Returns the package's arrays, all of them in one split."""
    numbers = (arguments.num_seq, arguments.min_len, arguments.max_len, arguments.num_sample)
    return rna.make(*numbers, seed=0, shares=rna.Shares(0, 0))["train"]


def printed(program: str, sequence: str, count: int) -> list[str]:
    """Returns the structures that one run of RNAsubopt prints, below the sequence."""
    command = [program, "-p", str(count)]
    done = subprocess.run(command, input=f"{sequence}\n", stdout=subprocess.PIPE, check=True, text=True)
    structures = [line.split()[0] for line in done.stdout.splitlines()[1:]]
    if len(structures) != count:
        sys.exit(f"{program}: {len(structures)} structures where {count} were asked for; is it RNAsubopt?")
    return structures


def boxed(structures: list[str]) -> list[Any]:
    """Returns the boxes of one sequence's structures, made once for equal ones, as the package does."""
    known = {structure: boxes.boxes_of(boxes.parse(structure)[0]) for structure in set(structures)}
    return [known[structure] for structure in structures]


def comparisons(arguments: argparse.Namespace) -> Iterator[Comparison]:
    """Yields the one comparison."""
    program, count = arguments.program, arguments.num_sample
    if not shutil.which(program):
        sys.exit(f"--program: {program} is not there; install the ViennaRNA programs, or give its path")
    version = subprocess.run([program, "--version"], stdout=subprocess.PIPE, check=True, text=True).stdout
    lengths = f"{arguments.min_len} to {arguments.max_len} bases"
    heading = (
        f"{version.strip()}; {arguments.num_seq} sequences of {lengths}, {count} structures of each;\n"
        f"median (least - greatest) of {arguments.rounds} rounds."
    )
    arrays = make(arguments)
    sequences = [decode(codes[:length]) for codes, length in zip(arrays["sequence"], arrays["length"], strict=True)]

    def theirs() -> list[list[str]]:
        return [printed(program, sequence, count) for sequence in sequences]

    def ours() -> list[list[str]]:
        return [ensemble.sample(sequence, count, seed) for seed, sequence in enumerate(sequences)]

    def turn(contender: str, job: str, work: Callable[[], object]) -> Turn:
        return Turn(contender, job, lambda: {"seconds": seconds(work)})

    turns = [
        turn(PROGRAM, STRUCTURES, theirs),
        turn(OURS, STRUCTURES, ours),
        turn(PROGRAM, WITH_BOXES, lambda: [boxed(structures) for structures in theirs()]),
        turn(OURS, WITH_BOXES, lambda: make(arguments)),
    ]

    def report(results: Results) -> str:
        lines = [["sequences per second", PROGRAM, OURS, "ratio"]]
        for job in (STRUCTURES, WITH_BOXES):
            taken = [[answer["seconds"] for answer in results[name, job]] for name in (PROGRAM, OURS)]
            rates = [summary([len(sequences) / took for took in column], ",.0f") for column in taken]
            lines.append([job, *rates, summary(ratios(*taken))])
        program_pairs, own_pairs = (mean_pairs(draw()) for draw in (theirs, ours))
        pairs = f"Pairs in a structure: RNAsubopt {program_pairs:.2f}, cvae_jax {own_pairs:.2f}."
        return f"{table(lines)}\n\n{pairs}"

    yield Comparison(turns, report, heading)


def mean_pairs(by_sequence: Sequence[Sequence[str]]) -> float:
    """Returns the mean number of pairs in a structure."""
    return statistics.mean(structure.count("(") for structures in by_sequence for structure in structures)
