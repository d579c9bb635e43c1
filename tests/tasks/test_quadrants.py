import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from specs import task_of as made

from configs import mnist_quadrants
from cvae_jax import inference, keys, objectives
from cvae_jax.errors import UserError
from cvae_jax.model import Fitted, has_latents
from cvae_jax.tasks import quadrants

SIGMAS = 4.5


def task_of(number=1, **changes):
    """The task on 8x8 images with tiny networks."""
    config = mnist_quadrants.get_config(f"{number},smoke")
    config.update(changes)
    return made(config)


def batch_of(task, image, key=0):
    count = len(image)
    ids = jnp.arange(count)
    example_keys = keys.per_example(jax.random.key(key), ids)
    return task.batch({"image": jnp.asarray(image, jnp.uint8)}, ids, jnp.ones(count), example_keys, jnp.array(0))


def some_images(count=3):
    return np.random.default_rng(0).integers(1, 256, (count, 8, 8))


@pytest.mark.parametrize("half", [4, 14])
def test_observed_quadrants(half):
    see, hide = np.ones((half, half)), np.zeros((half, half))
    wanted = {
        1: [[hide, hide], [see, hide]],
        2: [[see, hide], [see, hide]],
        3: [[see, see], [see, hide]],
    }
    for number, blocks in wanted.items():
        observed = quadrants.observed_quadrants(number, (2 * half, 2 * half))
        np.testing.assert_array_equal(observed, np.block(blocks))


def test_four_quadrants_leave_nothing_to_predict():
    with pytest.raises(UserError, match="quadrants=4"):
        quadrants.observed_quadrants(4, (8, 8))


@pytest.mark.parametrize("number", [1, 2, 3])
def test_input_and_targets_partition_the_image(number):
    images = some_images()
    batch = batch_of(task_of(number), images)
    observed = np.broadcast_to(quadrants.observed_quadrants(number, (8, 8)), images.shape)
    np.testing.assert_array_equal(batch.weight, 1 - observed)
    np.testing.assert_allclose(batch.x, observed * images / 255, rtol=1e-6)
    np.testing.assert_allclose(batch.x + batch.weight * batch.y, images / 255, rtol=1e-6)


def test_threshold_targets():
    images = np.full((1, 8, 8), 127)
    images[0, :, 4:] = 128
    batch = batch_of(task_of(targets="threshold"), images)
    np.testing.assert_array_equal(batch.y, images == 128)


def test_dynamic_targets():
    task = task_of(targets="dynamic")
    images = np.tile(some_images(1), (4000, 1, 1))
    batch = batch_of(task, images)
    drawn = np.asarray(batch.y, np.float64)
    assert set(np.unique(drawn)) == {0, 1}
    p = images[0] / 255
    assert (np.abs(drawn.mean(0) - p) <= SIGMAS * np.sqrt(p * (1 - p) / 4000)).all()
    np.testing.assert_array_equal(batch.x + batch.weight * batch.y, batch.y)  # input and target are one drawn image
    assert (batch_of(task, images, key=1).y != batch.y).any()
    np.testing.assert_array_equal(batch_of(task, images).y, batch.y)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": "binary"}, r"targets='binary' .*grey, threshold, dynamic"),
        ({"cvae": {"network": "deep"}}, r"cvae.network='deep' .*plain, residual"),
        ({"cvae": {"latent": 0}}, r"cvae.latent="),
        ({"control": True, "cvae": {"objective": {"num_samples": 0}}}, "^cvae.objective.num_samples=0"),
        ({"baseline": {"hidden": (32, 1.5)}}, r"baseline.hidden="),
    ],
)
def test_errors_name_the_key(changes, message):
    with pytest.raises(UserError, match=message):
        task_of(**changes)


def init(task, batch):
    """The baseline and the CVAE with variables."""
    baseline, cvae = (stage.model for stage in task.stages)
    frozen = jax.jit(baseline.init)(jax.random.key(0), batch, {})
    earlier = {"baseline": frozen}
    variables = jax.jit(cvae.init)(jax.random.key(0), batch, earlier)
    return Fitted(baseline, frozen), Fitted(cvae, {**variables, "frozen": earlier})


@pytest.mark.parametrize("stage", [0, 1])
def test_the_observed_pixels_of_y_do_not_count(stage):
    task = task_of(3)
    batch = batch_of(task, some_images())
    fitted = init(task, batch)[stage]
    sample_keys = keys.per_example(jax.random.key(0), batch.ids)

    @jax.jit
    @jax.grad
    def gradient(y):
        encoding = fitted.encode(batch._replace(y=y))
        drawn = jax.tree.map(lambda leaf: leaf[None], fitted.draw(encoding, sample_keys, "recognition"))

        def draw(proposal):
            return drawn

        return objectives.elbo(draw, batch)[0].sum() + objectives.iwae(draw, batch)[0].sum()

    by_pixel = np.asarray(gradient(batch.y))
    hidden = np.asarray(batch.weight) == 1
    assert (by_pixel[~hidden] == 0).all()
    assert (by_pixel[hidden] != 0).all()


def test_the_hidden_pixels_are_not_seen_when_predicting():
    task = task_of()
    images = some_images() / 255
    known = task.from_user(images)
    assert known.y is None
    other = task.from_user(np.where(np.asarray(known.weight) > 0, 1 - images, images))
    predict = jax.jit(inference.predict)
    for fitted in init(task, known):
        predicted = predict(fitted, known)
        np.testing.assert_array_equal(predicted, predict(fitted, other))
        np.testing.assert_array_equal(predicted, predict(fitted, known._replace(y=jnp.asarray(images, jnp.float32))))


def dense(*widths):
    """Parameters of fully connected layers with biases."""
    return sum(inputs * outputs + outputs for inputs, outputs in itertools.pairwise(widths))


def test_networks_of_the_seed():
    task = made(mnist_quadrants.get_config("1"))
    batch = task.from_user(np.zeros((1, 28, 28)), np.zeros((1, 28, 28)))

    def count(tree):
        return sum(leaf.size for leaf in jax.tree.leaves(tree))

    first, second = (stage.model for stage in task.stages)
    frozen = jax.eval_shape(first.init, jax.random.key(0), batch, {})
    variables = jax.eval_shape(second.init, jax.random.key(0), batch, {"baseline": frozen})
    baseline, cvae = frozen["params"], variables["params"]
    assert count(baseline) == dense(784, 500, 500, 784) == 1_035_784
    assert {name: count(network) for name, network in cvae.items()} == {
        "prior_net": dense(784, 500, 500, 2 * 200),
        "recognition_net": dense(784, 500, 500, 2 * 200),
        "generation_net": dense(200, 500, 500, 784),
    }
    assert (count(cvae["prior_net"]), count(cvae["generation_net"])) == (843_400, 743_784)


@pytest.mark.parametrize("options", ["", "strong,"])
def test_the_control_is_the_cvae_without_z(options):
    """It has the settings and the layers of the CVAE between x and y, and no others."""
    config = mnist_quadrants.get_config(f"1,{options}smoke")
    assert [stage.name for stage in made(config).stages] == ["baseline", "cvae"]
    config.control = True
    config.cvae.optimizer.weight_decay = 0.3
    task = made(config)
    baseline, control, cvae = task.stages
    assert [stage.name for stage in task.stages] == ["baseline", "control", "cvae"]
    assert control.settings.to_dict() == {**cvae.settings.to_dict(), "figure_every": 0}
    batch = task.from_user(some_images() / 255, some_images() / 255)
    rng = np.random.default_rng(0)

    def random(stage, earlier):
        shapes = jax.eval_shape(stage.model.init, jax.random.key(0), batch, earlier)
        return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32) / 8, shapes)

    frozen = {"baseline": random(baseline, {})}
    of_control, of_cvae = (random(stage, frozen)["params"] for stage in (control, cvae))
    predict = jax.jit(inference.predict)

    def predicted(stage, params, earlier=frozen):
        return predict(Fitted(stage.model, {"params": params, "frozen": earlier}), batch)

    guess = predicted(control, of_control)
    assert not has_latents(Fitted(control.model, {"params": of_control, "frozen": frozen}), batch)
    others = {"baseline": jax.tree.map(lambda leaf: leaf + 1, frozen["baseline"])}
    if not options:  # the generation network, which reads the image completed by the baseline and not z
        first = {**of_cvae["generation_net"]["Dense_0"], "kernel": jnp.zeros((64, 32))}
        shapes = jax.tree.map(jnp.shape, {**of_cvae["generation_net"], "Dense_0": first})
        assert jax.tree.map(jnp.shape, of_control) == shapes
        assert not np.array_equal(guess, predicted(control, of_control, others))
        return
    norm = {"generation_norm_1": of_control.pop("generation_norm")}
    deaf = {name: jax.tree.map(jnp.zeros_like, of_cvae[name]) for name in ("generation_z_0", "generation_z_1")}
    np.testing.assert_array_equal(guess, predicted(cvae, {**of_cvae, **of_control, **norm, **deaf}))


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.zeros((8, 8)), None, r"x has shape \(8, 8\), expected \[batch, 8, 8\]"),
        (np.zeros((2, 8, 7)), None, r"x has shape \(2, 8, 7\)"),
        (np.zeros((2, 64)), None, r"x has shape \(2, 64\)"),
        (np.zeros((2, 8, 8)), np.zeros((2, 28, 28)), r"y has shape \(2, 28, 28\)"),
        (np.zeros((2, 8, 8)), np.zeros((3, 8, 8)), "2 .*3"),
        (np.full((2, 8, 8), 255.0), None, r"x has values outside \[0, 1\]"),
        (np.full((2, 8, 8), -0.1), None, r"x has values outside \[0, 1\]"),
        (np.full((2, 8, 8), np.nan), None, "x has values .* NaN"),
        (np.zeros((2, 8, 8)), np.full((2, 8, 8), np.nan), "y has values .* NaN"),
    ],
)
def test_errors_of_a_users_images(x, y, message):
    with pytest.raises(UserError, match=message):
        task_of().from_user(x, y)


def test_a_grid_shows_what_was_observed_as_it_was():
    task = task_of()
    images = some_images() / 255
    batch = task.from_user(images, images)
    samples = np.random.default_rng(1).uniform(size=(2, 3, 8, 8)).astype(np.float32)
    columns = task.sample_grid(batch, {"baseline": samples[:1], "cvae": samples}).columns
    assert list(columns) == ["input", "truth", "baseline", "sample 1", "sample 2"]
    hidden = np.asarray(batch.weight) == 1
    assert np.isnan(columns["input"][hidden]).all()
    np.testing.assert_allclose(columns["input"][~hidden], images[~hidden], rtol=1e-6)
    np.testing.assert_allclose(columns["truth"], images, rtol=1e-6)
    for name, sample in zip(["baseline", "sample 1", "sample 2"], [samples[0], *samples], strict=True):
        np.testing.assert_allclose(columns[name], np.where(hidden, sample, images), rtol=1e-6)
