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
    floor: float = 0.0  # nats, below which no -log p(y|x) can be, because y is probabilities; 0: it is not


def mean_of(result: Result) -> Mean:
    """Returns the mean over examples of a result, averaged over its seeds."""
    return mean_over_examples(mean_over_seeds(result.estimates), result.clusters)


def deviation(values: Sequence[float]) -> float:
    """Returns the standard deviation over seeds; NaN of a single one."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def flagged(result: Result) -> float:
    """Returns the share of examples, of all seeds, whose weights say that their values cannot be believed."""
    return float(np.mean([unreliable(estimate) for estimate in result.estimates]))


# Estimators of log p(y|x), the nearest to it first. The ELBO is none: it is a bound, too low by more for some models
# than for others.
NEAREST = ("exact", "ais", "defensive", "jackknife", "is", "mc")


def rivals(result: Result, results: Sequence[Result]) -> list[Result]:
    """Returns what a result is compared with: the column's first model, and those trained before it in its own run.

    Each is by the same estimator where it has that, otherwise by the nearest to the truth, with the most samples; an
    ELBO's, which is below log p(y|x), only by an exact one. A model that has none of these is left out.
    """
    column = [row for row in results if row.column == result.column]
    models = dict.fromkeys((row.workdir, row.model) for row in column)
    own = (result.workdir, result.model)
    before = [model for model in list(models)[: list(models).index(own)] if model[0] == own[0]]
    allowed = [result.estimator, *(NEAREST if result.estimator in NEAREST else NEAREST[:1])]

    def distance(row: Result) -> tuple[bool, int, int]:
        alike = (row.estimator, row.num_samples) == (result.estimator, result.num_samples)
        return not alike, allowed.index(row.estimator), -row.num_samples

    nearest = []
    for model in dict.fromkeys([next(iter(models)), *before]):
        rows = [row for row in column if (row.workdir, row.model) == model and row.estimator in allowed]
        if model != own and rows:
            nearest.append(min(rows, key=distance))
    return nearest


def named(rival: Result, result: Result) -> str:
    """Returns what a gain is over: the model, and its estimator where that is not the result's own."""
    same = (rival.estimator, rival.num_samples) == (result.estimator, result.num_samples)
    samples = "" if rival.estimator == "exact" else f" {rival.num_samples:,}"
    return rival.model if same else f"{rival.model}, {rival.estimator}{samples}"


def gain_of(result: Result, rival: Result) -> tuple[Mean, float]:
    """Returns what a result gains over another, paired by example, nats, and its deviation over seeds.

    Seeds are paired where both have the same number of them; otherwise the rival's mean is taken.
    """
    rivals = rival.estimates
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
            "bias": 0 - mean.bias,
            "monte_carlo_error_and_bias_are_credible": _credible(mean),
            "standard_error": mean.standard_error,
            "of_seeds": by_seed,
            "deviation_over_seeds": deviation(by_seed),
            "effective_samples_median": np.median(effective_samples(result)),
            "effective_samples_min": effective_samples(result).min(),
            "share_of_examples_flagged": flagged(result),
        }
    )


def _credible(mean: Mean) -> bool:
    return not mean.unreliable and not math.isnan(mean.error)


def gains(result: Result, results: Sequence[Result]) -> list[dict[str, Any]]:
    """Returns what a result gains over each of its rivals, as numbers."""
    rows = []
    for rival in rivals(result, results):
        mean, of_seeds = gain_of(result, rival)
        rows.append(
            {
                "over": f"{rival.model}, {rival.estimator} {rival.num_samples}",
                "gain": mean.value,
                "standard_error": mean.standard_error,
                "monte_carlo_error": mean.error,
                "bias": mean.bias,
                "monte_carlo_error_and_bias_are_credible": _credible(mean),
                "deviation_over_seeds": of_seeds,
            }
        )
    return plain(rows)


def examples(result: Result) -> list[dict[str, Any]]:
    """Returns the arrays of each seed's `Estimate`, an entry a seed.

    Over factors `ess` is the least, `k_hat` the greatest and `flagged` the share of those that are flagged. A k̂ of 100
    stands for a tail that is too heavy for a fit, and none for one that was not tried.
    `per_factor` has a number for each of several y of one x, or of several parts that are independent given x.
    """
    identity = {
        key: getattr(result, key) for key in ("workdir", "column", "protocol", "model", "estimator", "num_samples")
    }
    rows = []
    for seed, estimate in zip(result.seeds, result.estimates, strict=True):
        numbers = estimate._replace(k_hat=np.minimum(estimate.k_hat, 100), lower=None)._asdict()
        del numbers["lower"]
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


def table(results: Sequence[Result], with_gains: bool = True) -> str:
    """Lays out rows of models and estimators, columns of tasks, in Markdown; below them what they gain."""
    columns = sorted({result.column for result in results})
    cells = {(result.model, result.estimator, result.num_samples, result.column): result for result in results}
    lines = [["model", "estimator", "samples", *columns]]
    gained: dict[tuple[str, str, str], list[str]] = {}
    for row in dict.fromkeys((result.model, result.estimator, result.num_samples) for result in results):
        own = [cells.get((*row, column)) for column in columns]
        lines.append([*row[:2], f"{row[2]:,}", *("" if cell is None else _cell(cell) for cell in own)])
        for place, cell in enumerate(own):
            if cell is None:
                continue
            for rival in rivals(cell, results):
                heading = f"gain of {row[0]} over {named(rival, cell)}", row[1], f"{row[2]:,}"
                gained.setdefault(heading, [""] * len(columns))[place] = with_errors(*gain_of(cell, rival))
    below = [[*heading, *differences] for heading, differences in gained.items()] if with_gains else []
    return "\n".join(markdown([*lines, *below]))


def _cell(result: Result) -> str:
    mean = mean_of(result)
    over_seeds = deviation([estimate.value.mean() for estimate in result.estimates])
    text = with_errors(mean._replace(value=-mean.value, bias=-mean.bias), over_seeds)
    if result.estimator not in ("exact", "elbo"):
        text += f", ESS {np.median(effective_samples(result)):.0f}"
        if share := flagged(result):
            text += f", flagged {share:.0%}"
    return text


def with_errors(mean: Mean, over_seeds: float) -> str:
    """Returns the mean with its standard error, its deviation over seeds where there are any, Monte Carlo error, bias.

    A share of nothing is undefined. A question mark stands behind what cannot be believed.
    """
    if math.isnan(mean.value):
        return "undefined"
    places = decimals(mean.standard_error)
    spread = "?" if math.isnan(mean.standard_error) else f"{mean.standard_error:.{places}f}"
    seeds = "" if math.isnan(over_seeds) else f", seeds {over_seeds:.{places}f}"
    doubt = "?" * mean.unreliable
    error, bias = ("?" if math.isnan(number) else f"{number:.2g}{doubt}" for number in (mean.error, mean.bias))
    random = "" if mean.error == 0 else f", MC {error}"
    return f"{mean.value:.{places}f} ± {spread}{seeds}{random}" + ("" if mean.bias == 0 else f", bias {bias}")


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
