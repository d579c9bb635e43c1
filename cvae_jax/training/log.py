"""The record of a run: metrics.jsonl, a function of the config alone, and TensorBoard."""

import json
import os
import pathlib
from typing import Any

import tensorboardX

from cvae_jax.errors import UserError
from cvae_jax.training import files
from cvae_jax.training.files import write_atomically

FILE = "metrics.jsonl"


def read(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl in order; a last line that a kill cut short is left out.

    Raises:
      UserError: for a file that cannot be read, a row that is damaged, or epochs that are missing, doubled or changed.
    """
    path = workdir / FILE
    lines = (files.read_text(path) or "").splitlines()
    rows: list[dict[str, Any]] = []
    epochs: dict[tuple[str, int], dict[str, Any]] = {}  # stage and seed -> the last row
    for number, line in enumerate(lines, 1):
        try:
            row = files.parse(line)
            _check(row, epochs)
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, UserError) or number < len(lines):
                what = f": {error}" if isinstance(error, UserError) else ""
                raise UserError(
                    f"{path}, line {number} is damaged{what}; put back a copy of the file, or remove it (its curves)"
                ) from None
        else:
            rows.append(row)
    return rows


def _check(row: Any, last: dict[tuple[str, int], dict[str, Any]]) -> None:
    """Raises where a row is none of `Log.write`'s, or not the next of its stage and seed after those in `last`."""
    key = stage, seed = row["stage"], row["seed"]
    counts = row["step"], row["epoch"]
    whole = all(type(number) is int and number >= 0 for number in (seed, *counts))
    if not isinstance(stage, str) or not whole or not row["epoch"]:
        raise UserError("stage, seed, step or epoch is none")
    if not all(isinstance(value, int | float) for name, value in row.items() if name != "stage"):
        raise UserError("a value is no number")
    before = last.get(key)
    if before and counts != (row["epoch"] * before["step"] // before["epoch"], before["epoch"] + 1):
        raise UserError(f"epoch {row['epoch']} of {stage} follows epoch {before['epoch']}")
    last[key] = row


class Log:
    """Writes one stage's rows. No clock enters metrics.jsonl, so a resumed run writes the same file."""

    def __init__(self, workdir: pathlib.Path, stage: str, step: int, by_seed: bool = False):
        """Cuts the stage's rows after `step`, from which the run goes on; `by_seed`: each seed has its own curves."""
        self._path, self._stage, self._by_seed = workdir / FILE, stage, by_seed
        kept = [row for row in read(workdir) if row["stage"] != stage or row["step"] <= step]
        write_atomically(self._path, "".join(json.dumps(row) + "\n" for row in kept))
        board = workdir / "tensorboard" / stage
        try:
            self._board = tensorboardX.SummaryWriter(str(board), purge_step=step + 1)
        except OSError as error:
            raise files.cannot_write(board, error) from None

    def write(self, step: int, values: dict[str, float], timings: dict[str, float]) -> None:
        """Appends a row and waits until it is on disk; `timings` go to TensorBoard alone."""
        try:
            with open(self._path, "a") as file:
                file.write(json.dumps({"stage": self._stage, "step": step, **values}) + "\n")
                file.flush()
                os.fsync(file.fileno())
            self._draw(step, values, timings)
        except OSError as error:
            raise files.cannot_write(self._path, error) from None

    def _draw(self, step: int, values: dict[str, float], timings: dict[str, float]) -> None:
        """Adds a point to each of TensorBoard's curves."""
        seed = f"/seed_{values['seed']}" if self._by_seed else ""
        curves = {name: value for name, value in {**values, **timings}.items() if name not in ("seed", "epoch")}
        for name, value in curves.items():
            self._board.add_scalar(name + seed, value, step)
        self._board.flush()

    def close(self) -> None:
        """Closes TensorBoard's file."""
        try:
            self._board.close()
        except OSError as error:
            raise files.cannot_write(self._path.parent / "tensorboard", error) from None
