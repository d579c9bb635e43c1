"""Measures one trained model on the arrays of a split, batch by batch."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from cvae_jax import data, inference, keys
from cvae_jax.data import batches
from cvae_jax.errors import UserError
from cvae_jax.inference import Ais, diagnostics
from cvae_jax.inference import ais as annealing
from cvae_jax.inference.diagnostics import LatentCode
from cvae_jax.inference.estimators import Estimate, per_target
from cvae_jax.task import Arrays, Batch, Fitted, Metric, PyTree, Task
from cvae_jax.trained import TrainedModel

Cells = dict[tuple[str, int], Estimate]  # (estimator, number of samples) -> estimate


@dataclasses.dataclass(frozen=True)
class Plan:
    """The measurements that are made of every model.

    Attributes:
      estimators: names with their numbers of samples, see `inference.log_probs`. A model whose recognition network was
        not trained leaves out those that draw from it; one without latent variables has ("exact", 1) alone.
      seed: of the evaluation's random numbers, nothing to do with that of training.
      ais: settings of "ais" and of bidirectional Monte Carlo.
      simulate: chains of bidirectional Monte Carlo for every example; 0: none.
      metrics: whether the task's own metrics are computed too.
    """

    estimators: Sequence[tuple[str, int]]
    seed: int = 0
    ais: Ais = dataclasses.field(default_factory=Ais)
    simulate: int = 0
    metrics: bool = False

    def usable(self, fitted: Fitted) -> list[tuple[str, int]]:
        """Returns those of the estimators that do not draw from a network that was not trained."""
        return [
            (name, count)
            for name, count in self.estimators
            if fitted.has_recognition or not inference.draws_from_recognition(name, self.ais)
        ]

    def simulates(self, fitted: Fitted) -> bool:
        """Returns whether bidirectional Monte Carlo is wanted and has something to start from."""
        return bool(self.simulate) and (fitted.has_recognition or self.ais.start == "prior")


class Measured(NamedTuple):
    """The measurements of one model on one split, examples in the order of the split."""

    cells: Cells
    simulated: Cells  # on y drawn from the model itself, with the bounds of bidirectional Monte Carlo; {} without
    code: LatentCode | None  # None without a trained recognition network
    floor: np.ndarray  # float [examples], nats, see `inference.floor`
    metrics: dict[str, Metric]  # of the task


def measure(trained: TrainedModel, stage: str, arrays: Arrays, plan: Plan) -> Measured:
    """Estimates log p(y|x) of every example in `arrays`, of one y where an example holds several.

    The fewer samples of a list are the first of the more. Samples depend on (seed, id of the example, number of the
    sample) alone, so results depend neither on the size of a batch nor on the number of devices.

    Args:
      trained: the models of one seed.
      stage: name of that whose model is measured.
      arrays: raw, of one split.
      plan: what is measured.
    """
    task, fitted = trained.task, trained.fitted(stage)
    parts: list[tuple[Measured, int]] = []
    ids: list[np.ndarray] = []
    bar = tqdm(total=data.num_examples(arrays), desc=f"{stage}, seed {trained.seed}", disable=None)
    for batch, count in batches.of_split(task, arrays, plan.seed):
        bar.update(count)
        ids.append(np.asarray(batch.ids)[:count])
        parts.append((_measure_batch(task, fitted, batch, plan), count))
    bar.close()
    first, order = parts[0][0], np.argsort(np.concatenate(ids))
    metrics = joined_metrics([(part.metrics, count) for part, count in parts], order)
    joined: Measured = joined_rows([(part._replace(metrics={}), count) for part, count in parts], order)
    # JAX sorts a dict by its keys; a table keeps the order in which estimators were asked for.
    cells, simulated = ({cell: new[cell] for cell in old} for new, old in zip(joined[:2], first[:2], strict=True))
    code = None
    if joined.code is not None:  # one row a factor of an example
        code = LatentCode(*(values.reshape(-1, values.shape[-1]) for values in joined.code))
    return joined._replace(cells=cells, simulated=simulated, code=code, metrics=metrics)


def _measure_batch(task: Task, fitted: Fitted, batch: Batch, plan: Plan) -> Measured:
    """Measures one batch; arrays begin with its rows."""
    key = keys.stream(plan.seed, "evaluation")
    metrics = task.metrics(fitted, batch, key) if plan.metrics else {}
    num_targets = np.asarray(batch.num_targets)
    floor = np.asarray(inference.floor(fitted, batch)) / np.maximum(num_targets, 1)

    def of_one_target(cells: Cells) -> Cells:
        return {cell: per_target(estimate, num_targets) for cell, estimate in cells.items()}

    if fitted.exact:
        return Measured(of_one_target({("exact", 1): inference.exact(fitted, batch)}), {}, None, floor, metrics)
    estimators = plan.usable(fitted)
    cells = inference.log_probs(fitted, batch, estimators, key, plan.ais)
    code = diagnostics.latent_code(fitted, batch, key) if fitted.has_recognition else None
    simulated: Cells = {}
    if plan.simulates(fitted):
        bidirectional = annealing.bdmc(fitted, batch, plan.simulate, key, plan.ais)
        lower, upper = (
            inference.in_units_of_data(bound, fitted, bidirectional.batch) for bound in annealing.bounds(bidirectional)
        )
        simulated = {("bdmc, lower bound", plan.simulate): lower, ("bdmc, upper bound", plan.simulate): upper}
        # Not "ais", whose chains are those of the lower bound.
        beside = [(name, count) for name, count in estimators if name != "ais"]
        simulated |= inference.log_probs(fitted, bidirectional.batch, beside, key, plan.ais)
    return Measured(of_one_target(cells), of_one_target(simulated), code, floor, metrics)


def joined_rows(parts: Sequence[tuple[PyTree, int]], order: np.ndarray) -> Any:
    """Joins leaves [batch, ...] of many batches in the order of the split.

    Args:
      parts: a tree of leaves of each batch, and how many of its rows are no padding.
      order: int [examples], which of the rows that are left stands at each place.
    """
    return jax.tree.map(
        lambda *leaves: np.concatenate([leaf[:count] for leaf, (_, count) in zip(leaves, parts, strict=True)])[order],
        *(part for part, _ in parts),
    )


def joined_metrics(parts: Sequence[tuple[dict[str, Metric], int]], order: np.ndarray) -> dict[str, Metric]:
    """Joins the metrics of many batches, as `joined_rows` does; what is said of a metric is that of the first batch."""
    joined = {}
    for metrics, count in parts:
        for name, metric in metrics.items():
            _check_metric(name, metric, count)
    for name, metric in parts[0][0].items():
        values = joined_rows([(metrics[name].values, count) for metrics, count in parts], order)
        perfect = metric.perfect
        if isinstance(perfect, np.ndarray) and perfect.ndim:
            perfect = joined_rows([(metrics[name].perfect, count) for metrics, count in parts], order)
        joined[name] = metric._replace(values=values, perfect=perfect)
    return joined


def _check_metric(name: str, metric: Metric, count: int) -> None:
    """Raises a UserError for what a task returns as a metric and is none, `count` being the examples of its batch."""
    if not isinstance(metric, Metric):
        raise UserError(f"metric {name!r} is a {type(metric).__name__}; return cvae_jax.Metric(values)")
    shape, axes = np.shape(metric.values), 2 if metric.step or metric.pool else 1
    if len(shape) != axes or shape[0] < count:
        kind = "[batch, steps or numbers]" if axes == 2 else "[batch], or name a step or pool for more axes"
        raise UserError(f"metric {name!r} has values of shape {list(shape)} for {count} examples; return {kind}")


def measure_baselines(task: Task, arrays: Arrays, seed: int) -> dict[str, dict[str, Metric]]:
    """Returns the metrics of what is no model of ours, by the baseline's name, examples in the order of the split."""
    parts: list[tuple[dict[str, dict[str, Metric]], int]] = []
    ids: list[np.ndarray] = []
    for batch, count in batches.of_split(task, arrays, seed):
        parts.append((task.baselines(batch), count))
        ids.append(np.asarray(batch.ids)[:count])
    order = np.argsort(np.concatenate(ids))
    return {name: joined_metrics([(part[name], count) for part, count in parts], order) for name in parts[0][0]}
