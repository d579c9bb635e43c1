"""Runs that are trained longer, or from the weights of another."""

import jax
import kill
import numpy as np
import pytest
from small_runs import small_config

import cvae_jax
from cvae_jax.errors import UserError

pytestmark = pytest.mark.slow


def config_of(epochs, **changes):
    constant = {f"{stage}.optimizer.schedule": "constant" for stage in ("baseline", "cvae")}
    return small_config(**{"cvae.epochs": epochs, "baseline.epochs": 1, **constant, **changes})


def test_a_run_that_is_trained_longer_is_the_longer_run(tmp_path, caplog):
    cvae_jax.train(config_of(2), str(tmp_path / "whole"))
    cvae_jax.train(config_of(1), str(tmp_path / "longer"))
    cvae_jax.train(config_of(2), str(tmp_path / "longer"))
    assert kill.fingerprint(tmp_path / "longer") == kill.fingerprint(tmp_path / "whole")
    assert (tmp_path / "longer" / "config.json").read_text() == (tmp_path / "whole" / "config.json").read_text()
    caplog.clear()
    with caplog.at_level("INFO"):
        cvae_jax.train(config_of(2), str(tmp_path / "longer"))
    assert "cvae: already finished, at step 80" in caplog.text and "going on" not in caplog.text


def test_why_a_run_is_not_trained_longer(small_run, tmp_path):
    workdir = str(tmp_path / "run")
    cvae_jax.train(config_of(2), workdir)
    before = kill.fingerprint(tmp_path / "run")
    with pytest.raises(
        UserError, match=r"baseline\.epochs cannot change from 1 to 5 .*: cvae was trained on its weights"
    ):
        cvae_jax.train(config_of(2, **{"baseline.epochs": 5}), workdir)
    with pytest.raises(UserError, match=r"cvae\.epochs cannot change from 2 to 1 .*: 2 are done"):
        cvae_jax.train(config_of(1), workdir)
    with pytest.raises(UserError, match=r"cvae\.start_from cannot change .*: cvae has started already"):
        cvae_jax.train(config_of(2, **{"cvae.start_from": str(small_run)}), workdir)
    with pytest.raises(UserError, match=r"holds a run of another config \(cvae\.latent: 4 there, 5 now\)"):
        cvae_jax.train(config_of(3, **{"cvae.latent": 5}), workdir)
    with pytest.raises(
        UserError, match=r"cvae\.epochs cannot change from 4 to 6 .*: 'cosine' spreads .*cvae\.start_from="
    ):
        cvae_jax.train(small_config(**{"cvae.epochs": 6}), str(small_run))
    assert kill.fingerprint(tmp_path / "run") == before


def test_a_control_is_trained_longer_with_the_stage_whose_settings_it_has(tmp_path, caplog):
    control = {"control": True}
    cvae_jax.train(config_of(1, **control), str(tmp_path / "longer"))
    with caplog.at_level("INFO"):
        cvae_jax.train(config_of(2, **control), str(tmp_path / "longer"))
    assert "control: going on from step" in caplog.text and "cvae: going on from step" in caplog.text
    with pytest.raises(UserError, match=r"^cvae\.epochs=0 must be at least 1"):
        cvae_jax.train(config_of(0, **control), str(tmp_path / "none"))


def test_early_stopping_is_told(tmp_path, caplog):
    config = config_of(5, **{"cvae.patience": 1, "cvae.optimizer.learning_rate": 1e-30})
    with caplog.at_level("INFO"):
        cvae_jax.train(config, str(tmp_path))
    assert "of 5: no better for 1 (patience)" in caplog.text
    caplog.clear()
    with caplog.at_level("INFO"):
        cvae_jax.train(config, str(tmp_path))
    assert "cvae: already finished" in caplog.text and "stopped early, after epoch" in caplog.text


def test_a_stage_starts_from_the_weights_of_another_run(small_run, tmp_path):
    """Steps of learning rate 0 in effect: the weights stay those of the other run."""
    still = {f"{stage}.optimizer.learning_rate": 1e-30 for stage in ("baseline", "cvae")}
    start = {f"{stage}.start_from": str(small_run) for stage in ("baseline", "cvae")}
    cvae_jax.train(config_of(1, **still, **start, **{"baseline.epochs": 1, "num_seeds": 2}), str(tmp_path / "run"))
    other = cvae_jax.load(str(small_run))
    for seed in (0, 1):
        trained = cvae_jax.load(str(tmp_path / "run"), seed)
        for stage in ("baseline", "cvae"):
            jax.tree.map(
                lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-5),
                trained.best[stage],
                other.best[stage],
            )


def test_where_a_stage_cannot_start(small_run, tmp_path):
    for changes, message in (
        ({"cvae.start_from": str(tmp_path / "nowhere")}, "holds no run"),
        ({}, r"cvae\.start_from is of another model: params/.* is \[.*\] there, \[.*\] now"),
    ):
        config = config_of(1, **{"cvae.start_from": str(small_run), "baseline.epochs": 1, "cvae.latent": 5, **changes})
        with pytest.raises(UserError, match=message):
            cvae_jax.train(config, str(tmp_path / "run"))
        assert not (tmp_path / "run").exists()  # before the baseline is trained
