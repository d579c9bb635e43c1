"""A run's folder: its config, what is kept of its data, and the lock of the process that trains there."""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from cvae_jax.errors import UserError
from cvae_jax.task import Spec, Splits, Task
from cvae_jax.training import files
from cvae_jax.training.files import write_atomically

LOGGER = logging.getLogger(__name__)

CONFIG_FILE = "config.json"
DATA_FILE = "data.sha256.json"  # of the arrays it was trained on
SPEC_FILE = "data.spec.json"  # what the training split says of the data


def read_config(path: pathlib.Path) -> ConfigDict:
    """Returns the config of a workdir.

    Raises:
      UserError: when it is missing, damaged, or of an older version.
    """
    config = files.read_json(path / CONFIG_FILE)
    if config is None:
        raise UserError(f"workdir {path} holds no run ({CONFIG_FILE} is missing); train there first")
    if not (path / SPEC_FILE).exists():
        raise UserError(
            f"workdir {path} holds no {SPEC_FILE}: it was trained by an older version, or the file is lost; train it "
            "again, or put back a copy of the file"
        )
    try:
        return ConfigDict(config)
    except ValueError as error:  # a key with a dot
        raise UserError(f"{path / CONFIG_FILE} is damaged ({error}); put back a copy of it") from None


def write_spec(path: pathlib.Path, spec: Spec) -> None:
    """Writes what the training split says of the data."""
    write_atomically(path / SPEC_FILE, json.dumps(_spec_numbers(spec)))


def _spec_numbers(spec: Spec) -> dict[str, Any]:
    return {
        "raw": {name: [list(array.shape), str(array.dtype)] for name, array in spec.raw.items()},
        "num_classes": spec.num_classes,
        "mean": {name: values.tolist() for name, values in spec.mean.items()},
        "scale": {name: values.tolist() for name, values in spec.scale.items()},
    }


def read_spec(path: pathlib.Path) -> Spec:
    """Returns what `write_spec` wrote in a workdir.

    Raises:
      UserError: when it is missing or damaged.
    """
    try:
        numbers = files.read_json(path / SPEC_FILE) or {}
        raw = {name: jax.ShapeDtypeStruct(tuple(shape), dtype) for name, (shape, dtype) in numbers["raw"].items()}
        mean, scale = (
            {name: np.array(values, np.float64) for name, values in numbers[moment].items()}
            for moment in ("mean", "scale")
        )
        return Spec(raw, dict(numbers["num_classes"]), mean, scale)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path / SPEC_FILE} is missing or damaged; put back a copy of it") from None


def read_fingerprint(workdir: str | pathlib.Path) -> dict[str, str]:
    """Returns the SHA-256 of every split's raw arrays beside which a run was trained; {} where that file is missing.

    Raises:
      UserError: when it is damaged.
    """
    return files.read_json(pathlib.Path(workdir).expanduser() / DATA_FILE) or {}


def fingerprint(task: Task, splits: Splits) -> dict[str, str]:
    """Returns the SHA-256 of every split's raw arrays."""
    digests = {}
    for split, arrays in splits.items():
        digest = hashlib.sha256()
        for name in task.raw:
            digest.update(np.ascontiguousarray(arrays[name]).reshape(-1).data)  # no copy: videos take gigabytes
        digests[split] = digest.hexdigest()
    return digests


def run_of(config: ConfigDict, spec: Spec) -> dict[str, Any]:
    """Returns what the checkpoints of a run must have in common: their seeds, and hashes of config and spec.

    Where data and weights to start from lie, how long stages are trained and how they are measured may change.
    """
    keys = _settings(config)
    free = ("data.dir",)
    kept = {
        key: value
        for key, value in keys.items()
        if key not in free and not key.startswith("measure_") and not key.endswith((".epochs", ".start_from"))
    }
    digests = {
        name: hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
        for name, value in (("config", kept), ("data", _spec_numbers(spec)))
    }
    return {"seeds": [int(config.seed), int(config.num_seeds)], **digests}


class Identity(NamedTuple):
    """The config and the data that a workdir belongs to."""

    config: ConfigDict
    fingerprint: dict[str, str]  # of the data, see `fingerprint`
    spec: Spec


@contextlib.contextmanager
def open_workdir(workdir: str, identity: Identity) -> Iterator[pathlib.Path]:
    """Makes the folder, or checks that it belongs to this config and data, whose run then goes on; locks it.

    Raises:
      UserError: when it holds another run that has checkpoints, is in use, or cannot be written.
    """
    path = pathlib.Path(workdir).expanduser()
    text = identity.config.to_json_best_effort(indent=1)
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = os.open(path / "lock", os.O_CREAT | os.O_RDWR)
    except OSError as error:
        raise UserError(f"cannot write to workdir {path} ({error.strerror}); choose another --workdir") from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # let go by the system however the process ends
        except BlockingIOError:
            raise UserError(f"another process is training in workdir {path}; wait for it, or choose another") from None
        except OSError as error:  # a disk that knows no locks, such as some over a network
            LOGGER.warning("workdir %s cannot be locked (%s); let no other process train there", path, error.strerror)
        trained = sorted({manifest.parent.name for manifest in (path / "checkpoints").glob("*/*.sha256.json")})
        if trained:
            _check_same(read_config(path), identity.config, path, trained)
            if read_fingerprint(path) not in ({}, identity.fingerprint):
                raise UserError(f"workdir {path} holds a run on other data; choose another --workdir")
        write_atomically(path / CONFIG_FILE, text)
        write_atomically(path / DATA_FILE, json.dumps(identity.fingerprint, indent=1))
        write_spec(path, identity.spec)
        yield path
    finally:
        os.close(lock)


def _check_same(before: ConfigDict, config: ConfigDict, path: pathlib.Path, trained: Sequence[str]) -> None:
    """Raises for the first keys that differ; where the data lie may differ, since the data are compared themselves.

    A stage may be given other epochs where the steps it has taken are those of the new run too: its schedule does not
    depend on them, and no later stage was trained on its weights.

    Args:
      before: the config in the workdir.
      config: the one to go on with.
      path: of the workdir.
      trained: names of the stages that have checkpoints.
    """
    saved, now = _settings(before), _settings(config)
    differ = [key for key in {**saved, **now} if saved.get(key) != now.get(key) and key != "data.dir"]
    differ = [key for key in differ if not key.endswith(".start_from") or key.removesuffix(".start_from") in trained]
    sections = [key.removesuffix(".epochs") for key in now if key.endswith(".epochs")]  # of stages, in their order
    for key in [key for key in differ if key.endswith(".epochs")]:
        stage = key.removesuffix(".epochs")
        later = [name for name in sections[sections.index(stage) + 1 :] if name in trained] if stage in sections else []
        schedule = now.get(f"{stage}.optimizer.schedule")
        if later:
            why = f"{later[0]} was trained on its weights"
        elif stage in trained and schedule != "constant":
            why = f"{schedule!r} spreads the learning rate over all epochs"
        else:
            differ.remove(key)
            continue
        raise UserError(
            f"{key} cannot change from {saved.get(key)} to {now.get(key)} in workdir {path}: {why}; choose another "
            f"--workdir, perhaps with --config.{stage}.start_from={path}"
        )
    if differ:
        shown = ", ".join(f"{key}: {saved.get(key)} there, {now.get(key)} now" for key in differ[:3])
        more = f" and {len(differ) - 3} more" if len(differ) > 3 else ""
        raise UserError(f"workdir {path} holds a run of another config ({shown}{more}); choose another --workdir")


def _settings(config: ConfigDict) -> dict[str, Any]:
    """Returns key -> value of a config as its file holds them; an empty text is as if the key were not there."""
    flat = _flatten(json.loads(config.to_json_best_effort()))
    return {key: value for key, value in flat.items() if value != ""}


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
