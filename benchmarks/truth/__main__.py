"""What estimates of log p(y|x), their errors and their flags are worth, where the truth is known.

    python -m benchmarks.truth integration --workdir=W [--num_examples=100]   a z of one or two numbers
    python -m benchmarks.truth coverage --workdir=W [--num_examples=30]       errors of the mean, over evaluation seeds
    python -m benchmarks.truth flags --workdir=W [--num_examples=200]         what is flagged, and what is not
    python -m benchmarks.truth bdmc                                           bounds, on a linear-Gaussian model

The truth of `integration`, `coverage` and `flags` is an integral over a grid of z. `coverage` of a model with a larger
z takes annealing with many temperatures for it. Each prints a table in Markdown. Start it from the repository's root.
"""

import argparse
import pathlib
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.rounds import table
from benchmarks.truth import integration
from cvae_jax import data, inference, keys, parallel, trained
from cvae_jax.data import batches
from cvae_jax.inference import Ais, ais
from cvae_jax.inference.estimators import Estimate, Mean, mean_over_examples, unreliable
from cvae_jax.model import Batch, Fitted

DRAWN = ("elbo", "mc", "is", "jackknife", "defensive")
SEED = 17  # of examples and of whatever the truth needs


def model_and_batch(arguments: argparse.Namespace) -> tuple[Fitted, Batch]:
    """Returns the last stage's model of a run, and the first examples of its test split."""
    model = trained.load(arguments.workdir)
    settings = model.config.data
    arrays = data.of(data.check(data.load(settings, model.task.sources), model.task, settings.source), "test")
    few = {name: array[: arguments.num_examples] for name, array in arrays.items()}
    parts = [jax.tree.map(lambda leaf, n=n: leaf[:n], part) for part, n in batches.of_split(model.task, few, SEED)]
    return model.fitted(), jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)


def known(fitted: Fitted, batch: Batch, temperatures: int) -> tuple[np.ndarray, str]:
    """Returns the truth [batch], or what is nearest to it, and what it is; `temperatures` are those of long chains."""
    size = latent_size(fitted, batch)
    if size <= 2:
        truth = integration.log_p(fitted, batch)
        coarse = integration.log_p(fitted, batch, integration.POINTS[size] // 2 + 1)
        return (
            truth,
            f"an integral over a grid; with half as many points it moves by {np.abs(truth - coarse).max():.1g}",
        )
    settings = Ais("recognition", temperatures, 2)
    long = inference.log_prob(fitted, batch, "ais", 64, jax.random.key(SEED), settings)
    mean = mean_over_examples(long)
    return (
        long.value - long.bias,
        f"annealing, 64 chains of {temperatures:,} temperatures, MC {mean.error:.2g} of the mean",
    )


def latent_size(fitted: Fitted, batch: Batch) -> int:
    """Returns how many numbers an example's z has."""
    z = jax.eval_shape(lambda f, b: f.draw(f.encode(b), keys.unused(b.ids), "prior").z, fitted, batch)
    return sum(leaf.size // len(batch.ids) for leaf in jax.tree.leaves(z))


def of_integration(arguments: argparse.Namespace) -> str:
    """Returns how far estimators are from the truth."""
    fitted, batch = model_and_batch(arguments)
    truth, how = known(fitted, batch, arguments.temperatures)
    key = keys.stream(0, "evaluation")
    requests = [(name, count) for name in DRAWN[1:] for count in (1000, 5000)]
    settings = Ais("recognition", 200, 2)
    estimates = inference.log_probs(fitted, batch, [("elbo", 1000), *requests, ("ais", 16)], key, settings)
    lines = [["estimator", "samples", "less the truth", "of values less bias", "MC", "rms of z", "flagged"]]
    for (name, count), estimate in estimates.items():
        mended = estimate.value - estimate.bias - truth
        mean = mean_over_examples(estimate)
        score = np.sqrt(((mended / np.maximum(estimate.error, 1e-3)) ** 2).mean())
        shown = [
            f"{(estimate.value - truth).mean():+.4f}",
            f"{mended.mean():+.4f}",
            f"{mean.error:.2g}{'?' * mean.unreliable}",
        ]
        lines.append(
            [name, f"{count:,}", *shown, "" if name == "elbo" else f"{score:.2f}", f"{unreliable(estimate).mean():.0%}"]
        )
    text = f"{len(truth)} test examples; mean of the truth {truth.mean():.4f} nats, by {how}."
    if not fitted.model.autoregressive:
        simulated = ais.bdmc(fitted, batch, 16, key, settings)
        exact, _ = known(fitted, simulated.batch, arguments.temperatures)
        for name, bound in zip(("lower", "upper"), ais.bounds(simulated), strict=True):
            mean = mean_over_examples(bound)
            lines.append(
                [f"bdmc, {name} bound", "16", f"{(bound.value - exact).mean():+.4f}", "", f"{mean.error:.2g}", "", ""]
            )
    return f"{text}\n\n{table(lines)}"


def _row(name: str, samples: str, means: list[Mean], missed: np.ndarray, side: int = 0) -> list[str]:
    """Returns a line about the means of several seeds, and how far they are from the truth; bounds have a side."""
    error, bias = (np.array([getattr(mean, field) for mean in means]) for field in ("error", "bias"))
    doubted = np.array([mean.unreliable for mean in means])
    plain = np.abs(missed) < 1.96 * error
    inside = side * missed > -1.96 * error if side else np.abs(missed - bias) < 1.96 * error

    def share(chosen: np.ndarray) -> str:
        return f"{inside[chosen].mean():.0%}" if chosen.any() else ""

    numbers = [f"{missed.mean():+.4f}", f"{bias.mean():+.4f}", f"{missed.std(ddof=1):.4f}", f"{np.median(error):.4f}"]
    return [
        name,
        samples,
        *numbers,
        f"{plain.mean():.0%}",
        share(np.full(len(means), True)),
        f"{doubted.mean():.0%}",
        share(~doubted),
    ]


COLUMNS = [
    "estimator", "samples", "bias", "bias, estimated", "deviation over seeds", "MC, median", "covered, bias left out",
    "covered", "marked with ?", "covered where not marked",
]  # fmt: skip


def of_coverage(arguments: argparse.Namespace) -> str:
    """Returns how often the error and the bias of a mean over examples cover the truth."""
    fitted, batch = model_and_batch(arguments)
    if arguments.without >= 0:
        rows = np.delete(np.arange(len(batch.ids)), arguments.without)
        batch = jax.tree.map(lambda leaf: leaf[rows], batch)
    truth, how = known(fitted, batch, arguments.temperatures)
    counts = [int(count) for count in arguments.num_samples.split(",")]
    requests = [(name, count) for name in DRAWN[1:] for count in counts]
    by_cell: dict[tuple[str, int], list[Mean]] = {}
    for seed in range(arguments.seeds):
        for cell, estimate in inference.log_probs(fitted, batch, requests, keys.stream(seed, "evaluation")).items():
            by_cell.setdefault(cell, []).append(mean_over_examples(estimate))
    lines = [COLUMNS]
    for (name, count), means in by_cell.items():
        missed = np.array([mean.value for mean in means]) - truth.mean()
        lines.append(_row(name, f"{count:,}", means, missed))
    settings = Ais("recognition", 100, 2)
    annealed: dict[str, list[tuple[Mean, float, int]]] = {}
    for seed in range(arguments.ais_seeds):
        key = keys.stream(seed, "evaluation")
        mean = mean_over_examples(inference.log_prob(fitted, batch, "ais", 16, key, settings))
        annealed.setdefault("ais", []).append((mean, mean.value - truth.mean(), 0))
        if fitted.model.autoregressive:
            continue
        simulated = ais.bdmc(fitted, batch, 16, key, settings)
        exact, _ = known(fitted, simulated.batch, arguments.temperatures)
        for (name, side), bound in zip((("lower", -1), ("upper", 1)), ais.bounds(simulated), strict=True):
            mean = mean_over_examples(bound)
            missed_by = float((bound.value - exact).mean())
            annealed.setdefault(f"bdmc, {name} bound", []).append((mean, missed_by, side))
    for name, of_seeds in annealed.items():
        means, missed_by_seed, sides = zip(*of_seeds, strict=True)
        lines.append(_row(name, "16", list(means), np.array(missed_by_seed), sides[0]))
    return (
        f"Mean over {len(truth)} test examples, {arguments.seeds} evaluation seeds ({arguments.ais_seeds} of ais and "
        f"bdmc, 100 temperatures of 2 leapfrog steps). The truth is {how}. A bound covers where it lies on its side up "
        f"to 1.96 MC.\n\n{table(lines)}"
    )


def of_flags(arguments: argparse.Namespace) -> str:
    """Returns how far flagged values are from the truth, and those that are not."""
    fitted, batch = model_and_batch(arguments)
    truth, how = known(fitted, batch, arguments.temperatures)
    lines = [
        [
            "estimator",
            "samples",
            "flagged",
            "not flagged: bias",
            "less its estimate",
            "covered",
            "flagged: bias",
            "covered",
        ]
    ]
    for name in ("is", "defensive", "mc"):
        for count in (100, 1000, 5000):
            parts = [
                inference.log_prob(fitted, batch, name, count, keys.stream(seed, "evaluation"))
                for seed in range(arguments.seeds)
            ]
            estimate: Estimate = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
            exact = np.tile(truth, arguments.seeds)
            missed, doubted = estimate.value - exact, unreliable(estimate)
            mended = missed - estimate.bias
            covered = np.abs(mended) < 1.96 * estimate.error
            cells = [
                f"{missed[~doubted].mean():+.4f}",
                f"{mended[~doubted].mean():+.4f}",
                f"{covered[~doubted].mean():.1%}",
            ]
            bad = [f"{missed[doubted].mean():+.4f}", f"{covered[doubted].mean():.1%}"] if doubted.any() else ["", ""]
            lines.append([name, f"{count:,}", f"{doubted.mean():.1%}", *cells, *bad])
    return f"{len(truth)} test examples, {arguments.seeds} evaluation seeds. The truth is {how}.\n\n{table(lines)}"


def of_bdmc(arguments: argparse.Namespace) -> str:
    """Returns how far the bounds' means are from the truth, and what is printed as their errors."""
    sys.path.append(str(pathlib.Path(__file__).parents[2] / "tests" / "support"))
    from linear_gaussian import LinearGaussian

    of, count, chains = LinearGaussian(3, 8, 16), 120, 32
    lines = [
        [
            "temperatures",
            "bound",
            "less the truth",
            "rms of an example's",
            "deviation of the mean",
            "MC, median",
            "ratio",
            "inside",
        ]
    ]
    for steps, repeats in ((5, 20), (20, 20), (100, 20), (500, arguments.repeats_500)):
        batch = of.batch_of(of.data(repeats * count, SEED)[0], None)
        settings = Ais("recognition", steps)
        simulated = ais.bdmc(of.fitted(0.7, 0.3), batch, chains, jax.random.key(SEED), settings)
        truth = of.log_p_y(np.asarray(batch.x, np.float64), np.asarray(simulated.batch.y, np.float64))
        for (name, side), bound in zip((("lower", -1), ("upper", 1)), ais.bounds(simulated), strict=True):
            missed = (bound.value - truth).reshape(repeats, count)
            parts = [jax.tree.map(lambda leaf, i=i: leaf[i * count : (i + 1) * count], bound) for i in range(repeats)]
            error = np.array([mean_over_examples(part).error for part in parts])
            deviation = missed.mean(1).std(ddof=1)
            inside = (side * missed.mean(1) > -1.96 * error).mean()
            numbers = [
                f"{missed.mean():+.4f}",
                f"{np.sqrt((missed**2).mean()):.3f}",
                f"{deviation:.4f}",
                f"{np.median(error):.4f}",
            ]
            lines.append([f"{steps:,}", name, *numbers, f"{deviation / np.median(error):.2f}", f"{inside:.0%}"])
    try:
        ais.bdmc(of.fitted(0.7, 0.3), of.batch_of(of.data(2)[0], None), 2, jax.random.key(0), Ais("recognition", 1))
    except ValueError as error:
        refused = f"1 temperature: {error}"
    return (
        f"Means over {count} y, {chains} chains of 5 leapfrog steps; 20 such means ({arguments.repeats_500} at 500 "
        f"temperatures). {refused}\n\n{table(lines)}"
    )


COMMANDS: dict[str, Callable[[argparse.Namespace], str]] = {
    "integration": of_integration,
    "coverage": of_coverage,
    "flags": of_flags,
    "bdmc": of_bdmc,
}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.truth", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--workdir", help="of a trained run")
    parser.add_argument("--num_examples", type=int, default=30, help="the first so many of the test split")
    parser.add_argument("--num_samples", default="100,1000", help="of coverage")
    parser.add_argument("--seeds", type=int, default=20, help="evaluation seeds of estimators made of draws")
    parser.add_argument("--ais_seeds", type=int, default=20, help="evaluation seeds of ais and bdmc")
    parser.add_argument("--without", type=int, default=-1, help="an example that coverage leaves out")
    parser.add_argument("--temperatures", type=int, default=2000, help="of the annealing that stands for the truth")
    parser.add_argument("--repeats_500", type=int, default=10, help="means at 500 temperatures")
    arguments = parser.parse_args()
    if arguments.command != "bdmc" and not arguments.workdir:
        parser.error("--workdir is required")
    parallel.use_every_core()
    print(COMMANDS[arguments.command](arguments))


if __name__ == "__main__":
    main()
