"""The systems, each a module or a folder here, and those that are registered from outside.

A module of this folder has `TASK`, a class derived from `cvae_jax.task.Task`. A task from anywhere else is given by
`register`, from Python or from the module that `--task_module` names:

    from cvae_jax import Task, tasks

    class Rainfall(Task):
        ...

    tasks.register("rainfall", Rainfall)
"""

import importlib
import pkgutil
import sys

from ml_collections import ConfigDict

from cvae_jax.errors import UserError
from cvae_jax.task import Spec, Task

_REGISTERED: dict[str, type[Task]] = {}


def names() -> list[str]:
    """Returns the names that a config's `task` may have."""
    return [*(module.name for module in pkgutil.iter_modules(__path__)), *_REGISTERED]


def register(name: str, task: type[Task]) -> None:
    """Makes a task known under a name, which configs give as `task`; registering it again replaces it.

    Raises:
      UserError: for the name of a task of this package, or what is no class derived from Task.
    """
    if not (isinstance(task, type) and issubclass(task, Task)):
        raise UserError(f"task {name!r} is no class derived from cvae_jax.Task, but {task!r}")
    if any(module.name == name for module in pkgutil.iter_modules(__path__)):
        raise UserError(f"task {name!r} is one of cvae_jax's own; register it under another name")
    _REGISTERED[name] = task


def import_module(module: str) -> None:
    """Imports a module that registers its task, from the working directory or wherever Python finds it.

    Raises:
      UserError: when there is no such module.
    """
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not (module == error.name or module.startswith(error.name + ".")):
            raise
        raise UserError(
            f"task_module={module!r} is not found; name a module as Python imports it, without .py, from the folder "
            "where it lies"
        ) from None


def find(name: str) -> type[Task]:
    """Returns the task of a name.

    Raises:
      UserError: for a name that is not known.
    """
    if name in _REGISTERED:
        return _REGISTERED[name]
    if name not in names():
        raise UserError(
            f"task={name!r} is not known; choose from {', '.join(names())}, or name the module that registers it with "
            "--task_module (from Python: import it)"
        )
    return importlib.import_module(f"{__name__}.{name}").TASK


def make_task(config: ConfigDict, spec: Spec) -> Task:
    """Makes the task that a config names, for data of that spec."""
    return find(config.task)(config, spec)
