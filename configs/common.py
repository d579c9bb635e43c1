"""What the configs share: reading the variant after the colon, and the sections every stage has."""

from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from cvae_jax import objectives
from cvae_jax.errors import UserError


def parse_variant(variant: str, options: Sequence[str], example: str) -> tuple[str, set[str]]:
    """Splits "1,smoke" into its first word and the set of options after it.

    Raises:
      UserError: for an option that the config does not have; names those it has and an example.
    """
    first, *given = variant.split(",")
    return first, parse_options(",".join(given), options, example)


def parse_options(variant: str, options: Sequence[str], example: str) -> set[str]:
    """Splits "paper,smoke" into the set of its options.

    Raises:
      UserError: for an option that the config does not have; names those it has and an example.
    """
    given = variant.split(",") if variant else []
    unknown = [option for option in given if option not in options]
    if unknown:
        raise UserError(f"variant {unknown[0]!r} is not known; this config has {', '.join(options)}, as in {example}")
    return set(given)


def mnist() -> ConfigDict:
    """MNIST as a source of data, see data/mnist.py."""
    return ConfigDict({"source": "mnist", "dir": "", "verify_checksums": True})


def on_digits(config: ConfigDict) -> None:
    """Puts an experiment on the 8x8 digits inside scikit-learn."""
    config.data.source = "digits"
    config.image_shape = (8, 8)


def experiment(name: str, task: str) -> ConfigDict:
    """What every experiment has."""
    return ConfigDict(
        {
            "name": name,
            "task": task,
            "seed": 0,
            "num_seeds": 1,  # independent models, of seeds seed, seed + 1, ...
            "seeds_by": "map",  # in turn, with the bits of single runs; or "vmap": at once, for accelerators
        }
    )


def stage(**settings: Any) -> ConfigDict:
    """The settings of a training stage, every one named; `settings` replaces or adds to the defaults."""
    config = ConfigDict()
    config.batch_size = 128
    config.epochs = 50
    config.patience = 0  # stop once the validation loss has not improved for so many epochs; 0: never
    config.averaging = 0.0  # decay per step of the averaged weights, which are validated and kept; 0: the last weights
    config.steps_per_call = 100  # steps in one compiled call
    config.checkpoint_every = 1  # epochs
    config.figure_every = 0  # epochs between figures of samples; 0: none
    config.log_every = 0  # steps of an epoch between lines with the terms of one batch; 0: none
    config.objective = ConfigDict(objectives.DEFAULTS)
    config.optimizer = ConfigDict(
        {
            "learning_rate": 1e-3,
            "schedule": "constant",  # or "cosine", down to 0 at the last epoch, or "stages", see schedules.py
            "warmup_steps": 0,
            "epsilon": 1e-8,  # of Adam
            "weight_decay": 0.0,  # decoupled, of matrices and kernels, not of biases and norms
            "clip_norm": 0.0,  # of the global gradient norm; 0: no clipping
        }
    )
    config.update(settings)
    return config
