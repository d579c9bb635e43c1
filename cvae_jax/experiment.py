"""From a config to trained models: data, what they say of themselves, the task, and its stages one after the other."""

import contextlib
import logging
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from cvae_jax import data, parallel, tasks
from cvae_jax.errors import UserError, reason
from cvae_jax.evaluation import pictures
from cvae_jax.task import Splits, Stage, Task, Variables
from cvae_jax.trained import TrainedModel, load_seeds, of_seed, seeds_of
from cvae_jax.training import log, loop, step
from cvae_jax.training.checkpoints import Checkpoints
from cvae_jax.training.curves import training_curves
from cvae_jax.training.step import State
from cvae_jax.training.workdir import Identity, check_config, fingerprint, open_workdir, run_of

LOGGER = logging.getLogger(__name__)


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
    parallel.check_platform()
    check_config(workdir, config, data_known=False)  # before a download
    config = config.copy_and_resolve_references()  # a batch size may be lowered
    splits = data.load(config.data, tasks.find(config.task).sources)
    spec = data.spec(splits)
    task = tasks.make_task(config, spec)
    splits = data.check(splits, task, config.data.source)
    for stage in task.stages:
        loop.fit_batch_size(stage, data.num_examples(splits["train"]))
    _check(config, task, splits)
    starts = _starts(config, task, pathlib.Path(workdir).expanduser())
    with open_workdir(workdir, Identity(config, fingerprint(task, splits), spec, task)) as path:
        earlier: Variables = {}
        run = run_of(config, spec, task)
        for stage in task.stages:
            start = starts.get(stage.name)
            earlier[stage.name] = _train_stage(stage, dict(earlier), task, config, splits, path, run, start)
        LOGGER.info("checkpoints, metrics and figures: %s; measure with: python eval.py --workdir=%s", path, workdir)


def _check(config: ConfigDict, task: Task, splits: Splits) -> None:
    """Raises a UserError for settings of the run, or of a stage, that cannot be."""
    data.of(splits, "valid")
    for stage in task.stages:
        loop.check_settings(stage, task, [len(bucket.ids) for bucket in loop.training_buckets(stage, task, splits)])
    loop.check_seeds(config)


def _starts(config: ConfigDict, task: Task, path: pathlib.Path) -> dict[str, Variables]:
    """Returns the variables, leaves [seeds, ...], from which stages start that have no checkpoint in the workdir.

    Raises:
      UserError: where the run that `start_from` names has no such stage, other networks, or other seeds than one or as
        many as this run.
    """
    starts: dict[str, Variables] = {}
    shapes: dict[str, Variables] = {}
    for stage in task.stages:
        folder, key = stage.settings.get("start_from", ""), f"{stage.section}.start_from"
        if any(task_stage.settings.get("start_from", "") for task_stage in task.stages):
            shapes[stage.name] = step.abstract_state(stage, task, config.num_seeds, dict(shapes)).best
        if not folder or Checkpoints(path / "checkpoints" / stage.name).steps():
            continue
        models = load_seeds(folder)
        if any(stage.name not in model.best for model in models):
            raise UserError(f"{key}={folder} has no stage {stage.name!r}; there are {', '.join(models[0].best)}")
        if len(models) not in (1, config.num_seeds):
            counts = f"{len(models)} seeds, this run {config.num_seeds}"
            raise UserError(f"{key}={folder} has {counts}; make them equal, or start from a run of 1")
        chosen = [models[number % len(models)].best[stage.name] for number in range(config.num_seeds)]
        starts[stage.name] = jax.tree.map(lambda *leaves: np.stack(leaves), *chosen)
        step.check_start(shapes[stage.name], starts[stage.name], key)
    return starts


@contextlib.contextmanager
def _drawing() -> Iterator[None]:
    """Warns where a figure cannot be written: that is no reason to stop training."""
    try:
        yield
    except OSError as error:
        LOGGER.warning("a figure cannot be written (%s); training goes on without it", reason(error))


def _train_stage(
    stage: Stage,
    earlier: Variables,
    task: Task,
    config: ConfigDict,
    splits: Splits,
    path: pathlib.Path,
    run: dict[str, Any],
    start: Variables | None,
) -> Variables:
    """Trains one stage and draws its figures, of the first seed; returns its best variables, leaves [seeds, ...]."""
    folder, units = path / "figures", {name: unit for trained in task.stages for name, unit in trained.units.items()}

    def draw(variables: Variables, name: str, title: str) -> None:
        trained = TrainedModel(config, task, config.seed, of_seed({**earlier, stage.name: variables}, 0))
        pictures.draw_samples(
            trained, splits["valid"], folder / stage.name / f"{name}.png", f"{path.name}: {stage.name}, {title}"
        )

    def after_epoch(epoch: int, state: State) -> None:
        every = stage.settings.figure_every
        if every and (epoch % every == 0 or epoch == 1):
            with _drawing():
                training_curves(log.read(path), folder / "training.png", units)
                draw(state.averaged, f"epoch_{epoch:04d}", f"epoch {epoch}")

    seeds = loop.Seeds(seeds_of(config), config.seeds_by)
    state = loop.run_stage(stage, task, splits, earlier, seeds, path, run, after_epoch, start)
    with _drawing():
        training_curves(log.read(path), folder / "training.png", units)
        if stage.settings.figure_every:
            draw(state.best, "best", "best weights")
            pictures.animate_training(folder, stage.name)
    name, best = loop.best_of(stage.settings, jax.device_get(state.best_score))
    shown = ", ".join(f"{value:.3f}" for value in best.tolist())
    LOGGER.info("%s: best validation %s %s", stage.name, name.removeprefix("best_"), shown)
    return jax.device_get(state.best)
