"""A system: how raw arrays become batches, which models are trained on them, what is measured and how it is shown.

`Task` is the half of the contract that knows data; `model.py` is the half that knows mathematics. A new system is a
class derived from `Task` and a config that names it, in any folder: see `cvae_jax.tasks`.
"""

import pathlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from ml_collections import ConfigDict

from cvae_jax import keys as random_keys
from cvae_jax.errors import UserError
from cvae_jax.model import Batch, Draw, Fitted, Model, Proposal, PyTree, Train, Variables

# The whole contract, so that a task imports it from one place.
__all__ = [
    "Arrays",
    "Batch",
    "Buckets",
    "Draw",
    "Fitted",
    "Grid",
    "Metric",
    "Model",
    "Plot",
    "Proposal",
    "PyTree",
    "Source",
    "Spec",
    "Splits",
    "Stage",
    "Task",
    "Train",
    "Variables",
]

Arrays = dict[str, np.ndarray]  # name -> array whose first axis counts examples
Splits = dict[str, Arrays]  # "train", "valid", "test" -> arrays
Source = Callable[[ConfigDict], Splits]  # the config's section `data` -> arrays
Plot = Callable[[pathlib.Path, str], None]  # draws a figure, given the PNG's path and a title


class Spec(NamedTuple):
    """A description of the data by the training split, known before the task is made and kept in the workdir."""

    raw: dict[str, jax.ShapeDtypeStruct]  # name -> shape and dtype of one example
    num_classes: dict[str, int]  # of arrays of integers that are not negative: one more than the largest
    # Of floats, and of whole numbers [n] and [n, features]: float64, of each element over the examples.
    mean: dict[str, np.ndarray]
    scale: dict[str, np.ndarray]  # likewise standard deviations; 1 where an element is constant

    def size(self, name: str) -> int:
        """Returns how many numbers an example of that array has."""
        return int(np.prod(self.raw[name].shape))


class Stage(NamedTuple):
    """One training run; later stages see its best weights, frozen. `objectives.stage` makes one of a config."""

    name: str
    model: Model
    # (draws, batch, steps taken or None when validating) -> the objective [batch] and its terms, see objectives.py
    objective: Callable[..., tuple[Array, dict[str, Array]]]
    settings: ConfigDict  # epochs, batch_size, optimizer, select, ...: see config.stage
    # (encoding, batch) -> name -> [batch]: losses that training adds to the objective's, under names of their own
    auxiliary: Callable[[PyTree, Batch], dict[str, Array]] | None = None
    units: Mapping[str, str] = MappingProxyType({})  # of terms and validation metrics that are not nats per example
    shares: str = ""  # name of the stage whose section of the config this one's settings are taken from

    @property
    def section(self) -> str:
        """The section of the config that its settings are taken from."""
        return self.shares or self.name


class Metric(NamedTuple):
    """A quantity that a task measures, with all that tables and figures need to know of it."""

    # [batch] (NaN: not of this example), or [batch, steps] with `step`, or [batch, numbers] with `pool`
    values: np.ndarray
    unit: str = ""
    perfect: float | np.ndarray | None = None  # the value of a perfect model, of all or of each example, where known
    step: str = ""  # what a step is, of a metric of every step
    pool: Callable[[np.ndarray], np.ndarray] | None = None  # (sums over examples [..., numbers]) -> values [...]


class Grid(NamedTuple):
    """A figure of rows of images: heading -> images [rows, height, width] in [0, 1], or one text a row."""

    columns: dict[str, np.ndarray]
    rows: tuple[str, ...] = ()  # a label left of each row
    title: str = ""  # what it shows


class Buckets(NamedTuple):
    """Examples of varying size in groups, each padded no further than to its own limit: see data/buckets.py."""

    limits: tuple[int, ...]  # sizes, ascending; the last holds every example
    size: Callable[[Arrays], np.ndarray]  # raw arrays -> the size of every example, int [n]
    cut: Callable[[Arrays, int], Arrays]  # raw arrays, limit -> padded no further


class Task:
    """A system. State the arrays and the models; override what differs from the defaults, which serve x and y as is.

    A conditional density of vectors is this, and a config (`docs/own_data.md` shows both)::

        class Vectors(Task):
            title, protocol = "y given x", "Gaussian y"

            def __init__(self, config, spec):
                self.raw = spec.raw
                networks = one_layer(config.cvae, 2 * spec.size("y"))
                model = flax_model(networks, lambda outputs: bounded_normal(*jnp.split(outputs, 2, -1)))
                self.stages = (objectives.stage("cvae", model, config.cvae),)

    Attributes:
      sources: name -> source of raw arrays, beside those that every task has (`cvae_jax.data.SHARED`).
      title: heading of its column in a table of results, such as "1 quadrant".
      protocol: what y is, and of what log p(y|x) is the density, named beside every likelihood.
      raw: name -> shape and dtype of one example of each array that batches are made of.
      measured: the same of arrays that only measuring reads, such as a baseline's; not in training, not on its device.
      stages: the training runs, in order.
      buckets: how examples of varying size are grouped; `raw` is then of the largest. None: all are of one size.
      names: of the raw arrays that a user gives as x and y, for the default `from_user`.
      cluster: name of an array of every split, [n] whole numbers or strings (patient, chair), that need not be in
        `raw`. Standard errors, those of metrics and gains too, are over its values. "": they are over examples.
    """

    sources: Mapping[str, Source] = MappingProxyType({})
    cluster: str = ""
    names: Mapping[str, str] = MappingProxyType({"x": "x", "y": "y"})
    title: str
    protocol: str
    raw: Mapping[str, jax.ShapeDtypeStruct]
    measured: Mapping[str, jax.ShapeDtypeStruct] = MappingProxyType({})
    stages: tuple[Stage, ...]
    buckets: Buckets | None = None

    def __init__(self, config: ConfigDict, spec: Spec):
        """Makes the task of a config for data of that spec; raises a UserError for settings that cannot be."""

    def check(self, arrays: Arrays) -> None:
        """Raises a UserError where the values of a split's raw arrays cannot be."""

    def batch(self, raw: dict[str, Array], ids: Array, num_targets: Array, keys: Array, step: Array | None) -> Batch:
        """Returns a batch of raw arrays, inside jit.

        Args:
          raw: name -> [batch, ...]; the arrays of `measured` are among them only where examples are measured or shown.
          ids: int32 [batch].
          num_targets: float32 [batch], 1, or 0 for padding rows; a row that holds several y raises it.
          keys: [batch], of all that is drawn.
          step: how many steps were taken, for what changes while training; None when validating and measuring.
        """
        return Batch(raw["x"], raw["y"], None, ids, num_targets)

    def from_user(self, x: Any, y: Any = None) -> Batch:
        """Returns a batch of a user's own x, and y or None; raises a UserError for arrays that do not fit."""
        given = {"x": x} | ({} if y is None else {"y": y})
        missing = [self.names[part] for part in given if self.names[part] not in self.raw]
        if missing:
            raise UserError(f"{self.title}: no raw array {missing[0]!r}; the task has to override from_user")
        fitting = {
            self.names[part]: _fitting(part, values, self.raw[self.names[part]]) for part, values in given.items()
        }
        counts = [len(array) for array in fitting.values()]
        count = counts[0]
        if counts[-1] != count:
            raise UserError(f"x has {count} examples but y has {counts[-1]}; give as many of each")
        self.check(fitting)
        rest = {name: np.zeros((count, *of.shape), of.dtype) for name, of in self.raw.items() if name not in fitting}
        ids = jnp.arange(count, dtype=jnp.int32)
        raw = {name: jnp.asarray(values) for name, values in (fitting | rest).items()}
        batch = self.batch(raw, ids, jnp.ones(count), random_keys.unused(ids), None)
        return batch if y is not None else batch._replace(y=None, weight=None)

    def metrics(self, fitted: Fitted, batch: Batch, key: Array) -> dict[str, Metric]:
        """Returns what `eval.py` measures beside log p(y|x): row of the table -> Metric.

        It is called batch by batch, outside jit, each time with the same `key`. Draw with `inference.scores`, or under
        `inference.keys_of(batch, key, n)`, whose keys depend on the example. Padding rows at the end may be left out.
        """
        return {}

    def baselines(self, batch: Batch) -> dict[str, dict[str, Metric]]:
        """Returns the metrics of what is no model of ours, by the baseline's name."""
        return {}

    def validation_metrics(self, fitted: Fitted, batch: Batch, keys: Array) -> dict[str, Array]:
        """Returns values [batch] to follow on validation each epoch, inside jit; a stage's `select` may name one."""
        return {}

    def sample_grid(self, batch: Batch, samples: dict[str, PyTree]) -> Grid:
        """Returns a figure of y and samples: stage name -> leaves [samples, batch, ...]."""
        columns = {"x": _shown(batch.x)} | ({} if batch.y is None else {"truth": _shown(batch.y)})
        for stage, drawn in samples.items():
            for number, values in enumerate(np.asarray(drawn), 1):
                columns[f"sample {number}" if len(drawn) > 1 else f"{stage}'s prediction"] = _shown(values)
        return Grid(columns)

    def figures(self, fitted: Fitted, batch: Batch, key: Array) -> dict[str, Grid | Plot]:
        """Returns what is drawn, beside samples, once a model is trained: file name -> figure."""
        return {}


def _fitting(name: str, values: Any, of_task: jax.ShapeDtypeStruct) -> np.ndarray:
    """Returns a user's array in the dtype of `of_task`; raises a UserError where its examples do not fit."""
    try:
        array = np.asarray(values)
        if array.dtype.kind not in "biuf":
            raise TypeError
    except (TypeError, ValueError):
        kind = getattr(values, "dtype", type(values).__name__)
        raise UserError(f"{name} is no array of numbers, but {kind}; give numbers") from None
    if array.shape[1:] != of_task.shape and (*array.shape[1:], 1) == of_task.shape:
        array = array[..., None]
    if not len(array.shape) or array.shape[1:] != of_task.shape or not len(array):
        expected = ", ".join(map(str, ("examples", *of_task.shape)))
        raise UserError(f"{name} has shape {list(array.shape)}, expected [{expected}]")
    if array.dtype.kind == "f" and of_task.dtype.kind != "f":
        raise UserError(f"{name} is {array.dtype}, expected whole numbers ({of_task.dtype})")
    if not np.isfinite(array).all():
        raise UserError(f"{name} has values that are NaN or infinite; leave these examples out")
    with np.errstate(over="ignore"):
        fitting = array.astype(of_task.dtype)
    if of_task.dtype.kind != "f" and (fitting != array).any():
        raise UserError(f"{name} has values that {of_task.dtype}, as in the training data, does not hold")
    if not np.isfinite(fitting).all():
        raise UserError(f"{name} has values beyond float32; scale them")
    return fitting


def _shown(values: Any) -> np.ndarray:
    """Returns what a grid shows of arrays [rows, ...]: images as they are, anything smaller as text."""
    array = np.asarray(values)
    if array.ndim >= 3:
        return array
    rows = array.reshape(len(array), -1)[:, :4]
    return np.array(["\n".join(f"{value:.3g}" for value in row) for row in rows.tolist()])
