"""A user's files, read within limits: no more than memory holds, and all damage ends in one line."""

import contextlib
import csv
import gzip
import io
import os
import pathlib
import zlib
from collections.abc import Iterator

from cvae_jax.errors import UserError, reason

MOST_BYTES = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2  # half of this machine's memory

Opened = gzip.GzipFile | io.BufferedReader

LONGEST_LINE = 2**22  # letters

PIECE = 2**20  # bytes that are read at a time


def check_size(what: str, num_bytes: int, mend: str) -> None:
    """Raises a UserError for more bytes than MOST_BYTES, before they are allocated.

    Args:
      what: would take them.
      num_bytes: how many.
      mend: what a user may do.
    """
    if num_bytes > MOST_BYTES:
        shown = f"{num_bytes / 2**30:,.1f}" if num_bytes < 2**60 else "over a billion"
        raise UserError(f"{what} would take {shown} GiB, more than half of this machine's memory; {mend}")


@contextlib.contextmanager
def opened(path: pathlib.Path) -> Iterator[Opened]:
    """Opens a file of bytes, unpacked while it is read if it is gzipped.

    Raises:
      UserError: for a file that is missing, damaged or may not be read, also while it is read.
    """
    try:
        with path.open("rb") as file:
            packed = file.peek(2)[:2] == b"\x1f\x8b"
            yield gzip.GzipFile(fileobj=file) if packed else file
    except FileNotFoundError:
        raise UserError(f"{path} is missing; put the file there") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is truncated or damaged ({reason(error)}); get the file again") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); make it a file you may read") from None


def read(file: Opened, most: int) -> bytearray:
    """Reads a file to its end, but no more than `most` bytes; what is not there is not allocated either."""
    content = bytearray()
    while len(content) < most and (piece := file.read(min(PIECE, most - len(content)))):
        content += piece
    return content


def rows(path: pathlib.Path) -> Iterator[list[str]]:
    """Yields the rows of a CSV file, gzipped or not, that are not empty; no more is read than is asked for.

    Raises:
      UserError: for a file that is missing or damaged, or no CSV file in UTF-8 of lines up to LONGEST_LINE.
    """
    with opened(path) as file, io.TextIOWrapper(file, "utf-8-sig", newline="") as text:
        before = csv.field_size_limit(LONGEST_LINE)
        try:
            yield from filter(None, csv.reader(_lines(path, text)))
        except (csv.Error, UnicodeDecodeError) as error:
            raise UserError(f"{path} is no readable CSV file ({reason(error)}); write it again") from None
        finally:
            csv.field_size_limit(before)


def _lines(path: pathlib.Path, file: io.TextIOWrapper) -> Iterator[str]:
    """Yields lines with their ends."""
    total = 0
    while line := file.readline(LONGEST_LINE + 1):
        total += len(line)
        if len(line) > LONGEST_LINE:
            raise UserError(f"{path} has a line of more than {LONGEST_LINE:,} letters; write it again")
        check_size(f"{path}, unpacked,", total, "divide it")
        yield line
