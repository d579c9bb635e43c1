"""The files of a workdir: read without trust, and written whole or not at all."""

import errno
import json
import os
import pathlib
from typing import Any

from cvae_jax.errors import UserError, reason

LARGEST = 2**30  # bytes of a file beside checkpoints: no run writes more


def read_text(path: pathlib.Path) -> str | None:
    """Returns the text of a file, or None where there is no such file.

    Raises:
      UserError: for what cannot be read, or is no text.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise UserError(f"{path} has more than {LARGEST:,} bytes; put back a copy of it")
        return path.read_bytes().decode()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); make it a file that you may read") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is damaged: it is no text; put back a copy of it") from None


def parse(text: str) -> Any:
    """Returns the value of a text in JSON; what is none raises a ValueError, however deep it is nested."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_json(path: pathlib.Path) -> dict[str, Any] | None:
    """Returns the object in a JSON file, or None where there is no such file.

    Raises:
      UserError: for what cannot be read, or is no object in JSON.
    """
    text = read_text(path)
    if text is None:
        return None
    try:
        value = parse(text)
    except ValueError as error:
        raise UserError(f"{path} is damaged ({reason(error)}); put back a copy of it") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} is damaged: it holds no object; put back a copy of it")
    return value


def cannot_write(path: pathlib.Path, error: OSError) -> UserError:
    """Returns what to raise for an error of the disk."""
    mend = "make the disk writable" if error.errno == errno.EROFS else "free space"
    return UserError(f"cannot write {path} ({error.strerror}); {mend}, then give the same command again")


def write_atomically(path: pathlib.Path, text: str) -> None:
    """Replaces the file's content so that a kill at any moment leaves the old or the new one, whole.

    Raises:
      UserError: when the disk is full, or cannot be written; the old file stays.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise cannot_write(path, error) from None
