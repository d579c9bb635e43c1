import json
import logging
import shutil
import threading
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cvae_jax import parallel
from cvae_jax.errors import UserError
from cvae_jax.training import log as metrics
from cvae_jax.training.checkpoints import KEEP, Checkpoints
from cvae_jax.training.files import write_atomically


class State(NamedTuple):
    """A small one of the same kinds of leaves as `step.State`."""

    step: Any
    variables: Any
    best_score: Any


def state_of(step):
    values = np.random.default_rng(step).normal(size=(3, 4)).astype(np.float32)
    params = {"layer": {"kernel": jnp.asarray(values), "bias": jnp.array([0.0, -0.0, jnp.nan])}}
    state = State(jnp.array(step, jnp.int32), {"params": params}, jnp.array(jnp.inf))
    return jax.device_put(state, parallel.replicated(parallel.make_mesh()))


def target():
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state_of(0))


def assert_restores(folder, step):
    restored = Checkpoints(folder).restore_newest(target())

    def assert_same_bits(leaf, wanted):
        assert leaf.dtype == wanted.dtype and leaf.sharding == wanted.sharding
        assert np.asarray(leaf).tobytes() == np.asarray(wanted).tobytes()

    jax.tree.map(assert_same_bits, restored, state_of(step))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Steps 1 to 3 as training saves them; copied by the tests that damage it."""
    folder = tmp_path_factory.mktemp("saved")
    checkpoints = Checkpoints(folder)
    for step in (1, 2, 3):
        checkpoints.save(step, state_of(step))
    checkpoints.close()
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "copy")
    return tmp_path / "copy"


def flip(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def test_the_newest_is_restored_bit_for_bit(saved):
    assert_restores(saved, 3)


@pytest.mark.slow
def test_the_newest_is_that_of_the_highest_number(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step in (9, 10):  # "10" < "9" as text
        checkpoints.save(step, state_of(step))
    checkpoints.close()
    assert_restores(tmp_path, 10)


def test_the_last_few_are_kept(saved):
    assert KEEP == 2
    assert Checkpoints(saved).steps() == [3, 2]
    assert sorted(path.name for path in saved.iterdir()) == ["2", "2.sha256.json", "3", "3.sha256.json"]


def test_nothing_saved_yet(tmp_path):
    assert Checkpoints(tmp_path / "nowhere").restore_newest(target()) is None


def test_a_flipped_bit_in_any_file_is_noticed(folder, caplog):
    files = [path for path in (folder / "3").rglob("*") if path.is_file() and path.stat().st_size]
    assert len(files) > 3
    for path in [*files, folder / "3.sha256.json"]:
        middle = path.stat().st_size // 2
        flip(path, middle)
        caplog.clear()
        with caplog.at_level(logging.WARNING, "cvae_jax"):
            assert_restores(folder, 2)
        (record,) = [record for record in caplog.records if record.name == "cvae_jax.training.checkpoints"]
        assert str(folder / "3") in record.getMessage()
        flip(path, middle)  # back
    assert_restores(folder, 3)


def test_a_missing_and_an_added_file_are_noticed(folder):
    largest = max((path for path in (folder / "3").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = largest.read_bytes()
    largest.unlink()
    assert_restores(folder, 2)
    largest.write_bytes(content)
    assert_restores(folder, 3)
    (folder / "3" / "more").write_text("")
    assert_restores(folder, 2)


@pytest.mark.parametrize("text", ["", "[1, 2", "null", "[]", "\x00"])
def test_a_damaged_manifest_is_noticed(folder, text):
    (folder / "3.sha256.json").write_text(text)
    assert_restores(folder, 2)


def test_a_manifest_that_is_not_text(folder):
    (folder / "3.sha256.json").write_bytes(b"\xff\xfe\x00")
    assert_restores(folder, 2)


def test_a_step_without_manifest_is_passed_over(folder):
    (folder / "3.sha256.json").unlink()
    assert Checkpoints(folder).steps() == [2]
    assert_restores(folder, 2)


def test_all_damaged(folder):
    for step in (2, 3):
        shutil.rmtree(folder / str(step))
    with pytest.raises(UserError) as caught:
        Checkpoints(folder).restore_newest(target())
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.slow
def test_saving_again_replaces_what_was_damaged_or_cut_short(folder):
    (folder / "3.sha256.json").unlink()  # cut short
    flip(folder / "2.sha256.json", 20)
    checkpoints = Checkpoints(folder)
    for step in (2, 3):
        checkpoints.save(step, state_of(step))
    checkpoints.close()
    assert checkpoints.steps() == [3, 2]
    assert_restores(folder, 3)
    shutil.rmtree(folder / "3")
    assert_restores(folder, 2)


@pytest.mark.slow
def test_what_a_kill_left_of_a_save_is_removed(folder):
    leftover = folder / "4.orbax-checkpoint-tmp-0"
    leftover.mkdir()
    checkpoints = Checkpoints(folder)
    checkpoints.save(4, state_of(4))
    checkpoints.close()
    assert not leftover.exists()
    assert_restores(folder, 4)


@pytest.mark.slow
def test_state_may_change_once_save_returns(tmp_path):
    state = state_of(1)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state)
    jax.jit(lambda tree: jax.tree.map(jnp.zeros_like, tree), donate_argnums=0)(state)
    checkpoints.close()
    assert_restores(tmp_path, 1)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "new \ud800")  # a lone surrogate cannot be encoded
    assert path.read_text() == "old"


# metrics.jsonl follows the checkpoints.


def rows_of(stage, steps):
    return [{"stage": stage, "step": step, "seed": 0, "epoch": step // 10, "loss": step / 3} for step in steps]


def write_rows(workdir, rows):
    for row in rows:
        log = metrics.Log(workdir, row["stage"], row["step"] - 1)
        log.write(row["step"], {name: row[name] for name in ("seed", "epoch", "loss")}, {"examples_per_second": 1.0})
        log.close()


def test_metrics_are_read_as_written_and_hold_no_clock(tmp_path):
    assert metrics.read(tmp_path) == []
    write_rows(tmp_path, rows_of("baseline", [10, 20]))
    assert metrics.read(tmp_path) == rows_of("baseline", [10, 20])


def test_rewinding_cuts_later_rows_of_that_stage_alone(tmp_path):
    write_rows(tmp_path, rows_of("baseline", [10, 20, 30]) + rows_of("cvae", [10, 20, 30]))
    metrics.Log(tmp_path, "cvae", 20).close()
    assert metrics.read(tmp_path) == rows_of("baseline", [10, 20, 30]) + rows_of("cvae", [10, 20])
    metrics.Log(tmp_path, "cvae", 0).close()
    assert metrics.read(tmp_path) == rows_of("baseline", [10, 20, 30])


@pytest.mark.parametrize("cut", [1, 2, 5, 20])
def test_a_row_that_a_kill_cut_short_is_left_out(tmp_path, cut):
    rows = rows_of("baseline", [10, 20])
    write_rows(tmp_path, rows)
    path = tmp_path / metrics.FILE
    path.write_text(path.read_text() + json.dumps(rows_of("baseline", [30])[0])[:-cut])
    assert metrics.read(tmp_path) == rows
    log = metrics.Log(tmp_path, "baseline", 20)
    log.write(30, {"seed": 0, "epoch": 3, "loss": 10.0}, {})
    log.close()
    assert metrics.read(tmp_path) == rows_of("baseline", [10, 20, 30])


# A save that fails.


def failing(checkpoints, monkeypatch, step, state):
    """Saves; the disk is full when Orbax writes."""
    checkpoints.save(step - 1, state_of(step - 1))
    checkpoints._wait()

    wait = checkpoints._checkpointer.wait_until_finished

    def full():
        wait()
        if threading.current_thread() is not threading.main_thread():
            shutil.rmtree(checkpoints.directory / str(step))
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints._checkpointer, "wait_until_finished", full)
    checkpoints.save(step, state)
    checkpoints._signing.join()
    monkeypatch.undo()


@pytest.mark.parametrize("end", ["close", "save"])
def test_a_save_that_fails_is_told_once_and_costs_no_older_one(folder, monkeypatch, end):
    checkpoints = Checkpoints(folder)
    failing(checkpoints, monkeypatch, 5, state_of(5))
    with pytest.raises(UserError, match=r"cannot write checkpoint 5 in .*No space left.*free space, then go on"):
        checkpoints.close() if end == "close" else checkpoints.save(6, state_of(6))
    checkpoints.close()
    assert Checkpoints(folder).steps() == [4, 3]
    assert_restores(folder, 4)


@pytest.mark.parametrize("name", ["9999", "3"])
def test_an_empty_manifest_is_damaged(folder, name):
    """As an older version left it where a disk was full."""
    (folder / f"{name}.sha256.json").write_text("{}")
    if name == "3":
        shutil.rmtree(folder / "3")
    assert_restores(folder, 2 if name == "3" else 3)


def test_a_save_is_signed_as_soon_as_it_is_whole(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state_of(1))
    checkpoints._signing.join(60)
    assert_restores(tmp_path, 1)  # before the next save, and before anything is closed
    checkpoints.close()


def test_a_save_is_signed_though_it_is_closed_before_the_thread_runs(tmp_path, monkeypatch):
    run = threading.Thread.run

    def late(thread):
        if thread.name.startswith("sign checkpoint"):
            time.sleep(0.05)
        run(thread)

    monkeypatch.setattr(threading.Thread, "run", late)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state_of(1))
    checkpoints.close()
    assert Checkpoints(tmp_path).steps() == [1]


def test_odd_names_are_no_steps(folder):
    for name in ("²", "-1", "x", "1" * 30):
        (folder / f"{name}.sha256.json").write_text("{}")
    assert Checkpoints(folder).steps() == [3, 2]


RUN = {"seeds": [0, 1], "config": "a", "data": "b"}


@pytest.mark.parametrize(("key", "value"), [("seeds", [1, 1]), ("config", "c"), ("data", "d")])
def test_checkpoints_of_another_run_are_refused(tmp_path, key, value):
    checkpoints = Checkpoints(tmp_path, RUN)
    checkpoints.save(1, state_of(1))
    checkpoints.close()
    assert Checkpoints(tmp_path, RUN).restore_newest(target()) is not None
    with pytest.raises(UserError, match=f"is of another run, with other {key}; put back"):
        Checkpoints(tmp_path, {**RUN, key: value}).restore_newest(target())


def test_manifests_of_an_older_version_are_read(folder):
    """They held the files' checksums alone."""
    manifest = folder / "3.sha256.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text())["files"]))
    assert Checkpoints(folder, RUN).restore_newest(target()) is not None
    assert_restores(folder, 3)
