"""Figures of RNA secondary structures: samples as arcs over the sequence, and matrices of pairs with their boxes."""

import pathlib
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Arc, Rectangle

from cvae_jax.tasks.rna_boxes.boxes import HAIRPIN, INTERNAL, STEM, TYPES
from cvae_jax.tasks.rna_boxes.folding import Boxes

DPI = 150
LETTERS = 40  # bases, up to which axes of a matrix show the letters
COLOURS = {STEM: "#0072b2", INTERNAL: "#e69f00", HAIRPIN: "#d62f6b"}  # told apart by all eyes
SHARES = LinearSegmentedColormap.from_list("shares", ["#dbe8f5", "#5c96d0", "#123a73", "#000000"])


def arcs(path: pathlib.Path, sequence: str, structures: dict[str, list[np.ndarray]], title: str) -> None:
    """Saves an arc for every pair, a panel for each set of structures.

    The colour of an arc is the share of the structures that have the pair.

    Args:
      path: of the PNG.
      sequence: of letters, below each panel.
      structures: label -> structures, each int [n, 2], such as samples of one model.
      title: a line above the figure.
    """
    length = len(sequence)
    shares = {label: _shares(drawn, length) for label, drawn in structures.items()}
    widest = max([4, *((pairs[:, 1] - pairs[:, 0]).max(initial=0) for pairs, _ in shares.values())])
    wide = float(np.clip(0.16 * length, 6, 12))
    pitch = (wide - 1) / (length + 1)  # inches a base
    high = float(np.clip(0.4 * widest * pitch, 0.9, 2.4))  # arcs nearly round, but flat rather than a page high
    figure = Figure(figsize=(wide, (high + 0.7) * len(shares) + 0.4), layout="constrained")
    axes = figure.subplots(len(shares), 1, squeeze=False)[:, 0]
    for panel, (label, (pairs, frequencies)) in zip(axes, shares.items(), strict=True):
        for (i, j), share in zip(pairs.tolist(), frequencies.tolist(), strict=True):  # frequent ones last, on top
            width = 0.8 + 1.4 * share
            panel.add_patch(Arc(((i + j) / 2, 0), j - i, j - i, theta2=180, color=SHARES(share), linewidth=width))
        panel.set_xlim(-1, length)
        panel.set_ylim(0, widest / 2 + 1)
        count = len(structures[label])
        panel.set_title(f"{label}: {count} structure{'s' * (count != 1)}", fontsize=9, loc="left")
        panel.set_yticks([])
        panel.spines[["left", "right", "top"]].set_visible(False)
        panel.set_xticks(range(length), list(sequence), fontsize=min(7.0, 72 * 1.2 * pitch), family="monospace")
        panel.tick_params("x", length=0, pad=2)
        below = panel.secondary_xaxis(-9 / 72 / high)  # under the letters
        below.set_xticks(*_positions(length), fontsize=6)
        below.spines["bottom"].set_visible(False)
        below.tick_params(length=0, colors="grey")
    bar = figure.colorbar(ScalarMappable(Normalize(0, 1), SHARES), ax=axes, fraction=0.02, pad=0.01, aspect=25)
    bar.set_label("share of structures" if len(shares) == 1 else "share of structures with the pair", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    _save(figure, path, title)


def _shares(structures: list[np.ndarray], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the pairs of all structures, int [n, 2], and the share of the structures that hold each, ascending."""
    count = np.zeros((length, length))
    for pairs in structures:
        count[pairs[:, 0], pairs[:, 1]] += 1
    i, j = np.nonzero(count)
    order = np.argsort(count[i, j], kind="stable")
    return np.stack([i, j], 1)[order], count[i, j][order] / max(len(structures), 1)


def matrices(
    path: pathlib.Path,
    sequence: str,
    panels: dict[str, np.ndarray],
    boxes: Mapping[str, Boxes | np.ndarray],
    title: str,
) -> None:
    """Saves matrices of pairs side by side, in grey, with boxes outlined in a colour for each type.

    Args:
      path: of the PNG.
      sequence: of letters.
      panels: heading -> float [length, length], the probability of each pair i < j; 0 is white and 1 black.
      boxes: heading of a panel -> its boxes, int [k, 5], or `Boxes`, drawn the fainter the less probable.
      title: a line above the figure.
    """
    length = len(sequence)
    side = float(np.clip(0.085 * length, 3.2, 5))
    figure = Figure(figsize=(side * len(panels) + 1.0, side + 1.1), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for panel, (heading, matrix) in zip(axes, panels.items(), strict=True):
        upper = np.ma.masked_array(matrix[:length, :length], np.tri(length, dtype=bool))
        image = panel.imshow(upper, cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
        panel.plot([-0.5, length - 0.5], [-0.5, length - 0.5], color="lightgrey", linewidth=0.8)
        _outline(panel, boxes.get(heading, np.zeros((0, 5), int)))
        panel.set_title(heading, fontsize=9)
        _axes_of(panel, sequence)
    axes[0].set_ylabel("base i", fontsize=8)
    bar = figure.colorbar(image, ax=axes, fraction=0.04, pad=0.01, aspect=30)
    bar.set_label("probability of the pair (i, j)", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    if boxes:
        _legend(figure, any(isinstance(outlined, Boxes) for outlined in boxes.values()))
    _save(figure, path, title)


def _legend(figure: Figure, faint: bool) -> None:
    """Draws the legend of the boxes' colours below the panels."""
    entries = [Line2D([], [], color=COLOURS[kind], label=TYPES[kind - 1]) for kind in COLOURS]
    heading = "boxes" + ", fainter where less probable" * faint
    legend = figure.legend(handles=entries, loc="outside lower center", ncols=len(entries), fontsize=8, title=heading)
    legend.set_frame_on(False)
    legend.get_title().set_fontsize(8)


def _outline(panel: Axes, boxes: Boxes | np.ndarray) -> None:
    """Draws boxes, the most probable ones last, on top."""
    rows, probability = boxes if isinstance(boxes, Boxes) else (boxes, np.ones(len(boxes)))
    for (kind, x0, y0, wx, wy), share in list(zip(rows.tolist(), probability.tolist(), strict=True))[::-1]:
        outline = Rectangle((y0 - 0.5, x0 - 0.5), wy, wx, fill=False, clip_on=False, linewidth=1.3)
        outline.set(edgecolor=COLOURS[kind], alpha=min(1.0, share))
        panel.add_patch(outline)


def _axes_of(panel: Axes, sequence: str) -> None:
    """Labels both axes with positions from 1, or with letters where they are legible."""
    length = len(sequence)
    panel.set_xlabel("base j", fontsize=8)
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_ticks(*_positions(length))
        if length <= LETTERS:
            axis.remove_overlapping_locs = False  # else bases with a position lose their letter
            axis.set_ticks(range(length), list(sequence), minor=True, family="monospace")
    panel.tick_params(labelsize=7)
    if length <= LETTERS:
        panel.tick_params(which="minor", length=0, labelsize=5.5, pad=1)
        panel.tick_params(which="major", length=0, pad=9)


def _positions(length: int) -> tuple[list[int], list[str]]:
    """Returns positions to mark, and their labels, which count from 1 as biologists do."""
    step = 5 if length <= 60 else 10 if length <= 150 else 50
    marked = [0, *range(step - 1, length, step)]
    return marked, [str(position + 1) for position in marked]


def _save(figure: Figure, path: pathlib.Path, title: str) -> None:
    """Saves a figure as a PNG, with a title above it."""
    figure.suptitle(title, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI)
