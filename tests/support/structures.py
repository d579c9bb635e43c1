"""A sequence of RNA and structures of its ensemble."""

import numpy as np
import pytest

from cvae_jax.tasks.rna_boxes import boxes, ensemble

SEQUENCE = "ACUGACCAGACGCGGUCGGCAUCCUGCGAGCAGUCGCGGCUGGUC"
NONE = np.zeros((0, 2), np.int64)


def drawn(count, seed=0, sequence=SEQUENCE):
    """Structures of the thermodynamic ensemble."""
    pytest.importorskip("RNA", reason="needs ViennaRNA")
    return [boxes.parse(structure)[0] for structure in ensemble.sample(sequence, count, seed)]


def as_set(pairs):
    return set(map(tuple, np.asarray(pairs).tolist()))
