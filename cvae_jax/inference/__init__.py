"""Predictions, samples and likelihoods from any model of the contract."""

from cvae_jax.inference.ais import Ais, bdmc
from cvae_jax.inference.draws import decode, draw_samples, infer, keys_of, predict, sample, scores
from cvae_jax.inference.estimators import Estimate
from cvae_jax.inference.likelihoods import (
    ESTIMATOR_NAMES,
    check,
    check_draws,
    draws_from_recognition,
    exact,
    floor,
    in_units_of_data,
    log_prob,
    log_probs,
)

__all__ = [
    "ESTIMATOR_NAMES",
    "Ais",
    "Estimate",
    "bdmc",
    "check",
    "check_draws",
    "decode",
    "draw_samples",
    "draws_from_recognition",
    "exact",
    "floor",
    "in_units_of_data",
    "infer",
    "keys_of",
    "log_prob",
    "log_probs",
    "predict",
    "sample",
    "scores",
]
