"""What a figure shows: the right pixels in the right places, every term, every frame."""

import numpy as np
from PIL import Image

from cvae_jax import figures


def test_image_grid_shows_each_image_in_its_cell(tmp_path):
    dark, bright = np.zeros((2, 4, 4)), np.ones((2, 4, 4))
    hidden = np.full((2, 4, 4), np.nan)
    figures.image_grid({"a": dark, "b": bright, "c": hidden}, tmp_path / "deep" / "grid.png", "title")
    pixels = np.asarray(Image.open(tmp_path / "deep" / "grid.png").convert("RGB"))
    row = pixels[int(pixels.shape[0] * 0.8)]
    colours = [tuple(row[int(pixels.shape[1] * at)]) for at in (1 / 6, 3 / 6, 5 / 6)]
    assert colours == [(0, 0, 0), (255, 255, 255), (0x77, 0x99, 0xBB)]


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
    rows = [{"stage": "baseline", "epoch": epoch, "train/loss": 1.0, "valid/loss": 2.0} for epoch in (1, 2)]
    rows += [{"stage": "cvae", "epoch": 1, "train/kl": 1.0, "train/loss": 3.0, "valid/loss": 3.5, "best_loss": 3.5}]
    drawn = []
    monkeypatch.setattr(figures.Figure, "savefig", lambda self, path, dpi: drawn.append(self))
    figures.training_curves(rows, tmp_path / "curves.png")
    axes = [axis for axis in drawn[0].axes if axis.axison]
    assert [axis.get_title() for axis in axes] == ["baseline: loss", "cvae: loss", "cvae: kl"]
    lines = {line.get_label(): list(line.get_ydata()) for line in axes[0].lines}
    assert lines == {"train": [1.0, 1.0], "valid": [2.0, 2.0]}
    assert [line.get_label() for line in axes[2].lines] == ["train"]
