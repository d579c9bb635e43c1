"""What a figure shows: the right pixels in the right places, every term, every frame."""

import numpy as np
import pytest
from PIL import Image

from cvae_jax import figures
from cvae_jax.evaluation import figures as of_evaluation
from cvae_jax.inference.diagnostics import LatentCode
from cvae_jax.training.curves import training_curves


def _cell(pixels, columns, rows, column, row):
    """A cell's pixels, found from the edge of the figure: one that is off by a pixel shows a gap."""
    side = 84
    right, bottom = pixels.shape[1] - 12, pixels.shape[0] - 12
    left, top = right - (columns - column) * (side + 4) + 4, bottom - (rows - row) * (side + 4) + 4
    return pixels[top : top + side, left : left + side]


def _grid(tmp_path, columns, *args):
    figures.image_grid(columns, tmp_path / "grid.png", *args)
    return np.asarray(Image.open(tmp_path / "grid.png").convert("RGB"))


def _drawn(monkeypatch):
    """The figures that are saved from here on, in place of their files."""
    drawn = []
    monkeypatch.setattr(figures.Figure, "savefig", lambda self, path, dpi: drawn.append(self))
    return drawn


def test_image_grid_shows_each_image_in_its_cell(tmp_path):
    dark, bright = np.zeros((2, 4, 4)), np.ones((2, 4, 4))
    hidden = np.full((2, 4, 4), np.nan)
    figures.image_grid({"a": dark, "b": bright, "c": hidden}, tmp_path / "deep" / "grid.png", "title")
    pixels = np.asarray(Image.open(tmp_path / "deep" / "grid.png").convert("RGB"))
    colours = [(0, 0, 0), (255, 255, 255), (0x77, 0x99, 0xBB)]
    for row in range(2):
        for column, colour in enumerate(colours):
            assert (_cell(pixels, 3, 2, column, row) == colour).all()
    middle = pixels.shape[0] - 12 - 84 - 2
    assert (pixels[middle - 2 : middle + 2] == 255).all()  # the gap between the rows
    assert (pixels[-12:] == 255).all()


@pytest.mark.parametrize("labels", [(), ("first", "second", "third")])
def test_image_grid_tells_rows_columns_and_pixels_apart(tmp_path, labels):
    """Every pixel of images of three sizes: a transposed, mirrored or exchanged image differs."""
    rng = np.random.default_rng(0)
    columns = {str(size): rng.integers(0, 256, (3, size, size)) / 255 for size in (7, 28, 14)}
    columns["14"][1, :7, :7] = np.nan
    pixels = _grid(tmp_path, columns, "title", labels)
    for number, images in enumerate(columns.values()):
        for row, image in enumerate(images):
            grey = np.kron(image, np.ones((84 // len(image), 84 // len(image))))
            wanted = np.where(np.isnan(grey)[..., None], (0x77, 0x99, 0xBB), np.nan_to_num(grey)[..., None] * 255)
            np.testing.assert_allclose(_cell(pixels, 3, 3, number, row), wanted, atol=2)  # 256 greys


def test_image_grid_keeps_the_shape_of_an_image(tmp_path):
    pixels = _grid(tmp_path, {"wide": np.zeros((1, 4, 8)), "high": np.zeros((1, 8, 4))})
    wide, high = (_cell(pixels, 2, 1, column, 0)[..., 0] for column in range(2))
    band = np.full((84, 84), 255)
    band[21:63] = 0
    np.testing.assert_array_equal(wide, band)
    np.testing.assert_array_equal(high, band.T)


def test_image_grid_scales_an_image_that_does_not_divide_its_cell(tmp_path):
    """8 pixels in 84, and 100 in 84: the first and last pixel stay, and none is out of order."""
    for size in (8, 100):
        ramp = np.tile(np.linspace(0, 1, size), (size, 1))
        cell = _cell(_grid(tmp_path, {"ramp": ramp[None]}), 1, 1, 0, 0)[..., 0].astype(int)
        assert (cell == cell[0]).all()
        np.testing.assert_allclose(cell[0], np.linspace(0, 255, 84), atol=255 / size + 2)


def test_image_grid_writes_words_in_their_cells(tmp_path, monkeypatch):
    drawn = _drawn(monkeypatch)
    words = np.array(["7 .98", "3 .51", "a word that is far too long for its cell"])
    images = np.zeros((3, 4, 4))
    figures.image_grid(
        {"x": images, "label": words, "y": images}, tmp_path / "grid.png", "title", ["one", "two", "six"]
    )
    figure = drawn[0]
    width, height = figure.get_size_inches() * figure.dpi
    assert [text.get_text() for text in figure.texts] == ["title"]
    boxes = {text.get_text(): text.get_window_extent() for text in figure.axes[0].texts}
    assert set(boxes) == {"x", "label", "y", *words, "one", "two", "six"}
    across = {head: width - 12 - (3 - number) * 88 + 4 + 42 for number, head in enumerate(("x", "label", "y"))}
    for row, (word, label) in enumerate(zip(words, ("one", "two", "six"), strict=True)):
        box, left = boxes[word], boxes[label]
        middle = 12 + (2 - row) * 88 + 42  # from the bottom
        np.testing.assert_allclose([(box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2], [across["label"], middle], atol=3)
        assert box.width <= 84
        assert 0 <= left.x0 < left.x1 < across["x"] - 42
        np.testing.assert_allclose((left.y0 + left.y1) / 2, middle, atol=3)
    for head, x in across.items():
        np.testing.assert_allclose((boxes[head].x0 + boxes[head].x1) / 2, x, atol=2)
        assert 12 + 3 * 88 - 4 < boxes[head].y0 < boxes[head].y1 < figure.texts[0].get_window_extent().y0 < height


@pytest.mark.parametrize("count", [13, 20])
def test_image_grid_keeps_its_words_apart(tmp_path, monkeypatch, count):
    """Long headings, a long title and long labels are set smaller; the figure is as large as with short ones."""
    drawn = _drawn(monkeypatch)
    for word in ("a", "a heading without end"):
        columns = {f"{word} {number}": np.zeros((2, 4, 4)) for number in range(count)}
        figures.image_grid(columns, tmp_path / "grid.png", word * 20, [word] * 2)
    short, figure = drawn
    np.testing.assert_array_equal(figure.get_size_inches(), short.get_size_inches())
    width, height = figure.get_size_inches() * figure.dpi
    texts = [*figure.texts, *figure.axes[0].texts]
    assert len(texts) == 1 + count + 2
    boxes = [text.get_window_extent() for text in texts]
    for number, box in enumerate(boxes):
        assert box.x0 >= 0 and box.x1 <= width and box.y0 >= 0 and box.y1 <= height
        assert not any(box.overlaps(other) for other in boxes[:number])
    assert [text.get_fontsize() for text in short.axes[0].texts] == [8] * (count + 2)


def _shares(figure):
    """Label -> (edges, shares) of the steps of a histogram, from the outline that is drawn."""
    shares = {}
    for patch in figure.axes[0].patches:
        outline = patch.get_xy()  # (edge, 0), (edge, share), (next edge, share), (next edge, next share), ...
        shares[patch.get_label()] = (outline[::2, 0], outline[1:-1:2, 1])
    return shares


def test_histograms_count_the_examples_of_every_model(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    values = {"baseline": rng.normal(1, 0.5, 400), "cvae": rng.normal(2, 0.1, 900), "flow": rng.gamma(2, 1, 400)}
    drawn = _drawn(monkeypatch)
    of_evaluation.histograms(values, tmp_path / "histograms.png", "title", "nats", np.log(2))
    panel, shares = drawn[0].axes[0], _shares(drawn[0])
    assert list(shares) == list(values)
    together = np.concatenate(list(values.values()))
    for label, (edges, share) in shares.items():
        np.testing.assert_allclose(edges, np.linspace(together.min(), together.max(), 21))
        np.testing.assert_allclose(share, np.histogram(values[label], edges)[0] / len(values[label]))
        np.testing.assert_allclose(share.sum(), 1)
    assert [(line.get_label(), *line.get_xdata()) for line in panel.lines] == [
        ("a perfect model, 0.693", np.log(2), np.log(2))
    ]
    assert [text.get_text() for text in panel.get_legend().get_texts()] == [*values, "a perfect model, 0.693"]
    assert (panel.get_title(), panel.get_xlabel(), panel.get_ylabel()) == ("title", "nats", "share of examples")


@pytest.mark.parametrize(
    "values", [np.zeros(50), np.full(50, -1234.5), 0.7 + 1e-16 * np.arange(50), np.ones(1, np.float32), np.arange(3.0)]
)
def test_histograms_of_constant_or_few_values(tmp_path, monkeypatch, values):
    of_evaluation.histograms({"one": values}, tmp_path / "deep" / "histograms.png", "title", "nats")
    assert (tmp_path / "deep" / "histograms.png").exists()
    drawn = _drawn(monkeypatch)
    of_evaluation.histograms({"one": values}, tmp_path / "histograms.png", "title", "nats")
    (edges, share) = _shares(drawn[0])["one"]
    assert edges[0] <= values.min() and values.max() <= edges[-1]
    np.testing.assert_allclose(share.sum(), 1)
    assert (share > 0).sum() == (3 if len(values) == 3 else 1)
    assert drawn[0].axes[0].get_legend() is None and not drawn[0].axes[0].lines


def test_curves_have_a_band_of_95_percent(tmp_path, monkeypatch):
    drawn = _drawn(monkeypatch)
    values = {
        "copying": (np.array([3.0, 2.0]), np.array([0.1, 0.2])),
        "cvae": (np.array([4.0, 3.0]), np.array([0.3, 0.1])),
    }
    of_evaluation.curves(values, tmp_path / "curve.png", "title", "frame", "dB")
    (panel,) = drawn[0].axes
    assert [(line.get_label(), list(line.get_xdata()), list(line.get_ydata())) for line in panel.lines] == [
        ("copying", [1, 2], [3.0, 2.0]),
        ("cvae", [1, 2], [4.0, 3.0]),
    ]
    for band, (mean, error) in zip(panel.collections, values.values(), strict=True):
        outline = {tuple(corner) for corner in band.get_paths()[0].vertices.round(6)}
        edges = [
            (step, value + sign * 1.96 * off)
            for step, value, off in zip((1, 2), mean, error, strict=True)
            for sign in (-1, 1)
        ]
        assert {tuple(np.round(edge, 6)) for edge in edges} <= outline
    assert (panel.get_xlabel(), panel.get_ylabel()) == ("frame", "dB") and "95%" in panel.get_title()


def test_animation_has_every_frame_and_rests_on_the_last(tmp_path):
    frames = []
    for number in range(3):
        frames.append(tmp_path / f"{number}.png")
        Image.new("RGB", (8, 8), (80 * number, 0, 0)).save(frames[-1])
    figures.animate(frames, tmp_path / "film.gif")
    with Image.open(tmp_path / "film.gif") as film:
        assert film.n_frames == 3
        seen = []
        for number in range(3):
            film.seek(number)
            seen.append((film.convert("RGB").getpixel((4, 4))[0], film.info["duration"]))
    assert [duration for _, duration in seen] == [400, 400, 2000]
    assert [red for red, _ in seen] == [0, 80, 160]


def test_training_curves_have_a_panel_a_term_and_a_line_a_stage(tmp_path, monkeypatch):
    rows = [{"stage": "baseline", "seed": 0, "epoch": epoch, "train/loss": 1.0, "valid/loss": 2.0} for epoch in (1, 2)]
    of_cvae = {"stage": "cvae", "epoch": 1, "train/kl": 1.0, "train/loss": 3.0, "valid/loss": 3.5, "best_loss": 3.5}
    rows += [{**of_cvae, "seed": seed, "valid/loss": 3.5 + seed} for seed in (0, 1)]
    drawn = _drawn(monkeypatch)
    training_curves(rows, tmp_path / "curves.png", {"kl": "nats in all", "PSNR": "dB"})
    axes = [axis for axis in drawn[0].axes if axis.axison]
    assert [axis.get_title() for axis in axes] == ["baseline: loss", "cvae: loss", "cvae: kl"]
    assert [axis.get_ylabel() for axis in axes] == ["nats per example", "nats per example", "nats in all"]
    lines = {line.get_label(): list(line.get_ydata()) for line in axes[0].lines}
    assert lines == {"train": [1.0, 1.0], "valid": [2.0, 2.0]}
    assert [line.get_label() for line in axes[2].lines] == ["train, seed 0", "train, seed 1"]
    assert [list(line.get_ydata()) for line in axes[1].lines if "valid" in line.get_label()] == [[3.5], [4.5]]


def test_training_curves_of_no_epochs_are_no_figure(tmp_path):
    training_curves([], tmp_path / "curves.png", {})
    assert not (tmp_path / "curves.png").exists()


def test_latent_code_shows_the_kl_and_the_most_telling_dimensions(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    kl = np.tile([0.001, 2.0, 0.5], (200, 1))
    code = LatentCode(kl, rng.normal(size=(200, 3)), rng.normal(size=(200, 3)))
    drawn = _drawn(monkeypatch)
    of_evaluation.latent_code(code, tmp_path / "code.png", "title")
    bars, *panels = (axis for axis in drawn[0].axes if axis.axison)
    assert "2 of 3 dimensions active, 2.5 nats" in bars.get_title()
    np.testing.assert_allclose([bar.get_height() for bar in bars.patches], [2.0, 0.5, 0.001])
    assert [panel.get_title() for panel in panels] == [
        f"dimension {dimension}: {kl[0, dimension]:.2f} nats" for dimension in (1, 2, 0)
    ]
