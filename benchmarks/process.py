"""Contenders that are processes with a Python of their own: how they are asked, and how they answer.

Such a process reads one JSON object a line, {"do": JOB, ...arguments}, and answers each with one line: the job's
numbers, or {"error": ...}. Between jobs it sleeps on its input, so several of them can take turns on one machine.
"""

import json
import os
import pathlib
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

from benchmarks.rounds import Answer

ROOT = pathlib.Path(__file__).resolve().parents[1]


class Process:
    """A contender at work, or the reason why it is not."""

    def __init__(self, python: str, module: str, settings: dict[str, Any]):
        self.trouble = ""  # why it does nothing any more
        self.failed: dict[str, str] = {}  # job -> why that one failed
        began = time.perf_counter()
        command = [python, "-m", module, json.dumps(settings)]
        paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        try:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONPATH": paths},
            )
        except OSError as error:
            self.trouble = str(error)
            return
        self.prepared = self.ask("prepare")
        self.trouble = self.trouble or self.failed.get("prepare", "")
        self.startup = time.perf_counter() - began

    def ask(self, job: str, **arguments: Any) -> Answer:
        """Returns the numbers of one job; {} when the contender cannot do it, and it is then not asked again."""
        if self.trouble or job in self.failed:
            return {}
        try:
            self.process.stdin.write(json.dumps({"do": job, **arguments}) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self.trouble = f"the process ended with code {self.process.wait()}; its last words are above"
            return {}
        answer = json.loads(line)
        if "error" in answer:
            self.failed[job] = answer["error"]
            return {}
        return answer

    def close(self) -> None:
        """Ends the process."""
        if hasattr(self, "process") and self.process.poll() is None:
            self.process.stdin.close()
            self.process.wait()


def settings() -> dict[str, Any]:
    """Returns the settings that `Process` hands over as the one argument."""
    return json.loads(sys.argv[1])


def serve(jobs: dict[str, Callable[..., Answer]]) -> None:
    """Answers jobs until the input ends."""
    # Whatever a library prints goes to stderr, so that stdout holds answers only.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = jobs[request.pop("do")](**request)
        except Exception as error:  # goes to the process that asked, which continues without this number
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        print(json.dumps(answer), file=answers, flush=True)
