"""Schedules over training steps, and the optimiser that a config describes (on optax)."""

from typing import Any

import jax
import optax

from cvae_jax.errors import UserError


def learning_rate(settings: Any, num_steps: int) -> optax.Schedule:
    """The learning rate at every step: linear warm-up, then constant or a cosine down to 0 at `num_steps`.

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
    else:
        raise UserError(f"optimizer.schedule={settings.schedule!r} is not known; choose constant or cosine")
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
        weight_decay=settings.weight_decay,
        mask=lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params),
    )
    if settings.clip_norm == 0:
        return adam
    return optax.chain(optax.clip_by_global_norm(settings.clip_norm), adam)
