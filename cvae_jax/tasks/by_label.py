"""Images given their label, p(image | label), and images given nothing, the plain VAE (Kingma and Welling 2014)."""

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
from cvae_jax.networks.cvae import from_config, make_model

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
    num_classes = config.num_classes
    if num_classes != 0 and num_classes < 2:
        raise UserError(f"num_classes={num_classes} must be at least 2, or 0 for images given nothing")
    if num_classes and config.classify_samples < 1:
        raise UserError(f"classify_samples={config.classify_samples} must be at least 1")
    if num_classes == 0 and config.cvae.prior == "learned":
        raise UserError("cvae.prior=learned needs an x; with num_classes=0 there is none, so take fixed (and plain)")
    model = make_model(
        from_config(config.cvae, shape[0] * shape[1]),
        lambda batch, frozen: (batch.x, None if batch.y is None else flat(batch.y)),
        lambda logits: Bernoulli(logits.reshape(-1, *shape)),
    )

    def flat(image: Array) -> Array:
        pixels = image.reshape(len(image), -1)
        return 2 * pixels - 1 if config.cvae.network == "residual" else pixels

    def one_hot(label: Array) -> Array:
        return jax.nn.one_hot(label, num_classes)

    def batch(raw: dict[str, Array], index: Array, valid: Array, keys: Array, train: bool) -> Batch:
        x = one_hot(raw["label"]) if num_classes else jnp.zeros((len(index), 0))
        return Batch(x, images.targets(raw["image"], config.targets, keys), None, index, valid)

    def observe(x: Any = None, y: Any = None) -> Batch:
        """Batch of a user's labels [batch], and images [batch, height, width] in [0, 1] or None.

        Without labels x is None, and stands for as many images as y has, or one.
        """
        y = None if y is None else images.own("y", y, shape, config.targets)
        if num_classes:
            x = one_hot(images.own_labels("x", x, num_classes))
        elif x is not None:
            raise UserError("x must be None: this model is given nothing")
        else:
            x = jnp.zeros((1 if y is None else len(y), 0))
        if y is not None and len(y) != len(x):
            raise UserError(f"x has {len(x)} labels but y has {len(y)} images")
        return Batch(x, y, None, jnp.arange(len(x)), jnp.ones(len(x)))

    def check(arrays: dict[str, np.ndarray]) -> None:
        if num_classes:
            images.check_labels(arrays["label"], num_classes)

    def measure(model: Model, variables: Variables, batch: Batch, how: How, key: Array) -> dict[str, np.ndarray]:
        found = classify(model, variables, batch, how, key, num_classes, config.classify_samples)
        return {"accuracy by Bayes' rule": (found.argmax(0) == np.asarray(batch.x).argmax(-1)).astype(np.float64)}

    def panels(batch: Batch, samples: dict[str, Array]) -> dict[str, np.ndarray]:
        """Samples beside their label; without labels they have nothing to do with the images of the batch."""
        columns = {"label": np.asarray(batch.x).argmax(-1).astype(str)} if num_classes else {}
        for drawn in samples.values():
            columns |= {f"sample {number}": np.asarray(image) for number, image in enumerate(drawn, 1)}
        return columns

    def pictures(model: Model, variables: Variables, batch: Batch, how: How, key: Array) -> dict[str, Columns]:
        source: Proposal = "recognition" if how.has_recognition else how.predicts_from

        @jax.jit
        def styles(batch: Batch) -> Any:
            """A z for every example, from its image where there is a recognition network."""
            return model.draw(variables, model.encode(variables, batch), per_example(key, batch.index), source).z

        @jax.jit
        def decode(batch: Batch, z: Any) -> Array:
            encoding = model.encode(variables, batch._replace(y=None))
            return model.draw(variables, encoding, unused(batch.index), "given", z).p_y.mean

        found = {}
        z, shown = styles(batch), np.asarray(batch.y)
        if num_classes:
            by_label = {
                str(label): np.asarray(decode(under(batch, label, num_classes), z)) for label in range(num_classes)
            }
            found["analogies"] = Columns({"image": shown, **by_label}, title="the style of an image under every label")
            labels = observe(np.arange(num_classes))
            keys = per_sample(per_example(key, labels.index), jnp.arange(SAMPLES_SHOWN))
            drawn = np.asarray(inference.sample(model, variables, labels, keys, False, how.predicts_from))
            columns = {f"sample {number}": image for number, image in enumerate(drawn, 1)}
            found["digits"] = Columns(columns, tuple(map(str, range(num_classes))), "samples of every label")
        else:
            found["reconstructions"] = Columns(
                {"image": shown, "through z": np.asarray(decode(batch, z))}, title="images and what z keeps of them"
            )
        if config.cvae.latent == 2 and not num_classes:
            # Quantiles of N(0, I), so that each image stands for as much of the prior.
            steps = stats.norm.ppf((np.arange(MANIFOLD_SIDE) + 0.5) / MANIFOLD_SIDE)
            z1, z2 = np.meshgrid(steps, -steps)
            z = jnp.asarray(np.stack([z1, z2], -1).reshape(-1, 2), jnp.float32)
            manifold = np.asarray(decode(observe(None, np.zeros((len(z), *shape))), (z,)))
            by_column = manifold.reshape(MANIFOLD_SIDE, MANIFOLD_SIDE, *shape).swapaxes(0, 1)
            columns = {f"{step:.2f}": images for step, images in zip(steps, by_column, strict=True)}
            found["manifold"] = Columns(
                columns, tuple(f"{-step:.2f}" for step in steps), "the image of every z, first unit across, second up"
            )
        return found

    name = f"image given one of {num_classes} labels" if num_classes else "image"
    raw = {"image": jax.ShapeDtypeStruct(shape, np.uint8)}
    if num_classes:
        raw["label"] = jax.ShapeDtypeStruct((), np.int32)
    return Task(
        column=name,
        protocol=f"{config.targets} targets",
        raw=raw,
        batch=batch,
        observe=observe,
        stages=(objectives.stage("cvae", model, config.cvae),),
        panels=panels,
        measures=Measures(measure, {}) if num_classes else None,
        pictures=pictures,
        check=check,
    )
