"""The loop: resumed runs, damaged checkpoints, divergence, devices, and what a step does."""

import json
import logging
import math
import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import kill
import numpy as np
import pytest
from command import ROOT
from small_runs import small_config
from specs import load

import cvae_jax
from cvae_jax import parallel, trained
from cvae_jax.data import buckets
from cvae_jax.errors import DivergenceError, UserError
from cvae_jax.evaluation import Request, evaluate
from cvae_jax.training import epochs, loop, step
from cvae_jax.training import log as metrics
from cvae_jax.training.checkpoints import Checkpoints

pytestmark = pytest.mark.usefixtures("optimized")


class Interrupted(BaseException):
    """Stands for whatever ends a process."""


@pytest.mark.slow
def test_an_interrupted_run_becomes_the_run_that_was_never_interrupted(tmp_path, monkeypatch):
    config = small_config(num_seeds=2)
    cvae_jax.train(config, str(tmp_path / "whole"))
    write, rows = metrics.Log.write, 0

    def write_and_fail(self, *arguments):
        nonlocal rows
        write(self, *arguments)
        rows += 1
        if rows in (3, 14):  # before the checkpoint of those rows: between two seeds', and after both; in each stage
            raise Interrupted

    monkeypatch.setattr(metrics.Log, "write", write_and_fail)
    for _ in range(2):
        with pytest.raises(Interrupted):
            cvae_jax.train(config, str(tmp_path / "cut"))
    cvae_jax.train(config, str(tmp_path / "cut"))
    assert rows > 16  # rows were written twice, and cut
    assert kill.fingerprint(tmp_path / "cut") == kill.fingerprint(tmp_path / "whole")


@pytest.mark.slow
def test_sigkill_leaves_the_same_bytes(tmp_path):
    quiet = ["--config.baseline.figure_every=0", "--config.cvae.figure_every=0", "--config.cvae.network=plain"]
    kill.kill_and_compare("configs/digits_quadrants.py:1,smoke", kills=1, seed=5, folder=tmp_path, overrides=quiet)


@pytest.mark.slow
def test_a_damaged_checkpoint_is_noticed_and_the_run_ends_the_same(small_run, tmp_path, caplog):
    shutil.copytree(small_run, tmp_path / "hurt")
    checkpoints = Checkpoints(tmp_path / "hurt" / "checkpoints" / "cvae")
    newest = checkpoints.directory / str(checkpoints.steps()[0])
    victim = max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    with caplog.at_level(logging.WARNING, "cvae_jax"):
        loaded = cvae_jax.load(str(tmp_path / "hurt"))
    assert str(newest) in caplog.text and "damaged" in caplog.text
    assert "has not finished training" in caplog.text and loaded.stages[-1].name == "cvae"
    cvae_jax.train(small_config(), str(tmp_path / "hurt"))
    assert kill.fingerprint(tmp_path / "hurt") == kill.fingerprint(small_run)


@pytest.mark.slow
def test_divergence_names_step_and_term_and_keeps_the_last_checkpoint(tmp_path):
    config = small_config(**{"cvae.optimizer.learning_rate": 100.0, "cvae.optimizer.name": "sgd"})
    with pytest.raises(
        DivergenceError, match=r"cvae: .*loss.* not finite at step \d+; there is no checkpoint"
    ) as error:
        cvae_jax.train(config, str(tmp_path))
    assert "\n" not in str(error.value)
    assert [row["stage"] for row in metrics.read(tmp_path)] == ["baseline"] * 4
    assert not Checkpoints(tmp_path / "checkpoints" / "cvae").steps()
    assert Checkpoints(tmp_path / "checkpoints" / "baseline").steps()


@pytest.mark.slow
def test_early_stopping_hands_on_the_best_weights(tmp_path):
    config = small_config(**{"baseline.epochs": 60, "baseline.patience": 2, "baseline.optimizer.learning_rate": 0.03})
    config.baseline.optimizer.schedule = "constant"
    config.baseline.checkpoint_every = 100
    config.cvae.epochs = 1
    cvae_jax.train(config, str(tmp_path))
    rows = [row for row in metrics.read(tmp_path) if row["stage"] == "baseline"]
    losses = [row["valid/loss"] for row in rows]
    best = int(np.argmin(losses))
    assert len(rows) == best + 1 + 2 < 60
    loaded = cvae_jax.load(str(tmp_path))
    fitted = loaded.fitted("baseline")
    _, splits = load(config)
    ids = jnp.arange(200)
    unused = jax.vmap(jax.random.key)(ids)
    batch = loaded.task.batch({"image": jnp.asarray(splits["valid"]["image"])}, ids, jnp.ones(200), unused, None)
    loss = -fitted.draw(fitted.encode(batch), unused, "prior").log_p_y.mean()
    np.testing.assert_allclose(loss, losses[best], rtol=1e-5)


def test_averaged_weights_and_adam_against_numpy():
    """Two steps of the loop on a stage with one parameter, worked out by hand in float64."""
    config = small_config(**{"baseline.averaging": 0.5, "baseline.optimizer.weight_decay": 0.1})
    config.baseline.optimizer.schedule = "constant"
    task, splits = load(config)
    stage, arrays = task.stages[0], splits["train"]
    mesh = parallel.make_mesh()
    place = parallel.replicated(mesh)
    functions = step.compiled(step.Run(stage, task, step.make_optimizer(stage, [1297]), mesh, "map"))
    start = functions.init(jnp.zeros(1, jnp.int32), {})
    params = jax.tree.map(lambda leaf: np.asarray(leaf[0], np.float64), start.variables["params"])
    order = epochs.order(0, 0, 1297)[:64].reshape(2, 32)
    bucket = jax.device_put(buckets.of_split(task, arrays)[0], place)
    state, _ = functions.train_steps(start, {}, jax.device_put(order[None], place), bucket)

    def gradient(params, rows):
        image = arrays["image"][rows].astype(np.float64) / 255
        mask = np.zeros((8, 8))
        mask[4:, :4] = 1
        x, target, hidden = (image * mask).reshape(len(rows), -1), image.reshape(len(rows), -1), 1 - mask.reshape(-1)
        first, second = params["Dense_0"], params["Dense_1"]
        pre = x @ first["kernel"] + first["bias"]
        logits = np.maximum(pre, 0) @ second["kernel"] + second["bias"]
        d_logits = hidden * (1 / (1 + np.exp(-logits)) - target) / len(rows)
        d_pre = (d_logits @ second["kernel"].T) * (pre > 0)
        return {
            "Dense_0": {"kernel": x.T @ d_pre, "bias": d_pre.sum(0)},
            "Dense_1": {"kernel": np.maximum(pre, 0).T @ d_logits, "bias": d_logits.sum(0)},
        }

    average, first, second = params, jax.tree.map(np.zeros_like, params), jax.tree.map(np.zeros_like, params)
    for taken, rows in enumerate(order):
        grads = gradient(params, rows)
        first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, grads)
        second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g**2, second, grads)
        scale, root = 1 - 0.9 ** (taken + 1), 1 - 0.999 ** (taken + 1)
        params = jax.tree.map(
            lambda p, m, v, a=scale, b=root: p - 1e-3 * (m / a / (np.sqrt(v / b) + 1e-8) + 0.1 * p * (p.ndim > 1)),
            params,
            first,
            second,
        )
        decay = min(0.5, (1 + taken) / (10 + taken))
        average = jax.tree.map(lambda a, p, d=decay: d * a + (1 - d) * p, average, params)
    for variables, wanted in ((state.variables, params), (state.averaged, average)):
        jax.tree.map(lambda leaf, w: np.testing.assert_allclose(leaf[0], w, atol=2e-6), variables["params"], wanted)


def test_epoch_order_is_a_permutation_of_seed_and_epoch():
    order = epochs.order(3, 5, 1000)
    assert sorted(order) == list(range(1000))
    np.testing.assert_array_equal(order, epochs.order(3, 5, 1000))
    assert (order != epochs.order(3, 6, 1000)).mean() > 0.9
    assert (order != epochs.order(4, 5, 1000)).mean() > 0.9


# Seeds: independent models in one program.

EARLY = {
    "baseline.epochs": 1,
    "cvae.epochs": 10,
    "cvae.patience": 1,
    "cvae.averaging": 0.0,
    "cvae.optimizer.learning_rate": 0.05,
    "cvae.optimizer.schedule": "constant",
}  # so that the seeds stop at different epochs


@pytest.mark.slow
def test_mapped_seeds_are_the_single_runs_bit_for_bit(tmp_path):
    cvae_jax.train(small_config(seed=3, num_seeds=2, **EARLY), str(tmp_path / "all"))
    rows = metrics.read(tmp_path / "all")
    lengths = set()
    for seed in (3, 4):
        cvae_jax.train(small_config(seed=seed, **EARLY), str(tmp_path / str(seed)))
        own = [row for row in rows if row["seed"] == seed]
        assert own == metrics.read(tmp_path / str(seed))
        lengths.add(len(own))
        together, alone = cvae_jax.load(str(tmp_path / "all"), seed).best, cvae_jax.load(str(tmp_path / str(seed))).best
        assert set(together) == {"baseline", "cvae"}
        jax.tree.map(np.testing.assert_array_equal, together, alone)
    assert len(lengths) > 1, "all stopped at the same epoch"


@pytest.mark.slow
def test_vmapped_seeds_follow_the_mapped_ones(tmp_path):
    for how in ("map", "vmap"):
        short = {"baseline.epochs": 2, "cvae.epochs": 2}
        config = small_config(num_seeds=2, seeds_by=how, **short, **{"baseline.patience": 0, "cvae.patience": 0})
        cvae_jax.train(config, str(tmp_path / how))
    for mapped, vmapped in zip(metrics.read(tmp_path / "map"), metrics.read(tmp_path / "vmap"), strict=True):
        for name, value in mapped.items():
            where = mapped["stage"], mapped["epoch"], name
            if name != "stage":
                assert math.isclose(value, vmapped[name], rel_tol=2e-5, abs_tol=1e-5), where


@pytest.mark.slow
def test_seeds_are_independent_and_found_by_their_number(tmp_path):
    cvae_jax.train(small_config(seed=7, num_seeds=2, **{"baseline.epochs": 1, "cvae.epochs": 1}), str(tmp_path))
    first, second = trained.load_seeds(str(tmp_path))
    assert (first.seed, second.seed) == (7, 8)

    def kernel(model):
        return np.asarray(model.params["generation_net"]["Dense_0"]["kernel"])

    assert np.corrcoef(kernel(first).ravel(), kernel(second).ravel())[0, 1] < 0.5
    boards = [path.read_bytes() for path in (tmp_path / "tensorboard" / "cvae").glob("events*")]
    assert any(b"valid/loss/seed_8" in board for board in boards)
    np.testing.assert_array_equal(kernel(cvae_jax.load(str(tmp_path))), kernel(first))
    with pytest.raises(UserError, match=r"seed=0 is not trained in .*; choose from 7, 8"):
        cvae_jax.load(str(tmp_path), seed=0)


@pytest.mark.slow
def test_beta_grows_and_neither_validation_nor_patience_knows_of_it(tmp_path):
    config = small_config(**{"baseline.epochs": 1, "cvae.epochs": 9, "cvae.patience": 1, "cvae.averaging": 0.0})
    config.cvae.objective.update(beta_schedule="linear", beta_steps=240, beta=0.5)
    config.cvae.optimizer.update(learning_rate=0.05, schedule="constant")
    cvae_jax.train(config, str(tmp_path))
    rows = [row for row in metrics.read(tmp_path) if row["stage"] == "cvae"]
    for row in rows:
        steps = np.arange(row["step"] - 1297 // 32, row["step"])
        assert math.isclose(row["train/beta"], 0.5 * np.minimum(steps / 240, 1).mean(), rel_tol=1e-5)
        assert math.isclose(row["valid/loss"], -row["valid/log_p_y"] + 0.5 * row["valid/kl"], rel_tol=1e-5)
        assert "valid/beta" not in row
    losses = [row["valid/loss"] for row in rows]
    assert (np.diff(losses[:5]) > 0).any(), "validation never got worse before the end of the schedule"
    assert len(losses) >= 6


def test_a_schedule_of_beta_longer_than_the_run_is_refused(tmp_path):
    changes = {"cvae.objective.beta_schedule": "linear", "cvae.objective.beta_steps": 161}
    with pytest.raises(UserError, match=r"cvae.objective.beta_steps=161 is longer than the run of 160 steps"):
        cvae_jax.train(small_config(**changes), str(tmp_path / "workdir"))


def run_on(devices, statements):
    """Runs Python statements in a process with so many CPU devices."""
    script = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests' / 'support')!r}]\n{statements}"
    flags = f"--xla_force_host_platform_device_count={devices}"
    result = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "XLA_FLAGS": flags}, cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_one_and_eight_devices_follow_the_same_path(tmp_path):
    for devices in (1, 8):
        run_on(
            devices,
            "import cvae_jax, jax, small_runs\n"
            f"assert jax.device_count() == {devices}\n"
            "config = small_runs.small_config(**{'cvae.patience': 0, 'baseline.patience': 0})\n"
            f"cvae_jax.train(config, {str(tmp_path / str(devices))!r})",
        )
    ones, eights = metrics.read(tmp_path / "1"), metrics.read(tmp_path / "8")
    assert len(ones) == len(eights) == 8
    for of_one, of_eight in zip(ones, eights, strict=True):
        for name, value in of_one.items():
            where = of_one["stage"], of_one["epoch"], name
            if name not in ("stage", "epoch", "step"):
                assert math.isclose(value, of_eight[name], rel_tol=2e-5, abs_tol=1e-5), where


@pytest.mark.slow
def test_one_and_eight_devices_measure_the_same(small_run, tmp_path):
    values = []
    for devices in (1, 8):
        run_on(
            devices,
            "import cvae_jax, numpy as np, specs; from cvae_jax.evaluation.measure import Plan, measure\n"
            f"trained = cvae_jax.load({str(small_run)!r})\n"
            "_, splits = specs.load(trained.config)\n"
            "arrays = {name: array[:50] for name, array in splits['test'].items()}\n"
            "measured = measure(trained, 'cvae', arrays, Plan([('is', 40)], seed=0))\n"
            f"np.save({str(tmp_path / f'{devices}.npy')!r}, measured.cells['is', 40].value)",
        )
        values.append(np.load(tmp_path / f"{devices}.npy"))
    np.testing.assert_allclose(values[1], values[0], atol=1e-5)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("baseline.batch_size", 0),
        ("baseline.batch_size", 33),
        ("cvae.epochs", 0),
        ("cvae.steps_per_call", 0),
        ("cvae.checkpoint_every", 0),
        ("cvae.averaging", 1.5),
        ("cvae.optimizer.learning_rate", math.nan),
        ("cvae.optimizer.clip_norm", -1.0),
        ("cvae.optimizer.warmup_steps", 10_000),
        ("cvae.objective.beta", -1.0),
        ("cvae.objective.beta_cycles", 0),
        ("seed", 2**31),
        ("num_seeds", 0),
        ("cvae.objective.alpha", 0.3),
        ("cvae.objective.name", "elbow"),
        ("cvae.optimizer.schedule", "x"),
        ("targets", "gray"),
        ("task", "quadrant"),
    ],
)
def test_values_that_cannot_be_are_refused_before_anything_is_written(key, value, tmp_path):
    with pytest.raises(UserError, match=f"{key.removeprefix('cvae.')}={value!r}"):
        cvae_jax.train(small_config(**{key: value}), str(tmp_path / "workdir"))
    assert not (tmp_path / "workdir").exists()


@pytest.mark.parametrize(("num_train", "size"), [(2000, 2000), (1999, 1998), (3, 2), (1, 2000)])
def test_a_batch_holds_no_more_than_there_are(num_train, size, caplog):
    """On two devices; a batch that cannot be divided between them is left for the settings' check to refuse."""
    stage = load(small_config(**{"cvae.batch_size": 2000}))[0].stages[1]
    loop.fit_batch_size(stage, num_train)
    assert stage.settings.batch_size == size
    line = f"cvae.batch_size=2000 is more than the {num_train} training examples: it is lowered to {size}"
    assert caplog.messages == ([line] if size < 2000 else [])


@pytest.mark.slow
def test_own_images_of_any_kind_without_other_splits(tmp_path, caplog):
    """Floats in train.npz are all that there is: a batch is what there is, and the validation split is measured."""
    images = load(small_config())[1]["train"]["image"][:40] / 255
    (tmp_path / "data").mkdir()
    np.savez(tmp_path / "data" / "train.npz", image=images)
    config = small_config(**{"data.source": "npz", "data.dir": str(tmp_path / "data"), "cvae.batch_size": 64})
    config.baseline.epochs = config.cvae.epochs = 1
    cvae_jax.train(config, str(tmp_path / "run"))
    assert config.cvae.batch_size == 64 and "cvae.batch_size=64 is more than the 36 training examples" in caplog.text
    assert cvae_jax.load(str(tmp_path / "run")).config.cvae.batch_size == 36
    with pytest.raises(UserError, match=r"no split 'test', only train, valid; add it, or measure another with --split"):
        evaluate([str(tmp_path / "run")])
    assert "digits" in evaluate([str(tmp_path / "run")], Request(["elbo"], [5], split="valid"))


@pytest.mark.slow
def test_a_figure_that_cannot_be_written_is_no_reason_to_stop(tmp_path, caplog):
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "training.png").symlink_to("/dev/full")
    cvae_jax.train(small_config(**{"baseline.epochs": 1, "cvae.epochs": 1}), str(tmp_path))
    assert "a figure cannot be written" in caplog.text and "No space left" in caplog.text
    assert cvae_jax.load(str(tmp_path)).stages[-1].name == "cvae"


@pytest.mark.slow
def test_metrics_hold_every_term_and_no_clock(small_run):
    row = json.loads((small_run / metrics.FILE).read_text().splitlines()[-1])
    terms = {"loss", "log_p_y", "kl"}
    assert {name for name in row if name.startswith("valid/")} == {f"valid/{term}" for term in terms}
    assert {name for name in row if name.startswith("train/")} == {f"train/{term}" for term in terms}
    assert set(row) - {name for name in row if "/" in name} == {"stage", "step", "seed", "epoch", "best_loss"}
