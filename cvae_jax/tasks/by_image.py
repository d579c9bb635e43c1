"""Something about an image given an image: its ambiguous label, the clean image, or one of four times the resolution.

A convolutional layer reads x before it meets y or z, for the recognition, prior and generation networks.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy import special

from cvae_jax import objectives
from cvae_jax.data import images
from cvae_jax.distributions import Bernoulli, Categorical
from cvae_jax.errors import UserError
from cvae_jax.inference import draws as inference
from cvae_jax.model import Batch, Draw, How, Measures, Model, Task, Variables
from cvae_jax.networks.conv import Conv
from cvae_jax.networks.cvae import make_model, one_unit

FACTOR = 4  # of super-resolution, in each direction
OUTPUTS = ("label", "denoise", "superres")


class ConvReader(nn.Module):
    """One convolutional layer, 3x3 with stride 2, laid flat: [batch, height, width] -> [batch, features]."""

    channels: int

    @nn.compact
    def __call__(self, image: Array) -> Array:
        return nn.relu(Conv(self.channels, (3, 3), strides=2)(image[..., None])).reshape(len(image), -1)


def ambiguous(label: Array, keys: Array, num_classes: int) -> Array:
    """A label d made ambiguous: d or (d + 1) mod num_classes, with probability 1/2 each; int32 [batch]."""
    return (label + jax.vmap(jax.random.bernoulli)(keys).astype(jnp.int32)) % num_classes


def shrink(image: Array) -> Array:
    """The mean of every block of FACTOR x FACTOR pixels: [batch, height, width] -> a FACTOR smaller."""
    count, height, width = image.shape
    return image.reshape(count, height // FACTOR, FACTOR, width // FACTOR, FACTOR).mean((2, 4))


def entropy(p: np.ndarray) -> np.ndarray:
    """Entropy of probabilities [batch, classes], nats."""
    return special.entr(p).sum(-1)


def _probabilities(draw: Draw) -> Array:
    return draw.p_y.mean


def predictive(model: Model, variables: Variables, batch: Batch, how: How, key: Array, num_samples: int) -> np.ndarray:
    """p(y|x) of a categorical y, the mean of p(y|x,z) over draws of z given x: float64 [batch, classes]."""
    count = 1 if how.exact else num_samples
    drawn = inference.scores(model, variables, batch, how.predicts_from, _probabilities, count, key)
    return drawn.mean(0, dtype=np.float64)


def make_task(config: Any) -> Task:
    """The task that configs/mnist_image.py describes."""
    shape = images.check_settings(config)
    if config.output not in OUTPUTS:
        raise UserError(f"output={config.output!r} is not known; choose from {', '.join(OUTPUTS)}")
    labels = config.output == "label"
    if labels != ("num_classes" in config) or (config.output == "denoise") != ("noise" in config):
        raise UserError(f"output={config.output} needs a config of its own; take configs/mnist_image.py or its variant")
    num_classes = config.num_classes if labels else 0
    if config.output == "denoise" and not 0 <= config.noise < math.inf:
        raise UserError(f"noise={config.noise} must be at least 0")
    if config.cvae.channels < 1:
        raise UserError(f"cvae.channels={config.cvae.channels} must be at least 1")
    if config.output == "superres" and any(side % FACTOR or side < 2 * FACTOR for side in shape):
        raise UserError(f"image_shape={shape} must be multiples of {FACTOR}, of at least {2 * FACTOR}, for superres")
    x_shape = (shape[0] // FACTOR, shape[1] // FACTOR) if config.output == "superres" else shape

    def batch(raw: dict[str, Array], index: Array, valid: Array, keys: Array, train: bool) -> Batch:
        y_keys, x_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
        image = images.targets(raw["image"], config.targets, y_keys)
        if labels:
            return Batch(image, ambiguous(raw["label"], x_keys, num_classes), None, index, valid)
        if config.output == "superres":
            return Batch(shrink(image), image, None, index, valid)
        noise = jax.vmap(lambda key: jax.random.normal(key, shape))(x_keys)
        return Batch(image + config.noise * noise, image, None, index, valid)

    def observe(x: Any, y: Any = None) -> Batch:
        """Batch of a user's own x [batch, height, width], and of its labels [batch] or images, or None."""
        x = images.own("x", x, x_shape, config.targets if labels else "grey", bounded=config.output != "denoise")
        if y is not None:
            y = images.own_labels("y", y, num_classes) if labels else images.own("y", y, shape, config.targets)
            if len(y) != len(x):
                raise UserError(f"x has {len(x)} images but y has {len(y)} {'labels' if labels else 'images'}")
        return Batch(x, y, None, jnp.arange(len(x)), jnp.ones(len(x)))

    def check(arrays: dict[str, np.ndarray]) -> None:
        if labels:
            images.check_labels(arrays["label"], num_classes)

    def look(batch: Batch, frozen: Variables | None) -> tuple[Array, Array | None]:
        if batch.y is None:
            return batch.x, None
        return batch.x, jax.nn.one_hot(batch.y, num_classes) if labels else batch.y.reshape(len(batch.y), -1)

    entropy_of_labels = f"entropy of sampled labels, nats ({config.measure_samples:,} draws of z)" if labels else ""

    def measure(model: Model, variables: Variables, batch: Batch, how: How, key: Array) -> dict[str, np.ndarray]:
        return {entropy_of_labels: entropy(predictive(model, variables, batch, how, key, config.measure_samples))}

    def panels(batch: Batch, samples: dict[str, Array]) -> dict[str, np.ndarray]:
        """The input, the truth, and samples: of labels the two most probable ones given each z."""
        columns = {"input": np.clip(batch.x, 0, 1)}
        if batch.y is not None:
            columns["drawn y" if labels else "truth"] = (
                np.asarray(batch.y).astype(str) if labels else np.asarray(batch.y)
            )
        for drawn in samples.values():
            for number, values in enumerate(np.asarray(drawn), 1):
                if labels:
                    values = np.array(["\n".join(f"{y}: {p[y]:.2f}" for y in np.argsort(-p)[:2]) for p in values])
                heading = f"given z {number}" if labels else f"sample {number}"
                columns[heading if len(drawn) > 1 else "prediction"] = values
        return columns

    outputs = num_classes if labels else math.prod(shape)
    model = make_model(
        one_unit(
            config.cvae, outputs, config.cvae.prior, lambda: ConvReader(config.cvae.channels), config.cvae.tie_weights
        ),
        look,
        Categorical if labels else lambda logits: Bernoulli(logits.reshape(-1, *shape)),
    )
    raw = {"image": jax.ShapeDtypeStruct(shape, np.uint8)}
    if labels:
        raw["label"] = jax.ShapeDtypeStruct((), np.int32)
    column = "ambiguous label"
    if config.output == "denoise":
        column = f"clean image, noise {config.noise:g}"
    elif config.output == "superres":
        column = f"image of {FACTOR}x the resolution"
    return Task(
        column=column,
        protocol="d or d + 1 by a coin" if labels else f"{config.targets} targets",
        raw=raw,
        batch=batch,
        observe=observe,
        stages=(objectives.stage("cvae", model, config.cvae),),
        panels=panels,
        measures=Measures(measure, {entropy_of_labels: math.log(2)}) if labels else None,
        check=check,
    )
