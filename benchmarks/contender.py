"""What every contender shares: the images, and obeying the process that compares them.

A contender is a process with a Python of its own. It reads one JSON object a line, {"do": JOB, ...arguments},
and answers each with one line: the job's numbers, or {"error": ...}. Between jobs it is asleep on its input,
so several of them can take turns on one machine.
"""

import gzip
import json
import os
import pathlib
import sys
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np

NUM_TRAIN = 55_000
HIDDEN = 500
LATENT = 200
PIXELS = 784
LEARNING_RATE = 1e-3


def settings() -> dict[str, Any]:
    """The settings that `quadrants.py` hands over as the one argument."""
    return json.loads(sys.argv[1])


def load_images(data_dir: str | None) -> np.ndarray:
    """The 60,000 training images of MNIST, uint8 [n, 28, 28], or as many of noise where there is no folder."""
    if not data_dir:
        return np.random.default_rng(0).integers(0, 256, (NUM_TRAIN + 5_000, 28, 28), np.uint8)
    path = pathlib.Path(data_dir) / "train-images-idx3-ubyte"
    packed = path.with_name(path.name + ".gz")
    content = gzip.decompress(packed.read_bytes()) if packed.exists() else path.read_bytes()
    return np.frombuffer(content, np.uint8, offset=16).reshape(-1, 28, 28)


def observed_pixels() -> np.ndarray:
    """Float mask [28, 28] of the one quadrant that is the input: the bottom left."""
    mask = np.zeros((28, 28), np.float32)
    mask[14:, :14] = 1
    return mask


def serve(jobs: dict[str, Callable[..., dict[str, Any]]]) -> None:
    """Answers jobs until the input ends."""
    # Whatever a library prints goes to stderr, so that stdout holds answers only.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = jobs[request.pop("do")](**request)
        except Exception as error:  # told to the process that asked, which goes on without this number
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        print(json.dumps(answer), file=answers, flush=True)
