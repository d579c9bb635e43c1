"""Figures: rows of images, training curves, the animation of learning, and the latent code."""

import pathlib
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from cvae_jax.diagnostics import ACTIVE_KL, LatentCode, active_units

GREY = matplotlib.colormaps["gray"].with_extremes(bad="#7799bb")


def image_grid(columns: dict[str, np.ndarray], path: pathlib.Path, title: str = "") -> None:
    """Saves rows of images under column headings.

    Args:
      columns: heading -> images [rows, height, width] with values in [0, 1]; NaN is drawn in blue.
      path: of the PNG.
      title: a line above the figure.
    """
    rows = len(next(iter(columns.values())))
    # A fixed size for a fixed number of columns, so that frames of an animation fit each other.
    figure = Figure(figsize=(0.85 * len(columns) + 0.3, 0.85 * rows + 0.75), layout="constrained")
    axes = figure.subplots(rows, len(columns), squeeze=False)
    for column, (heading, images) in enumerate(columns.items()):
        axes[0, column].set_title(heading, fontsize=8)
        for row in range(rows):
            axes[row, column].imshow(np.ma.masked_invalid(images[row]), cmap=GREY, vmin=0, vmax=1)
            axes[row, column].axis("off")
    if title:
        figure.suptitle(title, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def animate(frames: list[pathlib.Path], path: pathlib.Path, milliseconds: int = 400) -> None:
    """Joins PNG files of one size into a GIF that holds its last frame for two seconds."""
    images = [Image.open(frame).convert("P", palette=Image.Palette.ADAPTIVE) for frame in frames]
    durations = [milliseconds] * (len(images) - 1) + [2000]
    images[0].save(path, save_all=True, append_images=images[1:], duration=durations, loop=0)


def training_curves(rows: list[dict[str, Any]], path: pathlib.Path) -> None:
    """Saves every term of the loss over epochs, training and validation, a panel a term and a line of panels a stage.

    Args:
      rows: of metrics.jsonl; none: no figure.
      path: of the PNG.
    """
    if not rows:
        return
    stages = list(dict.fromkeys(row["stage"] for row in rows))
    terms = {stage: _terms([row for row in rows if row["stage"] == stage]) for stage in stages}
    width = max(len(names) for names in terms.values())
    figure = Figure(figsize=(3.2 * width, 2.6 * len(stages)), layout="constrained")
    axes = figure.subplots(len(stages), width, squeeze=False)
    for line, stage in zip(axes, stages, strict=True):
        for panel in line:
            panel.axis("off")
        of_stage = [row for row in rows if row["stage"] == stage]
        seeds = list(dict.fromkeys(row["seed"] for row in of_stage))
        for panel, term in zip(line, terms[stage], strict=False):
            panel.axis("on")
            panel.set_title(f"{stage}: {term}", fontsize=9)
            panel.set_xlabel("epoch", fontsize=8)
            panel.xaxis.set_major_locator(MaxNLocator(integer=True))
            panel.set_ylabel("weight of the KL" if term == "beta" else "nats per example", fontsize=8)
            panel.tick_params(labelsize=7)
            for split, style in (("train", "-"), ("valid", "--")):
                if f"{split}/{term}" not in of_stage[0]:
                    continue
                for number, seed in enumerate(seeds):
                    own = [row for row in of_stage if row["seed"] == seed]
                    epochs, values = [row["epoch"] for row in own], [row[f"{split}/{term}"] for row in own]
                    many = len(seeds) > 1
                    colour = f"C{number if many else int(split == 'valid')}"
                    panel.plot(epochs, values, style, color=colour, label=split + f", seed {seed}" * many)
            panel.legend(fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def _terms(rows: list[dict[str, Any]]) -> list[str]:
    """The names of a stage's terms, the loss first."""
    names = {name.split("/", 1)[1] for row in rows for name in row if "/" in name}
    return sorted(names, key=lambda name: (name != "loss", name))


UNITS_SHOWN = 8


def latent_code(code: LatentCode, path: pathlib.Path, title: str) -> None:
    """Saves the KL of every latent unit, largest first, and aggregate posterior against prior of the first few."""
    kl = code.kl.mean(0)
    order = np.argsort(-kl)
    shown = order[:UNITS_SHOWN]
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 2), squeeze=False)[0]
    bars = left.subplots()
    bars.bar(np.arange(len(kl)), kl[order], width=1.0)
    bars.axhline(ACTIVE_KL, color="black", linestyle="--", linewidth=0.8, label=f"active from {ACTIVE_KL} nats")
    bars.set_yscale("log")
    bars.set_ylim(bottom=ACTIVE_KL / 10)
    bars.xaxis.set_major_locator(MaxNLocator(integer=True))
    bars.set_xlabel("latent unit, by KL")
    bars.set_ylabel("mean KL(q || p), nats")
    bars.set_title(f"{active_units(code)} of {len(kl)} units active, {kl.sum():.1f} nats in all", fontsize=9)
    bars.legend(fontsize=7)
    axes = right.subplots(2, UNITS_SHOWN // 2, squeeze=False).ravel()
    for panel, unit in zip(axes, shown, strict=False):
        both = np.concatenate([code.posterior[:, unit], code.prior[:, unit]])
        edges = np.histogram_bin_edges(both, int(np.clip(np.sqrt(len(both)), 5, 30)))
        panel.hist(code.prior[:, unit], edges, density=True, alpha=0.5, label="p(z|x)")
        panel.hist(code.posterior[:, unit], edges, density=True, histtype="step", color="black", label="q(z|x,y)")
        panel.set_title(f"unit {unit}: {kl[unit]:.2f} nats", fontsize=8)
        panel.tick_params(labelsize=6, left=False, labelleft=False)
    for panel in axes[len(shown) :]:
        panel.axis("off")
    axes[0].legend(fontsize=7)
    right.suptitle("draws over all examples", fontsize=9)
    figure.suptitle(title, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
