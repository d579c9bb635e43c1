"""What a comparison is made of, the clock, and how the numbers of its rounds are written. Needs Python alone."""

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

Answer = dict[str, Any]  # the numbers of one turn: "seconds", how many "steps" these were, ...
Results = Mapping[
    tuple[str, str], list[Answer]
]  # (contender, job) -> the answers of all rounds; [] for what was not run


class Turn(NamedTuple):
    """What one contender does in every round."""

    contender: str
    job: str
    run: Callable[[], Answer]  # {}: it could not


class Comparison(NamedTuple):
    """Contenders that are measured side by side."""

    turns: Sequence[Turn]  # of a round, in order
    report: Callable[[Results], str]
    heading: str = ""  # what is known before the first round


def num_threads() -> int:
    """Returns how many cores this process may run on: restrict them with taskset, and all contenders follow."""
    return len(os.sched_getaffinity(0))


def seconds(work: Callable[[], object]) -> float:
    """Returns how long one call of `work` takes, which has to wait for its own results."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def turn_of_steps(contender: str, job: str, run: Callable[[int], object], steps: int) -> Turn:
    """Returns a turn that times `run(steps)`; two steps are taken at once, so that compiling is in no number."""
    run(2)
    return Turn(contender, job, lambda: {"seconds": seconds(lambda: run(steps)), "steps": steps})


def of_step(answers: Sequence[Answer]) -> list[float]:
    """Returns the milliseconds of a step, in every round."""
    return [1e3 * answer["seconds"] / answer["steps"] for answer in answers]


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Returns the ratios round by round, so that a slow minute of the machine falls on both."""
    return [a / b for a, b in zip(above, below, strict=False)]


def summary(values: Sequence[float], form: str = ".2f") -> str:
    """Returns the median, and the least and the greatest in brackets."""
    if not values:
        return "-"
    return f"{statistics.median(values):{form}} ({min(values):{form}} - {max(values):{form}})"


def table(lines: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table, whose first line is the heading; cells are padded, so that it reads in a terminal."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    lines = [lines[0], ["-" * width for width in widths], *lines[1:]]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in padded)
