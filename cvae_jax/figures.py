"""Figures: rows of images, training curves, and the animation of learning."""

import pathlib
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

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
        epochs = [row["epoch"] for row in of_stage]
        for panel, term in zip(line, terms[stage], strict=False):
            panel.axis("on")
            panel.set_title(f"{stage}: {term}", fontsize=9)
            panel.set_xlabel("epoch", fontsize=8)
            panel.set_ylabel("nats per example", fontsize=8)
            panel.tick_params(labelsize=7)
            for split, style in (("train", "-"), ("valid", "--")):
                values = [row.get(f"{split}/{term}") for row in of_stage]
                if values[0] is not None:
                    panel.plot(epochs, values, style, label=split)
            panel.legend(fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def _terms(rows: list[dict[str, Any]]) -> list[str]:
    """The names of a stage's terms, the loss first."""
    names = {name.split("/", 1)[1] for row in rows for name in row if "/" in name}
    return sorted(names, key=lambda name: (name != "loss", name))
