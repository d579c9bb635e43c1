"""Signals: training saves what it did, and leaves."""

import contextlib
import os
import signal

import kill
import pytest
from small_runs import small_config

import cvae_jax
from cvae_jax import errors
from cvae_jax.training import log as metrics
from cvae_jax.training import signals
from cvae_jax.training.checkpoints import Checkpoints

pytestmark = pytest.mark.usefixtures("optimized")


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_at_the_end_of_the_epoch_and_leaves(tmp_path, monkeypatch, small_run, number, code):
    config, write = small_config(**{"baseline.checkpoint_every": 100}), metrics.Log.write
    handlers = [signal.getsignal(kind) for kind in (signal.SIGTERM, signal.SIGINT)]

    def write_and_signal(self, step, values, timings):
        write(self, step, values, timings)
        if values["epoch"] == 2:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(metrics.Log, "write", write_and_signal)
        with pytest.raises(errors.Interrupted, match=f"baseline: stopped by {number.name} after epoch 2") as stopped:
            cvae_jax.train(config, str(tmp_path))
    assert stopped.value.exit_code == code
    assert [row["epoch"] for row in metrics.read(tmp_path)] == [1, 2]
    assert Checkpoints(tmp_path / "checkpoints" / "baseline").steps() == [metrics.read(tmp_path)[1]["step"]]
    assert [signal.getsignal(kind) for kind in (signal.SIGTERM, signal.SIGINT)] == handlers
    cvae_jax.train(config, str(tmp_path))
    assert kill.fingerprint(tmp_path) == kill.fingerprint(small_run)


@pytest.mark.slow
def test_a_signal_between_two_looks_is_of_the_next_epoch(tmp_path, monkeypatch):
    """What is said to be saved is: of a stop that comes while an epoch ends, the next epoch learns."""

    class Late(signals.Stop):
        looks = 0

        @property
        def signal(self):
            Late.looks += 1
            return signal.SIGTERM if Late.looks > 1 else None

        @signal.setter
        def signal(self, value):
            pass

    @contextlib.contextmanager
    def deferred():
        yield Late()

    monkeypatch.setattr(signals, "deferred", deferred)
    config = small_config(**{"baseline.checkpoint_every": 3, "baseline.epochs": 4})
    with pytest.raises(errors.Interrupted, match="stopped by SIGTERM after epoch 2, which is saved"):
        cvae_jax.train(config, str(tmp_path))
    assert Checkpoints(tmp_path / "checkpoints" / "baseline").steps() == [2 * 40]


@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.default_int_handler])
def test_a_signal_that_is_ignored_stays_ignored(handler):
    before = signal.signal(signal.SIGINT, handler)
    try:
        with signals.deferred() as stop:
            signal.raise_signal(signal.SIGINT)
            assert stop.signal == (None if handler == signal.SIG_IGN else signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) == handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_first_signal_says_what_happens(capfd):
    with signals.deferred():
        signal.raise_signal(signal.SIGTERM)
    assert "stopping at the end of this epoch" in capfd.readouterr().err


def test_a_second_signal_leaves_at_once():
    with pytest.raises(SystemExit) as left, signals.deferred() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signal == signal.SIGINT
        os.kill(os.getpid(), signal.SIGTERM)
        signal.sigtimedwait([], 5)
    assert left.value.code == 143
    with pytest.raises(KeyboardInterrupt), signals.deferred():
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        signal.sigtimedwait([], 5)
