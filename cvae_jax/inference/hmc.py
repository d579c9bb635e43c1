"""Hamiltonian transitions (Neal 2011) of z along a path of densities log f_t(z) = log_start + t log_ratio."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree

from cvae_jax.model import PyTree


class Point(NamedTuple):
    """A z, with what the path needs to know of it at any temperature t: log f_t = log_start + t log_ratio."""

    z: PyTree
    log_start: Array  # [batch, *factors]
    log_ratio: Array  # log p(y,z|x) - log start(z)
    grad_start: PyTree
    grad_ratio: PyTree


def transitions(evaluate: Callable[[PyTree], Point], num_leapfrog: int, scale: PyTree) -> Callable[..., Any]:
    """Hamiltonian transitions of [chains], each at its keys, all at the same temperature and step sizes.

    Args:
      evaluate: z -> its Point.
      num_leapfrog: steps of a trajectory.
      scale: like z: standard deviations that precondition the momenta.

    Returns:
      (points, keys [chains, batch], t, step sizes [batch, *factors] in units of `scale`) -> the points after a
      transition, and the probabilities of acceptance [chains, batch, *factors].
    """
    return jax.vmap(partial(_transition, evaluate, num_leapfrog, scale), (0, 0, None, None))


def _transition(
    evaluate: Callable[[PyTree], Point],
    num_leapfrog: int,
    scale: PyTree,
    point: Point,
    keys: Array,
    t: Array,
    step_size: Array,
) -> tuple[Point, Array]:
    """A Hamiltonian transition that leaves log_start + t log_ratio unchanged (Neal 2011, section 3).

    Factors are independent given x: each has its step size, energy and acceptance, [batch, *factors].
    """
    # Half the square of two Gaussians is exponential, as minus the log of a uniform number is. One stream of noise
    # for all that is drawn: each more takes seconds to compile.
    momentum, *two = _noise(keys, (point.z, point.log_start, point.log_start))
    patience = 0.5 * (two[0] ** 2 + two[1] ** 2)

    def kick(momentum: PyTree, point: Point, size: float) -> PyTree:
        def kick_leaf(p: Array, s: Array, start: Array, ratio: Array) -> Array:
            return p + size * _beside(step_size, p) * s * (start + t * ratio)

        return jax.tree.map(kick_leaf, momentum, scale, point.grad_start, point.grad_ratio)

    def leap(_: Array, state: tuple[Point, PyTree]) -> tuple[Point, PyTree]:
        point, momentum = state
        z = jax.tree.map(lambda z, s, p: z + _beside(step_size, z) * s * p, point.z, scale, momentum)
        point = evaluate(z)
        return point, kick(momentum, point, 1.0)

    def log_density(point: Point, momentum: PyTree) -> Array:
        return point.log_start + t * point.log_ratio - 0.5 * _sum_squares(momentum, step_size.ndim)

    proposal, end = jax.lax.fori_loop(0, num_leapfrog, leap, (point, kick(momentum, point, 0.5)))
    new = log_density(proposal, kick(end, proposal, -0.5))
    gain = new - log_density(point, momentum)
    sound = jnp.isfinite(new)  # a trajectory that ran away is rejected
    accept = sound & (gain > -patience)
    point = jax.tree.map(lambda a, b: jnp.where(_beside(accept, a), a, b), proposal, point)
    return point, jnp.where(sound, jnp.exp(jnp.minimum(gain, 0)), 0)


def _noise(keys: Array, like: PyTree) -> PyTree:
    """Standard Gaussians like the leaves [batch, ...] of a tree, under keys [batch]."""
    flat, unravel = ravel_pytree(jax.tree.map(lambda leaf: leaf[0], like))
    return jax.vmap(lambda key: unravel(jax.random.normal(key, flat.shape, flat.dtype)))(keys)


def _beside(cells: Array, leaf: Array) -> Array:
    """[batch, *factors] given the axes of a leaf [batch, *factors, ...], to broadcast."""
    return cells.reshape(cells.shape + (1,) * (leaf.ndim - cells.ndim))


def _sum_squares(tree: PyTree, ndim: int) -> Array:
    """Over all leaves and their axes beyond the first `ndim`."""
    return sum((leaf**2).sum(tuple(range(ndim, leaf.ndim))) for leaf in jax.tree.leaves(tree))
