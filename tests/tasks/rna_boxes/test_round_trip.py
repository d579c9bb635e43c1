"""Structures -> boxes -> dense targets -> boxes -> pairs: nothing comes back changed.

Multiloops have no box, and ViennaRNA draws no pseudoknots; both are counted. Pairs come back from the stems.
"""

import jax
import numpy as np
import pytest

from cvae_jax.tasks.rna_boxes import boxes, ensemble
from cvae_jax.tasks.rna_boxes.sequences import decode

pytestmark = pytest.mark.slow

NUM_SEQ, NUM_SAMPLE, MIN_LEN, MAX_LEN = 1000, 10, 10, 100


def drawn():
    """Yields, for each random sequence, the pairs of its structures, each with how many pairs lie in pseudoknots."""
    rng = np.random.default_rng(0)
    for seed in range(NUM_SEQ):
        letters = rng.integers(1, 5, rng.integers(MIN_LEN, MAX_LEN + 1))
        yield [boxes.parse(structure) for structure in ensemble.sample(decode(letters), NUM_SAMPLE, seed)]


def test_structures_come_back_from_dense_targets(vienna):
    to_targets, most = jax.jit(boxes.targets, static_argnums=1), boxes.max_boxes(MAX_LEN)
    num_boxes = num_multiloops = num_knots = num_shared = 0
    for structures in drawn():
        rows = [boxes.boxes_of(pairs) for pairs, _ in structures]
        padded = np.stack([np.pad(row, ((0, most - len(row)), (0, 0))) for row in rows])
        targets = jax.device_get(to_targets(padded, MAX_LEN))
        for place, ((pairs, knots), row) in enumerate(zip(structures, rows, strict=True)):
            again = boxes.boxes_from_targets({name: values[place] for name, values in targets.items()})
            np.testing.assert_array_equal(again, row)
            np.testing.assert_array_equal(boxes.pairs_of(again), pairs)
            num_boxes += len(row)
            num_multiloops += boxes.num_multiloops(pairs)
            num_knots += knots
            num_shared += boxes.shared_pixels(row)
    assert num_knots == 0
    # What could have gone wrong was there: multiloops, which no box stands for, and pixels of two boxes of a type.
    assert num_boxes > 5 * NUM_SEQ * NUM_SAMPLE
    assert num_multiloops > 500  # ViennaRNA 2.7 and 2.8 draw 1,114, and 2,132 such pixels
    assert num_shared > 1000
