"""Commands as a user starts them, but for how XLA compiles."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]

# Most of a short run's time is compiling, and this a fifth of it. Only here: the flag holds for a whole process, and
# in that of the tests it would reach those of bits and of compilers too.
QUICKER = "--xla_cpu_use_fusion_emitters=false"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs Python with these arguments in the repository's root."""
    environment = {**os.environ, "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {QUICKER}"}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT, timeout=300, env=environment
    )
