"""Conditional deep generative models p(y|x) in JAX, with likelihoods that can be trusted."""

from cvae_jax import inference, objectives, tasks
from cvae_jax.distributions import Bernoulli, Categorical, Joint, Normal, bounded_normal, draw_latent
from cvae_jax.errors import DivergenceError, UserError
from cvae_jax.experiment import train
from cvae_jax.networks.flax_model import flax_model
from cvae_jax.task import Batch, Draw, Fitted, Grid, Metric, Model, Spec, Stage, Task
from cvae_jax.trained import TrainedModel, load

__all__ = [
    "Batch",
    "Bernoulli",
    "Categorical",
    "DivergenceError",
    "Draw",
    "Fitted",
    "Grid",
    "Joint",
    "Metric",
    "Model",
    "Normal",
    "Spec",
    "Stage",
    "Task",
    "TrainedModel",
    "UserError",
    "bounded_normal",
    "draw_latent",
    "flax_model",
    "inference",
    "load",
    "objectives",
    "tasks",
    "train",
]
