"""Training objectives, per example and to be maximised, as a few lines over draws.

Each takes `draw`, a function from a proposal to a `Draw` with a leading axis of samples, and returns the
objective [batch] in nats and the terms [batch] that are logged.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from cvae_jax.distributions import sum_per_example
from cvae_jax.errors import UserError
from cvae_jax.model import Draw, Proposal

Draws = Callable[[Proposal], Draw]
Objective = Callable[[Draws], tuple[Array, dict[str, Array]]]


def total_kl(draw: Draw) -> Array:
    """KL(q || p) of one draw, summed over its latent units: [batch]."""
    return jax.tree.reduce(lambda total, kl: total + sum_per_example(kl), draw.kl, jnp.zeros_like(draw.log_p_z))


def elbo(draw: Draws, *, beta: float = 1.0) -> tuple[Array, dict[str, Array]]:
    """The evidence lower bound E_q[log p(y|x,z)] - beta KL(q(z|x,y) || p(z|x)), eq. 4 of Sohn et al. 2015.

    For a model without latent variables this is log p(y|x) itself.
    """
    drawn = draw("recognition")
    log_p_y = drawn.log_p_y.mean(0)
    if not jax.tree.leaves(drawn.kl):
        return log_p_y, {}
    kl = jax.vmap(total_kl)(drawn).mean(0)
    return log_p_y - beta * kl, {"log_p_y": log_p_y, "kl": kl}


def iwae(draw: Draws) -> tuple[Array, dict[str, Array]]:
    """The importance-weighted bound log mean_k p(y|x,z_k) p(z_k|x) / q(z_k|x,y), eq. 8 of Burda et al. 2016."""
    drawn = draw("recognition")
    log_weights = drawn.log_p_y + drawn.log_p_z - drawn.log_q_z
    bound = jax.nn.logsumexp(log_weights, 0) - jnp.log(log_weights.shape[0])
    return bound, {"log_p_y": drawn.log_p_y.mean(0), "kl": jax.vmap(total_kl)(drawn).mean(0)}


OBJECTIVES: dict[str, Callable[..., Any]] = {"elbo": elbo, "iwae": iwae}


def from_config(settings: Any) -> Objective:
    """The objective that a config's section names, e.g. name="elbo", beta=1.0, num_samples=1.

    Raises:
      UserError: for a name that is none of OBJECTIVES, or fewer than one sample.
    """
    if settings.name not in OBJECTIVES:
        raise UserError(f"objective.name={settings.name!r} is not known; choose from {', '.join(OBJECTIVES)}")
    if settings.num_samples < 1:
        raise UserError(f"objective.num_samples={settings.num_samples} must be at least 1")
    if settings.name == "elbo":
        return lambda draw: elbo(draw, beta=settings.beta)
    return OBJECTIVES[settings.name]
