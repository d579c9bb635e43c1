"""What an evaluation has found, laid out in Markdown and in histograms."""

import math
import pathlib
from typing import Any, NamedTuple

import numpy as np

from cvae_jax import diagnostics, figures, tables
from cvae_jax.annealing import Annealing
from cvae_jax.estimators import Estimate, Mean, mean_over_examples
from cvae_jax.tables import Result


class TaskMeasure(NamedTuple):
    """What a task measures of one model beside log p(y|x)."""

    workdir: str
    column: str
    model: str
    name: str  # with its unit
    seeds: tuple[int, ...]  # of the independent models
    values: np.ndarray  # [seeds, examples]
    known: float | None  # of a perfect model

    def mean(self) -> tuple[Mean, float]:
        """Mean over examples and seeds with its errors, and its deviation over seeds."""
        known = np.zeros(self.values.shape[1])  # nothing is estimated: no Monte Carlo error
        of_examples = Estimate(self.values.mean(0), known, known + 1, known + np.nan)
        return mean_over_examples(of_examples), tables.deviation(list(self.values.mean(1)))

    def summary(self) -> dict[str, Any]:
        """As numbers for JSON."""
        mean, of_seeds = self.mean()
        numbers = {"mean": mean.value, "standard_error": mean.standard_error, "deviation_over_seeds": of_seeds}
        identity = {name: value for name, value in self._asdict().items() if name != "values"}
        return tables.plain({**identity, **numbers, "of_seeds": self.values.mean(1)})

    def examples(self) -> dict[str, Any]:
        """Every example's value for JSON."""
        return tables.plain(self._asdict())


class Findings(NamedTuple):
    """What is laid out in the end, in the order in which it was measured."""

    results: list[Result]
    simulated: list[Result]  # on y drawn from the models
    codes: list[dict[str, Any]]
    measured: list[TaskMeasure]


def histograms(measured: list[TaskMeasure], folder: pathlib.Path, split: str) -> None:
    """Saves, for every measure that is no mere yes or no, its histogram over examples of each model's first seed."""
    columns = dict.fromkeys((one.column, one.name) for one in measured)
    for column, name in columns:
        found = [one for one in measured if (one.column, one.name) == (column, name)]
        if all(len(np.unique(one.values)) <= 2 for one in found):
            continue
        alone = [other for _, other in columns].count(name) == 1
        file = "_".join((name.split(",")[0] + f" {column}" * (not alone)).split())
        values = {one.model + f", seed {one.seeds[0]}" * (len(one.seeds) > 1): one.values[0] for one in found}
        figures.histograms(values, folder / f"{file}.png", f"{column}, {split} split", name, found[0].known)


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
        by_chance = math.sqrt(math.log(2 * units / 0.05) / min(counts))  # both samples are of that size
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
        lines = [["model", "column", "measure", "value", "of a perfect model"]]
        for one in measured:
            value = tables.with_errors(*one.mean())
            lines.append([one.model, one.column, one.name, value, "" if one.known is None else f"{one.known:.4f}"])
        parts += ["## What the tasks measure", "\n".join(tables.markdown(lines))]
    return "\n\n".join(parts) + "\n"
