"""Estimates of log p(y|x) of every example, by name."""

from collections.abc import Callable, Sequence
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from cvae_jax import distributions, keys
from cvae_jax.errors import UserError
from cvae_jax.inference import estimators
from cvae_jax.inference.ais import Ais, ais
from cvae_jax.inference.draws import scores
from cvae_jax.inference.estimators import ESTIMATORS, Estimate, log_mean_exp, shifted
from cvae_jax.model import Batch, Draw, Fitted
from cvae_jax.settings import Whole

# Estimators of log p(y|x): those that are made of draws, and annealed importance sampling.
ESTIMATOR_NAMES = (*ESTIMATORS, "ais")
DEFAULT_AIS = Ais()


def check(requests: Sequence[tuple[str, int]]) -> None:
    """Raises a UserError for an estimator that is not known, or that cannot do with so few samples."""
    for name, num_samples in requests:
        if name not in ESTIMATOR_NAMES:
            raise UserError(f"estimator {name!r} is not known; choose from {', '.join(ESTIMATOR_NAMES)}")
        check_count(num_samples)
        if name == "jackknife" and num_samples < 2:
            raise UserError(f"num_samples={num_samples} must be at least 2 for the jackknife")


def check_count(num_samples: int) -> None:
    """Raises a UserError for what is no number of samples."""
    if must := Whole(1).refuse(num_samples):
        raise UserError(f"num_samples={num_samples!r} must be {must}")


def check_draws(num_samples: int, key: Array) -> None:
    """Raises a UserError for what is no number of samples, or no key."""
    check_count(num_samples)
    new = isinstance(key, Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and not key.shape
    old = isinstance(key, Array | np.ndarray) and key.dtype == np.uint32 and key.shape == (2,)  # jax.random.PRNGKey
    if not (new or old):
        shown = repr(key).splitlines()[0][:40]
        raise UserError(f"key={shown} is no key of random numbers; write jax.random.key(0), of any number")


def draws_from_recognition(estimator: str, settings: Ais = DEFAULT_AIS) -> bool:
    """Returns whether an estimator draws from the recognition network."""
    if estimator == "ais":
        return settings.start == "recognition"
    return ESTIMATORS[estimator].proposal in ("recognition", "defensive")


def log_prob(
    fitted: Fitted, batch: Batch, estimator: str, num_samples: int, key: Array, settings: Ais = DEFAULT_AIS
) -> Estimate:
    """Estimates log p(y|x) of every example, float64 [batch], nats::

        estimate = inference.log_prob(trained.fitted(), task.from_user(x, y), "is", 1000, jax.random.key(0))
        estimate.value, estimate.error, estimate.ess

    Args:
      fitted: a model with its variables.
      batch: with y.
      estimator: one of ESTIMATOR_NAMES.
      num_samples: for every example; with "ais" the number of chains.
      key: of all random numbers.
      settings: of "ais".

    Raises:
      UserError: as `log_probs`.
    """
    return log_probs(fitted, batch, [(estimator, num_samples)], key, settings)[estimator, num_samples]


def log_probs(
    fitted: Fitted, batch: Batch, requests: Sequence[tuple[str, int]], key: Array, settings: Ais = DEFAULT_AIS
) -> dict[tuple[str, int], Estimate]:
    """Estimates log p(y|x) of every example by several estimators, float64 [batch], nats.

    Estimators with one proposal share its draws, and the fewer samples are the first of the more.

    Args:
      fitted: a model with its variables.
      batch: with y.
      requests: of ESTIMATOR_NAMES, each with its number of samples; with "ais" that of chains.
      key: of all random numbers.
      settings: of "ais".

    Raises:
      UserError: for an unknown estimator or one that needs a recognition network where there is none, too few
        samples, a batch without y, or weights that are not finite.
    """
    check(requests)
    if batch.y is None:
        raise UserError("log p(y|x) needs y")
    of_draws = [(name, count) for name, count in requests if name in ESTIMATORS]
    numbers: dict[str, np.ndarray] = {}
    for origin in dict.fromkeys(ESTIMATORS[name].proposal for name, _ in of_draws):
        names = tuple(dict.fromkeys(name for name, _ in of_draws if ESTIMATORS[name].proposal == origin))
        most = max(count for name, count in of_draws if name in names)
        numbers |= scores(fitted, batch, origin, _scores_of(names), most, key)
    estimates: dict[tuple[str, int], Estimate] = {}
    for name, count in requests:
        if name == "ais":
            estimate = log_mean_exp(ais(fitted, batch, count, key, settings).log_weights)
        else:
            estimate = ESTIMATORS[name].summarise(numbers[name][:count])
        estimates[name, count] = in_units_of_data(estimate, fitted, batch)
    return estimates


def in_units_of_data(estimate: Estimate, fitted: Fitted, batch: Batch) -> Estimate:
    """Returns an estimate of a model's log p(y|x) with `Model.log_units` added."""
    log_units = fitted.model.log_units
    return estimate if log_units is None else shifted(estimate, np.asarray(log_units(batch), np.float64))


@cache  # one function for the same names, so that it is compiled once
def _scores_of(names: tuple[str, ...]) -> Callable[[Draw], dict[str, Array]]:
    """Returns the scores of several estimators by name; equal ones are computed once."""
    return lambda draw: {name: ESTIMATORS[name].score(draw) for name in names}


def exact(fitted: Fitted, batch: Batch) -> Estimate:
    """Returns log p(y|x, z = E[z|x]): log p(y|x) of a model without latent variables, or with no spread."""
    unused = jax.random.key(0)
    log_p = scores(fitted, batch, "prior_mean", _log_p_y, 1, unused)[0]
    return in_units_of_data(estimators.exact(log_p), fitted, batch)


@jax.jit
def floor(fitted: Fitted, batch: Batch) -> Array:
    """Returns what no model's -log p(y|x) falls below, because y is probabilities: [batch], nats; 0 of other y."""
    p_y = fitted.draw(fitted.encode(batch), keys.unused(batch.ids), "prior_mean").p_y
    return distributions.floor(p_y, batch.y, batch.weight)


def _log_p_y(draw: Draw) -> Array:
    return draw.log_p_y
