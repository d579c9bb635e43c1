"""From a config to a trained model and back: what train.py, eval.py and `cvae_jax.load` share."""

import json
import logging
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from ml_collections import ConfigDict

from cvae_jax import data, figures, inference, keys, metrics, parallel, tasks, training
from cvae_jax.checkpoints import Checkpoints, write_atomically
from cvae_jax.errors import UserError
from cvae_jax.estimators import Estimate
from cvae_jax.model import Model, PyTree, Stage, Task, Variables

LOGGER = logging.getLogger(__name__)

CONFIG_FILE = "config.json"


NUM_SHOWN = 8  # examples in a figure of samples
SAMPLES_SHOWN = 10


def open_workdir(workdir: str, config: ConfigDict) -> pathlib.Path:
    """Makes the folder, or checks that it belongs to this config, whose run then goes on.

    Raises:
      UserError: when it holds another config's run or cannot be written.
    """
    path = pathlib.Path(workdir).expanduser()
    text = config.to_json_best_effort(indent=1)
    try:
        path.mkdir(parents=True, exist_ok=True)
        if (path / CONFIG_FILE).exists():
            _check_same(json.loads((path / CONFIG_FILE).read_text()), json.loads(text), path)
        write_atomically(path / CONFIG_FILE, text)
    except OSError as error:
        raise UserError(f"cannot write to workdir {path} ({error.strerror}); choose another --workdir") from None
    return path


def _check_same(saved: dict[str, Any], wanted: dict[str, Any], path: pathlib.Path) -> None:
    """Raises for the first keys that differ; where the data lie may differ, since that changes no number."""
    saved, wanted = _flatten(saved), _flatten(wanted)
    differ = [key for key in {**saved, **wanted} if saved.get(key) != wanted.get(key) and key != "data.dir"]
    if differ:
        shown = ", ".join(f"{key}: {saved.get(key)} there, {wanted.get(key)} now" for key in differ[:3])
        more = f" and {len(differ) - 3} more" if len(differ) > 3 else ""
        raise UserError(f"workdir {path} holds a run of another config ({shown}{more}); choose another --workdir")


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def train(config: ConfigDict, workdir: str) -> None:
    """Trains every stage of the config's task in `workdir`, going on where an earlier call stopped.

    Leaves config.json, checkpoints/, metrics.jsonl, tensorboard/ and figures/ there.
    """
    task = tasks.make_task(config)
    splits = data.load(config.data, task.raw)
    path = open_workdir(workdir, config)
    frozen: Variables = {}
    for stage in task.stages:

        def after_epoch(epoch: int, state: training.State, stage: Stage = stage, frozen: Variables = frozen) -> None:
            every = stage.settings.figure_every
            if every and (epoch % every == 0 or epoch == 1):
                figures.training_curves(metrics.read(path), path / "figures" / "training.png")
                learned = Experiment(config, task, {**frozen, stage.name: state.averaged})
                frame = path / "figures" / stage.name / f"epoch_{epoch:04d}.png"
                draw_samples(learned, splits["valid"], frame, f"{stage.name}, epoch {epoch}")

        state = training.fit(stage, frozen, task, splits, config.seed, path, after_epoch)
        frozen = {**frozen, stage.name: jax.device_get(state.best)}
        figures.training_curves(metrics.read(path), path / "figures" / "training.png")
        frames = sorted((path / "figures" / stage.name).glob("epoch_*.png"))
        if frames:
            figures.animate(frames, path / "figures" / f"{stage.name}.gif")
        LOGGER.info("%s: best validation loss %.3f", stage.name, float(state.best_loss))


class Experiment(NamedTuple):
    """A trained experiment: its models with their best weights."""

    config: ConfigDict
    task: Task
    best: dict[str, Variables]  # stage name -> best variables

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages that have been trained, in order."""
        return tuple(stage for stage in self.task.stages if stage.name in self.best)

    @property
    def params(self) -> PyTree:
        """Parameters of the last stage's model."""
        return self.best[self.stages[-1].name]["params"]

    def model(self, stage: str | None = None) -> tuple[Model, Variables]:
        """A stage's model (the last one's by default) and the variables to call it with."""
        name = stage or self.stages[-1].name
        models = {one.name: one.model for one in self.stages}
        if name not in models:
            raise UserError(f"stage {name!r} is not trained here; there are {', '.join(models)}")
        earlier = {one: self.best[one] for one in list(models)[: list(models).index(name)]}
        return models[name], {**self.best[name], "frozen": earlier}

    def predict(self, x: Any, stage: str | None = None) -> PyTree:
        """E[y | x, z = E[z|x]]: one prediction for every example."""
        model, variables = self.model(stage)
        return jax.jit(inference.predict, static_argnums=0)(model, variables, self.task.observe(x))

    def sample(self, x: Any, num_samples: int, key: Array, noise: bool = True, stage: str | None = None) -> PyTree:
        """Samples of y given x: leaves [num_samples, batch, ...].

        Args:
          x: what the task observes.
          num_samples: for every example.
          key: from `jax.random.key`.
          noise: draw y from the likelihood p(y|x,z); False gives its mean E[y|x,z], as images are usually shown.
          stage: whose model; the last one's by default.
        """
        if num_samples < 1:
            raise UserError(f"num_samples={num_samples} must be at least 1")
        model, variables = self.model(stage)
        batch = self.task.observe(x)
        sample_keys = keys.per_sample(keys.per_example(key, batch.index), jnp.arange(num_samples))
        return jax.jit(inference.sample, static_argnums=(0, 4))(model, variables, batch, sample_keys, noise)

    def log_prob(
        self, x: Any, y: Any, num_samples: int, key: Array, estimator: str = "is", stage: str | None = None
    ) -> Estimate:
        """Estimates log p(y|x) of every example in nats, with its Monte Carlo error and effective sample size.

        Args:
          x: what the task observes.
          y: the outputs to score.
          num_samples: for every example.
          key: from `jax.random.key`.
          estimator: "is", "mc" or "elbo", see `cvae_jax.estimators`.
          stage: whose model; the last one's by default.
        """
        model, variables = self.model(stage)
        return inference.log_prob(model, variables, self.task.observe(x, y), estimator, num_samples, key)


def draw_samples(experiment: Experiment, arrays: dict[str, np.ndarray], path: pathlib.Path, title: str) -> None:
    """Saves the task's figure: the first examples of a split with every stage's prediction or samples."""
    task = experiment.task
    index = jnp.arange(min(NUM_SHOWN, data.num_examples(arrays)))
    raw = {name: jnp.asarray(arrays[name][: len(index)]) for name in task.raw}
    targets = keys.per_example(keys.stream(0, "targets"), index)
    batch = task.batch(raw, index, jnp.ones(len(index)), targets, False)
    shown = {}
    for stage in experiment.stages:
        model, variables = experiment.model(stage.name)
        count = SAMPLES_SHOWN if inference.has_latents(model, variables, batch) else 1
        sample_keys = keys.per_sample(keys.per_example(keys.stream(0, "figure"), index), jnp.arange(count))
        shown[stage.name] = jax.jit(inference.sample, static_argnums=(0, 4))(
            model, variables, batch, sample_keys, False
        )
    figures.image_grid(task.panels(batch, shown), path, title)


def load(workdir: str) -> Experiment:
    """Loads what `train` left in `workdir`: the best weights of every stage that has a checkpoint.

    Raises:
      UserError: when there is no run, or no valid checkpoint of its first stage.
    """
    path = pathlib.Path(workdir).expanduser()
    try:
        config = ConfigDict(json.loads((path / CONFIG_FILE).read_text()))
    except FileNotFoundError:
        raise UserError(f"workdir {path} holds no run ({CONFIG_FILE} is missing); train there first") from None
    except ValueError:
        raise UserError(f"{path / CONFIG_FILE} is damaged; put back a copy of it") from None
    task = tasks.make_task(config)
    mesh = parallel.make_mesh()
    best: dict[str, Variables] = {}
    for stage in task.stages:
        checkpoints = Checkpoints(path / "checkpoints" / stage.name)
        state = checkpoints.restore_newest(training.abstract_state(stage, task, mesh))
        if state is None:
            LOGGER.warning("%s: %s has no checkpoint yet, and is left out", path, stage.name)
            break
        best[stage.name] = state.best
        rows = [row for row in metrics.read(path) if row["stage"] == stage.name and row["step"] == int(state.step)]
        if not rows or not training.finished(stage.settings, rows[0]["epoch"], int(state.bad_epochs)):
            LOGGER.warning("%s: %s has not finished training; its best weights so far are used", path, stage.name)
    if not best:
        raise UserError(f"workdir {path} holds no checkpoint yet; train there first")
    return Experiment(config, task, best)
