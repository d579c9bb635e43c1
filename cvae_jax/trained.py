"""Trained models, loaded from the folder where training left them."""

import dataclasses
import logging
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax import Array
from ml_collections import ConfigDict

from cvae_jax import inference, parallel, tasks
from cvae_jax.errors import UserError, reason, shortened
from cvae_jax.inference import Ais, Estimate
from cvae_jax.settings import Whole
from cvae_jax.task import Fitted, PyTree, Spec, Stage, Task, Variables
from cvae_jax.training import log, loop, step, workdir
from cvae_jax.training.checkpoints import Checkpoints

LOGGER = logging.getLogger(__name__)

DEFAULT_AIS = Ais()


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """A trained system: the models of one seed with their best weights.

    Attributes:
      config: of the run.
      task: that the config names.
      seed: of the models.
      best: stage name -> best variables.
    """

    config: ConfigDict
    task: Task
    seed: int
    best: dict[str, Variables]

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages that have been trained, in order."""
        return tuple(stage for stage in self.task.stages if stage.name in self.best)

    @property
    def params(self) -> PyTree:
        """Parameters of the last stage's model."""
        return self.best[self.stages[-1].name]["params"]

    def fitted(self, stage: str | None = None) -> Fitted:
        """Returns a stage's model with its variables, the last one's by default.

        Raises:
          UserError: for a stage that is not trained here.
        """
        names = [trained.name for trained in self.stages]
        name = stage or names[-1]
        if name not in names:
            raise UserError(f"stage {name!r} is not trained here; there are {', '.join(names)}")
        number = names.index(name)
        variables = {**self.best[name], "frozen": {earlier: self.best[earlier] for earlier in names[:number]}}
        return step.fitted(self.stages[number], self.task, variables)

    def predict(self, x: Any = None, stage: str | None = None) -> PyTree:
        """Returns E[y | x, z = E[z|x]], one prediction for every example, of a stage, the last one by default."""
        return _predict(self.fitted(stage), self.task.from_user(x))

    def sample(self, x: Any, num_samples: int, key: Array, noise: bool = True, stage: str | None = None) -> PyTree:
        """Returns samples of y given x: NumPy leaves [num_samples, batch, ...].

        Args:
          x: what the task observes.
          num_samples: for every example.
          key: from `jax.random.key`.
          noise: draw y from the likelihood p(y|x,z); False gives its mean E[y|x,z], as images are usually shown.
          stage: whose model; the last one's by default.
        """
        inference.check_draws(num_samples, key)
        batch = self.task.from_user(x)
        return inference.draw_samples(self.fitted(stage), batch, inference.keys_of(batch, key, num_samples), noise)

    def encode(self, x: Any, y: Any, stage: str | None = None) -> PyTree:
        """Returns z = E[z|x,y] by the recognition network: a NumPy array [batch, ...] for each latent layer.

        The mean of a later layer is that given the means of those before it.

        Args:
          x: what the task observes.
          y: the outputs whose z is inferred.
          stage: whose model; the last one's by default.

        Raises:
          UserError: for a model without a trained recognition network.
        """
        return jax.device_get(_infer(self._recognising(stage), self.task.from_user(x, y))[0])

    def reconstruct(self, x: Any, y: Any, stage: str | None = None) -> PyTree:
        """Returns E[y | x, z = E[z|x,y]], leaves [batch, ...]: y as the model tells it from its own code.

        Arguments and errors are those of `encode`.
        """
        return _infer(self._recognising(stage), self.task.from_user(x, y))[1]

    def interpolate(self, x: Any, y: Any, other_y: Any, num_steps: int, stage: str | None = None) -> PyTree:
        """Returns E[y|x,z] along the straight line from the z of `y` to that of `other_y`, see `encode`.

        A model that predicts step by step, such as that of videos, goes on from its own predictions here, and from
        the true y in `reconstruct`.

        Args:
          x: what the task observes, the same all along the line.
          y: where the lines begin, [batch, ...].
          other_y: where they end, [batch, ...].
          num_steps: points of each line, both ends among them.
          stage: whose model; the last one's by default.

        Returns:
          NumPy leaves [num_steps, batch, ...].

        Raises:
          UserError: as `encode`, or for less than two points.
        """
        if must := Whole(2).refuse(num_steps):
            raise UserError(f"num_steps={num_steps!r} must be {must}")
        fitted = self._recognising(stage)
        batch, far = self.task.from_user(x, y), self.task.from_user(x, other_y)
        start, end = _infer(fitted, batch)[0], _infer(fitted, far)[0]
        known = batch._replace(y=None)
        steps = [
            inference.decode(fitted, known, jax.tree.map(lambda a, b, share=share: a + (b - a) * share, start, end))
            for share in np.linspace(0, 1, num_steps, dtype=np.float32)
        ]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *jax.device_get(steps))

    def _recognising(self, stage: str | None) -> Fitted:
        """Returns a stage's model, once it is checked that its recognition network was trained."""
        fitted = self.fitted(stage)
        name = stage or self.stages[-1].name
        if fitted.exact:
            raise UserError(f"stage {name!r} is deterministic: it has no z to infer; use predict")
        if not fitted.has_recognition:
            raise UserError(f"the recognition network of stage {name!r} was not trained; sample draws z given x alone")
        return fitted

    def log_prob(
        self,
        x: Any,
        y: Any,
        num_samples: int,
        key: Array,
        estimator: str = "is",
        stage: str | None = None,
        settings: Ais = DEFAULT_AIS,
    ) -> Estimate:
        """Estimates log p(y|x) of every example in nats, with its Monte Carlo error, effective sample size and k̂.

        Args:
          x: what the task observes.
          y: the outputs to score.
          num_samples: for every example; with "ais" the number of chains.
          key: from `jax.random.key`.
          estimator: any of `inference.ESTIMATOR_NAMES`; it makes no difference to a model without latent variables.
          stage: whose model; the last one's by default.
          settings: of "ais".
        """
        fitted, batch = self.fitted(stage), self.task.from_user(x, y)
        inference.check([(estimator, num_samples)])
        inference.check_draws(num_samples, key)
        if fitted.exact:
            return inference.exact(fitted, batch)
        if not fitted.has_recognition and inference.draws_from_recognition(estimator, settings):
            raise UserError(
                f"estimator {estimator!r} draws from the recognition network, which was not trained; "
                'use "mc", or "ais" with Ais(start="prior")'
            )
        return inference.log_prob(fitted, batch, estimator, num_samples, key, settings)


_predict = jax.jit(inference.predict)
_infer = jax.jit(inference.infer)


def seeds_of(config: ConfigDict) -> np.ndarray:
    """Returns the seeds of a run's independent models, int32 [num_seeds]."""
    return np.arange(config.seed, config.seed + config.num_seeds, dtype=np.int32)


def of_seed(tree: PyTree, number: int) -> PyTree:
    """Returns one seed's part of a tree whose leaves begin with the axis of the seeds."""
    return jax.tree.map(lambda leaf: leaf[number], tree)


def load(workdir: str, seed: int | None = None, changes: Sequence[str] = ()) -> TrainedModel:
    """Loads what `train` left in `workdir`: the best weights of every stage that has a checkpoint.

    Each CPU core becomes a device of JAX, where JAX has not started: see `parallel.use_every_core`.

    Args:
      workdir: of a run.
      seed: which of the independent models, when the run has several; the first by default.
      changes: of its config, see `load_seeds`.

    Raises:
      UserError: when there is no run, no such seed, or no valid checkpoint of its first stage.
    """
    parallel.use_every_core()
    trained = {model.seed: model for model in load_seeds(workdir, changes)}
    first = next(iter(trained))
    if seed is not None and seed not in trained:
        raise UserError(f"seed={seed} is not trained in {workdir}; choose from {', '.join(map(str, trained))}")
    return trained[first if seed is None else seed]


def _change(config: ConfigDict, changes: Sequence[str]) -> None:
    """Sets keys of a trained run's config; see `load_seeds`."""
    own = [key for key in config if key.startswith("measure_")]
    for change in changes:
        key, _, text = change.partition("=")
        if key not in own:
            known = f"this run has {', '.join(own)}" if own else "this run has none"
            raise UserError(f"change={change!r} must set a key whose name begins with measure_; {known}")
        kind = type(config[key])
        try:
            config[key] = kind(text)
        except ValueError:
            raise UserError(f"change={change!r}: {key} takes a value such as {config[key]!r}") from None


def load_seeds(folder: str, changes: Sequence[str] = ()) -> list[TrainedModel]:
    """Loads the models of every seed, as `load` does one's.

    Args:
      folder: workdir of a run.
      changes: "key=value" for keys of its config whose names begin with measure_: how it is measured, whatever it was
        trained with.
    """
    path = pathlib.Path(folder).expanduser()
    config, spec = workdir.read_config(path), workdir.read_spec(path)
    _change(config, changes)
    parallel.check_platform()
    task = _make_task(config, spec, path / workdir.CONFIG_FILE)
    best = _best_of_stages(task, config, path, workdir.run_of(config, spec, task))
    if not best:
        raise UserError(f"workdir {path} holds no checkpoint yet; train there first")
    seeds = enumerate(seeds_of(config))
    return [TrainedModel(config, task, int(seed), of_seed(best, number)) for number, seed in seeds]


def _make_task(config: ConfigDict, spec: Spec, file: pathlib.Path) -> Task:
    """Returns the task of a config that lies in a file, once its settings are checked.

    Raises:
      UserError: for a setting that is missing or cannot be; names the file.
    """
    try:
        loop.check_seeds(config)
        task = tasks.make_task(config, spec)
        for stage in task.stages:
            loop.check_stage(stage)
        return task
    except (AttributeError, KeyError) as error:  # what a ConfigDict raises for a key that it lacks
        key = str(error).strip("\"'").splitlines()[0]
        raise UserError(f"{file} lacks {key!r}: another version wrote it; train it again") from error
    except UserError as error:
        raise UserError(f"{file}: {shortened(str(error), 400)}") from None
    except (TypeError, ValueError, OverflowError) as error:
        if not tasks.find(config.task).__module__.startswith("cvae_jax."):
            raise  # a mistake in a task of the user's own
        raise UserError(f"{file} or {workdir.SPEC_FILE} is damaged ({reason(error)}); put back a copy of it") from error


def _best_of_stages(task: Task, config: ConfigDict, path: pathlib.Path, run: dict[str, Any]) -> dict[str, Variables]:
    """Returns the best variables of every stage that has a checkpoint, leaves [seeds, ...]."""
    shapes: dict[str, Variables] = {}
    best: dict[str, Variables] = {}
    for stage in task.stages:
        abstract = step.abstract_state(stage, task, config.num_seeds, dict(shapes))
        shapes[stage.name] = abstract.best
        state = Checkpoints(path / "checkpoints" / stage.name, run).restore_newest(abstract)
        if state is None:
            LOGGER.warning("%s: %s has no checkpoint yet, and is left out", path, stage.name)
            break
        best[stage.name] = state.best
        taken = int(state.step[0])
        rows = [row for row in log.read(path) if row["stage"] == stage.name and row["step"] == taken]
        if not rows or not loop.finished(stage.settings, rows[0]["epoch"], state.bad_epochs):
            LOGGER.warning("%s: %s has not finished training; its best weights so far are used", path, stage.name)
    return best
