"""Schedules over training steps, and the optimiser that a config describes (on optax)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from cvae_jax.errors import UserError


def learning_rate(settings: Any, num_steps: int) -> optax.Schedule:
    """The learning rate at every step: linear warm-up, then constant, a cosine down to 0, or stages.

    The stages are those of Burda et al. (2016): 3^i of 3,280 parts of the run at 10^(-i/7) of the rate, i = 0 ... 7.

    Raises:
      UserError: for an unknown schedule, or a warm-up that is longer than the run.
    """
    if settings.warmup_steps >= num_steps:
        raise UserError(
            f"optimizer.warmup_steps={settings.warmup_steps} is not shorter than the run of {num_steps} steps"
        )
    decay_steps = num_steps - settings.warmup_steps
    if settings.schedule == "cosine":
        after = optax.cosine_decay_schedule(settings.learning_rate, decay_steps)
    elif settings.schedule == "constant":
        after = optax.constant_schedule(settings.learning_rate)
    elif settings.schedule == "stages":
        ends = jnp.asarray(np.cumsum(3 ** np.arange(7)) / 3280 * decay_steps)

        def after(step: Array) -> Array:
            return settings.learning_rate * 10 ** (-jnp.searchsorted(ends, step, side="right") / 7)

    else:
        raise UserError(f"optimizer.schedule={settings.schedule!r} is not known; choose constant, cosine or stages")
    if settings.warmup_steps == 0:
        return after
    warmup = optax.linear_schedule(0.0, settings.learning_rate, settings.warmup_steps)
    return optax.join_schedules([warmup, after], [settings.warmup_steps])


def optimizer(settings: Any, num_steps: int) -> optax.GradientTransformation:
    """Adam with decoupled weight decay, behind clipping of the gradient's global norm (0 turns either off).

    Only matrices and kernels decay: a decaying bias would keep the pixels that are always black from being so.
    """
    adam = optax.adamw(
        learning_rate(settings, num_steps),
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
        mask=lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params),
    )
    if settings.clip_norm == 0:
        return adam
    return optax.chain(optax.clip_by_global_norm(settings.clip_norm), adam)


ANNEALINGS = ("constant", "linear", "monotonic", "cyclical")


def annealing(settings: Any, section: str = "objective") -> Callable[[Array], Array]:
    """What the KL's weight is multiplied by at every step, from 0 to 1 over `annealing_steps` and 1 from then on.

    "linear" grows straight (warm-up, Sønderby et al. 2016); "monotonic" along a logistic curve (Bowman et al. 2016);
    "cyclical" does it `annealing_cycles` times, straight in the first half of a cycle and flat in the second (Fu et
    al. 2019).

    Raises:
      UserError: for an unknown name, or numbers that cannot be.
    """
    name, steps, cycles = settings.annealing, settings.annealing_steps, settings.annealing_cycles
    if name not in ANNEALINGS:
        raise UserError(f"{section}.annealing={name!r} is not known; choose from {', '.join(ANNEALINGS)}")
    if (steps < 1) != (name == "constant"):
        raise UserError(
            f"{section}.annealing_steps={steps} does not go with annealing={name!r}: "
            f"{'it must be 0' if name == 'constant' else 'it must be at least 1'}"
        )
    if cycles < 1 or (cycles > 1 and name != "cyclical"):
        raise UserError(f"{section}.annealing_cycles={cycles} must be 1, or at least 1 for annealing='cyclical'")

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


def teacher_forcing(settings: Any) -> optax.Schedule | None:
    """The share of batches that are trained with teacher forcing, at every step; None where it is all of them.

    Args:
      settings: the share at `first`, until step `begin`, from where it goes to `last` on a line over `steps` steps.

    Raises:
      UserError: for numbers that cannot be.
    """
    for key in ("first", "last"):
        if not 0 <= settings[key] <= 1:
            raise UserError(f"teacher_forcing.{key}={settings[key]} must be between 0 and 1")
    for key in ("begin", "steps"):
        if settings[key] < 0:
            raise UserError(f"teacher_forcing.{key}={settings[key]} must be at least 0")
    if settings.first != settings.last and not settings.steps:
        raise UserError("teacher_forcing.steps=0 leaves no step to go from first to last; set it, or make them equal")
    if settings.first == settings.last == 1:
        return None
    line = optax.linear_schedule(settings.first, settings.last, max(settings.steps, 1), settings.begin)
    return lambda step: jnp.asarray(line(step), jnp.float32)
