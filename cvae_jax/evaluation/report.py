"""What an evaluation has found, laid out in Markdown and in figures."""

import math
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from cvae_jax import figures
from cvae_jax.evaluation import tables
from cvae_jax.evaluation.tables import Result
from cvae_jax.inference import diagnostics
from cvae_jax.inference.ais import Annealing
from cvae_jax.inference.estimators import Estimate, Mean, mean_over_examples


class TaskMeasure(NamedTuple):
    """What a task measures of one model beside log p(y|x)."""

    workdir: str
    column: str
    model: str
    name: str  # with its unit after a comma
    seeds: tuple[int, ...]  # of the independent models
    values: np.ndarray  # [seeds, examples], or [seeds, examples, numbers] with `pool`
    known: float | None  # of a perfect model
    pool: Callable[[np.ndarray], np.ndarray] | None = None  # of a measure that is no mean, see model.Measures
    step: str | None = None  # what a step is of a measure of every step: values are then [seeds, examples, steps]

    def mean(self) -> tuple[Mean, float]:
        """Mean over examples and seeds with its errors, and its deviation over seeds.

        A pooled measure's standard error is the jackknife's over examples; NaN where it is not defined without some
        example, so that nothing is known of it.
        """
        if self.pool is not None:
            sums, count = self.values.sum(1), self.values.shape[1]
            of_seeds = self.pool(sums)
            without = self.pool(sums[:, None] - self.values).mean(0)
            error = np.sqrt((count - 1) / count * ((without - without.mean()) ** 2).sum()) if count > 1 else np.nan
            return Mean(float(of_seeds.mean()), 0.0, float(error)), tables.deviation(list(of_seeds))
        values = self._of_examples()
        known = np.zeros(values.shape[1])  # nothing is estimated: no Monte Carlo error
        of_examples = Estimate(values.mean(0), known, known + 1, known + np.nan)
        return mean_over_examples(of_examples), tables.deviation(list(values.mean(1)))

    def _of_examples(self) -> np.ndarray:
        """[seeds, examples], of a measure that is a mean over examples."""
        return self.values if self.step is None else self.values.mean(2)

    def of_steps(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean over seeds and examples of every step of a sequence, and its standard error over examples, [steps]."""
        of_examples = self.values.mean(0)
        count = len(of_examples)
        error = of_examples.std(0, ddof=1) / np.sqrt(count) if count > 1 else np.full(of_examples.shape[1], np.nan)
        return of_examples.mean(0), error

    def summary(self) -> dict[str, Any]:
        """As numbers for JSON."""
        mean, deviation = self.mean()
        numbers = {"mean": mean.value, "standard_error": mean.standard_error, "deviation_over_seeds": deviation}
        of_seeds = self._of_examples().mean(1) if self.pool is None else self.pool(self.values.sum(1))
        of_steps = {} if self.step is None else dict(zip(("of_steps", "errors_of_steps"), self.of_steps(), strict=True))
        return tables.plain({**self._identity(), **numbers, "of_seeds": of_seeds, **of_steps})

    def examples(self) -> dict[str, Any]:
        """Every example's value for JSON."""
        return tables.plain({**self._identity(), "values": self.values})

    def _identity(self) -> dict[str, Any]:
        return {name: value for name, value in self._asdict().items() if name not in ("values", "pool", "step")}


class Findings(NamedTuple):
    """What is laid out in the end, in the order in which it was measured."""

    results: list[Result]
    simulated: list[Result]  # on y drawn from the models
    codes: list[dict[str, Any]]
    measured: list[TaskMeasure]


def draw(measured: list[TaskMeasure], folder: pathlib.Path, split: str) -> None:
    """Saves a figure of every measure that one tells something about.

    Of a measure of every step its course, of all models; of any other mean that is of no mere yes or no, its histogram
    over examples of each model's first seed.
    """
    columns = dict.fromkeys((one.column, one.name) for one in measured)
    for column, name in columns:
        of_all = [one for one in measured if (one.column, one.name) == (column, name)]
        found = [one for one in of_all if one.seeds]
        alone = [other for _, other in columns].count(name) == 1
        file = "_".join((name.split(",")[0] + f" {column}" * (not alone)).split())
        step = of_all[0].step
        if step is not None:
            courses = {one.model: one.of_steps() for one in of_all}
            figures.courses(courses, folder / f"{file}.png", f"{column}, {split} split", step, name)
            continue
        if any(one.pool for one in found) or all(len(np.unique(one.values)) <= 2 for one in found):
            continue
        values = {one.model + f", seed {one.seeds[0]}" * (len(one.seeds) > 1): one.values[0] for one in found}
        figures.histograms(values, folder / f"{file}.png", f"{column}, {split} split", name, found[0].known)


def _of_column(measured: list[TaskMeasure]) -> list[list[str]]:
    """A table of the measures of one task: a line a measure, a column a model."""
    models = list(dict.fromkeys(one.model for one in measured))
    known = any(one.known is not None for one in measured)
    lines = [[measured[0].column, *models, *["a perfect model"] * known]]
    for name in dict.fromkeys(one.name for one in measured):
        cells = {one.model: one for one in measured if one.name == name}
        values = [tables.with_errors(*cells[model].mean()) if model in cells else "" for model in models]
        perfect = next(iter(cells.values())).known
        lines.append([name, *values, *["" if perfect is None else f"{perfect:.4f}"] * known])
    return lines


def text(found: Findings, settings: Annealing) -> str:
    """The tables with what their figures mean, in Markdown."""
    results, simulated, codes, measured = found
    everything = (*results, *simulated)
    compared = [tables.reference(one, results).model for one in results if tables.is_compared(one, results)]
    protocols = "; ".join(sorted({result.protocol for result in results or simulated}))
    counts = sorted({len(result.estimates[0].value) for result in everything})
    seeds = max(len(result.seeds) for result in everything)
    names = {result.estimator for result in everything}
    parts = [
        *([tables.table(results)] if results else []),
        f"Negative log p(y|x) in nats per example, lower is better; {protocols}, "
        f"{' or '.join(f'{count:,}' for count in counts)} examples, float32 products at highest precision.",
        "± is the standard error over examples"
        + (f", seeds the standard deviation over {seeds} independently trained models" * (seeds > 1))
        + ", MC the Monte Carlo error of the mean, ESS the median effective sample size: where it is a few, neither "
        "the figure nor its MC error can be believed. k̂ is the share of examples for which the tail of the weights "
        "says so (Pareto k̂ above the limit for so many samples; of fewer than 100 samples, an ESS below 5).",
        "ELBO is a bound (the negative ELBO is too high, never too low); estimates by sampling are biased the same "
        "way, less so with more samples; the jackknife takes most of that bias off.",
        *([f"A gain is over {', '.join(dict.fromkeys(compared))}, paired by example."] if compared else []),
    ]
    if names & {"ais", "bdmc, lower bound"}:
        parts.append(
            f"Annealing: chains (under samples) of {settings.num_steps} temperatures with {settings.num_leapfrog} "
            f"leapfrog steps each, from {'q(z|x,y)' if settings.start == 'recognition' else 'p(z|x)'}."
        )
    if simulated:
        parts += [
            "## On y drawn from each model itself",
            tables.table(simulated, gains=False),
            "Bidirectional Monte Carlo: -log p(y|x) lies between minus the upper and minus the lower bound, up to "
            "their MC errors. An estimator that stands between them is right here, on y that this model holds likely.",
        ]
    if codes:
        units = max(code["units"] for code in codes)
        by_chance = min(1.0, math.sqrt(math.log(2 * units / 0.05) / min(counts)))  # both samples are of that size
        lines = [["model", "column", "seed", "KL", "active units", "largest mismatch"]]
        for code in codes:
            active = f"{code['active_units']} of {code['units']}"
            values = [f"{code['kl']:.2f}", active, f"{code['largest_mismatch']:.2f}"]
            lines.append([code["model"], code["column"], str(code["seed"]), *values])
        parts += [
            "## Latent code",
            "\n".join(tables.markdown(lines)),
            f"KL(q || p) in nats, mean over examples, all units. A unit is active from {diagnostics.ACTIVE_KL} nats "
            "on. Mismatch: the Kolmogorov-Smirnov distance between a unit's aggregate posterior and aggregate prior; "
            f"the largest of {units} is above {by_chance:.2f} by chance in at most 5% of cases.",
        ]
    if measured:
        parts.append("## What the tasks measure")
        for column in dict.fromkeys(one.column for one in measured):
            parts.append("\n".join(tables.markdown(_of_column([one for one in measured if one.column == column]))))
    return "\n\n".join(parts) + "\n"
