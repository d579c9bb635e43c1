"""Images given their label, p(image | label), and images given nothing, the plain VAE (Kingma and Welling 2014)."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy import stats

from cvae_jax import objectives
from cvae_jax.data import images
from cvae_jax.distributions import Bernoulli
from cvae_jax.errors import UserError
from cvae_jax.inference import draws as inference
from cvae_jax.keys import per_example, per_sample, unused
from cvae_jax.model import Batch, Columns, How, Measures, Model, Proposal, Task, Variables
from cvae_jax.networks.cvae import make_model, one_unit, two_units

SAMPLES_SHOWN = 10
MANIFOLD_SIDE = 20  # images a side


def under(batch: Batch, label: int, num_classes: int) -> Batch:
    """The examples of a batch, all under one label."""
    return batch._replace(x=jax.nn.one_hot(jnp.full(len(batch.index), label), num_classes))


def classify(
    model: Model, variables: Variables, batch: Batch, how: How, key: Array, num_classes: int, num_samples: int
) -> np.ndarray:
    """log p(image | label) under every label, nats [classes, batch].

    Among equally frequent labels Bayes' rule takes the one where it is largest.
    """
    batches = [under(batch, label, num_classes) for label in range(num_classes)]
    if how.exact:
        return np.stack([inference.exact(model, variables, one).value for one in batches])
    found = [inference.log_prob(model, variables, one, how.estimator, num_samples, key).value for one in batches]
    return np.stack(found)


@partial(jax.jit, static_argnums=(0, 3))
def _draw(
    model: Model, variables: Variables, batch: Batch, proposal: Proposal, keys: Array, z: Any = None
) -> tuple[Any, Array]:
    """A z for every example, and the mean image that it gives."""
    drawn = model.draw(variables, model.encode(variables, batch), keys, proposal, z)
    return drawn.z, drawn.p_y.mean


def analogies(
    model: Model, variables: Variables, batch: Batch, how: How, key: Array, num_classes: int, fixed_prior: bool
) -> Columns:
    """The style of each image of the batch under every label.

    Under a learned prior the place of z tells the label too, and without a recognition network no z is known of an
    image: there it is the noise of a draw from the prior that is the same under every label.
    """
    every = {str(label): under(batch, label, num_classes) for label in range(num_classes)}
    keys = per_example(key, batch.index)
    if not (how.has_recognition and fixed_prior):
        columns = {
            label: np.asarray(_draw(model, variables, one, how.predicts_from, keys)[1]) for label, one in every.items()
        }
        return Columns(columns, title="the same noise in z under every label")
    z, _ = _draw(model, variables, batch, "recognition", keys)
    columns = {"image": np.asarray(batch.y)}
    columns |= {label: np.asarray(_draw(model, variables, one, "given", keys, z)[1]) for label, one in every.items()}
    own_label = tuple(np.asarray(batch.x).argmax(-1).astype(str))
    return Columns(columns, own_label, "the style of an image under every label")


def samples_of(model: Model, variables: Variables, labels: Batch, how: How, key: Array) -> Columns:
    """Samples of every label; `labels` holds one example of each."""
    keys = per_sample(per_example(key, labels.index), jnp.arange(SAMPLES_SHOWN))
    drawn = np.asarray(inference.sample(model, variables, labels, keys, False, how.predicts_from))
    columns = {f"sample {number}": image for number, image in enumerate(drawn, 1)}
    return Columns(columns, tuple(map(str, range(len(labels.index)))), "samples of every label")


def reconstructions(model: Model, variables: Variables, batch: Batch, key: Array) -> Columns:
    """Images, and what draws from q(z | image) give."""
    keys = per_sample(per_example(key, batch.index), jnp.arange(SAMPLES_SHOWN))
    columns = {"image": np.asarray(batch.y)}
    for number, own in enumerate(keys, 1):
        columns[f"draw {number}"] = np.asarray(_draw(model, variables, batch, "recognition", own)[1])
    return Columns(columns, title=f"images, and {SAMPLES_SHOWN} draws of z given each")


def manifold(model: Model, variables: Variables, batch: Batch) -> Columns:
    """The mean image of every z of two units, at quantiles of N(0, I): each stands for as much of the prior.

    `batch` has as many examples as the figure images; nothing is read of them.
    """
    steps = stats.norm.ppf((np.arange(MANIFOLD_SIDE) + 0.5) / MANIFOLD_SIDE)
    z1, z2 = np.meshgrid(steps, -steps)
    z = jnp.asarray(np.stack([z1, z2], -1).reshape(-1, 2), jnp.float32)
    found = np.asarray(_draw(model, variables, batch, "given", unused(batch.index), (z,))[1])
    by_column = found.reshape(MANIFOLD_SIDE, MANIFOLD_SIDE, *found.shape[1:]).swapaxes(0, 1)
    columns = {f"{step:.2f}": column for step, column in zip(steps, by_column, strict=True)}
    rows = tuple(f"{-step:.2f}" for step in steps)
    return Columns(columns, rows, "the image of every z, first unit across, second up")


def make_task(config: Any) -> Task:
    """The task that configs/mnist_vae.py and configs/mnist_class.py describe."""
    shape = images.check_settings(config)
    labels, settings = "num_classes" in config, config.cvae
    num_classes = config.num_classes if labels else 0
    residual = labels and settings.network == "residual"
    if labels and settings.network not in ("plain", "residual"):
        raise UserError(f"cvae.network={settings.network!r} is not known; choose plain or residual")
    if residual and (settings.prior, settings.activation) != ("learned", "gelu"):
        raise UserError("cvae.network=residual learns its prior and has gelu; set cvae.prior=learned, activation=gelu")
    pixels = shape[0] * shape[1]
    model = make_model(
        two_units(settings, pixels) if residual else one_unit(settings, pixels, settings.prior if labels else "fixed"),
        lambda batch, frozen: (batch.x, None if batch.y is None else flat(batch.y)),
        lambda logits: Bernoulli(logits.reshape(-1, *shape)),
    )

    def flat(image: Array) -> Array:
        pixels = image.reshape(len(image), -1)
        return 2 * pixels - 1 if residual else pixels

    def one_hot(label: Array) -> Array:
        return jax.nn.one_hot(label, num_classes)

    def batch(raw: dict[str, Array], index: Array, valid: Array, keys: Array, train: bool) -> Batch:
        x = one_hot(raw["label"]) if labels else jnp.zeros((len(index), 0))
        return Batch(x, images.targets(raw["image"], config.targets, keys), None, index, valid)

    def observe(x: Any = None, y: Any = None) -> Batch:
        """Batch of a user's labels [batch], and images [batch, height, width] in [0, 1] or None.

        Without labels x is None, and stands for as many images as y has, or one.
        """
        y = None if y is None else images.own("y", y, shape, config.targets)
        if labels:
            x = one_hot(images.own_labels("x", x, num_classes))
        elif x is not None:
            raise UserError("x must be None: this model is given nothing")
        else:
            x = jnp.zeros((1 if y is None else len(y), 0))
        if y is not None and len(y) != len(x):
            raise UserError(f"x has {len(x)} labels but y has {len(y)} images")
        return Batch(x, y, None, jnp.arange(len(x)), jnp.ones(len(x)))

    def check(arrays: dict[str, np.ndarray]) -> None:
        if labels:
            images.check_labels(arrays["label"], num_classes)

    def measure(model: Model, variables: Variables, batch: Batch, how: How, key: Array) -> dict[str, np.ndarray]:
        found = classify(model, variables, batch, how, key, num_classes, config.measure_samples)
        by = "exact" if how.exact else f"{how.estimator}, {config.measure_samples:,} samples"
        correct = (found.argmax(0) == np.asarray(batch.x).argmax(-1)).astype(np.float64)
        return {f"accuracy by Bayes' rule, labels equally frequent ({by})": correct}

    def panels(batch: Batch, samples: dict[str, Array]) -> dict[str, np.ndarray]:
        """Samples beside an image of the same label; without labels they have nothing to do with the batch's images."""
        columns = {}
        if labels:
            columns["label"] = np.asarray(batch.x).argmax(-1).astype(str)
            if batch.y is not None:
                columns["truth"] = np.asarray(batch.y)
        for drawn in samples.values():
            for number, image in enumerate(drawn, 1):
                columns[f"sample {number}" if len(drawn) > 1 else "prediction"] = np.asarray(image)
        return columns

    def pictures(model: Model, variables: Variables, batch: Batch, how: How, key: Array) -> dict[str, Columns]:
        found = {}
        if labels:
            found["analogies"] = analogies(model, variables, batch, how, key, num_classes, settings.prior == "fixed")
            found["labels"] = samples_of(model, variables, observe(np.arange(num_classes)), how, key)
        elif how.has_recognition:
            found["reconstructions"] = reconstructions(model, variables, batch, key)
        if settings.latent == 2 and not labels:
            found["manifold"] = manifold(model, variables, observe(None, np.zeros((MANIFOLD_SIDE**2, *shape))))
        return found

    name = f"image given one of {num_classes} labels" if labels else "image"
    raw = {"image": jax.ShapeDtypeStruct(shape, np.uint8)}
    if labels:
        raw["label"] = jax.ShapeDtypeStruct((), np.int32)
    return Task(
        column=name,
        protocol=f"{config.targets} targets",
        raw=raw,
        batch=batch,
        observe=observe,
        stages=(objectives.stage("cvae", model, config.cvae),),
        panels=panels,
        measures=Measures(measure, {}) if labels else None,
        pictures=pictures,
        check=check,
    )
