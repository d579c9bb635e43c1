"""Images given their label, p(image | label), and images given nothing, the plain VAE (Kingma and Welling 2014)."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy import stats

from cvae_jax import images, inference, objectives
from cvae_jax.distributions import Bernoulli
from cvae_jax.errors import UserError
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
        @partial(jax.jit, static_argnums=1)
        def draw(batch: Batch, proposal: Proposal, keys: Array, z: Any = None) -> tuple[Any, Array]:
            """A z for every example, under keys that may be those of other examples, and the mean image it gives."""
            drawn = model.draw(variables, model.encode(variables, batch), keys, proposal, z)
            return drawn.z, drawn.p_y.mean

        found, keys, shown = {}, per_example(key, batch.index), np.asarray(batch.y)
        if labels:
            every = [under(batch, label, num_classes) for label in range(num_classes)]
            names = [str(label) for label in range(num_classes)]
            own_label = tuple(np.asarray(batch.x).argmax(-1).astype(str))
            if how.has_recognition and settings.prior == "fixed":
                z, _ = draw(batch, "recognition", keys)
                by_label = [np.asarray(draw(one, "given", keys, z)[1]) for one in every]
                columns = {"image": shown, **dict(zip(names, by_label, strict=True))}
                found["analogies"] = Columns(columns, own_label, "the style of an image under every label")
            else:
                # Under a learned prior the place of z tells the label too: what is the same for all is the noise.
                by_label = [np.asarray(draw(one, how.predicts_from, keys)[1]) for one in every]
                columns = dict(zip(names, by_label, strict=True))
                found["analogies"] = Columns(columns, title="the same noise in z under every label")
            of_each = observe(np.arange(num_classes))
            sample_keys = per_sample(per_example(key, of_each.index), jnp.arange(SAMPLES_SHOWN))
            drawn = inference.sample(model, variables, of_each, sample_keys, False, how.predicts_from)
            columns = {f"sample {number}": image for number, image in enumerate(np.asarray(drawn), 1)}
            found["labels"] = Columns(columns, tuple(names), "samples of every label")
        elif how.has_recognition:
            columns = {"image": shown}
            for number in range(SAMPLES_SHOWN):
                own_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, number)
                columns[f"draw {number + 1}"] = np.asarray(draw(batch, "recognition", own_keys)[1])
            found["reconstructions"] = Columns(columns, title="images, and ten draws of z given each")
        if settings.latent == 2 and not labels:
            # Quantiles of N(0, I), so that each image stands for as much of the prior.
            steps = stats.norm.ppf((np.arange(MANIFOLD_SIDE) + 0.5) / MANIFOLD_SIDE)
            z1, z2 = np.meshgrid(steps, -steps)
            z = jnp.asarray(np.stack([z1, z2], -1).reshape(-1, 2), jnp.float32)
            of_each = observe(None, np.zeros((len(z), *shape)))
            manifold = np.asarray(draw(of_each, "given", unused(of_each.index), (z,))[1])
            by_column = manifold.reshape(MANIFOLD_SIDE, MANIFOLD_SIDE, *shape).swapaxes(0, 1)
            columns = {f"{step:.2f}": images for step, images in zip(steps, by_column, strict=True)}
            rows = tuple(f"{-step:.2f}" for step in steps)
            found["manifold"] = Columns(columns, rows, "the image of every z, first unit across, second up")
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
