"""What data say of themselves, where a test makes a task without data."""

from cvae_jax import data, tasks
from cvae_jax.task import Spec

NOTHING = Spec({}, {}, {}, {})  # for tasks whose arrays the config describes


def task_of(config):
    """The task of a config whose arrays the config describes."""
    return tasks.make_task(config, NOTHING)


def load(config):
    """The task of a config, and the checked arrays of its splits."""
    splits = data.load(config.data, tasks.find(config.task).sources)
    task = tasks.make_task(config, data.spec(splits))
    return task, data.check(splits, task, config.data.source)
