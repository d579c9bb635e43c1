"""Completing digits: some quadrants of an image are x, the others y (Sohn, Lee and Yan 2015, section 5.1)."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from ml_collections import ConfigDict

from cvae_jax import inference, objectives
from cvae_jax.data import images
from cvae_jax.distributions import Bernoulli, Latent, draw_latent
from cvae_jax.errors import UserError
from cvae_jax.networks.cvae import TwoLayerControl, check_widths, two_layers
from cvae_jax.networks.flax_model import flax_model, given
from cvae_jax.networks.mlp import MLP, GaussianMLP
from cvae_jax.settings import Choice, check
from cvae_jax.task import Batch, Fitted, Grid, Model, Proposal, PyTree, Spec, Task, Train, Variables


def observed_quadrants(num_quadrants: int, shape: tuple[int, int]) -> np.ndarray:
    """Returns a float mask [height, width] of the pixels in x: bottom left, the left half, or all but bottom right."""
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


def merged(x: Array, weight: Array, y: Array) -> Array:
    """Returns the image that is x where it was observed and y elsewhere, flat: [batch, pixels]."""
    image = x + weight * y
    return image.reshape(len(image), -1)


def flat_x(batch: Batch, earlier: Variables) -> tuple[Array, Array | None]:
    """Returns what the baseline sees: x as [batch, pixels]."""
    return batch.x.reshape(len(batch.x), -1), None


class Baseline(MLP):
    """The deterministic network: p(y|x) as independent pixels, no z."""

    def encode(self, x: Array, y: Array | None, train: Train | None) -> Array:
        """Returns the logits of p(y|x), [batch, pixels]."""
        return self(x)

    def decode(
        self, encoding: Array, keys: Array, proposal: Proposal, z: PyTree, train: Train | None
    ) -> tuple[tuple[()], Array]:
        """Returns no latent layer, and the logits."""
        return (), encoding


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

    def encode(self, guessed: Array, whole: Array | None, train: Train | None) -> dict[str, PyTree]:
        """Returns p(z|x) and q(z|x,y) of images [batch, pixels]."""
        encoding = {"prior": self.prior_net(guessed), "posterior": None}
        return encoding if whole is None else self.recognise(encoding, whole)

    def recognise(self, encoding: dict[str, PyTree], whole: Array) -> dict[str, PyTree]:
        """Returns the encoding with q(z|x,y) of these images [batch, pixels]."""
        return {**encoding, "posterior": self.recognition_net(whole)}

    def decode(
        self,
        encoding: dict[str, PyTree],
        keys: Array,
        proposal: Proposal,
        z: tuple[Array] | None,
        train: Train | None,
    ) -> tuple[tuple[Latent], Array]:
        """Returns the latent layer, and the logits of p(y|x,z), [batch, pixels]."""
        layer = draw_latent(encoding["prior"], encoding["posterior"], keys, proposal, given(z))
        return (layer,), self.generation_net(layer.z)


def make_models(config: ConfigDict, shape: tuple[int, int]) -> dict[str, Model]:
    """Makes the baseline, the CVAE of the network that `config.cvae.network` names, and its control.

    The control is what is left of the CVAE without z: of the residual networks, those from x to p(y|x,z); of the plain
    ones the generation network, which then sees what the prior network does, the image completed by the baseline.

    Raises:
      UserError: for networks that cannot be.
    """
    pixels = shape[0] * shape[1]

    def likelihood(logits: Array) -> Bernoulli:
        return Bernoulli(logits.reshape(-1, *shape))

    check_widths("cvae", config.cvae)
    check_widths("baseline", config.baseline)
    baseline = flax_model(Baseline(config.baseline.hidden, pixels), likelihood, flat_x)
    check(config, {"cvae.network": Choice(("plain", "residual"))})

    def centred(batch: Batch, earlier: Variables) -> tuple[Array, Array | None]:
        """Returns flat images about 0: x alone, and the whole."""
        whole = None if batch.y is None else 2 * merged(batch.x, batch.weight, batch.y) - 1
        return 2 * batch.x.reshape(len(batch.x), -1) - 1, whole

    def completed(batch: Batch, earlier: Variables) -> tuple[Array, Array | None]:
        """Returns flat images: x completed with the baseline's guess, and the whole."""
        guess = inference.predict(Fitted(baseline, earlier["baseline"]), batch)
        whole = None if batch.y is None else merged(batch.x, batch.weight, batch.y)
        return merged(batch.x, batch.weight, guess), whole

    networks: nn.Module
    control: nn.Module
    if config.cvae.network == "residual":
        networks, inputs = two_layers(config.cvae, pixels), centred
        control = TwoLayerControl(networks.width, pixels)
    else:
        networks, inputs = PlainCVAE(pixels, config.cvae.hidden, config.cvae.latent), completed
        control = Baseline(config.cvae.hidden, pixels)
    return {
        "baseline": baseline,
        "control": flax_model(control, likelihood, inputs),
        "cvae": flax_model(networks, likelihood, inputs),
    }


class Quadrants(Task):
    """The task that configs/mnist_quadrants.py, glyphs_quadrants.py and digits_quadrants.py describe."""

    def __init__(self, config: ConfigDict, spec: Spec):
        self.shape, self.targets = images.check_settings(config), config.targets
        self.observed = observed_quadrants(config.quadrants, self.shape)
        models = make_models(config, self.shape)
        self.title = f"{config.quadrants} quadrant{'s' * (config.quadrants > 1)}"
        self.protocol = images.TARGETS[config.targets]
        self.raw = {"image": jax.ShapeDtypeStruct(self.shape, np.uint8)}
        stages = {name: objectives.stage(name, models[name], config[name]) for name in ("baseline", "cvae")}
        self.stages = stages["baseline"], stages["cvae"]
        if config.get("control", False):
            # Trained as the CVAE is, from random weights and without the figures of its epochs.
            settings = config.cvae.copy_and_resolve_references()
            settings.update(figure_every=0, start_from="")
            control = objectives.stage("control", models["control"], settings, shares="cvae")
            self.stages = stages["baseline"], control, stages["cvae"]

    def batch(self, raw: dict[str, Array], ids: Array, num_targets: Array, keys: Array, step: Array | None) -> Batch:
        """Returns images, of which x has the observed quadrants."""
        image = images.targets(raw["image"], self.targets, keys)
        return self._observe(image, image, ids, num_targets)

    def _observe(self, image: Array, y: Array | None, ids: Array, num_targets: Array) -> Batch:
        mask = jnp.broadcast_to(jnp.asarray(self.observed), image.shape)
        return Batch(image * mask, y, 1 - mask, ids, num_targets)

    def from_user(self, x: Any, y: Any = None) -> Batch:
        """Returns a batch of images [batch, height, width] in [0, 1]; of x only the observed quadrants are read."""
        x = images.as_images("x", x, self.shape, self.targets)
        if y is not None:
            y = images.as_images("y", y, self.shape, self.targets)
            if len(y) != len(x):
                raise UserError(f"x has {len(x)} images but y has {len(y)}")
        return self._observe(x, y, jnp.arange(len(x)), jnp.ones(len(x)))

    def sample_grid(self, batch: Batch, samples: dict[str, PyTree]) -> Grid:
        """Returns columns as in the paper's figure: input, truth, guesses without z, samples of the CVAE."""
        hidden = np.where(np.asarray(batch.weight) > 0, np.nan, 1.0)
        columns = {"input": np.asarray(batch.x) * hidden}
        if batch.y is not None:
            columns["truth"] = np.asarray(batch.y)
        for stage, drawn in samples.items():
            completed = np.asarray(batch.x) + np.asarray(batch.weight) * np.asarray(drawn)
            many = len(completed) > 1
            for number, image in enumerate(completed, 1):
                columns[f"sample {number}" if many else stage] = image
        return Grid(columns)


TASK = Quadrants
