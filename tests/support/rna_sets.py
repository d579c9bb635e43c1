"""Data sets and small systems of RNA: settings, configs, the command that fails, and what arrays hold."""

from types import SimpleNamespace

import pytest

import cvae_jax
from configs import rna_boxes
from cvae_jax.tasks.rna_boxes import boxes, commands
from cvae_jax.tasks.rna_boxes.sequences import decode

MODELS = {
    "none": {"z": "none"},
    "global, learned": {"z": "global", "prior": "learned"},
    "pixel, fixed": {"z": "pixel", "prior": "fixed"},
    "pixel, learned": {"z": "pixel", "prior": "learned", "network": "conv"},
}


def small(name, **changes):
    """The config of one of MODELS, for sequences of up to 16 bases."""
    config = rna_boxes.get_config("smoke")
    config.buckets = (12,)
    config.data.update(max_length=16, max_len=16, num_seq=40)
    config.cvae.update(filters=(8,), latent=3, hidden=8, decoder=8, **MODELS[name])
    config.update(changes)
    return config


def settings(folder="", **changes):
    numbers = {"max_length": 20, "num_sample": 3, "num_seq": 12, "min_len": 8, "max_len": 20, "seed": 0}
    return SimpleNamespace(source="rna", dir=str(folder), **numbers | changes)


def structures_of(arrays, n):
    """Sequence n and its structures in dot-bracket notation."""
    length = arrays["length"][n]
    structures = arrays["boxes"][n, : arrays["count"][n]]
    return decode(arrays["sequence"][n, :length]), [
        boxes.dot_bracket(boxes.pairs_of(rows), length) for rows in structures
    ]


def command(*arguments):
    """The one line with which a command fails: as the exit's code it makes the process end with 1."""
    with pytest.raises(SystemExit) as caught:
        commands.main([*map(str, arguments)], cvae_jax.load)
    assert isinstance(caught.value.code, str) and "\n" not in caught.value.code
    return caught.value.code
