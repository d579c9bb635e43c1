"""Digits of fonts: each image a function of seed, split and number, legible, and where the transformation says."""

import numpy as np
import pytest
from matplotlib import font_manager, textpath
from matplotlib.path import Path
from ml_collections import ConfigDict
from sklearn.neighbors import KNeighborsClassifier

from cvae_jax.data import glyphs
from cvae_jax.errors import UserError


def load(**changes):
    return glyphs.load(ConfigDict({"seed": 0, "num_train": 1_500, "held_out_fonts": (), **changes}))


@pytest.fixture(scope="module")
def splits():
    return load()


def test_shapes_and_labels(splits):
    for split, size in (("train", 1_500), ("valid", 1_000), ("test", 1_000)):
        image, label = splits[split]["image"], splits[split]["label"]
        assert (image.shape, image.dtype) == ((size, 28, 28), np.uint8)
        assert (label.shape, label.dtype) == ((size,), np.int32)
        assert set(label) == set(range(10)) and np.bincount(label).min() > 0.07 * size
        assert (image.max((1, 2)) > 200).all()  # none is blank


def test_a_smaller_set_is_the_beginning_of_a_larger_one(splits):
    few = load(num_train=20)
    for name in ("image", "label"):
        np.testing.assert_array_equal(few["train"][name], splits["train"][name][:20])
        np.testing.assert_array_equal(few["test"][name], splits["test"][name])
    assert (load(num_train=20, seed=1)["train"]["image"] != few["train"]["image"]).any((1, 2)).all()


def test_no_two_images_are_equal(splits):
    images = [image.tobytes() for split in splits.values() for image in split["image"]]
    assert len(set(images)) == len(images)


def test_held_out_fonts_are_in_the_test_split_alone(monkeypatch):
    drawn = []
    monkeypatch.setattr(glyphs, "glyph", lambda font, digit, draw=glyphs.glyph: drawn.append(font) or draw(font, digit))
    held_out = ("cmr10", "STIXGeneralBol")
    load(num_train=500, held_out_fonts=held_out)
    assert set(drawn[:1_500]) == set(glyphs.FONTS) - set(held_out)
    assert set(drawn[1_500:]) == set(held_out)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"held_out_fonts": ("Courier",)}, "data.held_out_fonts names 'Courier', .*choose from DejaVuSans, "),
        ({"held_out_fonts": glyphs.FONTS}, "data.held_out_fonts names every font"),
        ({"num_train": 0}, "data.num_train=0 must be at least 1"),
        ({"seed": -1}, "data.seed=-1 must be at least 0"),
    ],
)
def test_settings_that_cannot_be(changes, message):
    with pytest.raises(UserError, match=message):
        load(**changes)


def test_digits_are_legible(splits):
    flat = {split: arrays["image"].reshape(-1, 784) / 255 for split, arrays in splits.items()}
    neighbours = KNeighborsClassifier(1).fit(flat["train"], splits["train"]["label"])
    assert neighbours.score(flat["test"], splits["test"]["label"]) > 0.9


@pytest.mark.parametrize(("font", "digit"), [("DejaVuSans-Bold", 4), ("cmti10", 2), ("STIXGeneral", 8)])
def test_a_glyph_is_where_its_outline_is(font, digit):
    """Against matplotlib's outline of the glyph, transformed in float64 and sampled at 16 x 16 points a pixel."""
    uniform = np.array([0.9, 0.2, 0.7, 0.1, 0.8, 0.3])
    angle, shear = np.deg2rad(0.8 * 12), -0.6 * 0.2
    zooms, shift = (1 + 0.4 * 0.15, 1 - 0.8 * 0.15), np.array([0.6, -0.4]) * 1.5
    properties = font_manager.FontProperties(fname=glyphs.font_file(font))
    outline = textpath.TextPath((0, 0), str(digit), size=100, prop=properties)
    box = outline.get_extents()
    points = (outline.vertices - (box.min + box.max) / 2) * [1, -1] * 20 / box.height  # y grows downwards
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = points @ (turn @ [[1, shear], [0, 1]] @ np.diag(zooms)).T + shift + 14
    finer = 16
    inside = np.zeros((28 * finer, 28 * finer), bool)
    grid = np.stack(np.meshgrid(*2 * [(np.arange(28 * finer) + 0.5) / finer]), -1).reshape(-1, 2)
    for polygon in Path(points, outline.codes).to_polygons():
        inside ^= Path(polygon).contains_points(grid).reshape(inside.shape)  # holes take away
    wanted = 255 * inside.reshape(28, finer, 28, finer).mean((1, 3))
    image = glyphs.transformed(glyphs.glyph(font, digit), glyphs.inverse_maps(uniform[None])[0]).astype(float)
    # Hinting moves an edge by up to a sixteenth of a pixel, and the finer grid blurs it.
    assert np.abs(image - wanted).max() < 40 and np.abs(image - wanted).mean() < 2
    assert abs(image.sum() / wanted.sum() - 1) < 0.02
