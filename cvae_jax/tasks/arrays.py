"""Any x and y: vectors or classes, with fully connected networks (configs/arrays.py).

x and y are standardised inside the model by the training split. With y = mean + scale * u, log p(y|x) is log p(u|x)
less the log of the scales, so that it is a density in the data's own units. That constant is kept out of the draws
(`Model.log_units`): in what units y comes changes the rounding of nothing.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from ml_collections import ConfigDict

from cvae_jax import objectives
from cvae_jax.data import images
from cvae_jax.distributions import Bernoulli, Categorical, Normal, bounded_normal
from cvae_jax.errors import UserError
from cvae_jax.networks.cvae import one_layer
from cvae_jax.networks.flax_model import flax_model
from cvae_jax.settings import Choice, check
from cvae_jax.task import Arrays, Batch, Grid, PyTree, Spec, Task, Variables

LIKELIHOODS = ("gaussian", "bernoulli", "categorical")
MOST_CLASSES = 100_000  # more are identifiers, which one-hot would fill the memory


class Features(NamedTuple):
    """How an array becomes numbers about 0 with a deviation of 1, or, where it holds classes, ones and zeros."""

    size: int  # of the features
    num_classes: int  # 0: the array holds numbers
    mean: np.ndarray  # float32 [size]; 0 for bytes and bools, which are as large as they are
    scale: np.ndarray  # float32 [size]

    def __call__(self, values: Array) -> Array:
        """Returns features [batch, size] of raw values [batch, ...]."""
        if self.num_classes:
            return jax.nn.one_hot(values, self.num_classes)
        flat = values.reshape(len(values), -1).astype(jnp.float32)
        return (flat - self.mean[None]) / self.scale[None]


def features_of(spec: Spec, name: str, classes: bool) -> Features:
    """Returns the features of an array, from what the training split says of it.

    Args:
      spec: of the data.
      name: of the array.
      classes: whether its whole numbers are classes.

    Raises:
      UserError: for an array that is not there, or classes that are not whole numbers from 0 on.
    """
    if name not in spec.raw:
        raise UserError(
            f"no array of numbers {name!r} among {', '.join(spec.raw)}; name those there are in config.x and config.y"
        )
    raw, size = spec.raw[name], spec.size(name)
    if classes and (raw.shape or name not in spec.num_classes):
        raise UserError(
            f"{name} is {raw.dtype}{list(raw.shape)} per example; classes are whole numbers [n] from 0 on: save it so, "
            "or set config.likelihood to gaussian, or to bernoulli for zeros and ones"
        )
    if classes and spec.num_classes[name] > MOST_CLASSES:
        raise UserError(
            f"{name} has {spec.num_classes[name]:,} classes, by its largest number; number them anew from 0, or set "
            "config.likelihood=gaussian"
        )
    if classes:
        return Features(spec.num_classes[name], spec.num_classes[name], np.zeros(1), np.ones(1))
    zero, largest = np.zeros(size, np.float32), 255.0 if raw.dtype == np.uint8 else 1.0
    mean = spec.mean.get(name, zero).reshape(-1).astype(np.float32)
    scale = spec.scale.get(name, zero + largest).reshape(-1).astype(np.float32)
    return Features(size, 0, mean, scale)


class Standardised(NamedTuple):
    """A distribution of y = shift + stretch * u. Its `log_prob` is that of u: `Model.log_units` has what is lacking."""

    standard: Normal  # of u, [batch, size]
    shift: Array  # [1, size]
    stretch: Array  # [1, size]

    @property
    def mean(self) -> Array:
        """The mean of y."""
        return self.shift + self.stretch * self.standard.mean

    def sample(self, keys: Array) -> Array:
        """Returns one y for every example; `keys` is [batch]."""
        return self.shift + self.stretch * self.standard.sample(keys)

    def log_prob(self, value: Array) -> Array:
        """Returns the log density of every element of u = (y - shift) / stretch, nats."""
        return self.standard.log_prob((value - self.shift) / self.stretch)


def _kind(config: ConfigDict, spec: Spec) -> str:
    """Returns the likelihood of y that the config names, or that follows from its dtype."""
    check(config, {"likelihood": Choice(("auto", *LIKELIHOODS))})
    if config.likelihood != "auto" or config.y not in spec.raw:
        return config.likelihood
    kind = spec.raw[config.y].dtype.kind
    return {"f": "gaussian", "b": "bernoulli"}.get(kind, "categorical")


class ArraysTask(Task):
    """The task that configs/arrays.py describes."""

    def __init__(self, config: ConfigDict, spec: Spec):
        self.names, self.kind = {"x": config.x, "y": config.y}, _kind(config, spec)
        whole = config.x in spec.num_classes and not spec.raw[config.x].shape
        self.x, self.y = features_of(spec, config.x, whole), features_of(spec, config.y, self.kind == "categorical")
        self.raw = {name: spec.raw[name] for name in self.names.values()}
        self.title, self.protocol = f"{config.y} given {config.x}", f"{self.kind} {config.y}"
        outputs = self.y.size * (2 if self.kind == "gaussian" else 1)
        networks = one_layer(config.cvae, outputs, config.cvae.prior)
        log_units = self._log_units if self.kind == "gaussian" else None
        model = flax_model(networks, self._likelihood, self._inputs, log_units=log_units)
        self.stages = (objectives.stage("cvae", model, config.cvae),)

    def _inputs(self, batch: Batch, earlier: Variables) -> tuple[Array, Array | None]:
        return self.x(batch.x), None if batch.y is None else self.y(batch.y)

    def _log_units(self, batch: Batch) -> Array:
        """Returns the log of du/dy, [batch]."""
        return jnp.full(len(batch.ids), -np.log(np.float64(self.y.scale)).sum(), jnp.float32)

    def _likelihood(self, outputs: Array) -> Standardised | Bernoulli | Categorical:
        if self.kind == "categorical":
            return Categorical(outputs)
        if self.kind == "bernoulli":
            return Bernoulli(outputs)
        standard = bounded_normal(*jnp.split(outputs, 2, -1))
        return Standardised(standard, jnp.asarray(self.y.mean)[None], jnp.asarray(self.y.scale)[None])

    def check(self, arrays: Arrays) -> None:
        """Raises a UserError for values that the likelihood or the features rule out."""
        for name, features in zip(self.names.values(), (self.x, self.y), strict=True):
            if name in arrays and features.num_classes:
                images.check_labels(arrays[name], features.num_classes, name, "put an example of each into training")
            elif name in arrays and not np.isfinite(arrays[name]).all():
                raise UserError(f"{name} has values that are NaN or infinite; leave these examples out")
        y = arrays.get(self.names["y"])
        if y is not None and self.kind == "bernoulli" and not ((y == 0) | (y == 1)).all():
            raise UserError(f"{self.names['y']} has values beside 0 and 1; set config.likelihood to another")

    def batch(self, raw: dict[str, Array], ids: Array, num_targets: Array, keys: Array, step: Array | None) -> Batch:
        """Returns raw x and y; y is [batch, size], or [batch] where it holds classes."""
        x, y = raw[self.names["x"]], raw[self.names["y"]]
        if self.kind != "categorical":
            y = y.reshape(len(ids), -1).astype(jnp.float32)
        return Batch(x, y, None, ids, num_targets)

    def sample_grid(self, batch: Batch, samples: dict[str, PyTree]) -> Grid:
        """Returns x, y and samples as numbers; classes with their probabilities given each z."""
        if self.kind != "categorical":
            return super().sample_grid(batch, samples)
        probable: dict[str, Any] = {stage: np.asarray(drawn).argmax(-1)[..., None] for stage, drawn in samples.items()}
        y = None if batch.y is None else batch.y[:, None]
        return super().sample_grid(batch._replace(y=y), probable)


TASK = ArraysTask
