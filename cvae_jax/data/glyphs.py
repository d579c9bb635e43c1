"""The ten digits as the fonts inside matplotlib draw them, each under a transformation of its own: needs no files."""

import functools
import pathlib
from collections.abc import Sequence

import matplotlib
import numpy as np
from ml_collections import ConfigDict
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from cvae_jax.errors import UserError
from cvae_jax.settings import Whole, check

# The faces inside matplotlib whose digits are digits of one height: the others have symbols, or old-style figures.
FONTS = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique"),
    *("DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique"),
    *("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic"),
    *("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"),
    *("cmr10", "cmb10", "cmss10", "cmti10", "cmtt10"),
)
NUM_VALID = NUM_TEST = 1_000

SIDE = 28  # pixels of an image
HEIGHT = 20  # of an upright glyph before its zoom, in pixels, as in MNIST
FINER = 3  # a pixel is the mean of so many points in each direction
ROTATION = 12.0  # degrees, at most, to either side
SHEAR = 0.2  # pixels to the side for each pixel up, at most
ZOOM = 0.15  # of width and height each, at most, up or down
SHIFT = 1.5  # pixels in each direction, at most


def load(settings: ConfigDict) -> dict[str, dict[str, np.ndarray]]:
    """Images uint8 [n, 28, 28] and labels int32 [n], split num_train / 1,000 / 1,000.

    An image is a function of seed, split and its number, so a smaller training split is the beginning of a larger one.

    Args:
      settings: `seed`; `num_train`; `held_out_fonts`, names of FONTS that only the test split is drawn from, which then
        has no other. None (): every split has every font.

    Raises:
      UserError: for settings that cannot be.
    """
    held_out = tuple(settings.held_out_fonts)
    unknown = [font for font in held_out if font not in FONTS]
    if unknown:
        raise UserError(f"data.held_out_fonts names {unknown[0]!r}, which is not known; choose from {', '.join(FONTS)}")
    seen = [font for font in FONTS if font not in held_out]
    if not seen:
        raise UserError("data.held_out_fonts names every font, so none is left to train on; leave some out")
    check(settings, {"num_train": Whole(1), "seed": Whole()}, "data")
    return _draw(settings.seed, settings.num_train, held_out or FONTS, tuple(seen))


@functools.lru_cache(maxsize=1)  # runs that are measured together share their data
def _draw(
    seed: int, num_train: int, of_test: Sequence[str], of_others: Sequence[str]
) -> dict[str, dict[str, np.ndarray]]:
    """Returns the splits, drawn from these fonts."""
    sizes = {"train": num_train, "valid": NUM_VALID, "test": NUM_TEST}
    splits: dict[str, dict[str, np.ndarray]] = {}
    with tqdm(total=sum(sizes.values()), desc="drawing glyphs", disable=None) as bar:
        for number, (split, size) in enumerate(sizes.items()):
            uniform = np.random.Generator(np.random.Philox(key=[seed, number])).random((size, 8))
            fonts = of_test if split == "test" else of_others
            labels = (uniform[:, 0] * 10).astype(np.int32)
            faces, maps = (uniform[:, 1] * len(fonts)).astype(int), inverse_maps(uniform[:, 2:])
            images = np.empty((size, SIDE, SIDE), np.uint8)
            for row, (digit, face) in enumerate(zip(labels.tolist(), faces.tolist(), strict=True)):
                images[row] = transformed(glyph(fonts[face], digit), maps[row])
                bar.update()
            images.flags.writeable = labels.flags.writeable = False
            splits[split] = {"image": images, "label": labels}
    return splits


def font_file(font: str) -> pathlib.Path:
    """Returns the file of one of FONTS."""
    return pathlib.Path(matplotlib.get_data_path(), "fonts", "ttf", f"{font}.ttf")


@functools.cache
def glyph(font: str, digit: int) -> Image.Image:
    """Returns a digit in the middle of an image `FINER` times as fine, white on black, `HEIGHT` pixels high."""
    # Drawn larger by four again, since hinting moves an outline by up to a pixel.
    side, size, height = 4 * FINER * SIDE, 16.0 * HEIGHT, 4 * FINER * HEIGHT
    for _ in range(2):  # the second time it is as high as it should be
        drawn = Image.new("L", (side, side))
        font_of_size = ImageFont.truetype(font_file(font), size, layout_engine=ImageFont.Layout.BASIC)
        ImageDraw.Draw(drawn).text((side / 4, side / 2), str(digit), 255, font_of_size, anchor="lm")
        drawn = drawn.crop(drawn.getbbox())
        size *= height / drawn.height
    canvas = Image.new("L", (side, side))
    canvas.paste(drawn, ((side - drawn.width) // 2, (side - drawn.height) // 2))
    return canvas.reduce(4)


def inverse_maps(uniform: np.ndarray) -> np.ndarray:
    """Returns affine maps [n, 2, 3] from points of an image to those of its upright glyph, in pixels from the middle.

    Args:
      uniform: float [n, 6] in [0, 1): of rotation, shear, two zooms and two shifts.
    """
    rotation, shear, *_ = (2 * uniform - 1).T
    angle, one, zero = np.deg2rad(ROTATION * rotation), np.ones(len(uniform)), np.zeros(len(uniform))
    turns = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    shears = np.array([[one, SHEAR * shear], [zero, one]])
    zooms, shifts = 1 + ZOOM * (2 * uniform[:, 2:4] - 1), SHIFT * (2 * uniform[:, 4:] - 1)
    forward = np.moveaxis(turns, -1, 0) @ np.moveaxis(shears, -1, 0) * zooms[:, None]  # columns times zooms
    inverse = np.linalg.inv(forward)
    return np.concatenate([inverse, -inverse @ shifts[..., None]], -1)


def transformed(upright: Image.Image, inverse: np.ndarray) -> np.ndarray:
    """Returns the image uint8 [28, 28] whose points an affine map takes to those of a glyph, see `inverse_maps`."""
    (a, b, c), (d, e, f) = inverse.tolist()
    middle = FINER * SIDE / 2
    rows = (a, b, FINER * c + (1 - a - b) * middle, d, e, FINER * f + (1 - d - e) * middle)
    fine = upright.transform(upright.size, Image.Transform.AFFINE, rows, Image.Resampling.BILINEAR)
    return np.asarray(fine.reduce(FINER))
