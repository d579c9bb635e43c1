"""The commands of RNA boxes: data sets are made or converted, and sequences are folded.

python -m cvae_jax rna_boxes make --min_len=10 --max_len=100 --num_seq=1000 --num_sample=10 --out=FOLDER
python -m cvae_jax rna_boxes convert ArchiveII.csv.gz --max_len=100 --out=FOLDER
python -m cvae_jax rna_boxes fold --workdir=runs/rna GGGAAAACCC GGCGAAAGCAAC
"""

import argparse
import collections
import pathlib
import sys
import time
from collections.abc import Callable, Sequence

import jax

from cvae_jax.command_line import Parser
from cvae_jax.errors import UserError
from cvae_jax.tasks.rna_boxes import boxes, data, files, prediction, scores, tables

MOST_FREQUENT = 5  # samples of a sequence that are printed


def main(argv: Sequence[str], load: Callable[[str], prediction.Trained]) -> None:
    """Runs a command; what a user did wrong ends in one line and exit code 1.

    Args:
      argv: the command and its flags.
      load: workdir -> trained model.
    """
    flags = _parser().parse_args(argv)
    try:
        if flags.command == "fold":
            fold(flags, load)
        else:
            write(flags)
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted")


def _parser() -> Parser:
    """Returns the parser of all commands."""
    parser = Parser(prog="python -m cvae_jax rna_boxes", description="RNA data sets, and structures of sequences.")
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("make", help="random sequences, structures from ViennaRNA")
    make.add_argument("--num_seq", type=int, default=1000)
    make.add_argument("--min_len", type=int, default=10, help="bases of the shortest")
    make.add_argument("--max_len", type=int, default=100, help="bases of the longest")
    make.add_argument("--num_sample", type=int, default=10, help="structures of a sequence")
    make.add_argument("--energy_gap", type=float, help="kcal/mol: those within it, not samples of the ensemble")
    convert = commands.add_parser("convert", help="a table as .csv, .csv.gz or .parquet, such as ArchiveII")
    convert.add_argument("file", metavar="FILE")
    convert.add_argument("--max_len", type=int, default=0, help="leave longer sequences out")
    convert.add_argument("--family", default="", help="keep these alone: what precedes the first _ of an id")
    convert.add_argument("--num_sample", type=int, default=0, help="keep so many structures of a sequence")
    for command in (make, convert):
        command.add_argument("--out", required=True, help="the folder to write: train, valid and test.npz")
        command.add_argument("--seed", type=int, default=0)
        command.add_argument("--valid_share", type=float, default=0.1)
        command.add_argument("--test_share", type=float, default=0.1)
    folder = commands.add_parser("fold", help="structures of sequences by a trained model", description=fold.__doc__)
    folder.add_argument("--workdir", required=True, help="of a trained configs/rna_boxes.py")
    folder.add_argument("--num_samples", type=int, default=100, help="draws of z")
    folder.add_argument("--seed", type=int, default=0)
    folder.add_argument("sequences", nargs="+", metavar="SEQUENCE")
    return parser


def write(flags: argparse.Namespace) -> None:
    """Makes or converts a data set, writes it, and prints what is in it."""
    start = time.perf_counter()
    left_out: dict[str, int] = {}
    files.check_empty(pathlib.Path(flags.out).expanduser())
    shares = data.Shares(flags.valid_share, flags.test_share)
    if flags.command == "make":
        numbers = (flags.num_seq, flags.min_len, flags.max_len, flags.num_sample)
        splits = data.make(*numbers, seed=flags.seed, energy_gap=flags.energy_gap, shares=shares)
    else:
        if flags.max_len < 0 or flags.num_sample < 0:
            raise UserError(f"--max_len={flags.max_len} and --num_sample={flags.num_sample} must be at least 0")
        table = tables.read(pathlib.Path(flags.file).expanduser(), flags.max_len, flags.family)
        left_out = table.left_out
        splits = data.convert(table, flags.max_len, flags.num_sample, seed=flags.seed, shares=shares)
    seconds = time.perf_counter() - start
    files.save(splits, flags.out)
    print(data.summary(splits))
    for what, number in left_out.items():
        print(f"left out: {number} {what}")
    number = sum(len(arrays["length"]) for arrays in splits.values())
    print(f"{number / seconds:.0f} sequences per second, in {flags.out}")


def fold(flags: argparse.Namespace, load: Callable[[str], prediction.Trained]) -> None:
    """Prints each sequence's structure of maximum expected accuracy, its five most frequent samples, and its boxes of
    probability 0.1 and more.
    """
    trained = load(flags.workdir)
    if not 0 <= flags.seed < 2**32:
        raise UserError(f"--seed={flags.seed} must be at least 0 and below 2^32")
    for predicted in prediction.predict(trained, flags.sequences, flags.num_samples, jax.random.key(flags.seed)):
        length = len(predicted.sequence)
        print(f"{predicted.sequence}\n{boxes.dot_bracket(predicted.pairs, length)}  maximum expected accuracy")
        drawn = [boxes.dot_bracket(pairs, length) for pairs in predicted.structures]
        for structure, count in collections.Counter(drawn).most_common(MOST_FREQUENT):
            print(f"{structure}  {count / len(drawn):.0%} of {len(drawn)} samples")
        rows, probabilities = predicted.boxes
        if not (probabilities >= scores.PROBABLE).any():
            print(f"  no box of probability {scores.PROBABLE} or more")
        for (kind, x0, y0, wx, wy), probability in zip(rows.tolist(), probabilities, strict=True):
            if probability >= scores.PROBABLE:
                name = boxes.TYPES[kind - 1]
                print(f"  {probability:.2f} {name}: rows {x0 + 1}-{x0 + wx}, columns {y0 + 1}-{y0 + wy}")
