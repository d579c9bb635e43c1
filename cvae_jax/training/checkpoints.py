"""Checkpoints by Orbax, each with a manifest of checksums, because Orbax restores flipped bits silently."""

import gc
import hashlib
import json
import logging
import pathlib
import re
import shutil
import threading
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax
import orbax.checkpoint as ocp

from cvae_jax.errors import UserError, reason
from cvae_jax.training import files
from cvae_jax.training.files import write_atomically

LOGGER = logging.getLogger(__name__)

KEEP = 2  # so that one remains when the newest is damaged


def checksums(folder: pathlib.Path) -> dict[str, str]:
    """SHA-256 of every file below the folder, by its path from there."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Path -> shape of every array; Orbax gives named tuples back as dicts, so only the names count."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    named = [("/".join(re.findall(r"\w+", jax.tree_util.keystr(path))), leaf) for path, leaf in leaves]
    return {name: tuple(leaf.shape) for name, leaf in named if hasattr(leaf, "shape")}


class Checkpoints:
    """The checkpoints of one stage: folders `<directory>/<step>` with manifests `<step>.sha256.json` beside them.

    A save runs in the background, and its manifest is written as soon as Orbax has committed it: a step without one
    is a save that was cut short, and is passed over. So is, with a warning, a step that differs from its
    manifest. Neither is touched until training comes to save that step again.
    """

    def __init__(self, directory: pathlib.Path, run: Mapping[str, Any] = MappingProxyType({})):
        """`run` says whose checkpoints these are, see `workdir.run_of`: the manifests hold it, and it is compared."""
        self.directory = directory.absolute()
        self._run = dict(run)
        self._checkpointer: Any = None  # an ocp.StandardCheckpointer once something is saved
        self._signing: threading.Thread | None = None  # waits for the save under way
        self._failed: UserError | None = None  # in that thread

    def steps(self) -> list[int]:
        """Steps with a manifest, newest first."""
        names = (path.name.split(".")[0] for path in self.directory.glob("*.sha256.json"))
        return sorted((int(name) for name in names if re.fullmatch("[0-9]{1,18}", name)), reverse=True)

    def restore_newest(self, target: Any) -> Any | None:
        """The newest valid checkpoint in the structure of `target`, or None when none was completed yet.

        Raises:
          UserError: when every completed checkpoint is damaged, or the newest valid one is of another run.
        """
        steps = self.steps()
        for step in steps:
            folder = self.directory / str(step)
            if self._intact(step):
                self._check_run(step, self._read(step)[0])
                with ocp.StandardCheckpointer() as checkpointer:
                    saved = _shapes(checkpointer.metadata(folder).item_metadata.tree)
                    for name, shape in _shapes(target).items():
                        if saved.get(name) != shape:
                            raise UserError(
                                f"checkpoint {folder} does not fit config.json: {name} is {saved.get(name)} there, "
                                f"{shape} by the config; put back the config it was trained with"
                            )
                    return checkpointer.restore(folder, target)
            LOGGER.warning("checkpoint %s is damaged: its checksums differ; looking for an older one", folder)
        if steps:
            raise UserError(
                f"every checkpoint in {self.directory} is damaged; put back a copy of that folder, or remove it "
                "to train this stage anew"
            )
        folders = [path for path in self.directory.glob("*") if path.is_dir() and path.name.isdecimal()]
        if len(folders) == 1:
            LOGGER.warning("checkpoint %s has no manifest: its save was cut short; it is passed over", folders[0])
        if len(folders) > 1:
            raise UserError(
                f"{self.directory} holds checkpoints whose manifests (*.sha256.json) are missing; put them back, or "
                "remove the folder to train this stage anew"
            )
        return None

    def save(self, step: int, state: Any) -> None:
        """Starts to save, and returns once `state` may change.

        Raises:
          UserError: when this or the save before cannot be written.
        """
        self._wait()
        folder = self.directory / str(step)
        try:
            if self._checkpointer is None:
                self._checkpointer = ocp.StandardCheckpointer()
                for leftover in self.directory.glob("*.orbax-checkpoint-tmp*"):
                    shutil.rmtree(leftover)
            if folder.exists():  # cut short, or damaged: passed over when restoring
                shutil.rmtree(folder)
                self._manifest(step).unlink(missing_ok=True)
            self._checkpointer.save(folder, state)
        except Exception as error:  # as below
            raise UserError(f"cannot write checkpoint {folder} ({reason(error)}); free space") from None
        self._signing = threading.Thread(
            target=self._sign, args=(self._checkpointer, step), name=f"sign checkpoint {step}"
        )
        self._signing.start()

    def close(self) -> None:
        """Waits until everything is on disk.

        Raises:
          UserError: when the last save cannot be written.
        """
        checkpointer, self._checkpointer = self._checkpointer, None
        if checkpointer is not None:
            try:
                self._wait()
            finally:
                checkpointer.close()

    def _wait(self) -> None:
        """Waits until the save under way is signed; raises what went wrong there."""
        if self._signing is not None:
            self._signing.join()
        self._signing = None
        failed, self._failed = self._failed, None
        gc.collect()  # Orbax keeps what it saved in reference cycles: a whole state more in memory every save
        if failed is not None:
            raise failed

    def _sign(self, checkpointer: Any, step: int) -> None:
        """In a thread of its own: waits for the save, signs it, and only then removes what is older than the last KEEP.

        A step that was not written has no manifest, and nothing older is removed for it.
        """
        try:
            checkpointer.wait_until_finished()
            written = checksums(self.directory / str(step))
            if not written:
                raise OSError("nothing was written")
            write_atomically(self._manifest(step), json.dumps({"run": self._run, "files": written}, indent=1))
            for old in [signed for signed in self.steps() if signed <= step][KEEP:]:
                shutil.rmtree(self.directory / str(old), ignore_errors=True)
                self._manifest(old).unlink()
        except Exception as error:  # a full disk comes out of Orbax and TensorStore as many kinds of error
            self._failed = UserError(
                f"cannot write checkpoint {step} in {self.directory} ({reason(error)}); free space, then go on "
                "with the same command"
            )

    def _read(self, step: int) -> tuple[dict[str, Any], Any]:
        """Returns of a manifest whose checkpoint it is, {} of one by an older version, and the files' checksums."""
        manifest = files.read_json(self._manifest(step)) or {}
        if isinstance(manifest.get("files"), dict):
            run = manifest.get("run", {})
            return run if isinstance(run, dict) else {"run": run}, manifest["files"]
        return {}, manifest

    def _intact(self, step: int) -> bool:
        """Returns whether a step is what its manifest says."""
        try:
            _, listed = self._read(step)
            return bool(listed) and listed == checksums(self.directory / str(step))
        except (UserError, OSError):  # the manifest itself is damaged
            return False

    def check_run(self) -> None:
        """Raises a UserError where the newest checkpoint whose manifest can be read is of another run."""
        for step in self.steps():
            try:
                saved, _ = self._read(step)
            except UserError:
                continue
            return self._check_run(step, saved)

    def _check_run(self, step: int, saved: dict[str, Any]) -> None:
        """Raises a UserError for a checkpoint of another run than this."""
        differing = [name for name in self._run if saved.get(name, self._run[name]) != self._run[name]]
        if differing:
            raise UserError(
                f"checkpoint {self.directory / str(step)} is of another run, with other {' and '.join(differing)}; put "
                "back the config.json and data.spec.json it was trained with"
            )

    def _manifest(self, step: int) -> pathlib.Path:
        return self.directory / f"{step}.sha256.json"
