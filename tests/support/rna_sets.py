"""Data sets of RNA: settings, the command that fails, and what arrays hold."""

from types import SimpleNamespace

import pytest

from cvae_jax.tasks.rna_boxes import boxes
from cvae_jax.tasks.rna_boxes import data as rna
from cvae_jax.tasks.rna_boxes.sequences import decode


def settings(folder="", **changes):
    numbers = {"max_length": 20, "num_sample": 3, "num_seq": 12, "min_len": 8, "max_len": 20, "seed": 0}
    return SimpleNamespace(source="rna", dir=str(folder), **numbers | changes)


def structures_of(arrays, n):
    """Sequence n and its structures in dot-bracket notation."""
    length = arrays["length"][n]
    found = arrays["boxes"][n, : arrays["count"][n]]
    return decode(arrays["sequence"][n, :length]), [boxes.dot_bracket(boxes.pairs_of(one), length) for one in found]


def command(*arguments):
    """The exit of a command that fails."""
    with pytest.raises(SystemExit) as caught:
        rna.main([*map(str, arguments)])
    assert "\n" not in str(caught.value)
    return str(caught.value)
