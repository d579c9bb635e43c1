"""Files of a workdir: damages and disks that end in one line."""

import errno
import fcntl
import json
import os
import pathlib

import pytest
from small_runs import small_identity
from specs import NOTHING

from cvae_jax.errors import UserError
from cvae_jax.training import files, workdir
from cvae_jax.training import log as metrics

ROW = {"stage": "cvae", "step": 10, "seed": 0, "epoch": 1, "train/loss": 1.5}


def rows(*epochs, seed=0):
    return "".join(json.dumps({**ROW, "step": 10 * epoch, "epoch": epoch, "seed": seed}) + "\n" for epoch in epochs)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"null", b"3", b"[]", b"[" * 100_000, b'{"a": ' * 50_000])
def test_what_is_no_object_is_one_line(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.json is damaged.*put back a copy") as refusal:
        files.read_json(tmp_path / "a.json")
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 300


def test_what_cannot_be_read_is_one_line(tmp_path):
    assert files.read_json(tmp_path / "missing.json") is None
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(UserError, match=r"folder\.json cannot be read \(Is a directory\)"):
        files.read_json(tmp_path / "folder.json")
    with open(tmp_path / "large.json", "wb") as file:
        file.truncate(files.LARGEST + 1)
    with pytest.raises(UserError, match=r"large\.json has more than"):
        files.read_json(tmp_path / "large.json")


@pytest.mark.parametrize(
    ("damaged", "line"),
    [
        (rows(1, 3), 2),  # a row is lost
        (rows(1, 2, 2), 3),  # doubled
        (rows(1, 2).replace('"step": 20', '"step": 21'), 2),  # changed
        (rows(1, 2).replace('"epoch": 1', '"epoch": "x"'), 1),
        (rows(1, 2).replace('"epoch": 1', '"epoch": 0'), 1),
        (rows(1, 2).replace('"stage": "cvae", "step": 10', '"step": 10'), 1),
        (rows(1, 2).replace("1.5", '"low"', 1), 1),
        ("[]\n" + rows(1), 1),
        (rows(1) + "{\n" + rows(2), 2),
    ],
)
def test_rows_of_metrics_that_were_not_written_so(tmp_path, damaged, line):
    (tmp_path / metrics.FILE).write_text(damaged)
    with pytest.raises(UserError, match=rf"metrics\.jsonl, line {line} is damaged.*put back a copy of the file"):
        metrics.read(tmp_path)


def test_metrics_that_are_no_text(tmp_path):
    (tmp_path / metrics.FILE).write_bytes(b"\xff" + rows(1).encode())
    with pytest.raises(UserError, match=r"metrics\.jsonl is damaged: it is no text"):
        metrics.read(tmp_path)


def test_rows_of_several_seeds_and_of_a_file_that_was_removed_are_read(tmp_path):
    (tmp_path / metrics.FILE).write_text(rows(3) + rows(3, seed=1) + rows(4) + rows(4, seed=1) + rows(5, seed=1))
    assert [row["epoch"] for row in metrics.read(tmp_path)] == [3, 3, 4, 4, 5]


@pytest.mark.parametrize(
    ("number", "reason"), [(errno.ENOSPC, "No space left on device.*free space"), (errno.EROFS, "Read-only.*writable")]
)
def test_a_disk_that_takes_nothing_is_one_line(tmp_path, monkeypatch, number, reason):
    log = metrics.Log(tmp_path, "cvae", 0)
    path = tmp_path / "a.json"
    files.write_atomically(path, "old")

    def full(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)
    for write in (
        lambda: files.write_atomically(path, "new"),
        lambda: log.write(10, {"seed": 0, "epoch": 1}, {}),
        lambda: workdir.write_spec(tmp_path, NOTHING),
        log.close,
    ):
        with pytest.raises(UserError, match=rf"cannot write .* \({reason}") as refusal:
            write()
        assert "\n" not in str(refusal.value)
    assert path.read_text() == "old"


def test_a_tensorboard_that_is_a_file_is_one_line(tmp_path):
    (tmp_path / "tensorboard").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*tensorboard/cvae"):
        metrics.Log(tmp_path, "cvae", 0)


def opened(path):
    return workdir.open_workdir(str(path), small_identity())


def test_a_disk_without_locks_is_trained_on_with_a_warning(tmp_path, monkeypatch, caplog):
    """Such as some over a network; only that another process holds the lock means that it is in use."""

    def unknown(descriptor, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", unknown)
    with opened(tmp_path) as path:
        assert (path / "config.json").exists()
    assert "cannot be locked (No locks available)" in caplog.text


@pytest.mark.parametrize("content", [b"{", b"\xff", None])
def test_damaged_checksums_of_data_are_one_line(tmp_path, content):
    with opened(tmp_path):
        pass
    (tmp_path / "checkpoints" / "cvae").mkdir(parents=True)
    (tmp_path / "checkpoints" / "cvae" / "1.sha256.json").write_text("{}")
    path: pathlib.Path = tmp_path / workdir.DATA_FILE
    path.unlink()
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(UserError, match=r"data\.sha256\.json (is damaged|cannot be read)"), opened(tmp_path):
        pass
