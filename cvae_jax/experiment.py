"""From a config to a trained model and back: what train.py, eval.py and `cvae_jax.load` share."""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from ml_collections import ConfigDict

from cvae_jax import data, figures, keys, objectives, parallel, tasks
from cvae_jax.data import buckets
from cvae_jax.errors import UserError
from cvae_jax.inference import draws as inference
from cvae_jax.inference.ais import Annealing
from cvae_jax.inference.estimators import Estimate
from cvae_jax.model import Batch, Columns, How, Model, PyTree, Stage, Task, Variables, has_latents
from cvae_jax.training import log as metrics
from cvae_jax.training import loop as training
from cvae_jax.training.checkpoints import Checkpoints, write_atomically

LOGGER = logging.getLogger(__name__)

CONFIG_FILE = "config.json"
DATA_FILE = "data.sha256.json"  # of the arrays it was trained on


NUM_SHOWN = 8  # examples in a figure of samples
SAMPLES_SHOWN = 10


def read_config(path: pathlib.Path) -> dict[str, Any]:
    """The config of a workdir, as a tree of plain values.

    Raises:
      UserError: when it is missing or damaged.
    """
    try:
        config = json.loads((path / CONFIG_FILE).read_text())
    except OSError:
        raise UserError(f"workdir {path} holds no run ({CONFIG_FILE} is missing); train there first") from None
    except ValueError:
        config = None
    if not isinstance(config, dict) or "task" not in config:
        raise UserError(f"{path / CONFIG_FILE} is damaged; put back a copy of it")
    if "num_seeds" not in config:
        raise UserError(f"workdir {path} was trained by an older version, before runs had seeds; train it again")
    return config


def read_fingerprint(workdir: str) -> dict[str, str]:
    """SHA-256 of every split's raw arrays beside which a run was trained; {} where that file is missing."""
    try:
        return json.loads((pathlib.Path(workdir).expanduser() / DATA_FILE).read_text())
    except (OSError, ValueError):
        return {}


def fingerprint(task: Task, splits: data.Splits) -> dict[str, str]:
    """SHA-256 of every split's raw arrays."""
    found = {}
    for split, arrays in splits.items():
        digest = hashlib.sha256()
        for name in task.raw:
            digest.update(np.ascontiguousarray(arrays[name]).reshape(-1).data)  # no copy: videos take gigabytes
        found[split] = digest.hexdigest()
    return found


@contextlib.contextmanager
def open_workdir(workdir: str, config: ConfigDict, data_fingerprint: dict[str, str]) -> Iterator[pathlib.Path]:
    """Makes the folder, or checks that it belongs to this config and data, whose run then goes on; locks it.

    Raises:
      UserError: when it holds another run that has checkpoints, is in use, or cannot be written.
    """
    path = pathlib.Path(workdir).expanduser()
    text = config.to_json_best_effort(indent=1)
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = os.open(path / "lock", os.O_CREAT | os.O_RDWR)
    except OSError as error:
        raise UserError(f"cannot write to workdir {path} ({error.strerror}); choose another --workdir") from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # let go by the system however the process ends
        except OSError:
            raise UserError(f"another process is training in workdir {path}; wait for it, or choose another") from None
        if any((path / "checkpoints").glob("*/*.sha256.json")):
            _check_same(read_config(path), json.loads(text), path)
            if (path / DATA_FILE).exists() and json.loads((path / DATA_FILE).read_text()) != data_fingerprint:
                raise UserError(f"workdir {path} holds a run on other data; choose another --workdir")
        write_atomically(path / CONFIG_FILE, text)
        write_atomically(path / DATA_FILE, json.dumps(data_fingerprint, indent=1))
        yield path
    finally:
        os.close(lock)


def _check_same(saved: dict[str, Any], wanted: dict[str, Any], path: pathlib.Path) -> None:
    """Raises for the first keys that differ; where the data lie may differ, since the data are compared themselves."""
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

    Raises:
      UserError: for settings, data or a workdir that cannot be used.
      DivergenceError: when a term of the loss is not finite.
    """
    task = tasks.make_task(config)
    splits = data.load(config.data, task)
    for needed in ("train", "valid"):
        data.of(splits, needed)
    for stage in task.stages:
        of_training = training.training_buckets(stage, task, splits)
        training.check_settings(stage, [len(bucket.index) for bucket in of_training])
    if config.num_seeds < 1:
        raise UserError(f"num_seeds={config.num_seeds} must be at least 1")
    if not 0 <= config.seed <= 2**31 - config.num_seeds:
        raise UserError(f"seed={config.seed} must be between 0 and {2**31 - config.num_seeds:,}")
    if config.seeds_by not in ("map", "vmap"):
        raise UserError(f"seeds_by={config.seeds_by!r} is not known; choose map or vmap")
    with open_workdir(workdir, config, fingerprint(task, splits)) as path:
        frozen: Variables = {}
        for stage in task.stages:
            frozen[stage.name] = _train_stage(stage, dict(frozen), task, config, splits, path)


def _train_stage(
    stage: Stage, frozen: Variables, task: Task, config: ConfigDict, splits: data.Splits, path: pathlib.Path
) -> Variables:
    """Trains one stage and draws its figures, of the first seed; returns its best variables, leaves [seeds, ...]."""
    folder = path / "figures"

    def draw(variables: Variables, name: str, title: str) -> None:
        trained = Experiment(config, task, config.seed, _of_seed({**frozen, stage.name: variables}, 0))
        draw_samples(trained, splits["valid"], folder / stage.name / f"{name}.png", f"{stage.name}, {title}")

    def after_epoch(epoch: int, state: training.State) -> None:
        every = stage.settings.figure_every
        if every and (epoch % every == 0 or epoch == 1):
            figures.training_curves(metrics.read(path), folder / "training.png")
            draw(state.averaged, f"epoch_{epoch:04d}", f"epoch {epoch}")

    state = training.fit(stage, frozen, task, splits, seeds_of(config), config.seeds_by, path, after_epoch)
    figures.training_curves(metrics.read(path), folder / "training.png")
    if stage.settings.figure_every:
        draw(state.best, "best", "best weights")
        frames = sorted((folder / stage.name).glob("epoch_*.png"))
        figures.animate([*frames, folder / stage.name / "best.png"], folder / f"{stage.name}.gif")
    losses = ", ".join(f"{loss:.3f}" for loss in state.best_loss.tolist())
    LOGGER.info("%s: best validation loss %s", stage.name, losses)
    return jax.device_get(state.best)


def seeds_of(config: ConfigDict) -> np.ndarray:
    """The seeds of an experiment's independent models, int32 [num_seeds]."""
    return np.arange(config.seed, config.seed + config.num_seeds, dtype=np.int32)


def _of_seed(tree: PyTree, number: int) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[number], tree)


class Experiment(NamedTuple):
    """A trained experiment: the models of one seed with their best weights."""

    config: ConfigDict
    task: Task
    seed: int
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

    def predict(self, x: Any = None, stage: str | None = None) -> PyTree:
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
        return _sample(model, variables, batch, sample_keys, noise, self.how(stage).predicts_from)

    def how(self, stage: str | None = None) -> How:
        """How a stage's model is measured: see `How`."""
        name = stage or self.stages[-1].name
        model, variables = self.model(name)
        objective = {one.name: one.settings.objective for one in self.stages}[name]
        proposal = objectives.predicts_from(objective)
        index = jnp.zeros(1, jnp.int32)
        raw = {name: jnp.zeros((1, *one.shape), one.dtype) for name, one in self.task.raw.items()}
        # As in training, which fits the data at hand: of a user's own videos, more may be asked for.
        batch = jax.eval_shape(lambda: self.task.batch(raw, index, jnp.ones(1), keys.unused(index), True))
        exact = proposal == "prior_mean" or not has_latents(model, variables, batch)
        return How(exact, not exact and objectives.trains_recognition(objective), proposal)

    def log_prob(
        self,
        x: Any,
        y: Any,
        num_samples: int,
        key: Array,
        estimator: str = "is",
        stage: str | None = None,
        settings: Annealing = Annealing(),
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
        model, variables = self.model(stage)
        batch, how = self.task.observe(x, y), self.how(stage)
        inference.check([(estimator, num_samples)])
        if how.exact:
            return inference.exact(model, variables, batch)
        if not how.has_recognition and inference.draws_from_recognition(estimator, settings):
            raise UserError(
                f"estimator {estimator!r} draws from the recognition network, which was not trained; "
                'use "mc", or "ais" with Annealing(start="prior")'
            )
        return inference.log_prob(model, variables, batch, estimator, num_samples, key, settings)


_sample = jax.jit(inference.sample, static_argnums=(0, 4, 5))


def measured_batch(task: Task, raw: dict[str, np.ndarray], index: np.ndarray, valid: np.ndarray, seed: int) -> Batch:
    """A batch that is measured or shown; binarised targets depend on (seed, index of the example) alone.

    Args:
      task: whose batch.
      raw: the rows' arrays, as `task.raw` has them.
      index: of each row in the split.
      valid: which rows count, bool [batch].
      seed: of the targets.
    """
    rows = {name: jnp.asarray(array) for name, array in raw.items()}
    positions = jnp.asarray(index, jnp.int32)
    targets = keys.per_example(keys.stream(seed, "targets"), positions)
    make = jax.jit(task.batch, static_argnums=4)  # op by op it would be dozens of programs
    return make(rows, positions, jnp.asarray(valid, jnp.float32), targets, False)


def _shown(task: Task, arrays: dict[str, np.ndarray]) -> Batch:
    """The first examples of a split."""
    index = np.arange(min(NUM_SHOWN, data.num_examples(arrays)))
    shown = buckets.together(task, {name: arrays[name][: len(index)] for name in task.raw})
    return measured_batch(task, shown, index, np.ones(len(index), bool), seed=0)


def draw_samples(experiment: Experiment, arrays: dict[str, np.ndarray], path: pathlib.Path, title: str) -> None:
    """Saves the task's figure: the first examples of a split with every stage's prediction or samples."""
    batch = _shown(experiment.task, arrays)
    drawn = {}
    for stage in experiment.stages:
        model, variables = experiment.model(stage.name)
        how = experiment.how(stage.name)
        count = 1 if how.exact else SAMPLES_SHOWN
        example_keys = keys.per_example(keys.stream(0, "figure"), batch.index)
        sample_keys = keys.per_sample(example_keys, jnp.arange(count))
        drawn[stage.name] = _sample(model, variables, batch, sample_keys, False, how.predicts_from)
    figures.image_grid(experiment.task.panels(batch, drawn), path, title)


def draw_pictures(
    experiment: Experiment, arrays: dict[str, np.ndarray], folder: pathlib.Path, base: str, title: str
) -> None:
    """Saves the task's other figures of the last stage, each as <its name>_<base>.png."""
    model, variables = experiment.model()
    batch, key = _shown(experiment.task, arrays), keys.stream(0, "pictures")
    for name, picture in experiment.task.pictures(model, variables, batch, experiment.how(), key).items():
        path = folder / f"{name}_{base}.png"
        if isinstance(picture, Columns):
            figures.image_grid(picture.columns, path, f"{title}, {picture.title}", picture.rows)
        else:
            picture(path, title)


def load(workdir: str, seed: int | None = None, changes: Sequence[str] = ()) -> Experiment:
    """Loads what `train` left in `workdir`: the best weights of every stage that has a checkpoint.

    Args:
      workdir: of a run.
      seed: which of the independent models, when the run has several; the first by default.
      changes: of its config, see `load_seeds`.

    Raises:
      UserError: when there is no run, no such seed, or no valid checkpoint of its first stage.
    """
    trained = {one.seed: one for one in load_seeds(workdir, changes)}
    first = next(iter(trained))
    if seed is not None and seed not in trained:
        raise UserError(f"seed={seed} is not trained in {workdir}; there are {', '.join(map(str, trained))}")
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


def load_seeds(workdir: str, changes: Sequence[str] = ()) -> list[Experiment]:
    """Loads the models of every seed, as `load` does one's.

    Args:
      workdir: of a run.
      changes: "key=value" for keys of its config whose names begin with measure_: how it is measured, whatever it was
        trained with.
    """
    path = pathlib.Path(workdir).expanduser()
    config = ConfigDict(read_config(path))
    _change(config, changes)
    mesh = parallel.make_mesh()
    try:
        task = tasks.make_task(config)
        abstract = [training.abstract_state(stage, task, mesh, config.num_seeds) for stage in task.stages]
    except (AttributeError, KeyError) as error:  # what a ConfigDict raises for a key that it lacks
        key = str(error).strip("\"'")
        raise UserError(f"{path / CONFIG_FILE} lacks {key!r}: another version wrote it; train it again") from error
    best: dict[str, Variables] = {}
    for stage, shapes in zip(task.stages, abstract, strict=True):
        checkpoints = Checkpoints(path / "checkpoints" / stage.name)
        state = checkpoints.restore_newest(shapes)
        if state is None:
            LOGGER.warning("%s: %s has no checkpoint yet, and is left out", path, stage.name)
            break
        best[stage.name] = state.best
        step = int(state.step[0])
        rows = [row for row in metrics.read(path) if row["stage"] == stage.name and row["step"] == step]
        if not rows or not training.finished(stage.settings, rows[0]["epoch"], state.bad_epochs):
            LOGGER.warning("%s: %s has not finished training; its best weights so far are used", path, stage.name)
    if not best:
        raise UserError(f"workdir {path} holds no checkpoint yet; train there first")
    return [Experiment(config, task, int(seed), _of_seed(best, number)) for number, seed in enumerate(seeds_of(config))]
