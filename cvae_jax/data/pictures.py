"""PNG files as arrays of colours: the one place where a user's image files are opened."""

import pathlib
import warnings

import numpy as np
from PIL import Image, UnidentifiedImageError

from cvae_jax.errors import UserError, reason

MOST_PIXELS = 2**24  # 4096 x 4096

EIGHT_BITS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")  # modes that convert to RGB as they are
SIXTEEN_BITS = ("I;16", "I;16B", "I")  # grey; what Pillow calls them depends on its version

MEND = "write it as PNG with 8 or 16 bits a channel (floats in [0, 1] times 255, rounded)"


def read(path: pathlib.Path) -> Image.Image:
    """Reads a PNG file as a picture of mode RGB; grey values of 16 bits are scaled to 8.

    Pillow opens many formats, and for some of them runs other programs. So none but PNG is tried, and size and mode
    are looked at before a pixel is decoded.

    Raises:
      FileNotFoundError: where there is no such file.
      UserError: for a file that is no PNG image, or has more than MOST_PIXELS pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=("PNG",)) as image:
                _check(path, image)
                return _scaled(image) if image.mode in SIXTEEN_BITS else image.convert("RGB")
    except (FileNotFoundError, UserError):
        raise
    except UnidentifiedImageError:
        raise UserError(f"{path} is no PNG image; {MEND}") from None
    except Exception as error:  # damaged files raise what their decoder happens to stumble on
        raise UserError(f"{path} is no PNG image that can be read ({reason(error)}); write it again") from None


def _check(path: pathlib.Path, image: Image.Image) -> None:
    """Raises a UserError for a picture that is too large, or of a mode that has no meaning here."""
    if image.width * image.height > MOST_PIXELS:
        raise UserError(
            f"{path} is no PNG image of at most {MOST_PIXELS:,} pixels, but {image.width} pixels wide and "
            f"{image.height} high; reduce it"
        )
    if image.mode not in EIGHT_BITS + SIXTEEN_BITS:
        raise UserError(f"{path} is no PNG image of 8 or 16 bits, but of mode {image.mode}; {MEND}")


def _scaled(image: Image.Image) -> Image.Image:
    """Returns a picture of 16 bits, grey, as one of 8: v / 257, rounded."""
    values = np.clip(np.asarray(image), 0, 2**16 - 1).astype(np.int32)
    return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
