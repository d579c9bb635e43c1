"""Runs the contenders of a comparison side by side: they take turns in rounds, and ratios are taken round by round.

    python -m benchmarks.compare quadrants --data_dir=FOLDER_OF_IDX_FILES --torch_python=PYTHON_WITH_TORCH
    python -m benchmarks.compare rna_boxes --only=buckets
    python -m benchmarks.compare video --rounds=7

`python -m benchmarks.compare quadrants --help` lists the flags of one. Start it from the repository's root.
"""

import argparse
import contextlib
import importlib
import pathlib
import sys
import time
from collections import defaultdict
from collections.abc import Sequence

from benchmarks.rounds import Results, Turn

# Name -> its module, which has ROUNDS and PAUSE (defaults of these flags), `add_arguments(parser)`, and
# `comparisons(arguments)`, which yields each Comparison once the one before it is printed.
COMPARISONS = {
    "quadrants": "benchmarks.quadrants.comparison",
    "rna_boxes": "benchmarks.rna_boxes.comparison",
    "rna_data": "benchmarks.rna_boxes.data",
    "video": "benchmarks.video.comparison",
    "convolution": "benchmarks.networks.convolution",
}


def take_turns(turns: Sequence[Turn], rounds: int, pause: float) -> Results:
    """Runs all turns in every round, A B C A B C; stderr shows how far it is.

    Args:
      turns: of a round.
      rounds: how many.
      pause: seconds before each turn: threads that wait for work keep cores busy for a while.
    """
    results: defaultdict[tuple[str, str], list] = defaultdict(list)
    for number in range(1, rounds + 1):
        for turn in turns:
            time.sleep(pause)
            answer = turn.run()
            if answer:
                results[turn.contender, turn.job].append(answer)
                took = f"{answer['seconds']:.3f} s" if "seconds" in answer else "done"
                print(f"round {number}/{rounds}: {turn.contender}, {turn.job}: {took}", file=sys.stderr)
    return results


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("comparison", choices=COMPARISONS)
    name = parser.parse_args(sys.argv[1:2]).comparison
    module = importlib.import_module(COMPARISONS[name])
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.compare {name}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=module.ROUNDS)
    parser.add_argument("--pause", type=float, default=module.PAUSE, help="seconds between two turns")
    parser.add_argument("--output", help="file that receives the report, beside stdout")
    module.add_arguments(parser)
    arguments = parser.parse_args(sys.argv[2:])
    texts: list[str] = []

    def write(text: str) -> None:
        if text:
            print(f"{text}\n", flush=True)
            texts.append(text)

    with contextlib.closing(module.comparisons(arguments)) as comparisons:
        for comparison in comparisons:
            write(comparison.heading)
            write(comparison.report(take_turns(comparison.turns, arguments.rounds, arguments.pause)))
    if arguments.output:
        pathlib.Path(arguments.output).write_text("\n\n".join(texts) + "\n")


if __name__ == "__main__":
    main()
