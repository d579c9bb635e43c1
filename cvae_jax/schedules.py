"""Schedules over training steps, and the optimiser that a config describes (on optax)."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from ml_collections import ConfigDict

from cvae_jax.errors import UserError
from cvae_jax.settings import Choice, Real, Whole, check


def _stages(rate: float, num_steps: int) -> optax.Schedule:
    """The stages of Burda et al. (2016): 3^i of 3,280 parts of the run at 10^(-i/7) of the rate, i = 0 ... 7."""
    ends = jnp.asarray(np.cumsum(3 ** np.arange(7)) / 3280 * num_steps)

    def schedule(step: Array) -> Array:
        return rate * 10 ** (-jnp.searchsorted(ends, step, side="right") / 7)

    return schedule


# Name -> (learning rate, steps after the warm-up) -> the rate at each of these steps.
SCHEDULES: Mapping[str, Callable[[float, int], optax.Schedule]] = {
    "constant": lambda rate, num_steps: optax.constant_schedule(rate),
    "cosine": lambda rate, num_steps: optax.cosine_decay_schedule(rate, num_steps),
    "stages": _stages,
}


def learning_rate(settings: ConfigDict, num_steps: int) -> optax.Schedule:
    """Returns the learning rate at every step: a linear warm-up, then one of SCHEDULES.

    Args:
      settings: of the optimiser: `learning_rate`, `schedule`, `warmup_steps`.
      num_steps: of the whole run.

    Raises:
      UserError: for an unknown schedule, or a warm-up that is longer than the run.
    """
    check(settings, {"schedule": KINDS["schedule"]}, "optimizer")
    if settings.warmup_steps >= num_steps:
        raise UserError(
            f"optimizer.warmup_steps={settings.warmup_steps} is not shorter than the run of {num_steps} steps; "
            "lower it, or train more epochs"
        )
    after = SCHEDULES[settings.schedule](settings.learning_rate, num_steps - settings.warmup_steps)
    if settings.warmup_steps == 0:
        return after
    warmup = optax.linear_schedule(0.0, settings.learning_rate, settings.warmup_steps)
    return optax.join_schedules([warmup, after], [settings.warmup_steps])


def _matrices(params: optax.Params) -> optax.Params:
    """Which parameters decay: matrices and kernels. A decaying bias would keep black pixels from being so."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def _adam(settings: ConfigDict, rate: optax.Schedule) -> optax.GradientTransformation:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""
    return optax.adamw(rate, eps=settings.epsilon, weight_decay=settings.weight_decay, mask=_matrices)


def _sgd(settings: ConfigDict, rate: optax.Schedule) -> optax.GradientTransformation:
    """Gradient descent with momentum; the weight decay is the gradient of a quadratic penalty, as is usual with it."""
    decay = optax.add_decayed_weights(settings.weight_decay, mask=_matrices)
    return optax.chain(decay, optax.sgd(rate, momentum=settings.momentum))


class Kind(NamedTuple):
    """An optimiser, and the settings that it reads beside those that all read."""

    make: Callable[[ConfigDict, optax.Schedule], optax.GradientTransformation]
    reads: tuple[str, ...]


OPTIMIZERS: Mapping[str, Kind] = {"adam": Kind(_adam, ("epsilon",)), "sgd": Kind(_sgd, ("momentum",))}

# A config's section `optimizer`.
DEFAULTS = {
    "name": "adam",  # or "sgd"
    "learning_rate": 1e-3,
    "schedule": "constant",  # or "cosine", down to 0 at the last epoch, or "stages": see SCHEDULES
    "warmup_steps": 0,
    "epsilon": 1e-8,  # of adam
    "momentum": 0.9,  # of sgd
    "weight_decay": 0.0,  # of matrices and kernels, not of biases and norms; decoupled for adam
    "clip_norm": 0.0,  # of the global gradient norm; 0: no clipping
}

KINDS = {
    "name": Choice(OPTIMIZERS),
    "learning_rate": Real(0, above=True),
    "schedule": Choice(SCHEDULES),
    "warmup_steps": Whole(),
    "epsilon": Real(0, above=True),
    "momentum": Real(0, 1, below=True),
    "weight_decay": Real(),
    "clip_norm": Real(0, float("inf")),
}


def check_optimizer(settings: ConfigDict, section: str = "optimizer") -> None:
    """Raises a UserError for the first setting that cannot be, or that the optimiser of that name does not read."""
    check(settings, KINDS, section)
    for reader, kind in OPTIMIZERS.items():
        for key in kind.reads:
            if reader != settings.name and settings[key] != DEFAULTS[key]:
                raise UserError(
                    f"{section}.{key}={settings[key]!r} is not read by {settings.name}, only by {reader}; leave it at "
                    f"{DEFAULTS[key]!r}"
                )


def optimizer(settings: ConfigDict, num_steps: int) -> optax.GradientTransformation:
    """Returns the optimiser of that name, behind clipping of the gradient's global norm (0: none).

    Args:
      settings: see DEFAULTS.
      num_steps: of the whole run.

    Raises:
      UserError: as `learning_rate`.
    """
    transformation = OPTIMIZERS[settings.name].make(settings, learning_rate(settings, num_steps))
    if settings.clip_norm == 0:
        return transformation
    return optax.chain(optax.clip_by_global_norm(settings.clip_norm), transformation)


BETA_SCHEDULES = ("constant", "linear", "monotonic", "cyclical")


def beta(settings: ConfigDict, section: str = "objective") -> Callable[[Array], Array]:
    """Returns the factor of the KL's weight at every step, from 0 to 1 over `beta_steps` and 1 from then on.

    "linear" grows straight (warm-up, Sønderby et al. 2016); "monotonic" along a logistic curve (Bowman et al. 2016);
    "cyclical" does it `beta_cycles` times, straight in the first half of a cycle and flat in the second (Fu et al.
    2019).

    Args:
      settings: of the objective: `beta_schedule`, `beta_steps`, `beta_cycles`.
      section: of the config, for messages.

    Raises:
      UserError: for an unknown name, or numbers that cannot be.
    """
    name, steps, cycles = settings.beta_schedule, settings.beta_steps, settings.beta_cycles
    known = {"beta_schedule": Choice(BETA_SCHEDULES), "beta_steps": Whole(), "beta_cycles": Whole(1, 10_000)}
    check(settings, known, section)
    if (steps < 1) != (name == "constant"):
        raise UserError(
            f"{section}.beta_steps={steps} does not go with beta_schedule={name!r}: "
            f"{'it must be 0' if name == 'constant' else 'it must be at least 1'}"
        )
    if cycles > 1 and name != "cyclical":
        raise UserError(f"{section}.beta_cycles={cycles} must be 1, or at least 1 for beta_schedule='cyclical'")

    def weight(step: Array) -> Array:
        if name == "constant":
            return jnp.ones(())
        done = jnp.asarray(step, jnp.float32) / steps
        if name == "linear":
            return jnp.minimum(done, 1)
        if name == "monotonic":
            return jnp.where(done < 1, jax.nn.sigmoid(10 * done - 5), 1)
        return jnp.where(done < 1, jnp.minimum(2 * (done * cycles % 1), 1), 1)

    return weight


def teacher_forcing(settings: ConfigDict) -> optax.Schedule | None:
    """Returns the share of batches that are trained with teacher forcing, at every step; None where it is all of them.

    Args:
      settings: the share at `first`, until step `begin`, from where it goes to `last` on a line over `steps` steps.

    Raises:
      UserError: for numbers that cannot be.
    """
    kinds = {"first": Real(0, 1), "last": Real(0, 1), "begin": Whole(), "steps": Whole()}
    check(settings, kinds, "teacher_forcing")
    if settings.first != settings.last and not settings.steps:
        raise UserError("teacher_forcing.steps=0 leaves no step to go from first to last; set it, or make them equal")
    if settings.first == settings.last == 1:
        return None
    line = optax.linear_schedule(settings.first, settings.last, max(settings.steps, 1), settings.begin)
    return lambda step: jnp.asarray(line(step), jnp.float32)
