"""Measured likelihoods as tables in Markdown and as numbers for JSON."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from cvae_jax.inference.estimators import (
    Estimate,
    Mean,
    mean_over_examples,
    mean_over_seeds,
    paired_difference,
    unreliable,
)


class Result(NamedTuple):
    """One cell of a table: log p(y|x) of one model by one estimator on one split."""

    workdir: str
    protocol: str  # what y was measured on: "grey targets, mnist test"
    column: str
    model: str  # "mnist_quadrants cvae"
    estimator: str  # "exact" where nothing is drawn
    num_samples: int
    seeds: tuple[int, ...]  # of the independent models
    estimates: tuple[Estimate, ...]  # one a seed, of the same examples
    clusters: np.ndarray | None = None  # which examples belong together, see `estimators.standard_error`


def mean_of(result: Result) -> Mean:
    """Returns the mean over examples of a result, averaged over its seeds."""
    return mean_over_examples(mean_over_seeds(result.estimates), result.clusters)


def deviation(values: Sequence[float]) -> float:
    """Returns the standard deviation over seeds; NaN of a single one."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def doubted(result: Result) -> float:
    """Returns the share of examples, of all seeds, whose values the tail of their weights makes incredible."""
    return float(np.mean([unreliable(estimate, result.num_samples).value for estimate in result.estimates]))


def reference(result: Result, results: Sequence[Result]) -> Result:
    """Returns what a result is compared with: the column's first model, by the same estimator where it has it."""
    column = [row for row in results if row.column == result.column]
    first = [row for row in column if (row.workdir, row.model) == (column[0].workdir, column[0].model)]
    same = [row for row in first if (row.estimator, row.num_samples) == (result.estimator, result.num_samples)]
    return (same or first)[0]


def is_compared(result: Result, results: Sequence[Result]) -> bool:
    """Returns whether there is another model to compare with."""
    rival = reference(result, results)
    return (rival.workdir, rival.model) != (result.workdir, result.model)


def gain_of(result: Result, results: Sequence[Result]) -> tuple[Mean, float]:
    """Returns what a result gains over its reference, paired by example, nats, and its deviation over seeds.

    Seeds are paired where both have the same number of them; otherwise the reference's mean is taken.
    """
    rivals = reference(result, results).estimates
    if len(rivals) != len(result.estimates):
        rivals = (mean_over_seeds(rivals),) * len(result.estimates)
    by_seed = [paired_difference(a, b).value for a, b in zip(result.estimates, rivals, strict=True)]
    gain = paired_difference(mean_over_seeds(result.estimates), mean_over_seeds(rivals), result.clusters)
    return gain, deviation(by_seed)


def effective_samples(result: Result) -> np.ndarray:
    """Returns the effective sample sizes of all examples and seeds."""
    return np.concatenate([estimate.ess for estimate in result.estimates])


def summary(result: Result) -> dict[str, Any]:
    """Returns a result as numbers: negative log-likelihood in nats per example, and its errors."""
    mean, by_seed = mean_of(result), [-estimate.value.mean() for estimate in result.estimates]
    return plain(
        {
            **{name: getattr(result, name) for name in result._fields if name not in ("estimates", "clusters")},
            "num_examples": len(result.estimates[0].value),
            "negative_log_likelihood": -mean.value,
            "monte_carlo_error": mean.error,
            "standard_error": mean.standard_error,
            "of_seeds": by_seed,
            "deviation_over_seeds": deviation(by_seed),
            "effective_samples_median": np.median(effective_samples(result)),
            "effective_samples_min": effective_samples(result).min(),
            "share_of_examples_with_large_k_hat": doubted(result),
        }
    )


def gain(result: Result, results: Sequence[Result]) -> dict[str, Any]:
    """Returns what a result gains over its reference, as numbers; {} for the reference itself."""
    if not is_compared(result, results):
        return {}
    rival = reference(result, results)
    mean, of_seeds = gain_of(result, results)
    return plain(
        {
            "reference": f"{rival.model}, {rival.estimator}",
            "gain": mean.value,
            "gain_standard_error": mean.standard_error,
            "gain_monte_carlo_error": mean.error,
            "gain_deviation_over_seeds": of_seeds,
        }
    )


def examples(result: Result) -> list[dict[str, Any]]:
    """Returns every example's value, error, effective sample size and k̂, an entry a seed.

    `per_factor` has a number for each of several y of one x, or of several parts that are independent given x.
    """
    identity = {
        key: getattr(result, key) for key in ("workdir", "column", "protocol", "model", "estimator", "num_samples")
    }
    rows = []
    for seed, estimate in zip(result.seeds, result.estimates, strict=True):
        numbers = estimate._asdict()
        if estimate.per_factor is None or estimate.per_factor.shape[1] == 1:
            del numbers["per_factor"]
        rows.append(plain({**identity, "seed": seed, **numbers}))
    return rows


def plain(tree: Any) -> Any:
    """Returns numbers and arrays as JSON knows them: it has no NaN and no infinity, so they become None."""
    if isinstance(tree, dict):
        return {name: plain(value) for name, value in tree.items()}
    if isinstance(tree, np.ndarray | list | tuple):
        return [plain(value) for value in tree]
    if isinstance(tree, np.generic):
        tree = tree.item()
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


def table(results: Sequence[Result], gains: bool = True) -> str:
    """Lays out rows of models and estimators, columns of tasks, in Markdown; below them what they gain."""
    columns = sorted({result.column for result in results})
    cells = {(result.model, result.estimator, result.num_samples, result.column): result for result in results}
    lines = [["model", "estimator", "samples", *columns]]
    gained = []
    for row in dict.fromkeys((result.model, result.estimator, result.num_samples) for result in results):
        own = [cells.get((*row, column)) for column in columns]
        lines.append([*row[:2], f"{row[2]:,}", *("" if cell is None else _cell(cell) for cell in own)])
        compared = [cell if cell is not None and is_compared(cell, results) else None for cell in own]
        if any(compared):
            differences = ["" if cell is None else with_errors(*gain_of(cell, results)) for cell in compared]
            gained.append([f"gain of {row[0]}", row[1], f"{row[2]:,}", *differences])
    return "\n".join(markdown([*lines, *(gained if gains else [])]))


def _cell(result: Result) -> str:
    mean = mean_of(result)
    over_seeds = deviation([estimate.value.mean() for estimate in result.estimates])
    text = with_errors(mean._replace(value=-mean.value), over_seeds)
    if result.estimator not in ("exact", "elbo"):
        text += f", ESS {np.median(effective_samples(result)):.0f}"
        if share := doubted(result):
            text += f", k̂ {share:.0%}"
    return text


def with_errors(mean: Mean, over_seeds: float) -> str:
    """Returns the mean with its standard error, its deviation over seeds where there are any, its Monte Carlo error.

    A share of nothing is undefined.
    """
    if math.isnan(mean.value):
        return "undefined"
    places = decimals(mean.standard_error)
    spread = "?" if math.isnan(mean.standard_error) else f"{mean.standard_error:.{places}f}"
    seeds = "" if math.isnan(over_seeds) else f", seeds {over_seeds:.{places}f}"
    error = "?" if math.isnan(mean.error) else f"{mean.error:.2g}"
    return f"{mean.value:.{places}f} ± {spread}{seeds}" + ("" if mean.error == 0 else f", MC {error}")


def decimals(error: float) -> int:
    """Returns how many decimals to print of a value with that error: two, or as many as show two of its digits."""
    if math.isnan(error) or error == 0 or error >= 0.01:
        return 2
    return 1 - math.floor(math.log10(error))


def markdown(lines: Sequence[Sequence[str]]) -> list[str]:
    """Returns lines of a Markdown table whose cells are padded, so that it reads in a terminal too."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    lines = [lines[0], ["-" * width for width in widths], *lines[1:]]
    return [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
