"""What the latent code carries: KL per unit, active units, and the aggregate posterior against the prior."""

from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from scipy import stats

from cvae_jax.inference import draws as inference
from cvae_jax.model import Batch, Draw, Model, PyTree, Variables

ACTIVE_KL = 0.01  # nats on average, from which a latent unit counts as active


MOST_AXES = 4  # of a KL that is a code's: [samples, examples, factor, units], with one axis of factors or none


class LatentCode(NamedTuple):
    """The latent units of many examples, float64 [examples, units]: every leaf of z laid flat, one after the other."""

    kl: np.ndarray  # KL(q(z|x,y) || p(z|x)), nats; of lower layers, given one draw of those above
    posterior: np.ndarray  # a draw from q(z|x,y): over examples, the aggregate posterior
    prior: np.ndarray  # a draw from p(z|x): over examples, the aggregate prior


def latent_code(model: Model, variables: Variables, batch: Batch, key: Array) -> LatentCode | None:
    """One draw of every example's z from q and from p, and the KL of each unit.

    None where every part of y has a z of its own: their number varies with the example.

    Raises:
      UserError: for a model without a recognition network.
    """

    def flat(tree: PyTree) -> np.ndarray:
        return np.concatenate([np.asarray(leaf[0], np.float64).reshape(len(batch.index), -1) for leaf in tree], 1)

    kl, posterior = inference.scores(model, variables, batch, "recognition", _kl_and_z, 1, key)
    if any(leaf.ndim > MOST_AXES for leaf in kl):
        return None
    prior = inference.scores(model, variables, batch, "prior", _z, 1, key)
    return LatentCode(flat(kl), flat(posterior), flat(prior))


# Functions of the module, so that what is compiled for them serves every batch.


def _kl_and_z(draw: Draw) -> tuple[list[Array], list[Array]]:
    return jax.tree.leaves(draw.kl), jax.tree.leaves(draw.z)


def _z(draw: Draw) -> list[Array]:
    return jax.tree.leaves(draw.z)


def active_units(code: LatentCode) -> int:
    """Units whose KL is at least ACTIVE_KL on average: for y to move z that is necessary.

    The covariance of E[z|x,y] over data (Burda et al. 2016) would not tell with a conditional prior: x moves it too.
    """
    return int((code.kl.mean(0) >= ACTIVE_KL).sum())


def mismatch(code: LatentCode) -> np.ndarray:
    """Kolmogorov-Smirnov distance of aggregate posterior and aggregate prior, [units], between 0 and 1.

    Averaged over the data q(z|x,y) should be p(z|x), as it is for the exact posterior; where it is not, samples from
    the prior come from where the generation network was not trained.
    """
    return np.array([stats.ks_2samp(*unit).statistic for unit in zip(code.posterior.T, code.prior.T, strict=True)])


def summary(code: LatentCode) -> dict[str, Any]:
    """The figures to report: numbers and lists of plain floats, a unit an entry."""
    kl, distance = code.kl.mean(0), mismatch(code)
    return {
        "kl": float(kl.sum()),
        "active_units": active_units(code),
        "units": len(kl),
        "largest_mismatch": float(distance.max()),
        "kl_of_units": kl.tolist(),
        "mismatch_of_units": distance.tolist(),
    }
