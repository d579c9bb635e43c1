"""Figures: rows of images, histograms, training curves, the animation of learning, and the latent code."""

import pathlib
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator
from PIL import Image

from cvae_jax.inference.diagnostics import ACTIVE_KL, LatentCode, active_units

GREY = matplotlib.colormaps["gray"].with_extremes(bad="#7799bb")
DPI = 100
GAP = 4  # pixels between cells
MANY_COLUMNS = 14  # beyond, the cells are smaller
TITLE, HEADINGS, LABELS, MARGIN = 22, 36, 100, 12  # pixels for each: the first two above the cells, the third at left


def image_grid(columns: dict[str, np.ndarray], path: pathlib.Path, title: str = "", rows: Sequence[str] = ()) -> None:
    """Saves rows of images, or of words, under column headings.

    Args:
      columns: heading -> images [rows, height, width], grey, or [rows, height, width, 1 or 3], values in [0, 1], of a
        size that may differ by column; NaN is drawn in blue. Or heading -> strings [rows], each drawn in its cell.
      path: of the PNG.
      title: a line above the figure.
      rows: a label left of each row.
    """
    cells = [np.asarray(column) for column in columns.values()]
    # 84 and 56 are multiples of 28: a digit's pixels stay squares of one size.
    side = 84 if len(cells) <= MANY_COLUMNS else 56
    pitch = side + GAP
    height, width = pitch * len(cells[0]) - GAP, pitch * len(cells) - GAP
    mosaic = np.ones((height, width, 3))
    for number, column in enumerate(cells):
        if column.dtype.kind != "U":
            for row, image in enumerate(column):
                _paste(colours(image), mosaic[row * pitch :, number * pitch :][:side, :side])
    # The size follows from the number of columns and rows, never from words, so that frames of an animation fit.
    left = MARGIN + LABELS * bool(rows)
    wide, high = left + width + MARGIN, MARGIN + height + HEADINGS + TITLE * bool(title)
    figure = Figure(figsize=(wide / DPI, high / DPI), dpi=DPI)
    axes = figure.add_axes((left / wide, MARGIN / high, width / wide, height / high))
    axes.axis("off")
    # One image of the figure's own pixels: an axes a cell takes seconds.
    axes.imshow(mosaic, interpolation="nearest", aspect="auto", extent=(0, width, height, 0))
    across = [number * pitch + side / 2 for number in range(len(cells))]
    down = [row * pitch + side / 2 for row in range(len(cells[0]))]
    heads = [axes.text(x, -5, head, ha="center", va="bottom") for x, head in zip(across, columns, strict=True)]
    _fit(heads, 8, side, HEADINGS - 8)
    if rows:
        labels = [axes.text(-6, y, label, ha="right", va="center") for y, label in zip(down, rows, strict=True)]
        _fit(labels, 8, LABELS, side)
    for x, column in zip(across, cells, strict=True):
        if column.dtype.kind == "U":
            words = [axes.text(x, y, word, ha="center", va="center") for y, word in zip(down, column, strict=True)]
            _fit(words, 10, side, side)
    if title:
        _fit([figure.text(0.5, 1 - 6 / high, title, ha="center", va="top")], 10, wide - MARGIN, TITLE)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI)


def colours(image: np.ndarray) -> np.ndarray:
    """An image with values in [0, 1], grey [height, width] or [height, width, 1 or 3], as [height, width, 3].

    NaN is blue in a grey image.
    """
    if image.ndim == 2 or image.shape[2] == 1:
        return GREY(image.reshape(image.shape[:2]).astype(np.float64))[..., :3]
    return np.clip(image, 0, 1)


def _paste(image: np.ndarray, cell: np.ndarray) -> None:
    """Scales an image [height, width, 3] to the middle of a cell [side, side, 3] by nearest neighbours."""
    side, longest = len(cell), max(image.shape[:2])
    height, width = (round(side * pixels / longest) for pixels in image.shape[:2])
    top, left = (side - height) // 2, (side - width) // 2
    nearest = np.ix_(np.arange(height) * image.shape[0] // height, np.arange(width) * image.shape[1] // width)
    cell[top : top + height, left : left + width] = image[nearest]


def _fit(texts: list[Text], size: float, width: float, height: float) -> None:
    """Sets texts in one size of font, smaller where one of them would not fit into width x height pixels."""
    for text in texts:
        text.set_fontsize(size)
    boxes = [text.get_window_extent() for text in texts if text.get_text().strip()]
    # The slack: small print is wider than its share of large print.
    scale = min([1.0, *(0.92 * min(width / box.width, height / box.height) for box in boxes)])
    for text in texts:
        text.set_fontsize(size * scale)


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
    each = {label: np.asarray(of, np.float64) for label, of in values.items()}
    together = np.concatenate(list(each.values()))
    low, high = together.min(), together.max()
    if high - low <= 1e-6 * max(abs(low), abs(high)):  # constant but for rounding, where NumPy finds no bins
        low, high = low - 0.5, high + 0.5
    count = int(np.clip(np.sqrt(min(map(len, each.values()))), 5, 40))
    edges = np.histogram_bin_edges(together, count, (low, high))
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    panel = figure.subplots()
    for label, of in each.items():
        panel.hist(of, list(edges), weights=np.full(len(of), 1 / len(of)), histtype="step", linewidth=1.3, label=label)
    if known is not None:
        panel.axvline(known, color="black", linestyle="--", linewidth=0.8, label=f"a perfect model, {known:.3f}")
    panel.set_xlabel(xlabel)
    panel.set_ylabel("share of examples")
    panel.set_title(title, fontsize=10)
    if len(each) > 1 or known is not None:
        panel.legend(fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI)


def courses(
    values: dict[str, tuple[np.ndarray, np.ndarray]], path: pathlib.Path, title: str, xlabel: str, ylabel: str
) -> None:
    """Saves the course of one number over the steps of a sequence, of several models, with 95% confidence bands.

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


def animate(frames: list[pathlib.Path], path: pathlib.Path, milliseconds: int = 400) -> None:
    """Joins PNG files of one size into a GIF that holds its last frame for two seconds."""
    images = [Image.open(frame).convert("P", palette=Image.Palette.ADAPTIVE) for frame in frames]
    durations = [milliseconds] * (len(images) - 1) + [2000]
    images[0].save(path, save_all=True, append_images=images[1:], duration=durations, loop=0)


# Of the terms that training reports, where it is not nats per example.
UNITS = {"beta": "weight of the KL", "teacher_forcing": "share of batches", "PSNR": "dB, a sample of the future"}


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
            panel.set_ylabel(UNITS.get(term, "nats per example"), fontsize=8)
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
    figure.savefig(path, dpi=DPI)


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
    figure.savefig(path, dpi=DPI)
