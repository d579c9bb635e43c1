"""Predicts, from an image, its ambiguous label, its noise-free version, or a version at four times the resolution.

A convolutional layer reads x before it meets y or z, for the recognition, prior and generation networks.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from ml_collections import ConfigDict
from scipy import special

from cvae_jax import inference, objectives
from cvae_jax.data import images
from cvae_jax.distributions import Bernoulli, Categorical
from cvae_jax.errors import UserError
from cvae_jax.networks.conv import Conv
from cvae_jax.networks.cvae import one_layer
from cvae_jax.networks.flax_model import flax_model
from cvae_jax.settings import WIDTH, Choice, Real, Whole, check
from cvae_jax.task import Arrays, Batch, Draw, Fitted, Grid, Metric, PyTree, Spec, Task, Variables

FACTOR = 4  # of super-resolution, in each direction
OUTPUTS = ("label", "denoise", "superres")


class ConvEncoder(nn.Module):
    """One convolutional layer, 3x3 with stride 2, laid flat: [batch, height, width] -> [batch, features]."""

    channels: int

    @nn.compact
    def __call__(self, image: Array) -> Array:
        return nn.relu(Conv(self.channels, (3, 3), strides=2)(image[..., None])).reshape(len(image), -1)


def ambiguous(label: Array, keys: Array, num_classes: int) -> Array:
    """Returns d or (d + 1) mod num_classes for a label d, with probability 1/2 each; int32 [batch]."""
    return (label + jax.vmap(jax.random.bernoulli)(keys).astype(jnp.int32)) % num_classes


def shrink(image: Array) -> Array:
    """Returns the mean of every block of FACTOR x FACTOR pixels: [batch, height, width] -> a FACTOR smaller."""
    count, height, width = image.shape
    return image.reshape(count, height // FACTOR, FACTOR, width // FACTOR, FACTOR).mean((2, 4))


def entropy(p: np.ndarray) -> np.ndarray:
    """Returns the entropy of probabilities [batch, classes], nats."""
    return special.entr(p).sum(-1)


def _probabilities(draw: Draw) -> Array:
    return draw.p_y.mean


def predictive(fitted: Fitted, batch: Batch, key: Array, num_samples: int) -> np.ndarray:
    """Returns p(y|x) of a categorical y, the mean of p(y|x,z) over draws of z given x: float64 [batch, classes].

    Args:
      fitted: a model whose likelihood is categorical.
      batch: of examples.
      key: of the draws.
      num_samples: draws of z for every example; one is enough for an exact model.
    """
    count = 1 if fitted.exact else num_samples
    drawn = inference.scores(fitted, batch, fitted.predicts_from, _probabilities, count, key)
    return drawn.mean(0, dtype=np.float64)


def _check(config: ConfigDict, shape: tuple[int, int]) -> None:
    """Raises a UserError for the first setting that cannot be."""
    check(config, {"output": Choice(OUTPUTS)})
    if (config.output == "label") != ("num_classes" in config) or (config.output == "denoise") != ("noise" in config):
        raise UserError(f"output={config.output} needs a config of its own; take configs/mnist_image.py or its variant")
    check(config, {"cvae.channels": Whole(1, WIDTH), **({"noise": Real()} if config.output == "denoise" else {})})
    if config.output == "superres" and any(side % FACTOR or side < 2 * FACTOR for side in shape):
        raise UserError(f"image_shape={shape} must be multiples of {FACTOR}, of at least {2 * FACTOR}, for superres")


class FromImage(Task):
    """The task that configs/mnist_image.py describes."""

    def __init__(self, config: ConfigDict, spec: Spec):
        self.config, self.shape = config, images.check_settings(config)
        _check(config, self.shape)
        self.labels = config.output == "label"
        self.num_classes = config.num_classes if self.labels else 0
        self.title = {
            "label": "ambiguous label",
            "denoise": f"clean image, noise {config.get('noise', 0):g}",
            "superres": f"image of {FACTOR}x the resolution",
        }[config.output]
        self.protocol = "d or d + 1 by a coin" if self.labels else images.TARGETS[config.targets]
        self.raw = {"image": jax.ShapeDtypeStruct(self.shape, np.uint8)}
        if self.labels:
            self.raw["label"] = jax.ShapeDtypeStruct((), np.int32)
            images.warn_of_empty_classes(self.num_classes, spec)
        settings = config.cvae
        networks = one_layer(
            settings,
            self.num_classes if self.labels else math.prod(self.shape),
            settings.prior,
            lambda: ConvEncoder(settings.channels),
            settings.tie_weights,
        )
        model = flax_model(networks, self._likelihood, self._inputs)
        self.stages = (objectives.stage("cvae", model, settings),)

    def _likelihood(self, logits: Array) -> Categorical | Bernoulli:
        return Categorical(logits) if self.labels else Bernoulli(logits.reshape(-1, *self.shape))

    def _inputs(self, batch: Batch, earlier: Variables) -> tuple[Array, Array | None]:
        """Returns x, and y as features."""
        if batch.y is None:
            return batch.x, None
        return batch.x, jax.nn.one_hot(batch.y, self.num_classes) if self.labels else batch.y.reshape(len(batch.y), -1)

    def check(self, arrays: Arrays) -> None:
        """Raises a UserError for labels that the config does not count."""
        if self.labels:
            images.check_labels(arrays["label"], self.num_classes)

    def batch(self, raw: dict[str, Array], ids: Array, num_targets: Array, keys: Array, step: Array | None) -> Batch:
        """Returns images, and what is to be told of them."""
        y_keys, x_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
        image = images.targets(raw["image"], self.config.targets, y_keys)
        if self.labels:
            return Batch(image, ambiguous(raw["label"], x_keys, self.num_classes), None, ids, num_targets)
        if self.config.output == "superres":
            return Batch(shrink(image), image, None, ids, num_targets)
        noise = jax.vmap(lambda key: jax.random.normal(key, self.shape))(x_keys)
        return Batch(image + self.config.noise * noise, image, None, ids, num_targets)

    def from_user(self, x: Any, y: Any = None) -> Batch:
        """Returns a batch of x [batch, height, width], and of its labels [batch] or images, or None."""
        output, targets = self.config.output, self.config.targets
        side = FACTOR if output == "superres" else 1
        x_shape = (self.shape[0] // side, self.shape[1] // side)
        x = images.as_images("x", x, x_shape, targets if self.labels else "grey", bounded=output != "denoise")
        if y is not None and self.labels:
            y = images.as_labels("y", y, self.num_classes)
        elif y is not None:
            y = images.as_images("y", y, self.shape, targets)
        if y is not None and len(y) != len(x):
            raise UserError(f"x has {len(x)} images but y has {len(y)} {'labels' if self.labels else 'images'}")
        return Batch(x, y, None, jnp.arange(len(x)), jnp.ones(len(x)))

    def metrics(self, fitted: Fitted, batch: Batch, key: Array) -> dict[str, Metric]:
        """Returns the entropy of the labels that the model draws; an ambiguous label has that of a coin."""
        if not self.labels:
            return {}
        num_samples = self.config.measure_samples
        values = entropy(predictive(fitted, batch, key, num_samples))
        unit = f"nats ({num_samples:,} draws of z)"
        return {"entropy of sampled labels": Metric(values, unit, perfect=math.log(2))}

    def sample_grid(self, batch: Batch, samples: dict[str, PyTree]) -> Grid:
        """Returns the input, the truth, and samples; of labels the two most probable ones given each z."""
        columns = {"input": np.clip(batch.x, 0, 1)}
        if batch.y is not None:
            truth = np.asarray(batch.y)
            columns["drawn y" if self.labels else "truth"] = truth.astype(str) if self.labels else truth
        for drawn in samples.values():
            for number, values in enumerate(np.asarray(drawn), 1):
                if self.labels:
                    values = np.array(["\n".join(f"{y}: {p[y]:.2f}" for y in np.argsort(-p)[:2]) for p in values])
                heading = f"given z {number}" if self.labels else f"sample {number}"
                columns[heading if len(drawn) > 1 else "prediction"] = values
        return Grid(columns)


TASK = FromImage
