"""Measures trained experiments on a split: tables of log p(y|x), what the latent code carries, figures of samples."""

import json
import logging
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from cvae_jax import data, experiment, figures, keys
from cvae_jax.data import buckets
from cvae_jax.errors import UserError
from cvae_jax.evaluation import report, tables
from cvae_jax.evaluation.report import Findings, TaskMeasure
from cvae_jax.evaluation.tables import Result
from cvae_jax.experiment import Experiment
from cvae_jax.inference import ais as annealing
from cvae_jax.inference import diagnostics
from cvae_jax.inference import draws as inference
from cvae_jax.inference.ais import Annealing
from cvae_jax.inference.diagnostics import LatentCode
from cvae_jax.inference.estimators import Estimate, cautions
from cvae_jax.model import Batch, How, Stage, Task
from cvae_jax.training.checkpoints import write_atomically

LOGGER = logging.getLogger(__name__)

EXAMPLES_PER_BATCH = 100

Cells = dict[tuple[str, int], Estimate]  # (estimator, number of samples) -> estimate


class Measured(NamedTuple):
    """What was found of one model on one split."""

    cells: Cells
    simulated: Cells  # on y drawn from the model itself, with the bounds of bidirectional Monte Carlo; {} without
    code: LatentCode | None  # None without a trained recognition network
    own: dict[str, np.ndarray]  # what the task measures beside: name -> [examples] or [examples, numbers]


def batches(task: Task, arrays: dict[str, np.ndarray], seed: int) -> Iterator[tuple[Batch, int]]:
    """Batches of all examples, each with the number of its valid rows.

    Binarised targets depend on (seed, index of the example) alone, so every model is measured on the same y.
    """
    devices = jax.device_count()
    for bucket in buckets.of_split(task, arrays):
        count = len(bucket.index)
        size = -(-min(count, EXAMPLES_PER_BATCH) // devices) * devices
        for start in range(0, count, size):
            # The last batch is filled up with its last example, so that every batch of a bucket has one shape.
            rows = np.minimum(np.arange(start, start + size), count - 1)
            valid = min(count - start, size)
            raw = {name: array[rows] for name, array in bucket.arrays.items()}
            yield experiment.measured_batch(task, raw, bucket.index[rows], np.arange(size) < valid, seed), valid


def _joined(parts: Sequence[tuple[Any, int]], index: np.ndarray) -> Any:
    """Leaves [batch, ...] of many batches as one in the order of the split, their invalid rows cut.

    `index` holds the positions in the split of the rows that are left, int [examples].
    """
    order = np.argsort(index)
    return jax.tree.map(
        lambda *leaves: np.concatenate([leaf[:valid] for leaf, (_, valid) in zip(leaves, parts, strict=True)])[order],
        *(part for part, _ in parts),
    )


def measure(
    trained: Experiment,
    stage: Stage,
    arrays: dict[str, np.ndarray],
    wanted: Sequence[tuple[str, int]],
    seed: int,
    settings: Annealing = Annealing(),
    simulate: int = 0,
    own: bool = False,
) -> Measured:
    """Estimates log p(y|x) of every example in `arrays`.

    The fewer samples of a list are the first of the more. Samples depend on (seed, index of the example, number of
    the sample) alone, so results depend neither on the size of a batch nor on the number of devices.

    Args:
      trained: the models of one seed.
      stage: whose model is measured.
      arrays: raw, of one split.
      wanted: estimators with their numbers of samples, see `inference.log_probs`; those that draw from a recognition
        network are left out where it was not trained. A model without latent variables has ("exact", 1) alone.
      seed: of the evaluation's random numbers, nothing to do with that of training.
      settings: of annealed importance sampling.
      simulate: chains of bidirectional Monte Carlo for every example; 0: none.
      own: also what the task itself measures.
    """
    task, how = trained.task, trained.how(stage.name)
    usable = _usable(how, wanted, settings)
    model, variables = trained.model(stage.name)
    key = keys.stream(seed, "evaluation")
    found: list[tuple[Any, int]] = []
    positions: list[np.ndarray] = []
    bar = tqdm(total=data.num_examples(arrays), desc=f"{stage.name}, seed {trained.seed}", disable=None)
    for batch, valid in batches(task, arrays, seed):
        bar.update(valid)
        positions.append(np.asarray(batch.index)[:valid])
        measured = task.measures.of_batch(model, variables, batch, how, key) if own and task.measures else {}
        if how.exact:
            found.append(
                (Measured({("exact", 1): inference.exact(model, variables, batch)}, {}, None, measured), valid)
            )
            continue
        cells = inference.log_probs(model, variables, batch, usable, key, settings)
        code = diagnostics.latent_code(model, variables, batch, key) if how.has_recognition else None
        simulated: Cells = {}
        if simulate and (how.has_recognition or settings.start == "prior"):
            bidirectional = annealing.bdmc(model, variables, batch, simulate, key, settings)
            lower, upper = annealing.bounds(bidirectional)
            simulated = {("bdmc, lower bound", simulate): lower, ("bdmc, upper bound", simulate): upper}
            others = [one for one in usable if one[0] != "ais"]  # whose chains are those of the lower bound
            simulated |= inference.log_probs(model, variables, bidirectional.batch, others, key, settings)
        found.append((Measured(cells, simulated, code, measured), valid))
    bar.close()
    first, joined = found[0][0], _joined(found, np.concatenate(positions))
    # JAX sorts a dict by its keys; a table keeps the order in which estimators were asked for.
    cells, simulated = ({cell: new[cell] for cell in old} for new, old in zip(joined[:2], first[:2], strict=True))
    return joined._replace(cells=cells, simulated=simulated)


def _usable(how: How, wanted: Sequence[tuple[str, int]], settings: Annealing) -> list[tuple[str, int]]:
    """Those of the estimators that do not draw from a network that was not trained."""
    return [one for one in wanted if how.has_recognition or not inference.draws_from_recognition(one[0], settings)]


def evaluate(
    workdirs: Sequence[str],
    estimators: Sequence[str] = ("elbo", "is"),
    num_samples: Sequence[int | str] = (100,),
    split: str = "test",
    num_examples: int = 0,
    seed: int = 0,
    data_dir: str | None = None,
    output: str | None = None,
    num_chains: int = 32,
    settings: Annealing = Annealing(),
    task_measures: bool = True,
    changes: Sequence[str] = (),
) -> str:
    """Measures the experiments in `workdirs`; writes results.json, examples.json, results.md and figures of each.

    Args:
      workdirs: folders of trained experiments; their tasks give the columns of the table.
      estimators: of `inference.ESTIMATOR_NAMES`, or "bdmc": on y drawn from each model itself, bounds of its
        log p(y|x) by bidirectional Monte Carlo, with the other estimators beside them.
      num_samples: samples for every example; several give a row each.
      split: "train", "valid" or "test".
      num_examples: the first so many of the split; 0: all.
      seed: of the evaluation's random numbers, nothing to do with that of training.
      data_dir: overrides the config's data.dir.
      output: folder for what is written; default `<first workdir>/eval_<split>`.
      num_chains: of "ais" and "bdmc", for every example.
      settings: of "ais" and "bdmc".
      task_measures: also what the tasks themselves measure, such as an accuracy.
      changes: of keys of the runs' configs, see `experiment.load_seeds`.

    Returns:
      The tables, in Markdown.

    Raises:
      UserError: for unknown estimators, counts below one, or workdirs and data that cannot be read.
    """
    counts = _counts(num_samples)
    if not estimators or not counts:
        raise UserError("name at least one estimator and one number of samples")
    for name in estimators:
        if name not in (*inference.ESTIMATOR_NAMES, "bdmc"):
            known = ", ".join((*inference.ESTIMATOR_NAMES, "bdmc"))
            raise UserError(f"estimator={name!r} is not known; choose from {known}")
    if num_examples < 0:
        raise UserError(f"num_examples={num_examples} must not be negative")
    annealing.check(num_chains, settings)
    wanted = [
        (name, count) for name in estimators if name != "bdmc" for count in ([num_chains] if name == "ais" else counts)
    ]
    inference.check(wanted)
    simulate = num_chains if "bdmc" in estimators else 0
    folder = pathlib.Path(output or pathlib.Path(workdirs[0]) / f"eval_{split}").expanduser()
    runs = [_open(workdir, split, data_dir, changes) for workdir in workdirs]
    _check_comparable(runs)
    for run in runs:
        _check_left_out(run, wanted, simulate, settings)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {folder} ({error.strerror}); choose another --output") from None
    runs = [
        run._replace(arrays={name: array[: num_examples or None] for name, array in run.arrays.items()}) for run in runs
    ]
    found = Findings([], [], [], [])
    for run in runs:
        first, label, base = run.trained[0], _label(run, runs), _base(run, runs)
        if task_measures and first.task.column not in {one.column for one in found.measured}:
            found.measured.extend(_baselines(run, seed))
        for stage in first.stages:
            measured = [
                measure(one, stage, run.arrays, wanted, seed, settings, simulate, task_measures) for one in run.trained
            ]
            model = f"{label} {stage.name}"
            _collect(found, run, model, measured)
            if measured[0].code is not None:
                seed_of = f", seed {first.seed}" * (len(run.trained) > 1)
                title = f"{model}{seed_of}, {first.task.column}: {split} split"
                figures.latent_code(measured[0].code, folder / f"latents_{base}_{stage.name}.png", title)
    text = report.text(found, settings)
    write_atomically(folder / "results.md", text)
    of_rows = {
        "likelihoods": [tables.summary(one) | tables.gain(one, found.results) for one in found.results],
        "simulated": [tables.summary(one) for one in found.simulated],
        "latent_code": tables.plain(found.codes),
        "task_measures": [one.summary() for one in found.measured],
    }
    write_atomically(folder / "results.json", json.dumps(of_rows, indent=1, allow_nan=False))
    of_examples = {
        "likelihoods": [row for one in found.results for row in tables.examples(one)],
        "simulated": [row for one in found.simulated for row in tables.examples(one)],
        "task_measures": [one.examples() for one in found.measured],
    }
    write_atomically(folder / "examples.json", json.dumps(of_examples, allow_nan=False))
    # Last, so that no figure that fails loses what was measured.
    report.draw(found.measured, folder, split)
    for run in runs:
        first, base, title = run.trained[0], _base(run, runs), f"{_label(run, runs)}, {run.trained[0].task.column}"
        experiment.draw_samples(first, run.arrays, folder / f"samples_{base}.png", title)
        experiment.draw_pictures(first, run.arrays, folder, base, title)
    return text


def _collect(found: Findings, run: "Run", model: str, measured: Sequence[Measured]) -> None:
    """Adds what was found of one stage, an entry of `measured` a seed, and says what cannot be believed."""
    task = run.trained[0].task
    column = task.column
    seeds = tuple(one.seed for one in run.trained)
    for name in measured[0].own:
        found.measured.append(_measure(run, model, name, seeds, [one.own[name] for one in measured]))

    def results(protocol: str, cells: Sequence[Cells]) -> list[Result]:
        return [
            Result(run.workdir, protocol, column, model, *cell, seeds, tuple(one[cell] for one in cells))
            for cell in cells[0]
        ]

    found.results.extend(results(run.protocol, [one.cells for one in measured]))
    found.simulated.extend(results(f"y drawn from the model, {run.protocol}", [one.simulated for one in measured]))
    worst = f" in the worst of {len(seeds)} seeds" * (len(seeds) > 1)
    for cells in ([one.cells for one in measured], [one.simulated for one in measured]):
        for cell in cells[0]:
            name, count = cell
            chains = name == "ais" or name.startswith("bdmc")
            mend = "more chains or temperatures may do" if chains else "more samples, or ais, may do"
            for line in cautions(tables.mean_over_seeds([one[cell] for one in cells]), count):
                LOGGER.warning("%s, %s, %s with %d: %s%s; %s", model, column, name, count, line, worst, mend)
    for seed, one in zip(seeds, measured, strict=True):
        if one.code is not None:
            identity = {"workdir": run.workdir, "protocol": run.protocol, "column": column, "model": model}
            found.codes.append({**identity, "seed": seed, **diagnostics.summary(one.code)})


def _measure(run: "Run", model: str, name: str, seeds: tuple[int, ...], values: list[np.ndarray]) -> TaskMeasure:
    task = run.trained[0].task
    assert task.measures is not None
    known, pool = task.measures.known.get(name), task.measures.pooled.get(name)
    step = task.measures.profiles.get(name)
    return TaskMeasure(run.workdir, task.column, model, name, seeds, np.stack(values), known, pool, step)


def _baselines(run: "Run", seed: int) -> list[TaskMeasure]:
    """What the task measures of what is no model of ours, examples in the order of the split."""
    task = run.trained[0].task
    if task.measures is None:
        return []
    parts, positions = [], []
    for batch, valid in batches(task, run.arrays, seed):
        parts.append((task.measures.baselines(batch), valid))
        positions.append(np.asarray(batch.index)[:valid])
    found = _joined(parts, np.concatenate(positions))
    return [
        _measure(run, model, name, (), [values])
        for model, numbers in parts[0][0].items()  # in their order: JAX sorts a dict by its keys
        for name, values in ((name, found[model][name]) for name in numbers)
    ]


def _label(run: "Run", runs: Sequence["Run"]) -> str:
    """The config's name, and the workdir where others of that name stand in the same column."""
    name, column = run.trained[0].config.name, run.trained[0].task.column
    twins = [one for one in runs if (one.trained[0].config.name, one.trained[0].task.column) == (name, column)]
    return name if len(twins) == 1 else f"{name} ({run.workdir})"


def _base(run: "Run", runs: Sequence["Run"]) -> str:
    """What names a run's figures: its folder's name, or its whole path where others have that name."""
    base = pathlib.Path(run.workdir).name
    twins = [one for one in runs if pathlib.Path(one.workdir).name == base]
    return base if len(twins) == 1 else run.workdir.strip("./").replace("/", "_")


def _check_left_out(run: "Run", wanted: Sequence[tuple[str, int]], simulate: int, settings: Annealing) -> None:
    """Says what a run's stages have no cells for, because a recognition network was not trained; raises if that is all.

    Before anything is measured: that may take hours.
    """
    for stage in run.trained[0].stages:
        how = run.trained[0].how(stage.name)
        if simulate and stage.model.autoregressive and not how.exact:
            raise UserError(f"{run.workdir}: {annealing.NOT_SIMULATED}")
        usable = _usable(how, wanted, settings)
        simulated = simulate and (how.has_recognition or settings.start == "prior")
        names = list(dict.fromkeys(name for name, count in wanted if (name, count) not in usable))
        names += ["bdmc"] * bool(simulate and not simulated)
        if how.exact or not names:
            continue
        shown = ", ".join(repr(name) for name in names)
        if not usable and not simulated:
            raise UserError(
                f"{run.workdir}: {stage.name} was trained without its recognition network, from which {shown} would "
                "draw; add --estimator=mc, or ais with --ais_start=prior"
            )
        LOGGER.warning("%s: %s was trained without its recognition network: no %s", run.workdir, stage.name, shown)


class Run(NamedTuple):
    """A trained experiment beside the arrays it is to be measured on."""

    workdir: str
    trained: list[Experiment]  # one a seed
    arrays: dict[str, np.ndarray]
    protocol: str
    fingerprint: str  # of the arrays


def _open(workdir: str, split: str, data_dir: str | None, changes: Sequence[str]) -> Run:
    trained = experiment.load_seeds(workdir, changes)
    config, task = trained[0].config, trained[0].task
    if data_dir is not None:
        config.data.dir = data_dir
    try:
        arrays = data.of(data.load(config.data, task), split)
    except UserError as error:
        raise UserError(f"{error}. --data_dir says where the data of {workdir} lie now") from None
    fingerprint = experiment.fingerprint(task, {split: arrays})[split]
    if experiment.read_fingerprint(workdir).get(split, fingerprint) != fingerprint:
        LOGGER.warning("%s: the %s split is not the one that lay beside its training data", workdir, split)
    return Run(workdir, trained, arrays, f"{task.protocol}, {config.data.source} {split}", fingerprint)


def _check_comparable(runs: Sequence[Run]) -> None:
    """Raises where rows of one column would not be about the same y."""
    if len({run.workdir for run in runs}) < len(runs):
        raise UserError("the same --workdir is named twice")
    first: dict[str, Run] = {}
    for run in runs:
        other = first.setdefault(run.trained[0].task.column, run)
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
