"""log p(y|x) of models with a z of one or two numbers, by integrating over z on a grid."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from cvae_jax import inference, keys
from cvae_jax.model import Batch, Draw, Fitted, PyTree

POINTS = {1: 1501, 2: 401}  # of the grid, in each direction
DRAWS = 256  # of prior and recognition network, around which the grid of an example lies
MARGIN = 1.0  # by how much it reaches beyond them on each side, over their range


def log_p(fitted: Fitted, batch: Batch, points: int | None = None) -> np.ndarray:
    """Returns log p(y|x) = log ∫ p(y|x,z) p(z|x) dz of every example, float64 [batch], nats.

    Args:
      fitted: a model whose z has one or two elements, and no axes of factors but of length 1.
      batch: with y.
      points: of the grid in each direction; None: POINTS.
    """
    drawn = [
        inference.scores(fitted, batch, origin, _flat_z, DRAWS, jax.random.key(0))
        for origin in (("prior", "recognition") if fitted.has_recognition else ("prior",))
    ]
    z = np.concatenate(drawn).astype(np.float64)  # [draws, batch, size]
    size = z.shape[2]
    number = points or POINTS[size]
    least, most = z.min(0), z.max(0)
    centre, half = (most + least) / 2, (0.5 + MARGIN) * (most - least)
    axes = np.meshgrid(*[np.linspace(-1, 1, number)] * size, indexing="ij")
    unit = np.stack([axis.ravel() for axis in axes], -1)  # [points, size]
    with jax.default_matmul_precision("highest"):
        log_joint = _log_joint(fitted, batch, jnp.float32(centre), jnp.float32(half), jnp.float32(unit))
    values = np.asarray(log_joint, np.float64).reshape(len(unit), len(batch.ids))
    cell = np.log(half * 2 / (number - 1)).sum(1)
    top = values.max(0)
    return top + np.log(np.exp(values - top).sum(0)) + cell


def _flat_z(draw: Draw) -> Array:
    return jnp.concatenate([leaf.reshape(len(leaf), -1) for leaf in jax.tree.leaves(draw.z)], 1)


@jax.jit
def _log_joint(fitted: Fitted, batch: Batch, centre: Array, half: Array, unit: Array) -> Array:
    """Returns log p(y,z|x) at centre + half * unit, [points, batch]; `unit` is [points, size]."""
    encoding, unused = fitted.encode(batch), keys.unused(batch.ids)
    leaves, structure = jax.tree.flatten(fitted.draw(encoding, unused, "prior").z)
    ends = np.cumsum([leaf[0].size for leaf in leaves])

    def at(point: Array) -> Array:
        parts = jnp.split(centre + half * point[None], ends[:-1], axis=1)
        z: PyTree = [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]
        draw = fitted.draw(encoding, unused, "given", jax.tree.unflatten(structure, z))
        return draw.log_p_y + draw.log_p_z

    return jax.lax.map(at, unit, batch_size=50)
