"""Parts that configs share: reading the variant after the colon, the sections of every experiment and stage."""

import importlib.util
import pathlib
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from cvae_jax import objectives, schedules
from cvae_jax.errors import UserError


def parse_variant(variant: str, choices: Sequence[str], options: Sequence[str], example: str) -> tuple[str, set[str]]:
    """Splits "1,smoke" into its first word and the set of options after it.

    Args:
      variant: what stands after the colon.
      choices: for the first word.
      options: that the config has.
      example: of its use, for messages.

    Raises:
      UserError: for a first word or an option that the config does not have.
    """
    first, *given = variant.split(",")
    if first not in choices:
        raise UserError(f"variant {first!r} is not known; begin it with one of {', '.join(choices)}, as in {example}")
    return first, parse_options(",".join(given), options, example)


def parse_options(variant: str, options: Sequence[str], example: str, exclusive: Sequence[str] = ()) -> set[str]:
    """Splits "paper,smoke" into the set of its options.

    Args:
      variant: what stands after the colon.
      options: that the config has.
      example: of its use, for messages.
      exclusive: options of which there may be one at most.

    Raises:
      UserError: for an option that the config does not have, or two that exclude each other.
    """
    given = variant.split(",") if variant else []
    unknown = [option for option in given if option not in options]
    if unknown:
        raise UserError(f"variant {unknown[0]!r} is not known; this config has {', '.join(options)}, as in {example}")
    if len(set(given) & set(exclusive)) > 1:
        names = f"{', '.join(exclusive[:-1])} and {exclusive[-1]}"
        raise UserError(f"variants {names} exclude each other; choose one")
    return set(given)


def mnist() -> ConfigDict:
    """Returns the section `data` for MNIST, see data/mnist.py."""
    return ConfigDict({"source": "mnist", "dir": "", "verify_checksums": True})


def on_digits(config: ConfigDict) -> None:
    """Puts an experiment on the 8x8 digits inside scikit-learn."""
    config.data.source = "digits"
    config.image_shape = (8, 8)


def experiment(name: str, task: str) -> ConfigDict:
    """Returns what every experiment has: a name, and the name of its task."""
    return ConfigDict(
        {
            "name": name,
            "task": task,
            "seed": 0,
            "num_seeds": 1,  # independent models, of seeds seed, seed + 1, ...
            "seeds_by": "map",  # in turn, with the bits of single runs; or "vmap": at once, for accelerators
            "measure_num_samples": 1000,  # of z, by which eval.py estimates log p(y|x) without --num_samples
        }
    )


def stage(**settings: Any) -> ConfigDict:
    """Returns the settings of a training stage, every one named; `settings` replaces or adds to the defaults."""
    config = ConfigDict()
    config.batch_size = 128
    config.epochs = 50
    config.patience = 0  # stop once `select` has not improved for so many epochs; 0: never
    config.select = "loss"  # chooses the best epoch; or a validation metric to be large, "+NAME", or small, "-NAME"
    config.averaging = 0.0  # decay per step of the averaged weights, which are validated and kept; 0: the last weights
    config.steps_per_call = 100  # steps in one compiled call
    config.start_from = ""  # workdir of another run, whose stage of this name has the weights to start from
    config.checkpoint_every = 1  # epochs
    config.figure_every = 0  # epochs between figures of samples; 0: none
    config.log_every = 0  # steps of an epoch between lines with the terms of one batch; 0: none
    config.objective = ConfigDict(objectives.DEFAULTS)
    config.optimizer = ConfigDict(schedules.DEFAULTS)
    config.update(settings)
    return config


def folder() -> pathlib.Path:
    """Returns the folder of cvae_jax's own configs: beside the package in a checkout, inside it where pip put it."""
    package = pathlib.Path(__file__).parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def load(name: str) -> ConfigDict:
    """Returns the config of a file, or of one of cvae_jax's own, such as "mnist_quadrants.py:1".

    Args:
      name: a path, else the name of a file in `folder()`, with its variant after a colon.

    Raises:
      UserError: when there is no such file, or for a variant that it does not have.
    """
    file, colon, variant = name.partition(":")
    path = next((path for path in (pathlib.Path(file), folder() / file) if path.is_file()), None)
    if path is None:
        own = ", ".join(sorted(path.name for path in folder().glob("[a-z]*.py")))
        raise UserError(f"config {file} is no file, and none of cvae_jax's own: {own}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(*([variant] if colon else []))


def resolve(arguments: Sequence[str]) -> list[str]:
    """Returns a command's arguments with --config=NAME.py:variant as a path: as it is, else one of cvae_jax's own."""
    resolved = []
    for argument in arguments:
        flag, _, value = argument.partition("=")
        name, colon, variant = value.partition(":")
        own = folder() / name
        if flag in ("--config", "-config") and name and not pathlib.Path(name).exists() and own.exists():
            argument = f"{flag}={own}{colon}{variant}"
        resolved.append(argument)
    return resolved
