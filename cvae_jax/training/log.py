"""The record of a run: metrics.jsonl, a function of the config alone, and TensorBoard."""

import json
import os
import pathlib
from typing import Any

import tensorboardX

from cvae_jax.errors import UserError
from cvae_jax.training.checkpoints import write_atomically

FILE = "metrics.jsonl"


def read(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl in order; a last line that a kill cut short is left out."""
    path = workdir / FILE
    lines = path.read_text().splitlines() if path.exists() else []
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except ValueError:
            if number < len(lines):
                raise UserError(
                    f"{path}, line {number} is damaged; put back a copy of it, or remove that line"
                ) from None
    return rows


class Log:
    """Writes one stage's rows. No clock enters metrics.jsonl, so a resumed run writes the same file."""

    def __init__(self, workdir: pathlib.Path, stage: str, step: int, by_seed: bool = False):
        """Cuts the stage's rows after `step`, from which the run goes on; `by_seed`: each seed has its own curves."""
        self._path, self._stage, self._by_seed = workdir / FILE, stage, by_seed
        kept = [row for row in read(workdir) if row["stage"] != stage or row["step"] <= step]
        write_atomically(self._path, "".join(json.dumps(row) + "\n" for row in kept))
        self._board = tensorboardX.SummaryWriter(str(workdir / "tensorboard" / stage), purge_step=step + 1)

    def write(self, step: int, values: dict[str, float], timings: dict[str, float]) -> None:
        """Appends a row and waits until it is on disk; `timings` go to TensorBoard alone."""
        with open(self._path, "a") as file:
            file.write(json.dumps({"stage": self._stage, "step": step, **values}) + "\n")
            file.flush()
            os.fsync(file.fileno())
        seed = f"/seed_{values['seed']}" if self._by_seed else ""
        curves = {name: value for name, value in {**values, **timings}.items() if name not in ("seed", "epoch")}
        for name, value in curves.items():
            self._board.add_scalar(name + seed, value, step)
        self._board.flush()

    def close(self) -> None:
        """Closes TensorBoard's file."""
        self._board.close()
