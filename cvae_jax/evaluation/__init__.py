"""Measures trained models."""

from cvae_jax.evaluation.evaluate import batches, evaluate, measure

__all__ = ["batches", "evaluate", "measure"]
