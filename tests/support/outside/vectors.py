"""A conditional density of vectors, in a folder outside the package: y is Gaussian given x and z."""

import jax.numpy as jnp

from cvae_jax import Task, bounded_normal, flax_model, objectives, tasks
from cvae_jax.networks.cvae import one_layer


class Vectors(Task):
    """p(y|x) of arrays x and y, vectors of floats, from .npz files."""

    title, protocol = "y given x", "Gaussian y"

    def __init__(self, config, spec):
        self.raw = spec.raw
        networks = one_layer(config.cvae, 2 * spec.size("y"))
        model = flax_model(networks, lambda outputs: bounded_normal(*jnp.split(outputs, 2, -1)))
        self.stages = (objectives.stage("cvae", model, config.cvae),)


tasks.register("vectors", Vectors)
