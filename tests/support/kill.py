"""Kills a training run again and again, and compares what it leaves with a run that was never interrupted.

python tests/support/kill.py --config=configs/digits_quadrants.py:1 --kills=20 --config.cvae.checkpoint_every=1

Kills with SIGKILL after a random time, restarts the same command, and once that many kills have hit, lets it
finish. Compares the final parameters, optimiser state and metrics.jsonl of both, byte for byte.
"""

import argparse
import hashlib
import pathlib
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

ROOT = pathlib.Path(__file__).parents[2]


def fingerprint(workdir: pathlib.Path) -> str:
    """SHA-256 over every stage's final State, all leaves of it, and metrics.jsonl."""
    import jax
    import numpy as np

    from cvae_jax import load
    from cvae_jax.training import step
    from cvae_jax.training.checkpoints import Checkpoints

    digest = hashlib.sha256((workdir / "metrics.jsonl").read_bytes())
    trained, earlier = load(str(workdir)), {}
    for stage in trained.task.stages:
        target = step.abstract_state(stage, trained.task, trained.config.num_seeds, dict(earlier))
        earlier[stage.name] = target.best
        state = Checkpoints(workdir / "checkpoints" / stage.name).restore_newest(target)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state):
            digest.update(jax.tree_util.keystr(path).encode() + np.asarray(leaf).tobytes())
    return digest.hexdigest()


def kill_and_compare(
    config: str, kills: int, seed: int, folder: pathlib.Path, overrides: Sequence[str] = ()
) -> tuple[str, str]:
    """Fingerprints of the undisturbed and of the killed run; `overrides` are more flags of train.py."""

    def command(workdir: pathlib.Path) -> list[str]:
        return [sys.executable, "train.py", f"--config={config}", f"--workdir={workdir}", *overrides]

    began = time.perf_counter()
    subprocess.run(command(folder / "whole"), check=True, capture_output=True, cwd=ROOT)
    seconds = time.perf_counter() - began
    chance = random.Random(seed)
    done = 0
    while done < kills:
        process = subprocess.Popen(
            command(folder / "killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT
        )
        try:
            process.wait(chance.uniform(0, seconds))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            done += 1
            steps = sorted(path.name for path in (folder / "killed" / "checkpoints").glob("*/*.sha256.json"))
            print(f"kill {done}: {len(steps)} signed checkpoints on disk", flush=True)
        else:
            if process.returncode != 0:
                raise RuntimeError(f"train.py exited with {process.returncode}")
            # It finished first. Kills go on in a fresh run, after what this one left has been compared.
            _compare(folder)
            subprocess.run(["rm", "-r", str(folder / "killed")], check=True)
    subprocess.run(command(folder / "killed"), check=True, capture_output=True, cwd=ROOT)
    return _compare(folder)


def _compare(folder: pathlib.Path) -> tuple[str, str]:
    whole, killed = fingerprint(folder / "whole"), fingerprint(folder / "killed")
    print(f"never interrupted: {whole}\nkilled:            {killed}", flush=True)
    if whole != killed:
        raise SystemExit("the runs differ")
    return whole, killed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/digits_quadrants.py:1,smoke")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments, overrides = parser.parse_known_args()
    sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory() as temporary:
        kill_and_compare(arguments.config, arguments.kills, arguments.seed, pathlib.Path(temporary), overrides)
