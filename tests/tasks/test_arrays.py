"""Any x and y: what follows from their dtypes, the units of log p, and a density that is known."""

import contract
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats
from specs import load

import cvae_jax
from configs import arrays as config_file
from cvae_jax import UserError, inference, tasks
from cvae_jax.distributions import Normal
from cvae_jax.tasks.arrays import Standardised


def write(folder, **arrays):
    """The same arrays as train.npz, valid.npz and test.npz."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "valid", "test"):
        np.savez(folder / f"{split}.npz", **arrays)
    return folder


def config_of(folder, likelihood="auto", **changes):
    config = config_file.get_config()
    config.data.dir, config.likelihood = str(folder), likelihood
    config.cvae.update(hidden=(16,), latent=3, **changes)
    return config


def moved(task, batch):
    """The task's model, with variables away from where networks start."""
    (stage,) = task.stages
    return cvae_jax.Fitted(stage.model, contract.moved(jax.jit(stage.model.init)(jax.random.key(0), batch, {})))


def test_standardised_density_is_that_of_u():
    rng = np.random.default_rng(0)
    mean, scale = rng.normal(size=(5, 3)), np.exp(rng.normal(size=(5, 3)))
    shift, stretch, y = rng.normal(size=(1, 3)), np.exp(rng.normal(size=(1, 3))), rng.normal(size=(5, 3))
    scaled = Standardised(Normal(*map(jnp.asarray, (mean, scale))), jnp.asarray(shift), jnp.asarray(stretch))
    density_of_y = stats.norm.logpdf(y, shift + stretch * mean, stretch * scale)
    np.testing.assert_allclose(scaled.log_prob(jnp.asarray(y)) - np.log(stretch), density_of_y, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(scaled.mean, shift + stretch * mean, rtol=1e-6)
    keys = jax.random.split(jax.random.key(0), 5)
    drawn = np.stack([scaled.sample(jax.vmap(jax.random.fold_in, (0, None))(keys, i)) for i in range(300)])
    np.testing.assert_allclose(drawn.std(0), stretch * scale, rtol=0.2)


NUMBERS = np.random.default_rng(0).normal([3, -2], [0.1, 40], size=(50, 2))
CLASSES = np.arange(50) % 3


@pytest.mark.parametrize(
    ("y", "likelihood", "kind"),
    [
        (NUMBERS, "auto", "gaussian"),
        (NUMBERS[:, 0], "auto", "gaussian"),
        (NUMBERS[:, 0] > 3, "auto", "bernoulli"),
        (CLASSES, "auto", "categorical"),
        (CLASSES % 2, "bernoulli", "bernoulli"),
        (CLASSES, "gaussian", "gaussian"),
    ],
)
def test_likelihood_follows_from_the_dtype_or_the_key(tmp_path, y, likelihood, kind):
    task, _ = load(config_of(write(tmp_path, x=NUMBERS, y=y), likelihood))
    assert task.kind == kind and task.protocol == f"{kind} y"


@pytest.mark.parametrize("x", [NUMBERS, CLASSES], ids=["numbers", "classes"])
@pytest.mark.parametrize("y", [NUMBERS, NUMBERS > 3, CLASSES], ids=["gaussian", "bernoulli", "categorical"])
@pytest.mark.slow
def test_every_kind_keeps_the_contract(tmp_path, x, y):
    task, _ = load(config_of(write(tmp_path, x=x, y=y)))
    batch = task.from_user(x[:4], y[:4])
    contract.check_model(moved(task, batch), batch)


def test_features_are_standardised_by_the_training_split(tmp_path):
    task, arrays = load(config_of(write(tmp_path, x=NUMBERS, y=CLASSES)))
    features = np.asarray(task.x(jnp.asarray(arrays["train"]["x"])))
    np.testing.assert_allclose(features.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(features.std(0), 1, rtol=1e-5)
    np.testing.assert_array_equal(task.y(jnp.asarray(CLASSES)), np.eye(3)[CLASSES])


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64])
def test_vectors_of_whole_numbers_are_standardised_too(tmp_path, dtype):
    whole = np.random.default_rng(0).integers(0, 100, size=(50, 3)).astype(dtype)
    task, _ = load(config_of(write(tmp_path, x=whole, y=whole), "gaussian"))
    features = np.asarray(task.x(jnp.asarray(whole.astype(np.int32))))
    np.testing.assert_allclose(features, (whole - whole.mean(0)) / whole.std(0), atol=1e-5)
    np.testing.assert_allclose(task._log_units(task.from_user(whole)), -np.log(whole.std(0)).sum(), rtol=1e-6)


def test_units_of_y_move_log_p_by_the_log_of_their_ratio(tmp_path):
    """A power of two: standardised values, and so all that is drawn, keep their bits."""
    values = []
    for factor in (1.0, 1024.0):
        task, _ = load(config_of(write(tmp_path / str(factor), x=NUMBERS, y=NUMBERS * factor)))
        batch = task.from_user(NUMBERS, NUMBERS * factor)
        values.append(inference.log_prob(moved(task, batch), batch, "is", 50, jax.random.key(0)).value)
    np.testing.assert_allclose(values[1] - values[0], -2 * np.log(1024), atol=1e-5)


@pytest.mark.slow
def test_a_run_in_other_units_is_the_same_run(tmp_path):
    """Trained, not only measured: the constant of the units enters no sum before the logs are taken."""
    estimates = []
    for factor in (1.0, 1024.0):
        folder = tmp_path / str(factor)
        config = config_of(write(folder / "data", x=NUMBERS, y=NUMBERS * factor), epochs=5, batch_size=10)
        config.cvae.optimizer.warmup_steps = 0
        with jax.numpy_dtype_promotion("standard"):
            cvae_jax.train(config, str(folder / "run"))
        trained = cvae_jax.load(str(folder / "run"))
        estimates.append(trained.log_prob(NUMBERS, NUMBERS * factor, 50, jax.random.key(0)).value)
    np.testing.assert_allclose(estimates[1] - estimates[0], -2 * np.log(1024), atol=1e-5)


def test_log_p_of_classes_is_the_mixture_over_z(tmp_path):
    task, _ = load(config_of(write(tmp_path, x=NUMBERS, y=CLASSES)))
    batch = task.from_user(NUMBERS[:4], CLASSES[:4])
    fitted = moved(task, batch)
    logits = inference.scores(fitted, batch, "prior", logits_of, 400, jax.random.key(3))
    log_p = np.log(special.softmax(np.asarray(logits, np.float64), -1)[:, np.arange(4), CLASSES[:4]].mean(0))
    estimate = inference.log_prob(fitted, batch, "mc", 400, jax.random.key(3))
    np.testing.assert_allclose(estimate.value, log_p, atol=1e-5)


def logits_of(draw):
    return draw.p_y.logits


@pytest.mark.parametrize(
    ("x", "y", "changes", "message"),
    [
        (NUMBERS, np.tile(CLASSES[:, None], 2), {}, r"y is int32\[2\] per example; classes are whole numbers"),
        (NUMBERS, CLASSES - 1, {}, "y is int32"),
        (NUMBERS, CLASSES, {"likelihood": "bernoulli"}, "y has values beside 0 and 1"),
        (NUMBERS, CLASSES, {"likelihood": "poisson"}, "likelihood='poisson' is not known; choose from auto, gaussian"),
        (np.where(NUMBERS > 3, np.nan, NUMBERS), CLASSES, {}, "x has values that are NaN or infinite"),
    ],
)
def test_what_cannot_be_is_one_line(tmp_path, x, y, changes, message):
    with pytest.raises(UserError, match=message) as caught:
        load(config_of(write(tmp_path, x=x, y=y), **changes))
    assert "\n" not in str(caught.value)


def test_names_of_arrays_are_keys(tmp_path):
    config = config_of(write(tmp_path, age=NUMBERS, disease=CLASSES))
    with pytest.raises(UserError, match="no array of numbers 'x' among age, disease"):
        load(config)
    config.x, config.y = "age", "disease"
    assert load(config)[0].title == "disease given age"


def test_a_class_that_training_lacks_is_named(tmp_path):
    folder = write(tmp_path, x=NUMBERS, y=CLASSES)
    np.savez(folder / "valid.npz", x=NUMBERS, y=CLASSES + 1)
    with pytest.raises(UserError, match="split valid: y has values from 1 to 3, expected 0 to 2; put an example"):
        load(config_of(folder))


@pytest.mark.slow
def test_a_linear_gaussian_density_is_learned(tmp_path):
    """y = x a + 2 e: no model beats -log p(y|x) of the truth on many examples, and this one comes close."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "data"
    folder.mkdir()
    for split, count in (("train", 4000), ("valid", 500), ("test", 500)):
        x = rng.normal(5, 3, size=(count, 2))
        np.savez(folder / f"{split}.npz", x=x, y=x @ [1.0, -2.0] + 2 * rng.normal(size=count))
    config = config_of(folder, epochs=12)
    with jax.numpy_dtype_promotion("standard"):
        cvae_jax.train(config, str(tmp_path / "run"))
    test = np.load(folder / "test.npz")
    truth = stats.norm.logpdf(test["y"], test["x"] @ [1.0, -2.0], 2).mean()
    estimate = cvae_jax.load(str(tmp_path / "run")).log_prob(test["x"], test["y"], 200, jax.random.key(0))
    assert truth - 0.1 < estimate.value.mean() < truth + 0.03


def test_smoke_is_made_of_digits():
    task, _ = load(config_file.get_config("smoke"))
    assert (task.title, task.kind, task.x.size) == ("label given image", "categorical", 64)
    assert isinstance(task, tasks.find("arrays"))


def test_users_arrays_have_the_names_of_the_config(tmp_path):
    config = config_of(write(tmp_path, dose=NUMBERS, response=CLASSES.astype(np.uint8)))
    config.x, config.y = "dose", "response"
    task, _ = load(config)
    assert task.from_user(NUMBERS, CLASSES).y.shape == (50,)
    for wrong in (257, -255):  # 1, if they wrapped
        with pytest.raises(UserError, match="y has values that uint8, as in the training data, does not hold"):
            task.from_user(NUMBERS[:1], [wrong])
    with pytest.raises(UserError, match="x has values beyond float32"):
        task.from_user(NUMBERS * 1e300)


def test_identifiers_are_no_classes(tmp_path):
    with pytest.raises(UserError, match="y has 200,000,050 classes, by its largest number; number them anew"):
        load(config_of(write(tmp_path, x=NUMBERS, y=200_000_000 + np.arange(50))))
