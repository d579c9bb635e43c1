"""Measures trained models on a split: tables of log p(y|x), what the latent code carries, figures of samples."""

from cvae_jax.evaluation.evaluate import Request, evaluate
from cvae_jax.evaluation.measure import Measured, Plan, measure
from cvae_jax.inference import ESTIMATOR_NAMES, Ais

__all__ = ["ESTIMATOR_NAMES", "Ais", "Measured", "Plan", "Request", "evaluate", "measure"]
