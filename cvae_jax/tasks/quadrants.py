"""Completing digits: some quadrants of an image are x, the others y (Sohn, Lee and Yan 2015, section 5.1)."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from cvae_jax import objectives
from cvae_jax.distributions import Bernoulli, Latent, bounded_normal, draw_latent, sum_per_example
from cvae_jax.errors import UserError
from cvae_jax.inference import predict
from cvae_jax.keys import per_example
from cvae_jax.model import Batch, Draw, Model, Proposal, Stage, Task, Train, Variables
from cvae_jax.networks.mlp import MLP, GaussianMLP
from cvae_jax.networks.residual import SMALL_INIT, ResidualBlock, ResidualMLP

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


class PlainCVAE(nn.Module):
    """The networks of Sohn et al. as in Pyro's tutorial: one z, and the generation network sees nothing else."""

    pixels: int
    hidden: Sequence[int]
    latent: int

    def setup(self) -> None:
        self.prior_net = GaussianMLP(self.hidden, self.latent)
        self.recognition_net = GaussianMLP(self.hidden, self.latent)
        self.generation_net = MLP(self.hidden, self.pixels)

    def encode(self, batch: Batch, guess: Array) -> dict[str, Any]:
        """p(z|x) from the image completed with the baseline's guess, q(z|x,y) from the whole image."""
        prior = self.prior_net(complete(batch.x, batch.weight, guess))
        if batch.y is None:
            return {"prior": prior, "posterior": None}
        return {"prior": prior, "posterior": self.recognition_net(complete(batch.x, batch.weight, batch.y))}

    def decode(
        self, encoding: dict[str, Any], keys: Array, proposal: Proposal, z: tuple[Array] | None
    ) -> tuple[tuple[Latent], Array]:
        """The stochastic unit, and the logits of p(y|x,z), [batch, pixels]."""
        given = None if z is None else z[0]
        unit = draw_latent(encoding["prior"], encoding["posterior"], keys, proposal, given)
        return (unit,), self.generation_net(unit.z)


class ResidualCVAE(nn.Module):
    """A stronger CVAE: p(z1|x) p(z2|x,z1), residual networks, x seen by all of them and the baseline by none.

    Each q is given by what y changes about its p (means and log standard deviations are sums), so it begins at
    the prior. Two units: half of `latent` each.
    """

    pixels: int
    width: int
    latent: int

    def setup(self) -> None:
        dense, outputs = nn.Dense, self.latent  # mean and log scale of latent/2 units
        self.x_net = ResidualMLP(self.width)
        self.y_net = ResidualMLP(self.width)
        self.prior_net = [dense(outputs, kernel_init=SMALL_INIT) for _ in range(2)]
        self.recognition_features = [dense(self.width) for _ in range(2)]
        self.recognition_state = dense(self.width, use_bias=False)
        self.recognition_net = [dense(outputs, kernel_init=SMALL_INIT) for _ in range(2)]
        self.generation_x = dense(self.width)
        self.generation_z = [dense(self.width, use_bias=False) for _ in range(2)]
        self.generation_norm = [nn.LayerNorm() for _ in range(2)]
        self.generation_block = ResidualBlock()
        self.generation_out = dense(self.pixels, kernel_init=SMALL_INIT)

    def encode(self, batch: Batch, guess: Array) -> dict[str, Any]:
        """p(z1|x), what the generation network makes of x, and what the recognition networks make of y."""
        x = self.x_net(2 * batch.x.reshape(len(batch.x), -1) - 1)
        encoding = {"prior": self.prior_net[0](x), "x": self.generation_x(x), "change": None, "seen": None}
        if batch.y is not None:
            y = self.y_net(2 * complete(batch.x, batch.weight, batch.y) - 1)
            both = nn.gelu(self.recognition_features[0](jnp.concatenate([y, x], -1)))
            encoding |= {"change": self.recognition_net[0](both), "seen": self.recognition_features[1](y)}
        return encoding

    def decode(
        self, encoding: dict[str, Any], keys: Array, proposal: Proposal, z: tuple[Array, Array] | None
    ) -> tuple[tuple[Latent, Latent], Array]:
        """Both stochastic units, and the logits of p(y|x,z), [batch, pixels]."""
        given = (None, None) if z is None else z
        first_keys, second_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
        first = self._unit(encoding["prior"], encoding["change"], first_keys, proposal, given[0])
        state = encoding["x"] + self.generation_z[0](first.z)
        features = nn.gelu(self.generation_norm[0](state))
        change = None
        if encoding["seen"] is not None:
            change = self.recognition_net[1](nn.gelu(encoding["seen"] + self.recognition_state(features)))
        second = self._unit(self.prior_net[1](features), change, second_keys, proposal, given[1])
        state = self.generation_block(state + self.generation_z[1](second.z))
        return (first, second), self.generation_out(nn.gelu(self.generation_norm[1](state)))

    def _unit(self, prior: Array, change: Array | None, keys: Array, proposal: Proposal, z: Array | None) -> Latent:
        """A stochastic unit whose posterior is the prior with its parameters changed."""
        posterior = None if change is None else bounded_normal(*jnp.split(prior + change, 2, -1))
        return draw_latent(bounded_normal(*jnp.split(prior, 2, -1)), posterior, keys, proposal, z)


def make_cvae(networks: nn.Module, baseline: Model) -> Model:
    """A conditional VAE of `encode` and `decode` as above, with the frozen baseline's guess handed to `encode`."""

    def touch_all(module: Any, batch: Batch) -> Any:
        return module.decode(module.encode(batch, batch.x), per_example(jax.random.key(0), batch.index), "prior", None)

    def init(key: Array, batch: Batch) -> Variables:
        return {"params": networks.init(key, batch, method=touch_all)["params"]}

    def encode(variables: Variables, batch: Batch, train: Train | None = None) -> dict[str, Any]:
        guess = predict(baseline, variables["frozen"]["baseline"], batch)
        encoding: Any = networks.apply({"params": variables["params"]}, batch, guess, method="encode")
        return {"networks": encoding, "y": batch.y, "weight": batch.weight}

    def draw(
        variables: Variables,
        encoding: dict[str, Any],
        keys: Array,
        proposal: Proposal,
        z: Any = None,
        train: Train | None = None,
    ) -> Draw:
        params = {"params": variables["params"]}
        result: Any = networks.apply(params, encoding["networks"], keys, proposal, z, method="decode")
        units, logits = result
        p_y = Bernoulli(logits.reshape(encoding["weight"].shape))
        log_p_y = log_likelihood(p_y, encoding["y"], encoding["weight"])
        log_p_z, log_q_z = sum(unit.log_p_z for unit in units), sum(unit.log_q_z for unit in units)
        return Draw(tuple(u.z for u in units), log_p_y, log_p_z, log_q_z, tuple(u.kl for u in units), p_y)

    return Model(init, encode, draw)


def _stage(name: str, model: Model, settings: Any) -> Stage:
    return Stage(name, model, objectives.from_config(settings.objective, f"{name}.objective"), settings)


def make_task(config: Any) -> Task:
    """The task that configs/mnist_quadrants.py and configs/digits_quadrants.py describe."""
    shape = tuple(config.image_shape)
    if len(shape) != 2 or not all(isinstance(side, int) and side >= 2 for side in shape):
        raise UserError(f"image_shape={shape} must be a height and a width of at least 2")
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
            if image is None and name == "y":
                continue
            try:
                images[name] = jnp.asarray(image, jnp.float32)
            except (TypeError, ValueError):
                raise UserError(f"{name} is no array of numbers, but {type(image).__name__}") from None
            if images[name].ndim != 3 or images[name].shape[1:] != shape:
                raise UserError(f"{name} has shape {images[name].shape}, expected [batch, {shape[0]}, {shape[1]}]")
            if not bool(((images[name] >= 0) & (images[name] <= 1)).all()):
                raise UserError(f"{name} has values outside [0, 1] or NaN; scale grey values by 1/255")
            if config.targets == "threshold":
                images[name] = (images[name] > 0.5).astype(jnp.float32)
            elif config.targets == "dynamic" and not bool(((images[name] == 0) | (images[name] == 1)).all()):
                raise UserError(f"{name} has grey values, but the model was trained on binary ones; binarise it")
        count = len(images["x"])
        if count == 0:
            raise UserError("x holds no image")
        if y is not None and len(images["y"]) != count:
            raise UserError(f"x has {count} images but y has {len(images['y'])}")
        return observe(images["x"], images.get("y"), jnp.arange(count), jnp.ones(count))

    def panels(batch: Batch, samples: dict[str, Array]) -> dict[str, np.ndarray]:
        """Columns of the seed's figure: input, truth, the baseline's guess, samples of the CVAE."""
        hidden = np.where(np.asarray(batch.weight) > 0, np.nan, 1.0)
        columns = {"input": np.asarray(batch.x) * hidden}
        if batch.y is not None:
            columns["truth"] = np.asarray(batch.y)
        for stage, images in samples.items():
            completed = np.asarray(batch.x) + np.asarray(batch.weight) * np.asarray(images)
            many = len(completed) > 1
            for number, image in enumerate(completed, 1):
                columns[f"sample {number}" if many else stage] = image
        return columns

    baseline = make_baseline(shape, config.baseline.hidden)
    pixels = shape[0] * shape[1]
    if config.cvae.network == "plain":
        networks: nn.Module = PlainCVAE(pixels, config.cvae.hidden, config.cvae.latent)
    elif config.cvae.network == "residual":
        if len(config.cvae.hidden) != 1 or config.cvae.latent % 2:
            raise UserError("cvae.network=residual takes one width in cvae.hidden and an even cvae.latent")
        networks = ResidualCVAE(pixels, config.cvae.hidden[0], config.cvae.latent)
    else:
        raise UserError(f"cvae.network={config.cvae.network!r} is not known; choose plain or residual")
    cvae = make_cvae(networks, baseline)
    return Task(
        column=f"{config.quadrants} quadrant{'s' * (config.quadrants > 1)}",
        protocol=f"{config.targets} targets",
        raw={"image": jax.ShapeDtypeStruct(shape, np.uint8)},
        batch=batch,
        observe=own,
        stages=(
            _stage("baseline", baseline, config.baseline),
            _stage("cvae", cvae, config.cvae),
        ),
        panels=panels,
    )
