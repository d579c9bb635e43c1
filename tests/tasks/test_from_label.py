"""Images given their label, and given nothing: networks by hand, Bayes' rule by quadrature, a run from end to end."""

import itertools
import json
import re
from functools import partial

import contract
import jax
import numpy as np
import pytest
from by_hand import GRID, LOG_WEIGHTS, generate, in_float64, mlp, random_variables
from scipy import special, stats
from specs import load
from specs import task_of as made

import cvae_jax
from configs import mnist_class, mnist_vae
from cvae_jax import evaluation, inference, keys
from cvae_jax.distributions import MAX_LOG_SCALE
from cvae_jax.errors import UserError
from cvae_jax.inference.estimators import elbo_score
from cvae_jax.model import Fitted
from cvae_jax.tasks import from_label

SIGMAS = 4.5
SHAPE = (8, 6)  # not square, so that no image is transposed
RNG = np.random.default_rng(0)
LABELS = np.array([3, 0, 9, 5, 5, 2])
IMAGES = RNG.uniform(size=(len(LABELS), *SHAPE)).astype(np.float32)


def task_of(config, **changes):
    """The task with tiny networks; changes are flattened keys."""
    config.image_shape = SHAPE
    config.update_from_flattened_dict({"cvae.hidden": (16,), "cvae.latent": 2, **changes})
    return made(config)


def of_labels(**changes):
    return task_of(mnist_class.get_config(), **changes)


def vae(**changes):
    return task_of(mnist_vae.get_config(), **{"targets": "grey", **changes})


def bernoulli(logits, y):
    """log p(y), summed over the pixels."""
    return special.xlogy(y, special.expit(logits)).sum(-1) + special.xlogy(1 - y, special.expit(-logits)).sum(-1)


def by_quadrature(variables, images):
    """log p(image | label) under every label, [10, batch]."""
    params, by_label = in_float64(variables), []
    for x in np.eye(10):
        logits = generate(params, x, GRID)
        log_p_y = images.reshape(len(images), -1) @ logits.T - np.logaddexp(0, logits).sum(-1)
        by_label.append(special.logsumexp(log_p_y + LOG_WEIGHTS, 1))
    return np.stack(by_label)


def means(variables, x, z, activation="relu"):
    return special.expit(generate(in_float64(variables), x, z, activation)).reshape(-1, *SHAPE)


def dense(*widths):
    """Parameters of fully connected layers with biases."""
    return sum(inputs * outputs + outputs for inputs, outputs in itertools.pairwise(widths))


@pytest.mark.parametrize(
    ("config", "label", "recognition", "generation"),
    [
        (mnist_class.get_config(), [0], (794, 200, 2 * 10), (20, 200, 784)),
        (mnist_vae.get_config(), None, (784, 200, 200, 2 * 50), (50, 200, 200, 784)),
    ],
)
def test_networks_of_the_seed_and_of_the_paper(config, label, recognition, generation):
    task = made(config)
    batch = task.from_user(label, np.zeros((1, 28, 28)))
    params = jax.eval_shape(task.stages[0].model.init, jax.random.key(0), batch, {})["params"]
    assert {name: sum(leaf.size for leaf in jax.tree.leaves(net)) for name, net in params.items()} == {
        "recognition_net": dense(*recognition),
        "generation_net": dense(*generation),
    }


@pytest.mark.parametrize(("labels", "activation"), [(LABELS, "relu"), (None, "tanh")])
def test_a_given_z_is_scored_as_by_hand(labels, activation):
    make = vae if labels is None else of_labels
    task = make(**{"cvae.latent": 3, "cvae.hidden": (16, 12), "cvae.activation": activation})
    batch, model = task.from_user(labels, IMAGES), task.stages[0].model
    variables, z = random_variables(model, batch), RNG.normal(size=(len(IMAGES), 3)).astype(np.float32)
    draw = contract.draw("given", Fitted(model, variables), batch, (z,))

    params, y = in_float64(variables), IMAGES.reshape(len(IMAGES), -1).astype(np.float64)
    x = np.zeros((len(y), 0)) if labels is None else np.eye(10)[labels]
    outputs = mlp(params["recognition_net"]["MLP_0"], np.concatenate([y, x], 1), activation)
    mean, scale = outputs[:, :3], np.exp(MAX_LOG_SCALE * np.tanh(outputs[:, 3:] / MAX_LOG_SCALE))
    log_p_y = bernoulli(generate(params, x, z, activation), y)
    kl = (scale**2 + mean**2 - 1) / 2 - np.log(scale)
    np.testing.assert_allclose(draw.log_p_y, log_p_y, rtol=1e-5)
    np.testing.assert_allclose(draw.log_p_z, stats.norm.logpdf(z).sum(1), rtol=1e-5)
    np.testing.assert_allclose(draw.log_q_z, stats.norm.logpdf(z, mean, scale).sum(1), rtol=1e-5)
    np.testing.assert_allclose(draw.kl[0], kl, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(elbo_score(draw), log_p_y - kl.sum(1), rtol=1e-5)


@pytest.fixture(scope="module")
def classified():
    """A task, its model's variables, images drawn from the model, the labels of half of them, and the truth."""
    task = of_labels(**{"measure_samples": 2000, "targets": "dynamic"})
    variables = random_variables(task.stages[0].model, task.from_user(LABELS, IMAGES.round()))
    params = variables["params"]
    for name, factor in (("first_x", 3), ("first_z", 0.3)):  # labels show more than styles
        params["generation_net"][name]["kernel"] *= factor
    params["recognition_net"] = jax.tree.map(lambda leaf: 0.3 * leaf, params["recognition_net"])  # q is wide
    rng = np.random.default_rng(1)
    p = means(variables, np.eye(10)[LABELS], rng.normal(size=(len(LABELS), 2)))
    images = (rng.uniform(size=p.shape) < p).astype(np.float32)
    labels = np.where(np.arange(len(LABELS)) % 2, LABELS, (LABELS + 1) % 10)
    return task, variables, images, labels, by_quadrature(variables, images)


def test_classify_by_bayes_rule(classified):
    task, variables, images, labels, truth = classified
    fitted, key = Fitted(task.stages[0].model, variables), jax.random.key(0)
    batch = task.from_user(labels, images)
    log_p = from_label.classify(fitted, batch, key, 10, 2000)
    errors = np.empty_like(truth)
    for label in range(10):
        under = task.from_user(np.full(len(images), label), images)
        estimate = inference.log_prob(fitted, under, "is", 2000, key)
        np.testing.assert_array_equal(log_p[label], estimate.value)
        assert (estimate.ess > 50).all()
        assert (np.abs(estimate.value - truth[label]) < SIGMAS * estimate.error).all()
        errors[label] = estimate.error
    best = truth.argmax(0), np.arange(len(images))
    clear = truth[best] - truth > SIGMAS * np.hypot(errors, errors[best])
    assert (clear.sum(0) == 9).all(), "two labels are too close to compare"
    np.testing.assert_array_equal(log_p.argmax(0), truth.argmax(0))
    metrics = task.metrics(fitted, batch, key)
    right = truth.argmax(0) == labels
    assert 0 < right.sum() < len(right)
    assert list(metrics) == ["accuracy by Bayes' rule, labels equally frequent (is, 2,000 samples)"]
    np.testing.assert_array_equal(next(iter(metrics.values())).values, right.astype(float))


def test_classify_where_the_likelihood_is_exact(classified):
    task, variables, images, labels, _ = classified
    fitted = Fitted(task.stages[0].model, variables, exact=True, has_recognition=False, predicts_from="prior_mean")
    log_p = from_label.classify(fitted, task.from_user(labels, images), jax.random.key(0), 10, 1)
    y, params = images.reshape(len(images), -1), in_float64(variables)
    wanted = [bernoulli(generate(params, x, np.zeros(2)), y) for x in np.eye(10)]
    np.testing.assert_allclose(log_p, wanted, rtol=1e-5)


ZEROS = np.zeros((2, *SHAPE))


@pytest.mark.parametrize(
    ("task", "x", "y", "message"),
    [
        (of_labels(), [1, 10], None, "x has labels outside 0 to 9"),
        (of_labels(), [-1, 1], None, "x has labels outside 0 to 9"),
        (of_labels(num_classes=3), [1, 3], None, "x has labels outside 0 to 2"),
        (of_labels(), [1.0, 2.0], None, r"x is float64 \(2,\), expected whole numbers \[batch\]"),
        (of_labels(), np.eye(10, dtype=int), None, r"x is int64 \(10, 10\), expected whole numbers \[batch\]"),
        (of_labels(), None, ZEROS, r"x is object \(\), expected whole numbers"),
        (of_labels(), [1, 2, 3], ZEROS, "x has 3 labels but y has 2 images"),
        (of_labels(), [1, 2], np.zeros((2, 6, 8)), r"y has shape \(2, 6, 8\), expected \[batch, 8, 6\]"),
        (vae(), [1, 2], ZEROS, "x must be None"),
        (vae(), None, np.zeros((2, 48)), r"y has shape \(2, 48\), expected \[batch, 8, 6\]"),
    ],
)
def test_errors_of_a_users_labels_and_images(task, x, y, message):
    with pytest.raises(UserError, match=message):
        task.from_user(x, y)


def test_a_users_labels_and_images():
    np.testing.assert_array_equal(of_labels(num_classes=4).from_user([2, 0]).x, [[0, 0, 1, 0], [1, 0, 0, 0]])
    assert vae().from_user().x.shape == (1, 0)
    assert vae().from_user(None, ZEROS).x.shape == (2, 0)


def test_raw_labels_that_the_config_does_not_have_are_refused():
    with pytest.raises(UserError, match="label has values from 0 to 9, expected 0 to 8"):
        of_labels(num_classes=9).check({"label": np.arange(10)})
    with pytest.raises(UserError, match="label has values from -1 to 3, expected 0 to 9"):
        of_labels().check({"label": np.array([-1, 3])})
    of_labels().check({"label": np.arange(10)})
    vae().check({"image": ZEROS})
    assert list(vae().raw) == ["image"]


@pytest.mark.parametrize(
    ("make", "changes", "message"),
    [
        (of_labels, {"measure_samples": 0}, "measure_samples=0 must be at least 1"),
        (of_labels, {"num_classes": 1}, "num_classes=1 must be at least 2"),
        (of_labels, {"cvae.network": "residual"}, "cvae.network=residual .*set cvae.prior=learned"),
        (of_labels, {"cvae.network": "residual", "cvae.prior": "learned"}, "cvae.network=residual .*activation=gelu"),
        (of_labels, {"cvae.activation": "sine"}, "cvae.activation='sine' .*relu, tanh, gelu"),
        (of_labels, {"cvae.prior": "flat"}, "cvae.prior='flat' .*fixed, learned"),
        (of_labels, {"cvae.network": "deep"}, "cvae.network='deep' .*plain, residual"),
        (of_labels, {"cvae.hidden": ()}, r"cvae.hidden=\(\) must be"),
    ],
)
def test_config_errors_name_the_key(make, changes, message):
    with pytest.raises(UserError, match=message):
        make(**changes)


def test_a_grid_of_samples():
    samples = {"cvae": RNG.uniform(size=(2, len(LABELS), *SHAPE))}
    labelled = of_labels().sample_grid(of_labels().from_user(LABELS, IMAGES), samples).columns
    assert list(labelled) == ["label", "truth", "sample 1", "sample 2"]
    np.testing.assert_array_equal(labelled["truth"], IMAGES)
    assert list(labelled["label"]) == ["3", "0", "9", "5", "5", "2"]
    without = vae().sample_grid(vae().from_user(None, IMAGES), samples).columns
    assert list(without) == ["sample 1", "sample 2"]
    for columns in (labelled, without):
        for number in (1, 2):
            np.testing.assert_array_equal(columns[f"sample {number}"], samples["cvae"][number - 1])
    single = {"cvae": samples["cvae"][:1]}
    assert list(of_labels().sample_grid(of_labels().from_user(LABELS), single).columns) == ["label", "prediction"]


@partial(jax.jit, static_argnums=0)
def shown(proposal, fitted, batch):
    """The first draw of a figure."""
    example_keys = jax.vmap(jax.random.fold_in, (0, None))(keys.per_example(jax.random.key(0), batch.ids), 0)
    return fitted.draw(fitted.encode(batch), example_keys, proposal)


def test_figures_of_labels():
    task = of_labels()
    model, batch = task.stages[0].model, task.from_user(LABELS, IMAGES)
    # From the mean of the prior, so that each digit's z is known: 0.
    fitted = Fitted(model, random_variables(model, batch), predicts_from="prior_mean")
    variables = fitted.variables
    grids = task.figures(fitted, batch, jax.random.key(0))
    assert list(grids) == ["analogies", "labels"]
    z = np.asarray(shown("recognition", fitted, batch).z[0])  # under the same keys
    columns, rows = grids["analogies"][:2]
    assert list(columns) == ["image", *map(str, range(10))]
    assert rows == ("3", "0", "9", "5", "5", "2")
    np.testing.assert_array_equal(columns["image"], IMAGES)
    for label in range(10):
        np.testing.assert_allclose(columns[str(label)], means(variables, np.eye(10)[label], z), atol=1e-5)
    columns, rows = grids["labels"][:2]
    assert list(columns) == [f"sample {number}" for number in range(1, 11)] and rows == tuple("0123456789")
    for images in columns.values():
        np.testing.assert_allclose(images, means(variables, np.eye(10), np.zeros((10, 2))), atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "has_recognition"),
    [({"cvae.prior": "learned"}, True), ({}, False)],
)
def test_analogies_carry_the_noise_where_no_image_can_be_carried(changes, has_recognition):
    task = of_labels(**changes)
    model, batch = task.stages[0].model, task.from_user(LABELS, IMAGES)
    fitted = Fitted(model, random_variables(model, batch), has_recognition=has_recognition)
    columns, rows = task.figures(fitted, batch, jax.random.key(0))["analogies"][:2]
    assert list(columns) == list("0123456789") and rows == ()
    nothing = shown("prior", fitted, batch._replace(x=0 * batch.x, y=None))
    for label, images in enumerate(columns.values()):
        x = np.tile(np.eye(10)[label], (len(LABELS), 1))
        drawn = shown("prior", fitted, batch._replace(x=x.astype(np.float32), y=None))
        np.testing.assert_allclose(images, drawn.p_y.mean, atol=1e-5)
        # Under N(0, I) the same noise is the same z; under a learned prior its place moves with the label.
        assert np.allclose(drawn.z[0], nothing.z[0], atol=1e-5) == (not changes)


def test_figures_of_the_vae():
    task, nothing = vae(), np.zeros(0)
    model, batch = task.stages[0].model, task.from_user(None, IMAGES)
    variables = random_variables(model, batch)
    fitted = Fitted(model, variables)
    grids = task.figures(fitted, batch, jax.random.key(0))
    assert list(grids) == ["reconstructions", "manifold"]
    columns, rows = grids["reconstructions"][:2]
    assert list(columns) == ["image", *(f"draw {number}" for number in range(1, 11))] and rows == ()
    np.testing.assert_array_equal(columns["image"], IMAGES)
    encoding = fitted.encode(batch)
    for number in (0, 9):
        of_draw = jax.vmap(jax.random.fold_in, (0, None))(keys.per_example(jax.random.key(0), batch.ids), number)
        z = np.asarray(fitted.draw(encoding, of_draw, "recognition").z[0])
        wanted = means(variables, nothing, z, "tanh")
        np.testing.assert_allclose(columns[f"draw {number + 1}"], wanted, atol=1e-5)
    without_q = Fitted(model, variables, has_recognition=False)
    assert list(task.figures(without_q, batch, jax.random.key(0))) == ["manifold"]
    quantiles = stats.norm.ppf((np.arange(20) + 0.5) / 20)
    columns, rows = grids["manifold"][:2]
    assert list(columns) == [f"{z1:.2f}" for z1 in quantiles] and rows == tuple(f"{-z2:.2f}" for z2 in quantiles)
    for z1, images in zip(quantiles, columns.values(), strict=True):
        z = np.stack([np.full(20, z1), quantiles[::-1]], 1)  # upwards, as in a plot
        np.testing.assert_allclose(images, means(variables, nothing, z, "tanh"), atol=1e-5)


@pytest.mark.slow
def test_from_training_to_a_measured_accuracy(tmp_path, capsys):
    config = mnist_class.get_config("smoke")
    config.cvae.update(epochs=2, hidden=(16,), figure_every=0, log_every=20, steps_per_call=30)
    cvae_jax.train(config, str(tmp_path / "run"))
    pattern = r"cvae epoch (\d), ([\d,]+) examples, sums of a batch: loss (\S+) = (\S+) \+ (\S+)"
    lines = re.findall(pattern, capsys.readouterr().out)
    assert [line[:2] for line in lines] == [(epoch, at) for epoch in "12" for at in ("0", "400", "800", "1,200")]
    for loss, reconstruction, kl in (map(float, line[2:]) for line in lines):
        assert loss == pytest.approx(reconstruction + kl, abs=2e-3)
        assert 0 < kl < reconstruction

    request = evaluation.Request(["is"], [100], num_examples=20, output=str(tmp_path / "eval"))
    evaluation.evaluate([str(tmp_path / "run")], request)
    trained = cvae_jax.load(str(tmp_path / "run"))
    arrays = {name: array[:20] for name, array in load(config)[1]["test"].items()}
    batch = trained.task.from_user(arrays["label"], arrays["image"] / 255)
    log_p = from_label.classify(trained.fitted(), batch, keys.stream(0, "evaluation"), 10, 100)
    right = log_p.argmax(0) == arrays["label"]
    assert 0 < right.mean() < 1
    (row,) = json.loads((tmp_path / "eval" / "results.json").read_text())["task_measures"]
    assert (row["name"], row["model"]) == (
        "accuracy by Bayes' rule, labels equally frequent (is, 100 samples)",
        "mnist_class cvae",
    )
    assert row["mean"] == pytest.approx(right.mean()) and row["of_seeds"] == [row["mean"]]
    assert row["standard_error"] == pytest.approx(right.std(ddof=1) / 20**0.5)
    (of_examples,) = json.loads((tmp_path / "eval" / "examples.json").read_text())["task_measures"]
    assert of_examples["values"] == [right.astype(float).tolist()]
    pictures = {path.name for path in (tmp_path / "eval").glob("*.png")}
    assert pictures == {"samples_run.png", "analogies_run.png", "labels_run.png", "latents_run_cvae.png"}
