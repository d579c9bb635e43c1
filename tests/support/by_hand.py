"""The networks of labels and images in NumPy, float64, and quadrature over z of two dimensions."""

import jax
import numpy as np
from scipy import stats


def random_variables(model, batch):
    """As spread out as at the start, but with biases."""
    rng = np.random.default_rng(0)

    def numbers(leaf):
        scale = np.prod(leaf.shape[:-1]) ** -0.5 if len(leaf.shape) > 1 else 0.3
        return (scale * rng.normal(size=leaf.shape)).astype(np.float32)

    return jax.tree.map(numbers, jax.eval_shape(model.init, jax.random.key(0), batch, {}))


ACTIVATIONS = {"relu": lambda a: np.maximum(a, 0), "tanh": np.tanh}


def in_float64(variables):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables["params"])


def mlp(layers, inputs, activation):
    """Dense layers Dense_0, Dense_1, ... with an activation between them."""
    for number in range(len(layers)):
        inputs = ACTIVATIONS[activation](inputs) if number else inputs
        inputs = inputs @ layers[f"Dense_{number}"]["kernel"] + layers[f"Dense_{number}"]["bias"]
    return inputs


def generate(params, x, z, activation="relu"):
    """The outputs of the generation network for x (no features: the VAE) and z, [..., outputs]."""
    net = params["generation_net"]
    first = z @ net["first_z"]["kernel"] + net["first_z"]["bias"]
    if x.shape[-1]:
        first = first + x @ net["first_x"]["kernel"]
    return mlp(net["rest"], ACTIVATIONS[activation](first), activation)


STEP = 0.15
GRID = np.stack(np.meshgrid(*[np.arange(-6, 6 + STEP / 2, STEP)] * 2), -1).reshape(-1, 2)
LOG_WEIGHTS = stats.norm.logpdf(GRID).sum(-1) + 2 * np.log(STEP)  # of quadrature over z ~ N(0, I)
