"""What is said of a run while it trains."""

import itertools
import logging
import pathlib
import re

import numpy as np
import pytest
from small_runs import small_config
from specs import task_of

import cvae_jax
from cvae_jax.errors import DivergenceError
from cvae_jax.training import log as metrics
from cvae_jax.training import monitor
from cvae_jax.training.checkpoints import Checkpoints


def test_check_finite_names_the_first_bad_step():
    terms = {"loss": np.array([[1.0, 2.0, np.nan]]), "kl": np.array([[1.0, np.inf, 1.0]])}
    stage, nowhere = task_of(small_config()).stages[0], Checkpoints(pathlib.Path("nowhere"))
    with pytest.raises(DivergenceError, match="baseline: kl not finite at step 11;"):
        monitor.check_finite(stage, 10, terms, np.array([0]), nowhere)
    of_three = {"loss": np.array([[1.0, 2.0], [3.0, np.nan], [1.0, 1.0]])}
    with pytest.raises(DivergenceError, match="loss of seed 6 not finite at step 11;"):
        monitor.check_finite(stage, 10, of_three, np.array([5, 6, 7]), nowhere)


def collapse_warnings(tmp_path, caplog, **changes):
    with caplog.at_level(logging.WARNING, "cvae_jax"):
        cvae_jax.train(
            small_config(
                **{"baseline.epochs": 1, "cvae.epochs": 8, "cvae.patience": 0, "cvae.checkpoint_every": 8, **changes}
            ),
            str(tmp_path),
        )
    rows = [row for row in metrics.read(tmp_path) if row["stage"] == "cvae"]
    return [record for record in caplog.messages if "the posterior has collapsed" in record], rows[-1]["valid/kl"]


@pytest.mark.slow
def test_a_collapsed_posterior_is_warned_of(tmp_path, caplog):
    warnings, kl = collapse_warnings(tmp_path, caplog, **{"cvae.objective.beta": 100.0})
    assert kl < monitor.COLLAPSED_KL
    assert len(warnings) == 2  # once it has lasted, and at the last epoch
    assert warnings[-1].startswith(f"cvae: the posterior has collapsed: KL(q || p) is {kl:.3f} nats")
    assert "cvae.objective.free_bits" in warnings[-1]


def test_what_is_collapsed(caplog):
    def warning(name, kl, before, last=False, seeds=(0,), step=100):
        config = small_config(**{"cvae.objective.name": name, "cvae.objective.alpha": 0.0 if name == "hybrid" else 0.5})
        stage = task_of(config).stages[1]
        caplog.clear()
        with caplog.at_level(logging.WARNING, "cvae_jax"):
            now = monitor.warn_of_collapse(stage, step, {"valid/kl": np.array(kl)}, np.array(seeds), before, last)
        return now, " ".join(caplog.messages)

    assert warning("elbo", [5.0], 4) == (0, "")
    assert warning("elbo", [0.01], 3) == (4, "")  # it may still grow
    assert warning("elbo", [0.01], 2, last=True) == (3, "")
    assert warning("elbo", [0.01], 4)[1]
    count, text = warning("iwae", [3.0, 0.01], 7, last=True, seeds=(4, 5))
    assert count == 8 and "the posterior of seed 5 has collapsed" in text and "free_bits" not in text
    assert warning("hybrid", [0.01], 4) == (0, "")  # with alpha 0 its q is not trained


def lines_of(terms, cuts=(), per_epoch=250, seed=None, **changes):
    """What is said of the steps of `terms` [seeds, steps], in calls that end at `cuts`."""
    config = small_config(**{"cvae.batch_size": 20, "cvae.log_every": 100, **changes})
    stage, bounds = task_of(config).stages[1], [0, *cuts, terms["loss"].shape[1]]
    calls = [(a, {name: value[:, a:b] for name, value in terms.items()}) for a, b in itertools.pairwise(bounds)]
    return [line for first, call in calls for line in monitor.describe_batches(stage, first, per_epoch, call, seed)]


def some_terms(*names, steps=500):
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=(2, steps)).astype(np.float32) for name in names}


def test_lines_of_batches_stand_at_the_same_steps_however_calls_are_cut():
    terms = some_terms("loss", "log_p_y", "kl")
    lines = lines_of(terms)
    heads = [re.match(r"cvae epoch (\d), ([\d,]+) examples, sums of a batch: ", line).groups() for line in lines]
    assert heads == [(epoch, examples) for epoch in "12" for examples in ("0", "2,000", "4,000")]
    for cuts in ((1,), (100, 200, 250), (101, 350, 351), (99, 249, 499)):
        assert lines_of(terms, cuts) == lines
    assert lines_of(terms, **{"cvae.log_every": 0}) == []
    assert len(lines_of(terms, **{"cvae.log_every": 1})) == 500


def test_lines_of_batches_are_sums_of_the_first_seed():
    terms = some_terms("loss", "log_p_y", "kl")
    for line, step in zip(lines_of(terms), (0, 100, 200, 250, 350, 450), strict=True):
        loss, reconstruction = (20 * float(terms[name][0, step]) for name in ("loss", "log_p_y"))
        numbers = re.search(r": loss (\S+) = (\S+) \+ (\S+)$", line).groups()
        # What is not reconstruction is the KL as weighted, whatever its own term says.
        assert [float(number) for number in numbers] == pytest.approx(
            [loss, -reconstruction, loss + reconstruction], abs=1e-3
        )
    terms = some_terms("loss", "log_p_y", "kl", steps=1)
    loss, log_p_y, kl = (20 * float(value[0, 0]) for value in terms.values())
    (line,) = lines_of(terms, seed=7, **{"cvae.objective.name": "iwae"})
    assert line.startswith("cvae epoch 1 of seed 7, 0 examples, ")
    assert line.endswith(f"sums of a batch: loss {loss:.3f}, kl {kl:.3f}, log_p_y {log_p_y:.3f}")


def test_a_term_with_a_unit_of_its_own_is_no_sum_of_a_batch():
    terms = some_terms("loss", "log_p_y", "kl", "beta", steps=1)
    numbers = {name: float(value[0, 0]) for name, value in terms.items()}
    (line,) = lines_of(terms, **{"cvae.objective.name": "iwae"})
    assert f"beta {numbers['beta']:.3f}, kl {20 * numbers['kl']:.3f}, " in line


def test_an_epochs_line_names_what_the_best_epoch_is_chosen_by():
    stage = task_of(small_config()).stages[1]
    values = {"train/loss": [3.0, 4.0], "valid/loss": [2.0, 3.0], "valid/psnr": [20.0, 24.0], "best_psnr": [25.0, 26.0]}
    values = {name: np.array(of_seeds) for name, of_seeds in values.items()}
    assert monitor.describe(stage, 2, values, "best_psnr") == (
        "cvae epoch 2/4: train/loss 3.500, valid/loss 2.500 (best psnr 25.500), valid/psnr 22.000 (means of 2 seeds)"
    )
    values["best_loss"] = values.pop("best_psnr")
    assert "valid/loss 2.500 (best 25.500), valid/psnr 22.000" in monitor.describe(stage, 2, values)
