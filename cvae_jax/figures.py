"""Figures that all rooms share: rows of images, and animations."""

import pathlib
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

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


def animate(frames: list[pathlib.Path], path: pathlib.Path, milliseconds: int = 400) -> None:
    """Joins PNG files of one size into a GIF that holds its last frame for two seconds."""
    images = [Image.open(frame).convert("P", palette=Image.Palette.ADAPTIVE) for frame in frames]
    durations = [milliseconds] * (len(images) - 1) + [2000]
    images[0].save(path, save_all=True, append_images=images[1:], duration=durations, loop=0)
