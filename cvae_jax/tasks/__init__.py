"""One room for each system. A task module has `make_task(config) -> Task`."""

import importlib
import pkgutil
from typing import Any

from cvae_jax.errors import UserError
from cvae_jax.model import Task


def make_task(config: Any) -> Task:
    """The task that the config names, by its module in this folder."""
    names = [module.name for module in pkgutil.iter_modules(__path__)]
    if config.task not in names:
        raise UserError(f"task={config.task!r} is not known; choose from {', '.join(names)}")
    return importlib.import_module(f"{__name__}.{config.task}").make_task(config)
