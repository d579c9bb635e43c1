"""cvae_jax's training steps of configs/rna_boxes.py: the network that PyTorch's side has too, and the config's own."""

import argparse
from typing import Any

from benchmarks.rna_boxes.torch_plain import converted
from benchmarks.training import BATCHES, Ours, Trainer
from configs import rna_boxes
from cvae_jax.tasks.rna_boxes import data as rna
from cvae_jax.tasks.rna_boxes.networks import HEADS

NO_SHARES = rna.Shares(0, 0)  # all sequences are for training


def pixel_trainer(arguments: argparse.Namespace) -> tuple[Any, list[str], Trainer]:
    """Returns config, heads and steps of the seed's network: z of each pixel, all sequences of one length."""
    config = rna_boxes.get_config("debug")
    config.structures, config.buckets = 1, ()
    config.data.max_length = arguments.length
    config.cvae.update(
        network="conv",
        z="pixel",
        prior="fixed",
        filters=arguments.filters,
        width=arguments.width,
        batch_size=arguments.batch_size,
    )
    heads = [name for name in HEADS if name != "scalar" or config.scalar_sizes]
    sizes = (BATCHES * arguments.batch_size, arguments.length, arguments.length, config.data.num_sample)
    return config, heads, Trainer(config, rna.make(*sizes, seed=0, shares=NO_SHARES)["train"])


def measured_at_mean(trainer: Trainer, heads: list[str]) -> Ours:
    """Returns loss and gradient of the first batch, by PyTorch's names."""
    variables = trainer.variables()
    loss, gradient = trainer.at_mean(variables, trainer.batch(0))
    return Ours(converted(variables["params"], heads), float(loss), converted(gradient, heads))


def bucket_trainer(arguments: argparse.Namespace) -> tuple[Any, Trainer]:
    """Returns config and steps of the config's own network, z for the whole structure, in buckets of lengths."""
    config = rna_boxes.get_config()
    longest = arguments.buckets[-1]
    config.buckets, config.data.max_length = arguments.buckets[:-1], longest
    config.cvae.update(network="axial", z="global")
    sizes = (arguments.num_seq, arguments.min_len, longest, config.data.num_sample)
    return config, Trainer(config, rna.make(*sizes, seed=0, shares=NO_SHARES)["train"])
