"""A run's folder: its config, what is kept of its data, and the lock of the process that trains there."""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from cvae_jax.errors import UserError
from cvae_jax.task import Spec, Splits, Task
from cvae_jax.training import files, log
from cvae_jax.training.checkpoints import Checkpoints
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


def run_of(config: ConfigDict, spec: Spec, task: Task) -> dict[str, Any]:
    """Returns what the checkpoints of a run must have in common: their seeds, and hashes of settings and spec.

    The hash of the spec is of the arrays that the task reads, whatever their width, and of nine digits of a number.
    """
    settings = {key: value for key, value in _settings(config).items() if not _may_change(key)}
    read = {**task.raw, **task.measured}
    moments = {
        f"{moment} of {name}": [f"{value:.8e}" for value in values.ravel().tolist()]
        for moment, arrays in (("mean", spec.mean), ("scale", spec.scale))
        for name, values in arrays.items()
        if name in read and (read[name].dtype.kind == "f") == (spec.raw[name].dtype.kind == "f")
    }
    shapes = {name: [list(array.shape), str(array.dtype)] for name, array in read.items()}
    classes = {name: count for name, count in spec.num_classes.items() if name in read}
    digests = {
        name: hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
        for name, value in (("settings", settings), ("spec", [shapes, classes, moments]))
    }
    return {"seeds": [int(config.seed), int(config.num_seeds)], **digests}


def _may_change(key: str) -> bool:
    """Returns whether a key of a run's config may change: where data and weights lie, how long, how it is measured.

    Of these `epochs` and `start_from` not always, see `_check_stages`.
    """
    return key == "data.dir" or key.startswith("measure_") or key.endswith((".epochs", ".start_from"))


class Identity(NamedTuple):
    """The config and the data that a workdir belongs to."""

    config: ConfigDict
    fingerprint: dict[str, str]  # of the data, see `fingerprint`
    spec: Spec
    task: Task


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
        if any((path / "checkpoints").glob("*/*.sha256.json")):
            _check_same(path, identity)
        write_atomically(path / CONFIG_FILE, text)
        write_atomically(path / DATA_FILE, json.dumps(identity.fingerprint, indent=1))
        write_spec(path, identity.spec)
        yield path
    finally:
        os.close(lock)


def check_config(workdir: str, config: ConfigDict, data_known: bool = True) -> None:
    """Raises a UserError where a workdir holds a run of another config that has checkpoints.

    Args:
      workdir: the folder.
      config: the one to go on with.
      data_known: False before the data are loaded; a batch size, which they may lower, is not compared then.
    """
    path = pathlib.Path(workdir).expanduser()
    if not any((path / "checkpoints").glob("*/*.sha256.json")):
        return
    saved, now = _settings(read_config(path)), _settings(config)
    differ = [key for key in {**saved, **now} if saved.get(key) != now.get(key) and not _may_change(key)]
    differ = [key for key in differ if data_known or not key.endswith(".batch_size")]
    if differ:
        shown = ", ".join(f"{key}: {saved.get(key)} there, {now.get(key)} now" for key in differ[:3])
        more = f" and {len(differ) - 3} more" if len(differ) > 3 else ""
        raise UserError(f"workdir {path} holds a run of another config ({shown}{more}); choose another --workdir")


def _check_same(path: pathlib.Path, identity: Identity) -> None:
    """Raises where the run of a workdir is another one: its settings, its data, its checkpoints."""
    config = identity.config
    check_config(str(path), config)
    _check_stages(path, identity.task, _settings(read_config(path)), _settings(config))
    if read_fingerprint(path) not in ({}, identity.fingerprint):
        raise UserError(f"workdir {path} holds a run on other data; choose another --workdir")
    for stage in identity.task.stages:
        run = run_of(config, identity.spec, identity.task)
        Checkpoints(path / "checkpoints" / stage.name, run).check_run()


def _check_stages(path: pathlib.Path, task: Task, saved: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises where a stage's `epochs` or `start_from` cannot change, because the steps it has taken were others then.

    Args:
      path: of the workdir.
      task: whose stages.
      saved: settings in the workdir.
      now: settings to go on with.
    """
    trained = [stage for stage in task.stages if any((path / "checkpoints" / stage.name).glob("*.sha256.json"))]
    rows = log.read(path)
    for section in dict.fromkeys(stage.section for stage in trained):
        own = [stage for stage in trained if stage.section == section]
        later = [stage for stage in trained[trained.index(own[-1]) + 1 :]]
        epochs, start = f"{section}.epochs", f"{section}.start_from"
        taken = max((row["epoch"] for row in rows if row["stage"] in {stage.name for stage in own}), default=0)
        schedule = now.get(f"{section}.optimizer.schedule")
        why = ""
        if saved.get(start) != now.get(start):
            key, why = start, f"{own[0].name} has started already"
        elif saved.get(epochs) != now.get(epochs):
            key = epochs
            if later:
                why = f"{later[0].name} was trained on its weights"
            elif schedule != "constant":
                why = f"{schedule!r} spreads the learning rate over all epochs"
            elif now[epochs] < taken:
                why = f"{taken} are done"
        if why:
            raise UserError(
                f"{key} cannot change from {saved.get(key)} to {now.get(key)} in workdir {path}: {why}; choose another "
                f"--workdir, perhaps with --config.{section}.start_from={path}"
            )


def _settings(config: ConfigDict) -> dict[str, Any]:
    """Returns key -> value of a config as its file holds them; what is "" or False is as if the key were not there.

    So a run of a version that did not know a key is one of which the key is off.
    """
    flat = _flatten(json.loads(config.to_json_best_effort()))
    return {key: value for key, value in flat.items() if value != "" and value is not False}


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
