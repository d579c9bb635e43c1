"""Folds sequences with a trained model of RNA boxes.

python -m cvae_jax.rna --workdir=runs/rna GGGAAAACCC GGCGAAAGCAAC
"""

import argparse
import sys
from collections.abc import Sequence

import jax

from cvae_jax import experiment
from cvae_jax.errors import UserError
from cvae_jax.rna import boxes, scores
from cvae_jax.rna.prediction import predict


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the structure of maximum expected accuracy of each sequence, the most frequent samples, and the boxes."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--workdir", required=True, help="of a trained configs/rna_boxes.py")
    parser.add_argument("--num_samples", type=int, default=100, help="draws of z")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("sequences", nargs="+", metavar="SEQUENCE")
    flags = parser.parse_args(argv)
    try:
        trained = experiment.load(flags.workdir)
        found = predict(trained, flags.sequences, flags.num_samples, jax.random.key(flags.seed))
    except UserError as error:
        sys.exit(f"error: {error}")
    for one in found:
        length = len(one.sequence)
        print(f"{one.sequence}\n{boxes.dot_bracket(one.pairs, length)}  maximum expected accuracy")
        drawn = [boxes.dot_bracket(pairs, length) for pairs in one.structures]
        for structure in sorted(set(drawn), key=lambda structure: -drawn.count(structure))[:5]:
            print(f"{structure}  {drawn.count(structure) / len(drawn):.0%} of {len(drawn)} samples")
        for (kind, x0, y0, wx, wy), probability in zip(one.boxes.boxes.tolist(), one.boxes.probability, strict=True):
            if probability >= scores.PROBABLE:
                name = boxes.TYPES[kind - 1]
                print(f"  {probability:.2f} {name}: rows {x0 + 1}-{x0 + wx}, columns {y0 + 1}-{y0 + wy}")


if __name__ == "__main__":
    main()
