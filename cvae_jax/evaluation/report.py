"""An evaluation's results, laid out in Markdown and in figures."""

import math
import pathlib
from typing import Any, NamedTuple

import numpy as np

from cvae_jax.evaluation import figures, tables
from cvae_jax.evaluation.tables import Result
from cvae_jax.inference import Ais, diagnostics, estimators
from cvae_jax.inference.estimators import Mean, standard_error
from cvae_jax.task import Metric

# What the words of a table mean, where they occur in it.
SAMPLED = (
    "Bias is how far too high a figure is on average, estimated from the same samples: with other random numbers, 95% "
    "of figures less their bias would be within 2 MC of the truth. More examples lower MC and not the bias; more "
    "samples lower both. ESS is the median effective sample size. Flagged is the share of examples whose value and "
    "error cannot be believed: k̂, which says how heavy the tail of the weights is, is above the limit for so many "
    "samples. A question mark stands behind MC and bias where flagged examples make up more than a third of the "
    "squared error: the truth may be further off."
)
FEW = (
    f"Of fewer than {estimators.FEWEST_SAMPLES:,} samples, or chains, an example is flagged where its ESS is below "
    f"{estimators.FEWEST_EFFECTIVE}, or half of them. A tail that was not drawn is not seen: no flag proves nothing."
)
GREY = (
    "A cross-entropy compares models under this protocol alone. None falls below its floor, which is the entropy of "
    "the targets themselves: "
)


class Measurement(NamedTuple):
    """A metric of one model on one split."""

    workdir: str
    column: str
    model: str
    name: str
    seeds: tuple[int, ...]  # of the independent models; () of a baseline
    metric: Metric  # its values begin with the axis of the seeds, [seeds, examples, ...]
    clusters: np.ndarray | None = None  # which examples belong together, see `estimators.standard_error`

    @property
    def title(self) -> str:
        """The name with its unit."""
        return ", ".join(filter(None, (self.name, self.metric.unit)))

    @property
    def perfect(self) -> float | None:
        """The value of a perfect model: of all examples, or its mean over those that are measured."""
        perfect, values = self.metric.perfect, self.metric.values
        if perfect is None or not np.ndim(perfect):
            return None if perfect is None else float(perfect)
        missing = np.isnan(values).any((0, *range(2, values.ndim)))
        mean = _mean(np.where(missing, math.nan, perfect))
        return None if math.isnan(mean) else mean

    def mean(self) -> tuple[Mean, float]:
        """Returns the mean over examples and seeds with its errors, and its deviation over seeds.

        Examples whose value is NaN are left out. A pooled metric's standard error is the jackknife's over examples;
        NaN where it is not defined without some example, so that nothing is known of it.
        """
        by_seed = self._by_seed()
        if self.metric.pool is not None:
            return Mean(float(by_seed.mean()), 0.0, self._jackknife()), tables.deviation(list(by_seed))
        values = self._by_example().mean(0)
        spread = standard_error(values, self.clusters)
        # Nothing is estimated: no Monte Carlo error.
        return Mean(_mean(values), 0.0, spread), tables.deviation(list(by_seed))

    def _by_example(self) -> np.ndarray:
        """Returns [seeds, examples], of a metric that is a mean over examples."""
        return self.metric.values.mean(2) if self.metric.step else self.metric.values

    def _by_seed(self) -> np.ndarray:
        """Returns the metric of each seed, [seeds]."""
        if self.metric.pool is None:
            return np.array([_mean(values) for values in self._by_example()])
        return self.metric.pool(np.nansum(self.metric.values, 1))

    def _jackknife(self) -> float:
        """Returns the standard error of a pooled metric by leaving out each example, or each cluster, in turn."""
        assert self.metric.pool is not None
        there = ~np.isnan(self.metric.values).all((0, 2))
        values = np.nan_to_num(self.metric.values[:, there], nan=0.0)
        if self.clusters is not None:
            names, members = np.unique(self.clusters[there], return_inverse=True)
            sums = np.zeros((len(names), len(values), values.shape[2]))
            np.add.at(sums, members, values.swapaxes(0, 1))
            values = sums.swapaxes(0, 1)
        count = values.shape[1]
        if count <= 1:
            return math.nan
        without = self.metric.pool(values.sum(1)[:, None] - values).mean(0)
        return float(np.sqrt((count - 1) / count * ((without - without.mean()) ** 2).sum()))

    def by_step(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the mean over seeds and examples of every step of a sequence, and its standard error, [steps]."""
        values = self.metric.values.mean(0)
        errors = [standard_error(column, self.clusters) for column in values.T]
        return np.array([_mean(column) for column in values.T]), np.array(errors)

    def summary(self) -> dict[str, Any]:
        """Returns numbers for JSON."""
        mean, deviation = self.mean()
        numbers = {"mean": mean.value, "standard_error": mean.standard_error, "deviation_over_seeds": deviation}
        steps = dict(zip(("of_steps", "errors_of_steps"), self.by_step(), strict=True)) if self.metric.step else {}
        return tables.plain({**self._identity(), **numbers, "of_seeds": self._by_seed(), **steps})

    def examples(self) -> dict[str, Any]:
        """Returns every example's value for JSON."""
        return tables.plain({**self._identity(), "values": self.metric.values})

    def _identity(self) -> dict[str, Any]:
        names = {"workdir": self.workdir, "column": self.column, "model": self.model, "name": self.title}
        return {**names, "seeds": self.seeds, "known": self.perfect}


def _there(values: np.ndarray) -> np.ndarray:
    """Returns the values that are not NaN, laid flat."""
    return values[~np.isnan(values)]


def _mean(values: np.ndarray) -> float:
    """Returns the mean of the values that are not NaN; NaN where none is."""
    there = _there(values)
    return float(there.mean()) if len(there) else math.nan


class Findings(NamedTuple):
    """Everything that is laid out in the end, in the order in which it was measured."""

    results: list[Result]
    simulated: list[Result]  # on y drawn from the models
    codes: list[dict[str, Any]]
    measured: list[Measurement]


def draw(measured: list[Measurement], folder: pathlib.Path, split: str) -> None:
    """Draws a per-step metric as one curve per model, and any other non-binary metric as a histogram over examples.

    The histogram is of the first seed of each model. A pooled metric has no figure.
    """
    columns = dict.fromkeys((measurement.column, measurement.name) for measurement in measured)
    for column, name in columns:
        rows = [measurement for measurement in measured if (measurement.column, measurement.name) == (column, name)]
        models = [row for row in rows if row.seeds]
        binary = all(len(np.unique(_there(row.metric.values))) <= 2 for row in models)
        alone = [other for _, other in columns].count(name) == 1
        path = folder / ("_".join((name.split(",")[0] + f" {column}" * (not alone)).split()) + ".png")
        title, step = f"{column}, {split} split", rows[0].metric.step
        if step:
            figures.curves({row.model: row.by_step() for row in rows}, path, title, step, rows[0].title)
            continue
        if binary or any(row.metric.pool for row in models):
            continue
        values = {row.model + f", seed {row.seeds[0]}" * (len(row.seeds) > 1): row.metric.values[0] for row in models}
        present = {label: _there(array) for label, array in values.items() if len(_there(array))}
        if present:
            figures.histograms(present, path, title, models[0].title, models[0].perfect)


def _column_table(measured: list[Measurement]) -> list[list[str]]:
    """Returns a table of the metrics of one task: a line a metric, a column a model."""
    models = list(dict.fromkeys(measurement.model for measurement in measured))
    perfect = any(measurement.perfect is not None for measurement in measured)
    lines = [[measured[0].column, *models, *["a perfect model"] * perfect]]
    for title in dict.fromkeys(measurement.title for measurement in measured):
        cells = {measurement.model: measurement for measurement in measured if measurement.title == title}
        values = [tables.with_errors(*cells[model].mean()) if model in cells else "" for model in models]
        known = next((cell.perfect for cell in cells.values() if cell.perfect is not None), None)
        lines.append([title, *values, *["" if known is None else f"{known:.4f}"] * perfect])
    return lines


def text(findings: Findings, settings: Ais) -> str:
    """Returns the tables with what their figures mean, in Markdown; `settings` are those of annealing."""
    results, simulated, codes, measured = findings
    everything = (*results, *simulated)
    count = [len(result.estimates[0].value) for result in everything]
    parts = [
        *([tables.table(results)] if results else []),
        *_explained(results, everything),
    ]
    if {result.estimator for result in everything} & {"ais", "bdmc, lower bound"}:
        parts.append(
            f"Annealing: chains (under samples) of {settings.num_steps} temperatures with {settings.num_leapfrog} "
            f"leapfrog steps each, from {'q(z|x,y)' if settings.start == 'recognition' else 'p(z|x)'}."
        )
    if simulated:
        parts += [
            "## On y drawn from each model itself",
            tables.table(simulated, with_gains=False),
            "Bidirectional Monte Carlo: -log p(y|x) lies between minus the upper and minus the lower bound, up to "
            "their MC errors. So the truth is known as well as they are close, on y that this model holds likely, and "
            "an estimator that lies outside by more than its errors is wrong. "
            f"y: {'; '.join(sorted({result.protocol for result in simulated}))}.",
        ]
    if codes:
        parts += _latent_code(codes, min(count))
    if measured:
        parts.append("## What the tasks measure")
        for column in dict.fromkeys(measurement.column for measurement in measured):
            rows = [measurement for measurement in measured if measurement.column == column]
            parts.append("\n".join(tables.markdown(_column_table(rows))))
    return "\n\n".join(parts) + "\n"


def _explained(results: list[Result], everything: tuple[Result, ...]) -> list[str]:
    """Returns what the figures of the table mean."""
    compared = any(tables.rivals(result, results) for result in results)
    protocols = "; ".join(dict.fromkeys(result.protocol for result in results or everything))
    by_column = {result.column: f"{result.floor:.1f} nats" for result in results if result.floor}
    floors = ", ".join(f"{floor} of {column}" for column, floor in by_column.items())
    counts = sorted({len(result.estimates[0].value) for result in everything})
    clusters = {len(np.unique(result.clusters)) for result in everything if result.clusters is not None}
    over = (
        "examples"
        if not clusters
        else f"{' or '.join(f'{count:,}' for count in sorted(clusters))} clusters of examples"
    )
    seeds = max(len(result.seeds) for result in everything)
    estimators_used = {result.estimator for result in everything}
    sampled = estimators_used - {"exact", "elbo"}
    few = any(result.num_samples < estimators.FEWEST_SAMPLES for result in everything if result.estimator in sampled)
    return [
        f"Negative log p(y|x) in nats per example, lower is better; {protocols}, "
        f"{' or '.join(f'{count:,}' for count in counts)} examples, float32 products at highest precision.",
        f"± is the standard error over {over}"
        + (f", seeds the standard deviation over {seeds} independently trained models" * (seeds > 1))
        + (", MC the Monte Carlo error of the mean" * (estimators_used != {"exact"}))
        + ".",
        *([SAMPLED] if sampled else []),
        *([FEW] if few else []),
        *(["ELBO is a bound: the negative ELBO is too high, never too low."] if "elbo" in estimators_used else []),
        *(["A gain is paired by example; its row names what it is over."] if compared else []),
        *([f"{GREY}{floors}."] if floors else []),
    ]


def _latent_code(codes: list[dict[str, Any]], count: int) -> list[str]:
    """Returns the table of the latent codes of models that were measured on `count` examples."""
    dimensions = max(code["units"] for code in codes)
    by_chance = min(1.0, math.sqrt(math.log(2 * dimensions / 0.05) / count))  # both samples are of that size
    lines = [["model", "column", "seed", "KL", "active dimensions", "largest mismatch"]]
    for code in codes:
        active = f"{code['active_units']} of {code['units']}"
        values = [f"{code['kl']:.2f}", active, f"{code['largest_mismatch']:.2f}"]
        lines.append([code["model"], code["column"], str(code["seed"]), *values])
    return [
        "## Latent code",
        "\n".join(tables.markdown(lines)),
        f"KL(q || p) in nats, mean over examples, all latent dimensions. A dimension is active from "
        f"{diagnostics.ACTIVE_KL} nats on. Mismatch: the Kolmogorov-Smirnov distance between a dimension's aggregate "
        f"posterior and aggregate prior; the largest of {dimensions} is above {by_chance:.2f} by chance in at most 5% "
        "of cases.",
    ]
