"""Evaluates the runs of several folders: checks, opens, measures and writes."""

import dataclasses
import json
import logging
import pathlib
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cvae_jax import data, inference, parallel, trained
from cvae_jax.errors import UserError
from cvae_jax.evaluation import figures, pictures, report, tables
from cvae_jax.evaluation.measure import Cells, Measured, Plan, measure, measure_baselines
from cvae_jax.evaluation.report import Findings, Measurement
from cvae_jax.evaluation.tables import Result
from cvae_jax.inference import Ais, diagnostics
from cvae_jax.inference import ais as annealing
from cvae_jax.inference.diagnostics import LatentCode
from cvae_jax.inference.estimators import cautions, mean_over_seeds
from cvae_jax.task import Arrays, Fitted, Metric, Task
from cvae_jax.trained import TrainedModel
from cvae_jax.training.files import write_atomically
from cvae_jax.training.workdir import fingerprint, read_fingerprint

LOGGER = logging.getLogger(__name__)

NUM_SAMPLES = 1000  # unless a request or a config says otherwise: the fewest to which k̂ can be fitted


@dataclasses.dataclass(frozen=True)
class Request:
    """The estimators, the data and the output of an evaluation.

    Attributes:
      estimators: of `inference.ESTIMATOR_NAMES`, or "bdmc": on y drawn from each model itself, bounds of its
        log p(y|x) by bidirectional Monte Carlo, with the other estimators beside them.
      num_samples: samples for every example; several give a row each. None: what a run's config names as
        `measure_num_samples`, else 1,000.
      split: "train", "valid" or "test".
      num_examples: the first so many of the split; 0: all.
      seed: of the evaluation's random numbers, nothing to do with that of training.
      data_dir: overrides the config's data.dir.
      output: folder for what is written; default `<first workdir>/eval_<split>`.
      num_chains: of "ais" and "bdmc", for every example.
      ais: settings of both.
      task_metrics: whether to measure also what the tasks themselves do, such as an accuracy.
      changes: of keys of the runs' configs, see `trained.load_seeds`.
    """

    estimators: Sequence[str] = ("elbo", "is")
    num_samples: Sequence[int | str] | None = None
    split: str = "test"
    num_examples: int = 0
    seed: int = 0
    data_dir: str | None = None
    output: str | None = None
    num_chains: int = 32
    ais: Ais = dataclasses.field(default_factory=Ais)
    task_metrics: bool = True
    changes: Sequence[str] = ()

    def plan(self, num_samples: int = NUM_SAMPLES) -> Plan:
        """Returns what is measured of a model, with `num_samples` where the request does not say.

        Raises:
          UserError: for unknown estimators, or counts that cannot be.
        """
        if isinstance(self.estimators, str) or isinstance(self.num_samples, int | str):
            raise UserError(
                f"estimators={self.estimators!r} and num_samples={self.num_samples!r} must be sequences, such as "
                "('is',) and (1000,)"
            )
        named = (num_samples,) if self.num_samples is None else self.num_samples
        counts = [_count(count) for count in named]
        if not self.estimators or not counts:
            raise UserError("name at least one estimator and one number of samples")
        known = (*inference.ESTIMATOR_NAMES, "bdmc")
        for name in self.estimators:
            if name not in known:
                raise UserError(f"estimator={name!r} is not known; choose from {', '.join(known)}")
        if self.num_examples < 0:
            raise UserError(f"num_examples={self.num_examples} must not be negative")
        annealing.check(self.num_chains, self.ais, bidirectional="bdmc" in self.estimators)
        names = [name for name in self.estimators if name != "bdmc"]
        cells = [(name, count) for name in names for count in ([self.num_chains] if name == "ais" else counts)]
        inference.check(cells)
        simulate = self.num_chains if "bdmc" in self.estimators else 0
        return Plan(cells, self.seed, self.ais, simulate, self.task_metrics)


def _count(number: int | str) -> int:
    if not re.fullmatch("[0-9]+", str(number), re.ASCII) or int(number) < 1:
        raise UserError(f"num_samples={number} must be a whole number of at least 1")
    return int(number)


class Run(NamedTuple):
    """A trained run beside the arrays it is to be measured on."""

    workdir: str
    request: Request
    models: list[TrainedModel]  # one a seed
    arrays: Arrays
    source: str  # of the arrays: "mnist test"
    fingerprint: str  # of the arrays
    label: str = ""  # what names it in tables
    base: str = ""  # what names its figures

    @property
    def task(self) -> Task:
        """The task, the same for every seed."""
        return self.models[0].task

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of the independent models."""
        return tuple(model.seed for model in self.models)

    @property
    def plan(self) -> Plan:
        """What is measured of its models."""
        return self.request.plan(self.models[0].config.get("measure_num_samples", NUM_SAMPLES))

    @property
    def protocol(self) -> str:
        """What likelihoods are of."""
        return f"{self.task.protocol}, {self.source}"

    @property
    def clusters(self) -> np.ndarray | None:
        """Which examples belong together, [examples]; None where each stands by itself."""
        return self.arrays[self.task.cluster] if self.task.cluster else None


def evaluate(workdirs: Sequence[str | pathlib.Path] | str, request: Request = Request()) -> str:
    """Measures the runs in `workdirs`; writes results.json, examples.json, results.md and figures of each::

        print(evaluate(["runs/q1"], Request(estimators=("elbo", "is"), num_samples=(1000,))))

    Args:
      workdirs: folders of trained runs; their tasks give the columns of the table.
      request: what to measure.

    Returns:
      The tables, in Markdown.

    Raises:
      UserError: for a request that cannot be, or workdirs and data that cannot be read.
    """
    request.plan()
    named = [workdirs] if isinstance(workdirs, str | pathlib.Path) else list(workdirs)
    if not named:
        raise UserError("name at least one workdir")
    runs = _open_runs([str(workdir) for workdir in named], request)
    for run in runs:
        _check_left_out(run)
    folder = pathlib.Path(request.output or pathlib.Path(named[0]) / f"eval_{request.split}").expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {folder} ({error.strerror}); choose another --output") from None
    findings, codes = _measure_runs(runs)
    text = report.text(findings, request.ais)
    _write(findings, text, folder)
    # Last, so that no figure that fails loses what was measured.
    for name, (code, title) in codes.items():
        figures.latent_code(code, folder / name, f"{title}: {request.split} split")
    report.draw(findings.measured, folder, request.split)
    for run in runs:
        title = f"{run.base}: {run.task.title}"
        pictures.draw_samples(run.models[0], run.arrays, folder / f"samples_{run.base}.png", title)
        pictures.draw_figures(run.models[0], run.arrays, folder, run.base, title)
    LOGGER.info("tables and figures: %s", folder)
    return text


def _measure_runs(runs: Sequence[Run]) -> tuple[Findings, dict[str, tuple[LatentCode, str]]]:
    """Measures every stage of every run, and the tasks' baselines.

    Returns:
      The findings, and the latent codes of first seeds with their titles, by the name of their figure.
    """
    findings = Findings([], [], [], [])
    codes: dict[str, tuple[LatentCode, str]] = {}
    for run in runs:
        plan = run.plan
        if plan.metrics and run.task.title not in {measured.column for measured in findings.measured}:
            for name, metrics in measure_baselines(run.task, run.arrays, plan.seed).items():
                findings.measured.extend(_measurements(run, name, (), [metrics]))
        for stage in run.models[0].stages:
            by_seed = [measure(model, stage.name, run.arrays, plan) for model in run.models]
            name = f"{run.label} {stage.name}"
            _collect(findings, run, name, by_seed)
            if by_seed[0].code is not None:
                seed = f", seed {run.seeds[0]}" * (len(run.seeds) > 1)
                codes[f"latents_{run.base}_{stage.name}.png"] = by_seed[0].code, f"{name}{seed}, {run.task.title}"
    return findings, codes


def _collect(findings: Findings, run: Run, model: str, by_seed: Sequence[Measured]) -> None:
    """Adds what was measured of one stage, and says what of it cannot be believed."""
    task, seeds, floor = run.task, run.seeds, float(by_seed[0].floor.mean())
    findings.measured.extend(_measurements(run, model, seeds, [measured.metrics for measured in by_seed]))

    def results(protocol: str, cells: Sequence[Cells]) -> list[Result]:
        identity = run.workdir, protocol, task.title, model
        return [Result(*identity, *cell, seeds, tuple(seed[cell] for seed in cells), run.clusters) for cell in cells[0]]

    of_data = results(run.protocol, [measured.cells for measured in by_seed])
    findings.results.extend(result._replace(floor=floor) for result in of_data)
    protocol = f"{'binary ' * (floor > 0)}y drawn from the model, x of {run.source}"
    findings.simulated.extend(results(protocol, [measured.simulated for measured in by_seed]))
    _warn(f"{model}, {task.title}", len(seeds), [measured.cells for measured in by_seed])
    _warn(f"{model}, y drawn from it", len(seeds), [measured.simulated for measured in by_seed])
    for seed, measured in zip(seeds, by_seed, strict=True):
        if measured.code is not None:
            identity = {"workdir": run.workdir, "protocol": run.protocol, "column": task.title, "model": model}
            findings.codes.append({**identity, "seed": seed, **diagnostics.summary(measured.code)})


def _warn(model: str, num_seeds: int, cells: Sequence[Cells]) -> None:
    """Warns of estimates that cannot be believed."""
    worst = f" in the worst of {num_seeds} seeds" * (num_seeds > 1)
    for name, count in cells[0]:
        if name.startswith("bdmc"):  # a bound is one, however loose; its distance to the other one says more
            continue
        mend = "more chains or temperatures may do" if name == "ais" else "more samples, or ais, may do"
        for line in cautions(mean_over_seeds([seed[name, count] for seed in cells]), count):
            LOGGER.warning("%s, %s with %d: %s%s; %s", model, name, count, line, worst, mend)


def _measurements(
    run: Run, model: str, seeds: tuple[int, ...], by_seed: Sequence[dict[str, Metric]]
) -> list[Measurement]:
    """Returns the metrics of one model, or of a baseline, which has no seeds."""
    return [
        Measurement(
            run.workdir,
            run.task.title,
            model,
            name,
            seeds,
            metric._replace(values=np.stack([metrics[name].values for metrics in by_seed])),
            run.clusters,
        )
        for name, metric in by_seed[0].items()
    ]


def _write(findings: Findings, text: str, folder: pathlib.Path) -> None:
    """Writes results.md, results.json and examples.json."""
    write_atomically(folder / "results.md", text)
    summaries = {
        "likelihoods": [
            {**tables.summary(row), "gains": tables.gains(row, findings.results)} for row in findings.results
        ],
        "simulated": [tables.summary(row) for row in findings.simulated],
        "latent_code": tables.plain(findings.codes),
        "task_measures": [measured.summary() for measured in findings.measured],
    }
    write_atomically(folder / "results.json", json.dumps(summaries, indent=1, allow_nan=False))
    examples = {
        "likelihoods": [row for result in findings.results for row in tables.examples(result)],
        "simulated": [row for result in findings.simulated for row in tables.examples(result)],
        "task_measures": [measured.examples() for measured in findings.measured],
    }
    write_atomically(folder / "examples.json", json.dumps(examples, allow_nan=False))


def _open_runs(workdirs: Sequence[str], request: Request) -> list[Run]:
    """Loads the models of every workdir and the arrays that they are measured on.

    Raises:
      UserError: where one cannot be read, or rows of one column would not be about the same y.
    """
    parallel.use_every_core()
    runs = [_open_run(workdir, request) for workdir in workdirs]
    if len({pathlib.Path(workdir).expanduser().resolve() for workdir in workdirs}) < len(workdirs):
        raise UserError("the same --workdir is named twice")
    firsts: dict[str, Run] = {}
    for run in runs:
        first = firsts.setdefault(run.task.title, run)
        if (run.protocol, run.fingerprint) != (first.protocol, first.fingerprint):
            raise UserError(
                f"{first.workdir} ({first.protocol}) and {run.workdir} ({run.protocol}) are measured on different "
                "data or targets, so their likelihoods cannot stand in one column; evaluate them one at a time"
            )
    few = request.num_examples or None
    return [
        run._replace(
            arrays={name: array[:few] for name, array in run.arrays.items()},
            label=_label(run, runs),
            base=_base(run, runs),
        )
        for run in runs
    ]


def _open_run(workdir: str, request: Request) -> Run:
    models, split = trained.load_seeds(workdir, request.changes), request.split
    config, task = models[0].config, models[0].task
    if request.data_dir is not None:
        config.data.dir = request.data_dir
    try:
        splits = data.load(config.data, task.sources)
        arrays = data.of(data.check(splits, task, config.data.source), split)
    except UserError as error:
        raise UserError(f"{error}. --data_dir says where the data of {workdir} lie now") from None
    digest = fingerprint(task, {split: arrays})[split]
    if read_fingerprint(workdir).get(split, digest) != digest:
        LOGGER.warning("%s: the %s split is not the one that lay beside its training data", workdir, split)
    return Run(workdir, request, models, arrays, f"{config.data.source} {split}", digest)


def _label(run: Run, runs: Sequence[Run]) -> str:
    """Returns the config's name, and the workdir where other runs of that name stand in the same column."""
    name, column = run.models[0].config.name, run.task.title
    twins = [other for other in runs if (other.models[0].config.name, other.task.title) == (name, column)]
    return name if len(twins) == 1 else f"{name} ({run.workdir})"


def _base(run: Run, runs: Sequence[Run]) -> str:
    """Returns what names a run's figures: its folder's name, or its whole path where others have that name."""

    def path(other: Run) -> pathlib.Path:
        return pathlib.Path(other.workdir).expanduser().resolve()

    twins = [other for other in runs if path(other).name == path(run).name]
    return path(run).name if len(twins) == 1 else "_".join(path(run).parts[1:])


def _check_left_out(run: Run) -> None:
    """Says what a run's stages have no cells for, because a recognition network was not trained; raises if that is all.

    Before anything is measured: that may take hours.
    """
    plan = run.plan
    for stage in run.models[0].stages:
        fitted: Fitted = run.models[0].fitted(stage.name)
        if plan.simulate and stage.model.autoregressive and not fitted.exact:
            raise UserError(f"{run.workdir}: {annealing.NOT_SIMULATED}")
        usable, simulated = plan.usable(fitted), plan.simulates(fitted)
        names = list(dict.fromkeys(name for name, count in plan.estimators if (name, count) not in usable))
        names += ["bdmc"] * bool(plan.simulate and not simulated)
        if fitted.exact or not names:
            continue
        shown = ", ".join(repr(name) for name in names)
        if not usable and not simulated:
            raise UserError(
                f"{run.workdir}: {stage.name} was trained without its recognition network, from which {shown} would "
                "draw; add --estimator=mc, or ais with --ais_start=prior"
            )
        LOGGER.warning("%s: %s was trained without its recognition network: no %s", run.workdir, stage.name, shown)
