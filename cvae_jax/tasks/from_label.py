"""Images given their label, p(image | label), and images given nothing, the plain VAE (Kingma and Welling 2014)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from ml_collections import ConfigDict
from scipy import stats

from cvae_jax import inference, objectives
from cvae_jax.data import images
from cvae_jax.distributions import Bernoulli
from cvae_jax.errors import UserError
from cvae_jax.networks.cvae import one_layer, two_layers
from cvae_jax.networks.flax_model import flax_model
from cvae_jax.settings import Choice, check
from cvae_jax.task import Arrays, Batch, Fitted, Grid, Metric, Plot, PyTree, Spec, Task, Variables

SAMPLES_SHOWN = 10
MANIFOLD_SIDE = 20  # images a side


def under(batch: Batch, label: int, num_classes: int) -> Batch:
    """Returns the examples of a batch, all under one label."""
    return batch._replace(x=jax.nn.one_hot(jnp.full(len(batch.ids), label), num_classes))


def classify(fitted: Fitted, batch: Batch, key: Array, num_classes: int, num_samples: int) -> np.ndarray:
    """Returns log p(image | label) under every label, nats [classes, batch].

    Among equally frequent labels Bayes' rule takes the one where it is largest.

    Args:
      fitted: a model of images given their label.
      batch: of images.
      key: of all draws, the same under every label.
      num_classes: of labels.
      num_samples: draws of z for every image and label.
    """
    batches = [under(batch, label, num_classes) for label in range(num_classes)]
    if fitted.exact:
        return np.stack([inference.exact(fitted, labelled).value for labelled in batches])
    return np.stack(
        [inference.log_prob(fitted, labelled, fitted.estimator, num_samples, key).value for labelled in batches]
    )


@jax.jit
def _from_prediction(fitted: Fitted, batch: Batch, example_keys: Array) -> Array:
    """Returns the mean image of a draw from where the model predicts."""
    return fitted.draw(fitted.encode(batch), example_keys, fitted.predicts_from).p_y.mean


@jax.jit
def _from_recognition(fitted: Fitted, batch: Batch, example_keys: Array) -> tuple[PyTree, Array]:
    """Returns a z of q(z | image, label), and the mean image that it gives."""
    draw = fitted.draw(fitted.encode(batch), example_keys, "recognition")
    return draw.z, draw.p_y.mean


def analogies(fitted: Fitted, batch: Batch, key: Array, num_classes: int, fixed_prior: bool) -> Grid:
    """Draws the style of each image of the batch under every label.

    Two cases share the prior's noise across labels instead of the encoded z: a learned prior (z then depends on the
    label), and a model without a recognition network.

    Args:
      fitted: a model of images given their label.
      batch: of images with their labels.
      key: of the draws.
      num_classes: of labels.
      fixed_prior: whether p(z) is the same under every label.
    """
    every = {str(label): under(batch, label, num_classes) for label in range(num_classes)}
    (example_keys,) = inference.keys_of(batch, key, 1)
    if not (fitted.has_recognition and fixed_prior):
        columns = {label: np.asarray(_from_prediction(fitted, same, example_keys)) for label, same in every.items()}
        return Grid(columns, title="the same noise in z under every label")
    z, _ = _from_recognition(fitted, batch, example_keys)
    columns = {"image": np.asarray(batch.y)}
    columns |= {label: np.asarray(inference.decode(fitted, same, z)) for label, same in every.items()}
    own_label = tuple(np.asarray(batch.x).argmax(-1).astype(str))
    return Grid(columns, own_label, "the style of an image under every label")


def samples_of(fitted: Fitted, labels: Batch, key: Array) -> Grid:
    """Draws samples of every label; `labels` holds one example of each."""
    drawn = np.asarray(
        inference.draw_samples(fitted, labels, inference.keys_of(labels, key, SAMPLES_SHOWN), noise=False)
    )
    columns = {f"sample {number}": image for number, image in enumerate(drawn, 1)}
    return Grid(columns, tuple(map(str, range(len(labels.ids)))), "samples of every label")


def reconstructions(fitted: Fitted, batch: Batch, key: Array) -> Grid:
    """Draws images, and what z from q(z | image) give."""
    sample_keys = inference.keys_of(batch, key, SAMPLES_SHOWN)
    columns = {"image": np.asarray(batch.y)}
    for number, example_keys in enumerate(sample_keys, 1):
        columns[f"draw {number}"] = np.asarray(_from_recognition(fitted, batch, example_keys)[1])
    return Grid(columns, title=f"images, and {SAMPLES_SHOWN} draws of z given each")


def manifold(fitted: Fitted, batch: Batch) -> Grid:
    """Draws the mean image of every z of two dimensions, at quantiles of N(0, I): each stands for as much of the prior.

    `batch` has as many examples as the figure images; nothing is read of them.
    """
    steps = stats.norm.ppf((np.arange(MANIFOLD_SIDE) + 0.5) / MANIFOLD_SIDE)
    z1, z2 = np.meshgrid(steps, -steps)
    z = jnp.asarray(np.stack([z1, z2], -1).reshape(-1, 2), jnp.float32)
    image = np.asarray(inference.decode(fitted, batch, (z,)))
    by_column = image.reshape(MANIFOLD_SIDE, MANIFOLD_SIDE, *image.shape[1:]).swapaxes(0, 1)
    columns = {f"{step:.2f}": column for step, column in zip(steps, by_column, strict=True)}
    rows = tuple(f"{-step:.2f}" for step in steps)
    return Grid(columns, rows, "the image of every z, first dimension across, second up")


class FromLabel(Task):
    """The task that configs/mnist_vae.py and configs/mnist_class.py describe."""

    def __init__(self, config: ConfigDict, spec: Spec):
        self.config, self.shape = config, images.check_settings(config)
        self.labels, settings = "num_classes" in config, config.cvae
        self.num_classes = config.num_classes if self.labels else 0
        self.residual = self.labels and settings.network == "residual"
        if self.labels:
            check(settings, {"network": Choice(("plain", "residual"))}, "cvae")
        if self.residual and (settings.prior, settings.activation) != ("learned", "gelu"):
            raise UserError("cvae.network=residual learns its prior, has gelu; set cvae.prior=learned, activation=gelu")
        self.title = f"image given one of {self.num_classes} labels" if self.labels else "image"
        self.protocol = images.TARGETS[config.targets]
        self.raw = {"image": jax.ShapeDtypeStruct(self.shape, np.uint8)}
        if self.labels:
            self.raw["label"] = jax.ShapeDtypeStruct((), np.int32)
            images.warn_of_empty_classes(self.num_classes, spec)
        pixels = self.shape[0] * self.shape[1]
        prior = settings.prior if self.labels else "fixed"
        networks = two_layers(settings, pixels) if self.residual else one_layer(settings, pixels, prior)
        model = flax_model(networks, lambda logits: Bernoulli(logits.reshape(-1, *self.shape)), self._inputs)
        self.stages = (objectives.stage("cvae", model, settings),)

    def _inputs(self, batch: Batch, earlier: Variables) -> tuple[Array, Array | None]:
        """Returns x, and images laid flat; the residual networks want these about 0."""
        if batch.y is None:
            return batch.x, None
        pixels = batch.y.reshape(len(batch.y), -1)
        return batch.x, 2 * pixels - 1 if self.residual else pixels

    def check(self, arrays: Arrays) -> None:
        """Raises a UserError for labels that the config does not count."""
        if self.labels:
            images.check_labels(arrays["label"], self.num_classes)

    def batch(self, raw: dict[str, Array], ids: Array, num_targets: Array, keys: Array, step: Array | None) -> Batch:
        """Returns images, and their labels one-hot."""
        x = jax.nn.one_hot(raw["label"], self.num_classes) if self.labels else jnp.zeros((len(ids), 0))
        return Batch(x, images.targets(raw["image"], self.config.targets, keys), None, ids, num_targets)

    def from_user(self, x: Any = None, y: Any = None) -> Batch:
        """Returns a batch of labels [batch], and images [batch, height, width] in [0, 1] or None.

        A model without labels takes x=None, which stands for as many images as y has, or one.
        """
        y = None if y is None else images.as_images("y", y, self.shape, self.config.targets)
        if self.labels:
            x = jax.nn.one_hot(images.as_labels("x", x, self.num_classes), self.num_classes)
        elif x is not None:
            raise UserError("x must be None: this model is given nothing")
        else:
            x = jnp.zeros((1 if y is None else len(y), 0))
        if y is not None and len(y) != len(x):
            raise UserError(f"x has {len(x)} labels but y has {len(y)} images")
        return Batch(x, y, None, jnp.arange(len(x)), jnp.ones(len(x)))

    def metrics(self, fitted: Fitted, batch: Batch, key: Array) -> dict[str, Metric]:
        """Returns whether the label with the largest log p(image | label) is the right one."""
        if not self.labels:
            return {}
        num_samples = self.config.measure_samples
        log_p = classify(fitted, batch, key, self.num_classes, num_samples)
        by = "exact" if fitted.exact else f"{fitted.estimator}, {num_samples:,} samples"
        correct = (log_p.argmax(0) == np.asarray(batch.x).argmax(-1)).astype(np.float64)
        return {f"accuracy by Bayes' rule, labels equally frequent ({by})": Metric(correct)}

    def sample_grid(self, batch: Batch, samples: dict[str, PyTree]) -> Grid:
        """Returns samples beside an image of the same label; without labels they have nothing to do with the images."""
        columns = {}
        if self.labels:
            columns["label"] = np.asarray(batch.x).argmax(-1).astype(str)
            if batch.y is not None:
                columns["truth"] = np.asarray(batch.y)
        for drawn in samples.values():
            for number, image in enumerate(drawn, 1):
                columns[f"sample {number}" if len(drawn) > 1 else "prediction"] = np.asarray(image)
        return Grid(columns)

    def figures(self, fitted: Fitted, batch: Batch, key: Array) -> dict[str, Grid | Plot]:
        """Returns analogies and samples of labels; of the plain VAE reconstructions, and the manifold of a z of two."""
        settings = self.config.cvae
        grids: dict[str, Grid | Plot] = {}
        if self.labels:
            grids["analogies"] = analogies(fitted, batch, key, self.num_classes, settings.prior == "fixed")
            grids["labels"] = samples_of(fitted, self.from_user(np.arange(self.num_classes)), key)
        elif fitted.has_recognition:
            grids["reconstructions"] = reconstructions(fitted, batch, key)
        if settings.latent == 2 and not self.labels:
            grids["manifold"] = manifold(fitted, self.from_user(None, np.zeros((MANIFOLD_SIDE**2, *self.shape))))
        return grids


TASK = FromLabel
