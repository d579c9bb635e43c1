"""What every benchmark shares: the clock, and the cores that count."""

import os
import time
from collections.abc import Callable


def num_threads() -> int:
    """Cores this process may run on: restrict them with taskset, and all contenders follow."""
    return len(os.sched_getaffinity(0))


def seconds(work: Callable[[], object]) -> float:
    """How long one call of `work` takes, which has to wait for its own results."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
