"""Figures of what an evaluation has measured: the latent code, metrics over examples, and over steps."""

import pathlib

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cvae_jax.figures import DPI
from cvae_jax.inference.diagnostics import ACTIVE_KL, LatentCode, active_dimensions

DIMENSIONS_SHOWN = 8


def latent_code(code: LatentCode, path: pathlib.Path, title: str) -> None:
    """Saves the KL of every latent dimension, largest first, and aggregate posterior against prior of the first few."""
    kl = code.kl.mean(0)
    order = np.argsort(-kl)
    shown = order[:DIMENSIONS_SHOWN]
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 2), squeeze=False)[0]
    bars = left.subplots()
    bars.bar(np.arange(len(kl)), kl[order], width=1.0)
    bars.axhline(ACTIVE_KL, color="black", linestyle="--", linewidth=0.8, label=f"active from {ACTIVE_KL} nats")
    bars.set_yscale("log")
    bars.set_ylim(bottom=ACTIVE_KL / 10)
    bars.xaxis.set_major_locator(MaxNLocator(integer=True))
    bars.set_xlabel("latent dimension, by KL")
    bars.set_ylabel("mean KL(q || p), nats")
    bars.set_title(f"{active_dimensions(code)} of {len(kl)} dimensions active, {kl.sum():.1f} nats in all", fontsize=9)
    bars.legend(fontsize=7)
    axes = right.subplots(2, DIMENSIONS_SHOWN // 2, squeeze=False).ravel()
    for panel, dimension in zip(axes, shown, strict=False):
        both = np.concatenate([code.posterior[:, dimension], code.prior[:, dimension]])
        edges = np.histogram_bin_edges(both, int(np.clip(np.sqrt(len(both)), 5, 30)))
        panel.hist(code.prior[:, dimension], edges, density=True, alpha=0.5, label="p(z|x)")
        panel.hist(code.posterior[:, dimension], edges, density=True, histtype="step", color="black", label="q(z|x,y)")
        panel.set_title(f"dimension {dimension}: {kl[dimension]:.2f} nats", fontsize=8)
        panel.tick_params(labelsize=6, left=False, labelleft=False)
    for panel in axes[len(shown) :]:
        panel.axis("off")
    axes[0].legend(fontsize=7)
    right.suptitle("draws over all examples", fontsize=9)
    figure.suptitle(title, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI)


def histograms(
    values: dict[str, np.ndarray], path: pathlib.Path, title: str, xlabel: str, known: float | None = None
) -> None:
    """Saves histograms of one number an example over each other, in common bins.

    Args:
      values: model -> values [examples], finite.
      path: of the PNG.
      title: a line above the figure.
      xlabel: what the values are.
      known: the value of a perfect model, drawn as a line.
    """
    models = {label: np.asarray(numbers, np.float64) for label, numbers in values.items()}
    together = np.concatenate(list(models.values()))
    low, high = together.min(), together.max()
    if high - low <= 1e-6 * max(abs(low), abs(high)):  # constant but for rounding, where NumPy finds no bins
        low, high = low - 0.5, high + 0.5
    count = int(np.clip(np.sqrt(min(map(len, models.values()))), 5, 40))
    edges = np.histogram_bin_edges(together, count, (low, high))
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    panel = figure.subplots()
    for label, numbers in models.items():
        weights = np.full(len(numbers), 1 / len(numbers))
        panel.hist(numbers, list(edges), weights=weights, histtype="step", linewidth=1.3, label=label)
    if known is not None:
        panel.axvline(known, color="black", linestyle="--", linewidth=0.8, label=f"a perfect model, {known:.3f}")
    panel.set_xlabel(xlabel)
    panel.set_ylabel("share of examples")
    panel.set_title(title, fontsize=10)
    if len(models) > 1 or known is not None:
        panel.legend(fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI)


def curves(
    values: dict[str, tuple[np.ndarray, np.ndarray]], path: pathlib.Path, title: str, xlabel: str, ylabel: str
) -> None:
    """Saves one number over the steps of a sequence as a curve per model, with 95% confidence bands.

    Args:
      values: model -> mean and standard error of every step, [steps] each.
      path: of the PNG.
      title: a line above the figure.
      xlabel: what a step is; the first is 1.
      ylabel: what the values are.
    """
    few = len(values) <= 4
    figure = Figure(figsize=(6.4, 4 if few else 4 + 0.2 * len(values)), layout="constrained")
    panel = figure.subplots()
    for label, (mean, error) in values.items():
        steps, shade = np.arange(1, len(mean) + 1), 0.15 if few else 0.06
        (line,) = panel.plot(steps, mean, marker=".", linewidth=1.3, label=label)
        panel.fill_between(steps, mean - 1.96 * error, mean + 1.96 * error, color=line.get_color(), alpha=shade, lw=0)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.set_xlabel(xlabel)
    panel.set_ylabel(ylabel)
    panel.set_title(f"{title}; bands: 95% over examples", fontsize=10)
    if few:
        panel.legend(fontsize=7)
    else:
        figure.legend(fontsize=7, loc="outside lower center")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI)
