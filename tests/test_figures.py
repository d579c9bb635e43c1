"""What a figure shows: the right pixels in the right places, every term, every frame."""

import numpy as np
from PIL import Image

from cvae_jax import figures
from cvae_jax.diagnostics import LatentCode


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
    rows = [{"stage": "baseline", "seed": 0, "epoch": epoch, "train/loss": 1.0, "valid/loss": 2.0} for epoch in (1, 2)]
    of_cvae = {"stage": "cvae", "epoch": 1, "train/kl": 1.0, "train/loss": 3.0, "valid/loss": 3.5, "best_loss": 3.5}
    rows += [{**of_cvae, "seed": seed, "valid/loss": 3.5 + seed} for seed in (0, 1)]
    drawn = []
    monkeypatch.setattr(figures.Figure, "savefig", lambda self, path, dpi: drawn.append(self))
    figures.training_curves(rows, tmp_path / "curves.png")
    axes = [axis for axis in drawn[0].axes if axis.axison]
    assert [axis.get_title() for axis in axes] == ["baseline: loss", "cvae: loss", "cvae: kl"]
    lines = {line.get_label(): list(line.get_ydata()) for line in axes[0].lines}
    assert lines == {"train": [1.0, 1.0], "valid": [2.0, 2.0]}
    assert [line.get_label() for line in axes[2].lines] == ["train, seed 0", "train, seed 1"]
    assert [list(line.get_ydata()) for line in axes[1].lines if "valid" in line.get_label()] == [[3.5], [4.5]]


def test_latent_code_shows_the_kl_and_the_most_telling_units(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    kl = np.tile([0.001, 2.0, 0.5], (200, 1))
    code = LatentCode(kl, rng.normal(size=(200, 3)), rng.normal(size=(200, 3)))
    drawn = []
    monkeypatch.setattr(figures.Figure, "savefig", lambda self, path, dpi: drawn.append(self))
    figures.latent_code(code, tmp_path / "code.png", "title")
    bars, *panels = (axis for axis in drawn[0].axes if axis.axison)
    assert "2 of 3 units active, 2.5 nats" in bars.get_title()
    np.testing.assert_allclose([bar.get_height() for bar in bars.patches], [2.0, 0.5, 0.001])
    assert [panel.get_title() for panel in panels] == [f"unit {unit}: {kl[0, unit]:.2f} nats" for unit in (1, 2, 0)]
