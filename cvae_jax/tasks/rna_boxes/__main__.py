"""Folds sequences with a trained model of RNA boxes.

python -m cvae_jax.tasks.rna_boxes --workdir=runs/rna GGGAAAACCC GGCGAAAGCAAC
"""

import collections
import sys
from collections.abc import Sequence

import jax

from cvae_jax import experiment
from cvae_jax.command_line import Parser
from cvae_jax.errors import UserError
from cvae_jax.tasks.rna_boxes import boxes, scores
from cvae_jax.tasks.rna_boxes.prediction import predict


def main(argv: Sequence[str] | None = None) -> None:
    """Prints each sequence's structure of maximum expected accuracy, its five most frequent samples, and its boxes of
    probability 0.1 and more.
    """
    parser = Parser(prog="python -m cvae_jax.tasks.rna_boxes", description=main.__doc__)
    parser.add_argument("--workdir", required=True, help="of a trained configs/rna_boxes.py")
    parser.add_argument("--num_samples", type=int, default=100, help="draws of z")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("sequences", nargs="+", metavar="SEQUENCE")
    flags = parser.parse_args(argv)
    try:
        trained = experiment.load(flags.workdir)
        if not 0 <= flags.seed < 2**32:
            raise UserError(f"--seed={flags.seed} must be at least 0 and below 2^32")
        found = predict(trained, flags.sequences, flags.num_samples, jax.random.key(flags.seed))
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted")
    for one in found:
        length = len(one.sequence)
        print(f"{one.sequence}\n{boxes.dot_bracket(one.pairs, length)}  maximum expected accuracy")
        drawn = [boxes.dot_bracket(pairs, length) for pairs in one.structures]
        for structure, count in collections.Counter(drawn).most_common(5):
            print(f"{structure}  {count / len(drawn):.0%} of {len(drawn)} samples")
        if not (one.boxes.probability >= scores.PROBABLE).any():
            print(f"  no box of probability {scores.PROBABLE} or more")
        for (kind, x0, y0, wx, wy), probability in zip(one.boxes.boxes.tolist(), one.boxes.probability, strict=True):
            if probability >= scores.PROBABLE:
                name = boxes.TYPES[kind - 1]
                print(f"  {probability:.2f} {name}: rows {x0 + 1}-{x0 + wx}, columns {y0 + 1}-{y0 + wy}")


if __name__ == "__main__":
    main()
