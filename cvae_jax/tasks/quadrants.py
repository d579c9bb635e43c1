"""Completing digits: some quadrants of an image are x, the others y (Sohn, Lee and Yan 2015, section 5.1)."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from cvae_jax import objectives
from cvae_jax.data import images
from cvae_jax.distributions import Bernoulli, Latent, draw_latent, log_likelihood
from cvae_jax.errors import UserError
from cvae_jax.inference.draws import predict
from cvae_jax.model import Batch, Draw, Model, Proposal, Task, Train, Variables
from cvae_jax.networks.cvae import check_widths, make_model, two_units
from cvae_jax.networks.mlp import MLP, GaussianMLP


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
    """The networks of Sohn et al. as in Pyro's tutorial: one z, and the generation network sees nothing else.

    The prior network sees the image completed with the baseline's guess, the recognition network the whole image.
    """

    pixels: int
    hidden: Sequence[int]
    latent: int

    def setup(self) -> None:
        self.prior_net = GaussianMLP(self.hidden, self.latent)
        self.recognition_net = GaussianMLP(self.hidden, self.latent)
        self.generation_net = MLP(self.hidden, self.pixels)

    def encode(self, guessed: Array, whole: Array | None) -> dict[str, Any]:
        """p(z|x) and q(z|x,y) of images [batch, pixels]."""
        return {
            "prior": self.prior_net(guessed),
            "posterior": None if whole is None else self.recognition_net(whole),
        }

    def decode(
        self, encoding: dict[str, Any], keys: Array, proposal: Proposal, z: tuple[Array] | None
    ) -> tuple[tuple[Latent], Array]:
        """The stochastic unit, and the logits of p(y|x,z), [batch, pixels]."""
        given = None if z is None else z[0]
        unit = draw_latent(encoding["prior"], encoding["posterior"], keys, proposal, given)
        return (unit,), self.generation_net(unit.z)


def make_task(config: Any) -> Task:
    """The task that configs/mnist_quadrants.py and configs/digits_quadrants.py describe."""
    shape = images.check_settings(config)
    observed = observed_quadrants(config.quadrants, shape)

    def observe(image: Array, y: Array | None, index: Array, valid: Array) -> Batch:
        mask = jnp.broadcast_to(jnp.asarray(observed), image.shape)
        return Batch(image * mask, y, 1 - mask, index, valid)

    def batch(raw: dict[str, Array], index: Array, valid: Array, keys: Array, train: bool) -> Batch:
        image = images.targets(raw["image"], config.targets, keys)
        return observe(image, image, index, valid)

    def own(x: Any, y: Any = None) -> Batch:
        """Batch of a user's images [batch, height, width] in [0, 1]; of x only the observed quadrants are read."""
        x = images.own("x", x, shape, config.targets)
        if y is not None:
            y = images.own("y", y, shape, config.targets)
            if len(y) != len(x):
                raise UserError(f"x has {len(x)} images but y has {len(y)}")
        return observe(x, y, jnp.arange(len(x)), jnp.ones(len(x)))

    def panels(batch: Batch, samples: dict[str, Array]) -> dict[str, np.ndarray]:
        """Columns of the seed's figure: input, truth, the baseline's guess, samples of the CVAE."""
        hidden = np.where(np.asarray(batch.weight) > 0, np.nan, 1.0)
        columns = {"input": np.asarray(batch.x) * hidden}
        if batch.y is not None:
            columns["truth"] = np.asarray(batch.y)
        for stage, drawn in samples.items():
            completed = np.asarray(batch.x) + np.asarray(batch.weight) * np.asarray(drawn)
            many = len(completed) > 1
            for number, image in enumerate(completed, 1):
                columns[f"sample {number}" if many else stage] = image
        return columns

    def look(batch: Batch, frozen: Variables | None) -> tuple[Array, Array | None]:
        """Flat images: the plain prior network sees the baseline's guess beside x, the residual networks x alone."""
        whole = None if batch.y is None else complete(batch.x, batch.weight, batch.y)
        if config.cvae.network == "residual":
            return 2 * batch.x.reshape(len(batch.x), -1) - 1, None if whole is None else 2 * whole - 1
        guess = batch.x if frozen is None else predict(baseline, frozen["baseline"], batch)
        return complete(batch.x, batch.weight, guess), whole

    check_widths("cvae", config.cvae)
    check_widths("baseline", config.baseline)
    baseline = make_baseline(shape, config.baseline.hidden)
    pixels = shape[0] * shape[1]
    if config.cvae.network == "plain":
        networks: nn.Module = PlainCVAE(pixels, config.cvae.hidden, config.cvae.latent)
    elif config.cvae.network == "residual":
        networks = two_units(config.cvae, pixels)
    else:
        raise UserError(f"cvae.network={config.cvae.network!r} is not known; choose plain or residual")
    cvae = make_model(networks, look, lambda logits: Bernoulli(logits.reshape(-1, *shape)))
    return Task(
        column=f"{config.quadrants} quadrant{'s' * (config.quadrants > 1)}",
        protocol=f"{config.targets} targets",
        raw={"image": jax.ShapeDtypeStruct(shape, np.uint8)},
        batch=batch,
        observe=own,
        stages=(
            objectives.stage("baseline", baseline, config.baseline),
            objectives.stage("cvae", cvae, config.cvae),
        ),
        panels=panels,
    )
