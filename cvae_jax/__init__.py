"""Conditional deep generative models p(y|x) in JAX, with likelihoods that can be trusted."""

from cvae_jax.errors import DivergenceError, UserError
from cvae_jax.experiment import Experiment, load, train

__all__ = ["DivergenceError", "Experiment", "UserError", "load", "train"]
