"""Something about an image given an image: batches by hand, and p(label | image) by quadrature over z."""

import contract
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from by_hand import GRID, LOG_WEIGHTS, generate, in_float64, random_variables
from scipy import special, stats
from specs import task_of as made

from configs import mnist_image
from cvae_jax import inference, keys
from cvae_jax.errors import UserError
from cvae_jax.model import Fitted
from cvae_jax.tasks import from_image

SIGMAS = 4.5
SHAPE = (8, 12)  # not square, so that no image is transposed
RNG = np.random.default_rng(0)
RAW = RNG.integers(0, 256, (3, *SHAPE))
BLOCKS = (RAW / 255).reshape(3, 2, 4, 3, 4).mean((2, 4))


def task_of(variant="", **changes):
    """The task with tiny networks; changes are flattened keys."""
    config = mnist_image.get_config(variant)
    config.image_shape = SHAPE
    config.update_from_flattened_dict({"cvae.hidden": (16,), "cvae.latent": 2, "cvae.channels": 2, **changes})
    return made(config)


def batch_of(task, image, label=None, key=0):
    ids = jnp.arange(len(image))
    raw = {"image": jnp.asarray(image, jnp.uint8)} | ({} if label is None else {"label": jnp.asarray(label)})
    example_keys = keys.per_example(jax.random.key(key), ids)
    return jax.jit(lambda raw: task.batch(raw, ids, jnp.ones(len(image)), example_keys, jnp.array(0)))(raw)


# Batches.


def test_a_label_is_the_next_one_half_of_the_time():
    label = np.repeat(np.arange(10, dtype=np.int32), 1000)
    images = np.broadcast_to(RAW[0], (len(label), *SHAPE))
    batch = batch_of(task_of(), images, label)
    drawn = np.asarray(batch.y)
    assert batch.y.dtype == jnp.int32
    for digit, of_digit in enumerate(drawn.reshape(10, 1000)):
        assert set(of_digit) == {digit, (digit + 1) % 10}
        assert abs((of_digit != digit).mean() - 0.5) < SIGMAS * np.sqrt(0.25 / 1000)
    # One coin an example, not one a digit: neighbours in the batch do not agree more often than not.
    coins = drawn != label
    assert abs((coins[1:] == coins[:-1]).mean() - 0.5) < SIGMAS * np.sqrt(0.25 / len(coins))
    np.testing.assert_array_equal(batch_of(task_of(), images, label).y, drawn)
    assert (np.asarray(batch_of(task_of(), images, label, key=1).y) != drawn).any()
    np.testing.assert_allclose(batch.x[0], RAW[0] / 255, rtol=1e-6)


def test_super_resolution_is_given_the_means_of_blocks():
    batch = batch_of(task_of("superres", targets="grey"), RAW)
    np.testing.assert_allclose(batch.y, RAW / 255, rtol=1e-6)
    np.testing.assert_allclose(batch.x, BLOCKS, rtol=1e-5)
    drawn = batch_of(task_of("superres"), RAW)  # of the drawn image, not of the grey one
    assert set(np.unique(drawn.y)) == {0, 1}
    np.testing.assert_array_equal(drawn.x, np.asarray(drawn.y).reshape(3, 2, 4, 3, 4).mean((2, 4)))


def test_denoising_is_given_the_image_under_noise():
    images = np.broadcast_to(RAW[0], (200, *SHAPE))
    batch = batch_of(task_of("denoise", noise=0.25, targets="grey"), images)
    np.testing.assert_allclose(batch.y, images / 255, rtol=1e-6)
    noise = np.asarray(batch.x, np.float64) - np.asarray(batch.y)
    assert stats.kstest(noise.ravel(), stats.norm(0, 0.25).cdf).pvalue > 1e-5
    assert abs(noise.std() - 0.25) < SIGMAS * 0.25 / np.sqrt(2 * noise.size)
    between = np.corrcoef(noise[:2].reshape(2, -1))[0, 1]  # each example's is its own
    assert abs(between) < SIGMAS / np.sqrt(noise[0].size)
    drawn = batch_of(task_of("denoise", noise=0.0), RAW)
    assert set(np.unique(drawn.y)) == {0, 1}
    np.testing.assert_array_equal(drawn.x, drawn.y)


IMAGES = RNG.uniform(size=(2, *SHAPE))


@pytest.mark.parametrize(
    ("variant", "x", "y", "message"),
    [
        ("", IMAGES, [1, 10], "y has labels outside 0 to 9"),
        ("", IMAGES, [1.0, 2.0], "y is float64 .*expected whole numbers"),
        ("", IMAGES, [1], "x has 2 images but y has 1 labels"),
        ("", 2 * IMAGES, None, r"x has values outside \[0, 1\]"),
        ("", IMAGES[:, :2, :3], None, r"x has shape \(2, 2, 3\), expected \[batch, 8, 12\]"),
        ("superres", IMAGES, None, r"x has shape \(2, 8, 12\), expected \[batch, 2, 3\]"),
        ("superres", IMAGES[:, :2, :3], IMAGES[:, :2, :3], r"y has shape \(2, 2, 3\), expected \[batch, 8, 12\]"),
        ("denoise", IMAGES, IMAGES, "y has grey values"),
        ("denoise", IMAGES, IMAGES[:1].round(), "x has 2 images but y has 1 images"),
        ("denoise", np.full((1, *SHAPE), np.nan), None, "x has values that are NaN"),
    ],
)
def test_errors_of_a_users_arrays(variant, x, y, message):
    with pytest.raises(UserError, match=message):
        task_of(variant).from_user(x, y)


def test_a_batch_of_a_users_arrays_is_what_is_known():
    assert task_of("denoise").from_user(3 * IMAGES).x.max() > 1  # noise goes beyond an image's range
    known = task_of("superres").from_user(IMAGES[:, :2, :3], IMAGES.round())
    np.testing.assert_array_equal(known.y, IMAGES.round())
    np.testing.assert_array_equal(task_of().from_user(IMAGES, [3, 9]).y, [3, 9])


def test_raw_labels_are_checked_where_they_are_read():
    with pytest.raises(UserError, match="label has values from 0 to 10, expected 0 to 9"):
        task_of().check({"label": np.array([0, 10])})
    assert list(task_of().raw) == ["image", "label"]
    for variant in ("denoise", "superres"):
        assert list(task_of(variant).raw) == ["image"]
        task_of(variant).check({"image": RAW, "label": np.array([10])})


@pytest.mark.parametrize(
    ("variant", "changes", "message"),
    [
        ("", {"output": "depth"}, "output='depth' is not known; choose from label, denoise, superres"),
        ("", {"output": "denoise"}, "output=denoise needs a config of its own"),
        ("denoise", {"output": "superres"}, "output=superres needs a config of its own"),
        ("superres", {"output": "label"}, "output=label needs a config of its own"),
        ("", {"cvae.channels": 0}, "cvae.channels=0 must be at least 1"),
        ("", {"num_classes": 1}, "num_classes=1 must be at least 2"),
        ("", {"measure_samples": 0}, "measure_samples=0 must be at least 1"),
        ("denoise", {"noise": -0.5}, "noise=-0.5 must be at least 0"),
        ("denoise", {"noise": float("nan")}, "noise=nan must be at least 0"),
        ("superres", {"image_shape": (8, 10)}, r"image_shape=\(8, 10\) must be multiples of 4"),
        ("superres", {"image_shape": (4, 8)}, r"image_shape=\(4, 8\) must be .*at least 8"),
        ("", {"cvae.prior": "flat"}, "cvae.prior='flat' .*fixed, learned"),
        ("", {"cvae.activation": "sine"}, "cvae.activation='sine'"),
    ],
)
def test_config_errors_name_the_key(variant, changes, message):
    with pytest.raises(UserError, match=message):
        task_of(variant, **changes)


def test_variants_that_exclude_each_other():
    with pytest.raises(UserError, match="denoise and superres exclude each other"):
        mnist_image.get_config("denoise,superres")


def test_a_grid_of_samples():
    images = {"cvae": RNG.uniform(size=(2, 2, *SHAPE))}
    denoise = task_of("denoise")
    columns = denoise.sample_grid(denoise.from_user(3 * IMAGES - 1, IMAGES.round()), images).columns
    assert list(columns) == ["input", "truth", "sample 1", "sample 2"]
    np.testing.assert_allclose(columns["input"], np.clip(3 * IMAGES - 1, 0, 1), atol=1e-6)
    np.testing.assert_array_equal(columns["truth"], IMAGES.round())
    np.testing.assert_array_equal(columns["sample 2"], images["cvae"][1])
    small = task_of("superres").from_user(IMAGES[:, :2, :3])
    assert list(task_of("superres").sample_grid(small, images).columns) == ["input", "sample 1", "sample 2"]
    p = np.full((1, 2, 10), 0.02)
    p[0, 0, [7, 8]], p[0, 1, [0, 1]] = (0.55, 0.29), (0.3, 0.546)
    columns = task_of().sample_grid(task_of().from_user(IMAGES, [8, 1]), {"cvae": jnp.asarray(p, jnp.float32)}).columns
    assert {name: list(columns[name]) for name in list(columns)[1:]} == {
        "drawn y": ["8", "1"],
        "prediction": ["7: 0.55\n8: 0.29", "1: 0.55\n0: 0.30"],
    }
    columns = task_of().sample_grid(task_of().from_user(IMAGES), {"cvae": p.repeat(2, 0)}).columns
    assert list(columns)[1:] == ["given z 1", "given z 2"]


def test_runs_that_are_given_other_noise_stand_in_other_columns():
    assert task_of("denoise").title != task_of("denoise", noise=0.1).title


# The model.


@pytest.mark.parametrize(
    ("changes", "readers"),
    [
        ({}, {"generation", "recognition"}),
        ({"cvae.prior": "learned"}, {"generation", "recognition", "prior"}),
        ({"cvae.tie_weights": True}, {"generation"}),
        ({"cvae.prior": "learned", "cvae.tie_weights": True}, {"generation"}),
    ],
)
def test_what_reads_x(changes, readers):
    task = task_of(**changes)
    model, batch = task.stages[0].model, task.from_user(IMAGES, [1, 2])
    params = jax.eval_shape(model.init, jax.random.key(0), batch, {})["params"]
    networks = {"generation_net", "recognition_net"} | ({"prior_net"} if "cvae.prior" in changes else set())
    assert set(params) == {f"{name}_reader" for name in readers} | networks
    for name in readers:
        assert params[f"{name}_reader"]["Conv_0"]["kernel"].shape == (3, 3, 1, 2)


def test_tied_weights_are_one_reader_for_all():
    tied, untied = (task_of(**{"cvae.prior": "learned", "cvae.tie_weights": tie}) for tie in (True, False))
    batch = tied.from_user(IMAGES, [1, 2])
    params = random_variables(tied.stages[0].model, batch)["params"]
    reader = params["generation_reader"]
    equal = {**params, "recognition_reader": reader, "prior_reader": reader}
    for proposal in ("recognition", "prior"):
        drawn = [
            contract.draw_eagerly(proposal, Fitted(task.stages[0].model, {"params": own}), batch)
            for task, own in ((tied, params), (untied, equal))
        ]
        jax.tree.map(np.testing.assert_array_equal, *drawn)


def features(reader, images):
    """What a reader makes of images, float64: a 3x3 convolution of stride 2, with zeros at the far ends, and relu."""
    padded = np.pad(images, ((0, 0), (0, 1), (0, 1)))
    height, width = images.shape[1] // 2, images.shape[2] // 2
    patches = [[padded[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3] for j in range(width)] for i in range(height)]
    outputs = np.einsum("ijbhw,hwoc->bijc", patches, reader["Conv_0"]["kernel"]) + reader["Conv_0"]["bias"]
    return np.maximum(outputs, 0).reshape(len(images), -1)


@pytest.fixture(scope="module")
def labelled():
    """A task with N(0, I) as its prior, its model's variables, and the truth: p(y|x,z) on the grid [x, z, y]."""
    task = task_of()
    variables = random_variables(task.stages[0].model, task.from_user(IMAGES, [1, 2]))
    recognition = variables["params"]["recognition_net"]
    variables["params"]["recognition_net"] = jax.tree.map(lambda leaf: 0.3 * leaf, recognition)  # q is wide
    params = in_float64(variables)
    x = features(params["generation_reader"], IMAGES)
    return task, variables, np.stack([special.softmax(generate(params, row, GRID), -1) for row in x])


def test_the_probabilities_of_all_labels_are_those_by_quadrature_and_sum_to_one(labelled):
    task, variables, on_grid = labelled
    truth = np.einsum("xzy,z->xy", on_grid, np.exp(LOG_WEIGHTS))
    np.testing.assert_allclose(truth.sum(1), 1, atol=1e-6)  # the grid is wide and fine enough
    batch = task.from_user(np.repeat(IMAGES, 10, 0), np.tile(np.arange(10), 2))
    fitted = Fitted(task.stages[0].model, variables)
    estimates = inference.log_probs(fitted, batch, [("is", 4000), ("mc", 4000)], jax.random.key(0))
    for estimate in estimates.values():
        assert (estimate.ess > 50).all()
        assert (np.abs(estimate.value - np.log(truth).ravel()) < SIGMAS * estimate.error).all()
        p = np.exp(estimate.value).reshape(2, 10)
        error = np.linalg.norm(p * estimate.error.reshape(2, 10), axis=1)
        assert (np.abs(p.sum(1) - 1) < SIGMAS * error).all()


def test_the_predictive_distribution_and_its_entropy(labelled):
    task, variables, on_grid = labelled
    model, batch, key = task.stages[0].model, task.from_user(IMAGES, [1, 2]), jax.random.key(0)
    fitted = Fitted(model, variables)
    p = from_image.predictive(fitted, batch, key, 1000)
    mean, square = (np.einsum("xzy,z->xy", on_grid**power, np.exp(LOG_WEIGHTS)) for power in (1, 2))
    assert (np.abs(p - mean) < SIGMAS * np.sqrt((square - mean**2) / 1000)).all()
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-5)
    ((name, metric),) = task.metrics(fitted, batch, key).items()
    assert (name, metric.unit) == ("entropy of sampled labels", "nats (1,000 draws of z)")
    assert metric.perfect == np.log(2)
    np.testing.assert_allclose(metric.values, stats.entropy(p, axis=1), rtol=1e-5)
    exact = Fitted(model, variables, exact=True, predicts_from="prior_mean")
    at_mean = from_image.predictive(exact, batch, key, 1000)
    np.testing.assert_allclose(at_mean, inference.predict(exact, batch), rtol=1e-5)


def test_entropy_at_its_limits():
    p = np.array([np.eye(10)[3], np.full(10, 0.1), np.eye(10)[[3, 4]].mean(0)])
    np.testing.assert_allclose(from_image.entropy(p), np.log([1, 10, 2]), atol=1e-6)
