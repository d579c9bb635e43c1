"""Steps and epochs whose every number is known: auxiliary losses, the choice of the best epoch, earlier weights."""

import logging
from types import MappingProxyType

import jax
import jax.numpy as jnp
import linear_gaussian as lg
import numpy as np
import pytest
from small_runs import small_config

import cvae_jax
from cvae_jax import Batch, Draw, Model, Normal, Task, config, objectives, tasks
from cvae_jax.errors import UserError
from cvae_jax.task import Stage
from cvae_jax.training import log, step

SCORES = (1.0, 5.0, 2.0, 7.0, 3.0, 0.5)  # of the validation metric after each epoch


def load(settings):
    """Four examples for training: an epoch is one step. Five for validation: their last batch is padded."""
    return {split: {"x": np.arange(count, dtype=np.float32)} for split, count in (("train", 4), ("valid", 5))}


def counter(start):
    """A model of one parameter, log p(y|x) itself: its gradient is 1, so that gradient descent counts the steps."""

    def init(key, batch, earlier):
        return {"params": {"count": start(key, earlier)}}

    def encode(variables, batch, train=None):
        return variables["params"]["count"]

    def draw(variables, encoding, keys, proposal, z=None, train=None):
        count, nothing = jnp.broadcast_to(encoding, keys.shape), jnp.zeros(keys.shape)
        return Draw((), count, nothing, nothing, (), Normal(count, jnp.ones(keys.shape)))

    return Model(init, encode, draw)


class Counter(Task):
    title, protocol = "count", "nothing"
    sources = MappingProxyType({"counts": load})

    def __init__(self, config, spec):
        self.raw = spec.raw
        first = objectives.stage("first", counter(lambda key, earlier: jnp.zeros(())), config.first)
        self.stages = (first._replace(auxiliary=self.auxiliary if config.pull else None),)
        self.pull = config.pull

    def auxiliary(self, encoding, batch):
        return {"pull": jnp.broadcast_to(self.pull * encoding, batch.ids.shape), "step": batch.y}

    def batch(self, raw, ids, num_targets, keys, step):
        steps = -jnp.ones(ids.shape) if step is None else jnp.broadcast_to(step.astype(jnp.float32), ids.shape)
        return Batch(raw["x"], steps, None, ids, num_targets)

    def validation_metrics(self, fitted, batch, keys):
        epoch = jnp.floor(fitted.variables["params"]["count"]).astype(jnp.int32)
        score = jnp.broadcast_to(jnp.asarray(SCORES)[epoch - 1], batch.ids.shape)
        of_some = jnp.where(batch.ids > 1, batch.x[:, 0] + score, jnp.nan)
        return {"score": score, "of_some": of_some}


class OnAndOn(Counter):
    """Its second stage begins with the weights of the first, which begins at random."""

    def __init__(self, config, spec):
        super().__init__(config, spec)
        first = counter(lambda key, earlier: jax.random.uniform(key))
        second = counter(lambda key, earlier: earlier["first"]["params"]["count"])
        self.stages = tuple(
            objectives.stage(name, model, config[name]) for name, model in (("first", first), ("second", second))
        )


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(tasks._REGISTERED, "counter", Counter)
    monkeypatch.setitem(tasks._REGISTERED, "on_and_on", OnAndOn)


def config_of(task="counter", pull=0.0, **settings):
    run = config.experiment("counts", task)
    run.pull, run.data = pull, {"source": "counts", "dir": ""}
    optimizer = {"name": "sgd", "learning_rate": 1.0, "momentum": 0.0}
    for name in ("first", "second"):
        run[name] = config.stage(batch_size=4, epochs=len(SCORES), checkpoint_every=10, optimizer=optimizer)
    run.update_from_flattened_dict(settings)
    return run


def train(folder, **changes):
    """The rows of metrics.jsonl, and the trained model."""
    cvae_jax.train(config_of(**changes), str(folder))
    return log.read(folder), cvae_jax.load(str(folder))


# The best epoch.


@pytest.mark.parametrize(
    ("select", "name", "best_of_epochs", "best_epoch"),
    [
        ("loss", "best_loss", [-1, -2, -3, -4, -5, -6], 6),
        ("+score", "best_score", [1, 5, 5, 7, 7, 7], 4),
        ("-score", "best_score", [1, 1, 1, 1, 1, 0.5], 6),
        ("-of_some", "best_of_some", [4, 4, 4, 4, 4, 3.5], 6),  # 3 more: the mean of 2, 3 and 4
    ],
)
def test_the_best_epoch_is_chosen_by_a_metric_and_its_sign(tmp_path, caplog, select, name, best_of_epochs, best_epoch):
    with caplog.at_level(logging.INFO, "cvae_jax"):
        rows, trained = train(tmp_path, **{"first.select": select})
    assert [row[name] for row in rows] == pytest.approx(best_of_epochs)
    assert [key for key in rows[0] if key.startswith("best")] == [name]
    assert float(trained.params["count"]) == best_epoch
    # Whatever was chosen, all is logged; the first two of the five examples have no such value.
    assert [row["valid/score"] for row in rows] == pytest.approx(SCORES)
    assert [row["valid/of_some"] for row in rows] == pytest.approx(np.array(SCORES) + 3)
    assert [row["valid/loss"] for row in rows] == [-1, -2, -3, -4, -5, -6]
    assert f"first: best validation {name.removeprefix('best_')} {best_of_epochs[-1]:.3f}" in caplog.messages


def test_patience_counts_epochs_without_a_better_metric(tmp_path):
    rows, trained = train(tmp_path, **{"first.select": "+score", "first.patience": 1})
    assert len(rows) == 3 and rows[-1]["best_score"] == 5  # the 7 of the next epoch is never seen
    assert float(trained.params["count"]) == 2
    assert cvae_jax.load(str(tmp_path)).params == trained.params


@pytest.mark.parametrize("select", ["score", "*score", "+psnr", "-loss", "+", ""])
def test_what_cannot_be_selected_is_one_line_that_names_the_choices(tmp_path, select):
    with pytest.raises(UserError) as error:
        cvae_jax.train(config_of(**{"first.select": select}), str(tmp_path / "run"))
    choices = "loss, +of_some, -of_some, +score, -score"
    assert str(error.value) == f"first.select={select!r} is not known; choose from {choices}"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["loss", "pull"])
def test_a_validation_metric_has_a_name_of_its_own(tmp_path, monkeypatch, name):
    monkeypatch.setattr(Counter, "validation_metrics", lambda self, fitted, batch, keys: {name: batch.x[:, 0]})
    with pytest.raises(ValueError, match=f"validation metrics need names of their own, not {name}"):
        cvae_jax.train(config_of(pull=0.25), str(tmp_path))


# Auxiliary losses.


def test_auxiliary_losses_move_the_weights_and_leave_the_loss_what_it_is(tmp_path):
    rows, trained = train(tmp_path, pull=0.25)  # its gradient is 0.25, against the 1 of log p(y|x)
    counts = 0.75 * np.arange(1, 7)
    assert [row["valid/loss"] for row in rows] == pytest.approx(-counts)
    assert [row["train/loss"] for row in rows] == pytest.approx(-(counts - 0.75))  # before the step
    assert [row["valid/pull"] for row in rows] == pytest.approx(0.25 * counts)
    assert [row["train/pull"] for row in rows] == pytest.approx(0.25 * (counts - 0.75))
    assert float(trained.params["count"]) == pytest.approx(4.5)
    # Batches know how many steps were taken, and when it is not training that asks for them.
    assert [row["train/step"] for row in rows] == [0, 1, 2, 3, 4, 5]
    assert [row["valid/step"] for row in rows] == [-1] * 6


def stage_of(auxiliary, **settings):
    settings = config.stage(**settings)
    return objectives.stage("lg", lg.MODEL, settings)._replace(auxiliary=auxiliary)


def size(encoding, batch):
    """The squared length of C x, the likelihood's part in x."""
    return {"size": (encoding["offset"] ** 2).sum(-1)}


def gradient(stage, batch, train=None):
    """The gradient by the parameters, and the terms."""
    keys = jax.vmap(jax.random.key)(batch.ids)

    def loss(params):
        return step.loss_fn(stage, {"params": params}, batch, keys, train)

    grads, (terms, _) = jax.jit(jax.grad(loss, has_aux=True))(lg.variables(1.2, 0.5)["params"])
    return grads, terms


@pytest.mark.parametrize("num_targets", [(1, 1, 1, 1), (1, 2, 1, 0)])
def test_the_gradient_is_that_of_the_sum(num_targets):
    x, y = lg.data(4)
    batch = lg.batch_of(x, y)._replace(num_targets=jnp.asarray(num_targets, jnp.float32))
    plain, terms = gradient(stage_of(None), batch)
    moved, more = gradient(stage_of(size), batch)
    assert set(terms) == {"loss", "log_p_y", "kl"} and set(more) == {*terms, "size"}
    for name, value in terms.items():
        assert value == more[name]
    # By hand: padding rows are no part of it, and it is divided by the number of y.
    holds, number = np.sign(num_targets), sum(num_targets)
    c = np.asarray(lg.variables()["params"]["C"], np.float64)
    assert more["size"] == pytest.approx((holds * ((x @ c.T) ** 2).sum(1)).sum() / number, rel=1e-5)
    by_hand = 2 * (x @ c.T).T @ (holds[:, None] * x) / number
    for name, value in plain.items():
        added = by_hand if name == "C" else 0
        np.testing.assert_allclose(moved[name] - value, np.broadcast_to(added, value.shape), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["loss", "kl", "log_p_y"])
def test_an_auxiliary_loss_has_a_name_of_its_own(name):
    stage = stage_of(lambda encoding, batch: {name: encoding["offset"].sum(-1)})
    with pytest.raises(ValueError, match=f"auxiliary losses need names of their own, not {name}"):
        gradient(stage, lg.batch_of(*lg.data(4)))


# Earlier stages.


@pytest.mark.slow
def test_a_stage_may_go_on_from_the_best_weights_of_the_one_before(tmp_path):
    changes = {"first.select": "+score", "second.epochs": 2, "num_seeds": 2}
    rows, first = train(tmp_path, task="on_and_on", **changes)
    starts = set()
    for seed in (0, 1):
        trained = cvae_jax.load(str(tmp_path), seed)
        best = float(trained.best["first"]["params"]["count"])
        starts.add(best - 4)  # the fourth epoch is the best
        assert 0 < best - 4 < 1
        own = [row["valid/loss"] for row in rows if (row["stage"], row["seed"]) == ("second", seed)]
        assert own == pytest.approx([-best - 1, -best - 2])
        assert float(trained.params["count"]) == pytest.approx(best + 2)
    assert len(starts) == 2 and first.seed == 0


# Optimisers.


def test_gradient_descent_with_momentum(tmp_path):
    rows, _ = train(tmp_path, **{"first.optimizer.momentum": 0.5, "first.epochs": 4})
    velocity = np.array([1, 1.5, 1.75, 1.875])
    assert [row["valid/loss"] for row in rows] == pytest.approx(-velocity.cumsum())


@pytest.mark.slow
def test_networks_are_trained_by_gradient_descent(tmp_path):
    settings = {"name": "sgd", "learning_rate": 0.05, "schedule": "constant", "clip_norm": 5.0}
    changes = {f"{stage}.optimizer.{key}": value for stage in ("baseline", "cvae") for key, value in settings.items()}
    cvae_jax.train(small_config(**changes), str(tmp_path))
    for stage in ("baseline", "cvae"):
        losses = [row["train/loss"] for row in log.read(tmp_path) if row["stage"] == stage]
        assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0] - 2


def test_a_stage_is_what_a_config_makes_of_a_model():
    stage = stage_of(size, epochs=3)
    assert isinstance(stage, Stage) and stage.settings.epochs == 3
    assert stage.units == {"beta": "weight of the KL"}
