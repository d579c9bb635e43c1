"""Completing digits: some quadrants of an image are x, the others y (Sohn, Lee and Yan 2015, section 5.1)."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from cvae_jax import objectives
from cvae_jax.distributions import Bernoulli, Normal, draw_latent, sum_per_example
from cvae_jax.errors import UserError
from cvae_jax.inference import predict
from cvae_jax.model import Batch, Draw, Model, Proposal, Stage, Task, Train, Variables
from cvae_jax.networks.mlp import MLP, GaussianMLP

TARGETS = ("grey", "threshold", "dynamic")


def observed_quadrants(num_quadrants: int, shape: tuple[int, int]) -> np.ndarray:
    """Float mask [height, width] of the pixels that x shows: bottom left, the left half, or all but bottom right."""
    height, width = shape
    mask = np.zeros(shape, np.float32)
    if num_quadrants == 1:
        mask[height // 2 :, : width // 2] = 1
    elif num_quadrants == 2:
        mask[:, : width // 2] = 1
    elif num_quadrants == 3:
        mask[:] = 1
        mask[height // 2 :, width // 2 :] = 0
    else:
        raise UserError(f"quadrants={num_quadrants} must be 1, 2 or 3 of the four; write config.py:1, :2 or :3")
    return mask


def complete(x: Array, weight: Array, y: Array) -> Array:
    """The image that is x where it was observed and y elsewhere, flat: [batch, pixels]."""
    image = x + weight * y
    return image.reshape(len(image), -1)


def log_likelihood(p_y: Bernoulli, y: Array | None, weight: Array) -> Array | None:
    """log p(y|x,z) [batch] of the pixels that were not observed."""
    return None if y is None else sum_per_example(weight * p_y.log_prob(y))


def make_baseline(shape: tuple[int, int], hidden: Sequence[int]) -> Model:
    """The deterministic network: p(y|x) as independent pixels, no z."""
    network = MLP(hidden, shape[0] * shape[1])

    def init(key: Array, batch: Batch) -> Variables:
        return {"params": network.init(key, batch.x.reshape(len(batch.x), -1))["params"]}

    def encode(variables: Variables, batch: Batch, train: Train | None = None) -> Draw:
        logits: Any = network.apply({"params": variables["params"]}, batch.x.reshape(len(batch.x), -1))
        p_y = Bernoulli(logits.reshape(batch.x.shape))
        nothing = jnp.zeros(len(batch.x))
        return Draw((), log_likelihood(p_y, batch.y, batch.weight), nothing, nothing, (), p_y)

    def draw(variables, encoding, keys, proposal, z=None, train=None) -> Draw:
        return encoding

    return Model(init, encode, draw)


class CVAENetworks(nn.Module):
    """The three networks of the CVAE; the generation network sees only z."""

    pixels: int
    hidden: Sequence[int]
    latent: int

    def setup(self) -> None:  # noqa: D102
        self.prior_net = GaussianMLP(self.hidden, self.latent)
        self.recognition_net = GaussianMLP(self.hidden, self.latent)
        self.generation_net = MLP(self.hidden, self.pixels)

    def __call__(self, image: Array) -> Array:
        """Touches every network, so that init creates all parameters."""
        return self.generation_net(self.prior_net(image).mean + self.recognition_net(image).mean)

    def prior(self, image: Array) -> Normal:
        """p(z|x) from the image completed with the baseline's guess, [batch, pixels]."""
        return self.prior_net(image)

    def recognition(self, image: Array) -> Normal:
        """q(z|x,y) from the whole image, [batch, pixels]."""
        return self.recognition_net(image)

    def generation(self, z: Array) -> Array:
        """Logits of p(y|x,z), [batch, pixels]."""
        return self.generation_net(z)


def make_cvae(shape: tuple[int, int], hidden: Sequence[int], latent: int, baseline: Model) -> Model:
    """The conditional VAE whose prior network sees the frozen baseline's guess."""
    networks = CVAENetworks(shape[0] * shape[1], hidden, latent)

    def apply(variables: Variables, method: str, inputs: Array) -> Any:
        return networks.apply({"params": variables["params"]}, inputs, method=method)

    def init(key: Array, batch: Batch) -> Variables:
        return {"params": networks.init(key, batch.x.reshape(len(batch.x), -1))["params"]}

    def encode(variables: Variables, batch: Batch, train: Train | None = None) -> dict[str, Any]:
        guess = predict(baseline, variables["frozen"]["baseline"], batch)
        prior = apply(variables, "prior", complete(batch.x, batch.weight, guess))
        posterior = None
        if batch.y is not None:
            posterior = apply(variables, "recognition", complete(batch.x, batch.weight, batch.y))
        return {"prior": prior, "posterior": posterior, "y": batch.y, "weight": batch.weight}

    def draw(
        variables: Variables,
        encoding: dict[str, Any],
        keys: Array,
        proposal: Proposal,
        z: Array | None = None,
        train: Train | None = None,
    ) -> Draw:
        latent = draw_latent(encoding["prior"], encoding["posterior"], keys, proposal, z)
        weight = encoding["weight"]
        p_y = Bernoulli(apply(variables, "generation", latent.z).reshape(weight.shape))
        log_p_y = log_likelihood(p_y, encoding["y"], weight)
        return Draw(latent.z, log_p_y, latent.log_p_z, latent.log_q_z, latent.kl, p_y)

    return Model(init, encode, draw)


def make_task(config: Any) -> Task:
    """The task that configs/mnist_quadrants.py and configs/digits_quadrants.py describe."""
    shape = tuple(config.image_shape)
    observed = observed_quadrants(config.quadrants, shape)
    for name, widths in (
        ("baseline.hidden", config.baseline.hidden),
        ("cvae.hidden", config.cvae.hidden),
        ("cvae.latent", [config.cvae.latent]),
    ):
        if not all(isinstance(width, int) and width > 0 for width in widths):
            raise UserError(f"{name}={widths} must be whole numbers of at least 1")
    if config.targets not in TARGETS:
        raise UserError(f"targets={config.targets!r} is not known; choose from {', '.join(TARGETS)}")

    def observe(image: Array, y: Array | None, index: Array, valid: Array) -> Batch:
        mask = jnp.broadcast_to(jnp.asarray(observed), image.shape)
        return Batch(image * mask, y, 1 - mask, index, valid)

    def batch(raw: dict[str, Array], index: Array, valid: Array, keys: Array, train: bool) -> Batch:
        image = raw["image"].astype(jnp.float32) / 255
        if config.targets == "threshold":
            image = (image > 0.5).astype(jnp.float32)
        elif config.targets == "dynamic":
            image = jax.vmap(jax.random.bernoulli)(keys, image).astype(jnp.float32)
        return observe(image, image, index, valid)

    def own(x: Any, y: Any = None) -> Batch:
        """Batch of a user's images [batch, height, width] in [0, 1]; of x only the observed quadrants are read."""
        images = {}
        for name, image in (("x", x), ("y", y)):
            if image is None:
                continue
            images[name] = jnp.asarray(image, jnp.float32)
            if images[name].ndim != 3 or images[name].shape[1:] != shape:
                raise UserError(f"{name} has shape {images[name].shape}, expected [batch, {shape[0]}, {shape[1]}]")
            if not bool(((images[name] >= 0) & (images[name] <= 1)).all()):
                raise UserError(f"{name} has values outside [0, 1] or NaN; scale grey values by 1/255")
        count = len(images["x"])
        return observe(images["x"], images.get("y"), jnp.arange(count), jnp.ones(count))

    def panels(batch: Batch, samples: dict[str, Array]) -> dict[str, np.ndarray]:
        """Columns of the seed's figure: input, truth, the baseline's guess, samples of the CVAE."""
        hidden = np.where(np.asarray(batch.weight) > 0, np.nan, 1.0)
        columns = {"input": np.asarray(batch.x) * hidden}
        if batch.y is not None:
            columns["truth"] = np.asarray(batch.y)
        for stage, images in samples.items():
            completed = np.asarray(batch.x + batch.weight * images)
            many = len(completed) > 1
            for number, image in enumerate(completed, 1):
                columns[f"sample {number}" if many else stage] = image
        return columns

    baseline = make_baseline(shape, config.baseline.hidden)
    cvae = make_cvae(shape, config.cvae.hidden, config.cvae.latent, baseline)
    return Task(
        column=f"{config.quadrants} quadrant{'s' * (config.quadrants > 1)}",
        protocol=f"{config.targets} targets",
        raw={"image": jax.ShapeDtypeStruct(shape, np.uint8)},
        batch=batch,
        observe=own,
        stages=(
            Stage("baseline", baseline, objectives.from_config(config.baseline.objective), config.baseline),
            Stage("cvae", cvae, objectives.from_config(config.cvae.objective), config.cvae),
        ),
        panels=panels,
    )
