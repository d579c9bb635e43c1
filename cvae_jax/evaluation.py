"""Measures trained experiments on a split and lays the results out as a table."""

import json
import math
import pathlib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cvae_jax import data, experiment, inference, keys
from cvae_jax.checkpoints import write_atomically
from cvae_jax.errors import UserError
from cvae_jax.estimators import ESTIMATORS, Estimate, Mean, mean_over_examples, paired_difference
from cvae_jax.experiment import Experiment
from cvae_jax.model import Proposal, Stage

EXAMPLES_PER_BATCH = 100


class Result(NamedTuple):
    """One cell of the table: log p(y|x) of one model by one estimator on one split."""

    workdir: str
    protocol: str  # what y was measured on: "grey targets, mnist test"
    column: str
    model: str  # "mnist_quadrants cvae"
    estimator: str  # "exact" for a model without latent variables
    num_samples: int
    estimate: Estimate


def measure(
    trained: Experiment,
    stage: Stage,
    arrays: dict[str, np.ndarray],
    estimators: Sequence[str],
    num_samples: Sequence[int],
    seed: int,
) -> dict[tuple[str, int], Estimate]:
    """Estimates log p(y|x) of every example in `arrays`.

    The fewer samples of a list are the first of the more. Binarised targets and samples depend on (seed, index
    of the example, number of the sample) alone, so every model is measured on the same y, and results depend
    neither on the size of a batch nor on the number of devices.

    Returns:
      (estimator, number of samples) -> Estimate; ("exact", 1) for a model without latent variables.
    """
    task = trained.task
    model, variables = trained.model(stage.name)
    num_samples = list(dict.fromkeys(num_samples))
    count = data.num_examples(arrays)
    found: dict[tuple[str, int], list[Estimate]] = {}
    # Estimators with one proposal share its draws.
    scored: dict[Proposal, Any] = {}
    for proposal in dict.fromkeys(ESTIMATORS[name].proposal for name in estimators):
        names = [name for name in estimators if ESTIMATORS[name].proposal == proposal]
        scored[proposal] = lambda draw, names=names: {name: ESTIMATORS[name].score(draw) for name in names}
    devices = jax.device_count()
    size = -(-min(count, EXAMPLES_PER_BATCH) // devices) * devices
    for start in range(0, count, size):
        # The last batch is filled up with its last example, so that every batch has one shape.
        rows = np.minimum(np.arange(start, start + size), count - 1)
        valid = min(count - start, size)
        raw = {name: jnp.asarray(arrays[name][rows]) for name in task.raw}
        index = jnp.asarray(rows, jnp.int32)
        targets = keys.per_example(keys.stream(seed, "targets"), index)
        batch = task.batch(raw, index, (jnp.arange(len(index)) < valid).astype(jnp.float32), targets, False)
        if not inference.has_latents(model, variables, batch):
            exact = inference.log_prob(model, variables, batch, "elbo", 1, keys.stream(seed, "unused")).value[:valid]
            found.setdefault(("exact", 1), []).append(Estimate(exact, np.zeros(valid), np.ones(valid)))
            continue
        for proposal, score in scored.items():
            key = keys.stream(seed, "evaluation")
            values = inference.scores(model, variables, batch, proposal, score, max(num_samples), key)
            for name, numbers in values.items():
                for samples in num_samples:
                    estimate = ESTIMATORS[name].summarise(numbers[:samples, :valid])
                    found.setdefault((name, samples), []).append(estimate)
    return {
        cell: Estimate(*(np.concatenate(parts) for parts in zip(*batches, strict=True)))
        for cell, batches in found.items()
    }


def evaluate(
    workdirs: Sequence[str],
    estimators: Sequence[str] = ("elbo", "is"),
    num_samples: Sequence[int | str] = (100,),
    split: str = "test",
    num_examples: int = 0,
    seed: int = 0,
    data_dir: str | None = None,
    output: str | None = None,
) -> str:
    """Measures the experiments in `workdirs` and writes results.json, results.md and a figure for each.

    Args:
      workdirs: folders of trained experiments; their tasks give the columns of the table.
      estimators: keys of `estimators.ESTIMATORS`.
      num_samples: samples for every example; several give a row each.
      split: "train", "valid" or "test".
      num_examples: the first so many of the split; 0: all.
      seed: of the evaluation's random numbers, nothing to do with that of training.
      data_dir: overrides the config's data.dir.
      output: folder for what is written; default `<first workdir>/eval_<split>`.

    Returns:
      The table, in Markdown.

    Raises:
      UserError: for unknown estimators, counts below one, or workdirs and data that cannot be read.
    """
    counts = _counts(num_samples)
    if not estimators or not counts:
        raise UserError("name at least one estimator and one number of samples")
    for name in estimators:
        if name not in ESTIMATORS:
            raise UserError(f"estimator={name!r} is not known; choose from {', '.join(ESTIMATORS)}")
    if num_examples < 0:
        raise UserError(f"num_examples={num_examples} must not be negative")
    folder = pathlib.Path(output or pathlib.Path(workdirs[0]) / f"eval_{split}").expanduser()
    runs = [_open(workdir, split, data_dir) for workdir in workdirs]
    _check_comparable(runs)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {folder} ({error.strerror}); choose another --output") from None
    results: list[Result] = []
    for run in runs:
        arrays = {name: array[: num_examples or None] for name, array in run.arrays.items()}
        config, column = run.trained.config, run.trained.task.column
        twins = [
            other for other in runs if (other.trained.config.name, other.trained.task.column) == (config.name, column)
        ]
        label = config.name if len(twins) == 1 else f"{config.name} ({run.workdir})"
        for stage in run.trained.stages:
            cells = measure(run.trained, stage, arrays, estimators, counts, seed)
            for (estimator, size), estimate in cells.items():
                model = f"{label} {stage.name}"
                results.append(Result(run.workdir, run.protocol, column, model, estimator, size, estimate))
        base = pathlib.Path(run.workdir).name
        if sum(pathlib.Path(other.workdir).name == base for other in runs) > 1:
            base = run.workdir.strip("./").replace("/", "_")
        picture = folder / f"samples_{base}.png"
        experiment.draw_samples(run.trained, arrays, picture, f"{label}, {column}: {split} split")
    text = table(results)
    write_atomically(folder / "results.md", text)
    rows = json.dumps([summary(one, results) for one in results], indent=1, allow_nan=False)
    write_atomically(folder / "results.json", rows)
    return text


class Run(NamedTuple):
    """A trained experiment beside the arrays it is to be measured on."""

    workdir: str
    trained: Experiment
    arrays: dict[str, np.ndarray]
    protocol: str
    fingerprint: str  # of the arrays


def _open(workdir: str, split: str, data_dir: str | None) -> Run:
    trained = experiment.load(workdir)
    config, task = trained.config, trained.task
    if data_dir is not None:
        config.data.dir = data_dir
    try:
        arrays = data.load(config.data, task.raw)[split]
    except UserError as error:
        raise UserError(f"{error}. --data_dir says where the data of {workdir} lie now") from None
    return Run(
        workdir,
        trained,
        arrays,
        f"{task.protocol}, {config.data.source} {split}",
        experiment.fingerprint(task, {split: arrays})[split],
    )


def _check_comparable(runs: Sequence[Run]) -> None:
    """Raises where rows of one column would not be about the same y."""
    if len({run.workdir for run in runs}) < len(runs):
        raise UserError("the same --workdir is named twice")
    first: dict[str, Run] = {}
    for run in runs:
        other = first.setdefault(run.trained.task.column, run)
        if (run.protocol, run.fingerprint) != (other.protocol, other.fingerprint):
            raise UserError(
                f"{other.workdir} ({other.protocol}) and {run.workdir} ({run.protocol}) are measured on different "
                "data or targets, so their likelihoods cannot stand in one column; evaluate them one at a time"
            )


def _counts(num_samples: Sequence[int | str]) -> list[int]:
    counts = []
    for count in num_samples:
        if not re.fullmatch("[0-9]+", str(count), re.ASCII) or int(count) < 1:
            raise UserError(f"num_samples={count} must be a whole number of at least 1")
        counts.append(int(count))
    return counts


def references(results: Sequence[Result]) -> dict[str, Result]:
    """Each column's first result, which the others are compared with: the baseline of the first workdir."""
    first: dict[str, Result] = {}
    for result in results:
        first.setdefault(result.column, result)
    return first


def gain_of(result: Result, results: Sequence[Result]) -> Mean:
    """What a result gains over its column's reference, paired by example, nats."""
    return paired_difference(result.estimate, references(results)[result.column].estimate)


def summary(result: Result, results: Sequence[Result]) -> dict[str, Any]:
    """A result as numbers: negative log-likelihood in nats per example, its errors, and what it gains."""
    mean = mean_over_examples(result.estimate)
    reference = references(results)[result.column]
    gain = gain_of(result, results)
    row = {
        **{name: getattr(result, name) for name in result._fields if name != "estimate"},
        "num_examples": len(result.estimate.value),
        "negative_log_likelihood": -mean.value,
        "monte_carlo_error": mean.error,
        "standard_error": mean.standard_error,
        "effective_samples_median": float(np.median(result.estimate.ess)),
        "effective_samples_min": float(result.estimate.ess.min()),
        "reference": f"{reference.model}, {reference.estimator}",
        "gain": gain.value,
        "gain_standard_error": gain.standard_error,
        "gain_monte_carlo_error": gain.error,
    }
    # JSON has no NaN: the error of a single sample or example is not known.
    return {name: None if value != value else value for name, value in row.items()}


def table(results: Sequence[Result]) -> str:
    """Rows of models and estimators, columns of tasks, in Markdown."""
    columns = sorted({result.column for result in results})
    rows = list(dict.fromkeys((one.model, one.estimator, one.num_samples) for one in results))
    cells = {(one.model, one.estimator, one.num_samples, one.column): one for one in results}
    lines = [["model", "estimator", "samples", *columns]]
    gains = []
    for row in rows:
        line, gain_line, gained = (
            [*row[:2], f"{row[2]:,}"],
            [f"gain of {row[0]}", *row[1:2], f"{row[2]:,}"],
            False,
        )
        for column in columns:
            result = cells.get((*row, column))
            line.append("" if result is None else _cell(result))
            if result is None or result is references(results)[column]:
                gain_line.append("")
                continue
            gain_line.append(_with_error(gain_of(result, results)))
            gained = True
        lines.append(line)
        if gained:
            gains.append(gain_line)
    compared = ", ".join(dict.fromkeys(result.model for result in references(results).values()))
    protocols = "; ".join(sorted({result.protocol for result in results}))
    counts = sorted({len(result.estimate.value) for result in results})
    notes = [
        f"Negative log p(y|x) in nats per example, lower is better; {protocols}, "
        f"{' or '.join(f'{count:,}' for count in counts)} examples, float32 products at highest precision.",
        "± is the standard error over examples, MC the Monte Carlo error of the mean, ESS the median effective "
        "sample size: where it is a few, neither the figure nor its MC error can be believed.",
        "ELBO is a bound (the negative ELBO is too high, never too low); estimates by sampling are biased the same "
        "way, less so with more samples.",
        f"A gain is over {compared}, paired by example.",
    ]
    return "\n".join([*_markdown([*lines, *gains]), "", *notes]) + "\n"


def _cell(result: Result) -> str:
    mean = mean_over_examples(result.estimate)
    text = _with_error(mean._replace(value=-mean.value))
    if result.estimator in ("mc", "is"):
        return f"{text}, ESS {np.median(result.estimate.ess):.0f}"
    return text


def _with_error(mean: Mean) -> str:
    """The mean with its standard error, where there is one, and its Monte Carlo error, where it is not exact."""
    spread = "?" if math.isnan(mean.standard_error) else f"{mean.standard_error:.2f}"
    return f"{mean.value:.2f} ± {spread}" + (
        "" if mean.error == 0 or math.isnan(mean.error) else f", MC {mean.error:.2g}"
    )


def _markdown(lines: list[list[str]]) -> list[str]:
    """Lines of a Markdown table whose cells are padded, so that it reads in a terminal too."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    lines = [lines[0], ["-" * width for width in widths], *lines[1:]]
    return [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
