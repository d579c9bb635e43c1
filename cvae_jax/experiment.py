"""From a config to trained models: data, what they say of themselves, the task, and its stages one after the other."""

import logging
import pathlib
from typing import Any

import jax
from ml_collections import ConfigDict

from cvae_jax import data, tasks
from cvae_jax.evaluation import pictures
from cvae_jax.task import Splits, Stage, Task, Variables
from cvae_jax.trained import TrainedModel, of_seed, seeds_of
from cvae_jax.training import log, loop
from cvae_jax.training.curves import training_curves
from cvae_jax.training.step import State
from cvae_jax.training.workdir import Identity, fingerprint, open_workdir, run_of


def train(config: ConfigDict, workdir: str) -> None:
    """Trains every stage of the config's task in `workdir`, going on where an earlier call stopped.

    Leaves config.json, what is kept of the data, checkpoints/, metrics.jsonl, tensorboard/ and figures/ there.

    Args:
      config: from `get_config` of a file in configs/, or of one's own.
      workdir: the folder.

    Raises:
      UserError: for settings, data or a workdir that cannot be used.
      DivergenceError: when a term of the loss is not finite.
    """
    config = config.copy_and_resolve_references()  # a batch size may be lowered
    splits = data.load(config.data, tasks.find(config.task).sources)
    spec = data.spec(splits)
    task = tasks.make_task(config, spec)
    splits = data.check(splits, task, config.data.source)
    for stage in task.stages:
        loop.fit_batch_size(stage, data.num_examples(splits["train"]))
    _check(config, task, splits)
    with open_workdir(workdir, Identity(config, fingerprint(task, splits), spec)) as path:
        earlier: Variables = {}
        for stage in task.stages:
            earlier[stage.name] = _train_stage(stage, dict(earlier), task, config, splits, path, run_of(config, spec))


def _check(config: ConfigDict, task: Task, splits: Splits) -> None:
    """Raises a UserError for settings of the run, or of a stage, that cannot be."""
    data.of(splits, "valid")
    for stage in task.stages:
        loop.check_settings(stage, task, [len(bucket.ids) for bucket in loop.training_buckets(stage, task, splits)])
    loop.check_seeds(config)


def _train_stage(
    stage: Stage,
    earlier: Variables,
    task: Task,
    config: ConfigDict,
    splits: Splits,
    path: pathlib.Path,
    run: dict[str, Any],
) -> Variables:
    """Trains one stage and draws its figures, of the first seed; returns its best variables, leaves [seeds, ...]."""
    folder, units = path / "figures", {name: unit for trained in task.stages for name, unit in trained.units.items()}

    def draw(variables: Variables, name: str, title: str) -> None:
        trained = TrainedModel(config, task, config.seed, of_seed({**earlier, stage.name: variables}, 0))
        pictures.draw_samples(trained, splits["valid"], folder / stage.name / f"{name}.png", f"{stage.name}, {title}")

    def after_epoch(epoch: int, state: State) -> None:
        every = stage.settings.figure_every
        if every and (epoch % every == 0 or epoch == 1):
            training_curves(log.read(path), folder / "training.png", units)
            draw(state.averaged, f"epoch_{epoch:04d}", f"epoch {epoch}")

    seeds = loop.Seeds(seeds_of(config), config.seeds_by)
    state = loop.run_stage(stage, task, splits, earlier, seeds, path, run, after_epoch)
    training_curves(log.read(path), folder / "training.png", units)
    if stage.settings.figure_every:
        draw(state.best, "best", "best weights")
        pictures.animate_training(folder, stage.name)
    name, best = loop.best_of(stage.settings, jax.device_get(state.best_score))
    shown = ", ".join(f"{value:.3f}" for value in best.tolist())
    logging.getLogger(__name__).info("%s: best validation %s %s", stage.name, name.removeprefix("best_"), shown)
    return jax.device_get(state.best)
