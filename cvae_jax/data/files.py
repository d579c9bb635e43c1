"""Files as bytes."""

import gzip
import pathlib
import zlib

from cvae_jax.errors import UserError


def content(path: pathlib.Path) -> bytes:
    """The bytes of a file, unpacked if it is gzipped.

    Raises:
      UserError: for a file that is missing, damaged or may not be read.
    """
    try:
        raw = path.read_bytes()
        return gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except FileNotFoundError:
        raise UserError(f"{path} is missing; put the file there") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is truncated or damaged ({error}); get the file again") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); make it a file you may read") from None
