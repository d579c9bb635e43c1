"""Diagnosis of the latent code: KL per dimension, active dimensions, aggregate posterior against aggregate prior."""

from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from scipy import stats

from cvae_jax.inference.draws import scores
from cvae_jax.model import Batch, Draw, Fitted, PyTree

ACTIVE_KL = 0.01  # nats on average, from which a latent dimension counts as active


class LatentCode(NamedTuple):
    """The latent dimensions of many examples, float64 [examples, dimensions]: every leaf of z laid flat, in order."""

    kl: np.ndarray  # KL(q(z|x,y) || p(z|x)), nats; of lower layers, given one draw of those above
    posterior: np.ndarray  # a draw from q(z|x,y): over examples, the aggregate posterior
    prior: np.ndarray  # a draw from p(z|x): over examples, the aggregate prior


def latent_code(fitted: Fitted, batch: Batch, key: Array) -> LatentCode | None:
    """Draws every example's z once from q and once from p, with the KL of each dimension.

    Returns:
      Arrays [batch, factors, dimensions], one factor for a model without factors: each factor has a z of its own, of
      the same dimensions. A map of latent variables, [8, 8, 32], is 2,048 dimensions. None where the second axis of
      factors and beyond are places in y, such as pixels: their number varies with the example.

    Raises:
      UserError: for a model without a recognition network.
    """
    if fitted.model.num_factors > 1:
        return None
    kl, posterior = scores(fitted, batch, "recognition", _kl_and_z, 1, key)
    prior = scores(fitted, batch, "prior", _z, 1, key)
    shape = (len(batch.ids), *kl[0].shape[2 : 2 + fitted.model.num_factors], -1)

    def flat(tree: PyTree) -> np.ndarray:
        return np.concatenate([np.asarray(leaf[0], np.float64).reshape(shape) for leaf in tree], -1)

    code = LatentCode(flat(kl), flat(posterior), flat(prior))
    return code if fitted.model.num_factors else LatentCode(*(values[:, None] for values in code))


# Functions of the module, so that what is compiled for them serves every batch.


def _kl_and_z(draw: Draw) -> tuple[list[Array], list[Array]]:
    return jax.tree.leaves(draw.kl), jax.tree.leaves(draw.z)


def _z(draw: Draw) -> list[Array]:
    return jax.tree.leaves(draw.z)


def active_dimensions(code: LatentCode) -> int:
    """Counts the dimensions whose KL is at least ACTIVE_KL on average: for y to move z that is necessary.

    The covariance of E[z|x,y] over data (Burda et al. 2016) would not tell with a conditional prior: x moves it too.
    """
    return int((code.kl.mean(0) >= ACTIVE_KL).sum())


def mismatch(code: LatentCode) -> np.ndarray:
    """Returns the Kolmogorov-Smirnov distance of aggregate posterior and aggregate prior, [dimensions], from 0 to 1.

    Averaged over the data q(z|x,y) should be p(z|x), as it is for the exact posterior; where it is not, samples from
    the prior come from where the generation network was not trained.
    """
    pairs = zip(code.posterior.T, code.prior.T, strict=True)
    return np.array([stats.ks_2samp(posterior, prior).statistic for posterior, prior in pairs])


def summary(code: LatentCode) -> dict[str, Any]:
    """Returns the figures to report: numbers and lists of plain floats, a dimension an entry."""
    kl, distance = code.kl.mean(0), mismatch(code)
    return {
        "kl": float(kl.sum()),
        "active_units": active_dimensions(code),
        "units": len(kl),
        "largest_mismatch": float(distance.max()),
        "kl_of_units": kl.tolist(),
        "mismatch_of_units": distance.tolist(),
    }
