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


def mean_of(result: Result) -> Mean:
    """The mean over examples of a result, averaged over its seeds."""
    return mean_over_examples(mean_over_seeds(result.estimates))


def deviation(values: Sequence[float]) -> float:
    """Standard deviation over seeds; NaN of a single one."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def doubted(result: Result) -> float:
    """The share of examples, of all seeds, whose values cannot be believed by the shape of their weights' tail."""
    return float(np.mean([unreliable(one, result.num_samples).value for one in result.estimates]))


def reference(result: Result, results: Sequence[Result]) -> Result:
    """What a result is compared with: the column's first model, by the same estimator where that model has it."""
    column = [one for one in results if one.column == result.column]
    first = [one for one in column if (one.workdir, one.model) == (column[0].workdir, column[0].model)]
    same = [one for one in first if (one.estimator, one.num_samples) == (result.estimator, result.num_samples)]
    return (same or first)[0]


def is_compared(result: Result, results: Sequence[Result]) -> bool:
    """Whether there is another model to compare with."""
    other = reference(result, results)
    return (other.workdir, other.model) != (result.workdir, result.model)


def gain_of(result: Result, results: Sequence[Result]) -> tuple[Mean, float]:
    """What a result gains over its reference, paired by example, nats, and its deviation over seeds.

    Seeds are paired where both have the same number of them; otherwise the reference's mean is taken.
    """
    other = reference(result, results).estimates
    if len(other) != len(result.estimates):
        other = (mean_over_seeds(other),) * len(result.estimates)
    by_seed = [paired_difference(a, b).value for a, b in zip(result.estimates, other, strict=True)]
    return paired_difference(mean_over_seeds(result.estimates), mean_over_seeds(other)), deviation(by_seed)


def effective_samples(result: Result) -> np.ndarray:
    """Effective sample sizes of all examples and seeds."""
    return np.concatenate([one.ess for one in result.estimates])


def summary(result: Result) -> dict[str, Any]:
    """A result as numbers: negative log-likelihood in nats per example, and its errors."""
    mean, by_seed = mean_of(result), [-one.value.mean() for one in result.estimates]
    return plain(
        {
            **{name: getattr(result, name) for name in result._fields if name != "estimates"},
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
    """What a result gains over its reference, as numbers; {} for the reference itself."""
    if not is_compared(result, results):
        return {}
    other = reference(result, results)
    mean, of_seeds = gain_of(result, results)
    return plain(
        {
            "reference": f"{other.model}, {other.estimator}",
            "gain": mean.value,
            "gain_standard_error": mean.standard_error,
            "gain_monte_carlo_error": mean.error,
            "gain_deviation_over_seeds": of_seeds,
        }
    )


def examples(result: Result) -> list[dict[str, Any]]:
    """Every example's value, error, effective sample size and k̂, an entry a seed."""
    name = {key: getattr(result, key) for key in ("workdir", "column", "protocol", "model", "estimator", "num_samples")}
    return [
        plain({**name, "seed": seed, **one._asdict()}) for seed, one in zip(result.seeds, result.estimates, strict=True)
    ]


def plain(tree: Any) -> Any:
    """Numbers and arrays as JSON knows them: it has no NaN and no infinity, so they become None."""
    if isinstance(tree, dict):
        return {name: plain(value) for name, value in tree.items()}
    if isinstance(tree, np.ndarray | list | tuple):
        return [plain(value) for value in tree]
    if isinstance(tree, np.generic):
        tree = tree.item()
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


def table(results: Sequence[Result], gains: bool = True) -> str:
    """Rows of models and estimators, columns of tasks, in Markdown; below them what they gain."""
    columns = sorted({result.column for result in results})
    cells = {(one.model, one.estimator, one.num_samples, one.column): one for one in results}
    lines = [["model", "estimator", "samples", *columns]]
    gained = []
    for row in dict.fromkeys((one.model, one.estimator, one.num_samples) for one in results):
        found = [cells.get((*row, column)) for column in columns]
        lines.append([*row[:2], f"{row[2]:,}", *("" if one is None else _cell(one) for one in found)])
        own = [one if one is not None and is_compared(one, results) else None for one in found]
        if any(own):
            differences = ["" if one is None else with_errors(*gain_of(one, results)) for one in own]
            gained.append([f"gain of {row[0]}", row[1], f"{row[2]:,}", *differences])
    return "\n".join(markdown([*lines, *(gained if gains else [])]))


def _cell(result: Result) -> str:
    mean = mean_of(result)
    of_seeds = deviation([one.value.mean() for one in result.estimates])
    text = with_errors(mean._replace(value=-mean.value), of_seeds)
    if result.estimator not in ("exact", "elbo"):
        text += f", ESS {np.median(effective_samples(result)):.0f}"
        if share := doubted(result):
            text += f", k̂ {share:.0%}"
    return text


def with_errors(mean: Mean, of_seeds: float) -> str:
    """The mean with its standard error and deviation over seeds, where there are any, and its Monte Carlo error.

    A share of nothing is undefined.
    """
    if math.isnan(mean.value):
        return "undefined"
    places = decimals(mean.standard_error)
    spread = "?" if math.isnan(mean.standard_error) else f"{mean.standard_error:.{places}f}"
    seeds = "" if math.isnan(of_seeds) else f", seeds {of_seeds:.{places}f}"
    error = "?" if math.isnan(mean.error) else f"{mean.error:.2g}"
    return f"{mean.value:.{places}f} ± {spread}{seeds}" + ("" if mean.error == 0 else f", MC {error}")


def decimals(error: float) -> int:
    """How many decimals to print of a value with that error: two, or as many as show two digits of a small error."""
    if math.isnan(error) or error == 0 or error >= 0.01:
        return 2
    return 1 - math.floor(math.log10(error))


def markdown(lines: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table whose cells are padded, so that it reads in a terminal too."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    lines = [lines[0], ["-" * width for width in widths], *lines[1:]]
    return [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
