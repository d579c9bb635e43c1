"""Fully connected networks against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cvae_jax.networks.mlp import MLP, ConditionedMLP

RNG = np.random.default_rng(0)
X, Z = RNG.normal(size=(4, 3)), RNG.normal(size=(4, 2))
ACTIVATIONS = {"relu": lambda a: np.maximum(a, 0), "tanh": np.tanh}


def f32(array):
    return jnp.asarray(array, jnp.float32)


def with_numbers(network, *inputs, **options):
    """Its parameters, float32, of which none is 0."""
    shapes = jax.eval_shape(lambda key: network.init(key, *inputs, **options), jax.random.key(0))["params"]
    return jax.tree.map(lambda leaf: f32(RNG.normal(size=leaf.shape)), shapes)


def by_hand(layers, inputs, activation):
    """Dense layers (kernel, bias) with an activation between them."""
    for number, (kernel, bias) in enumerate(layers):
        inputs = ACTIVATIONS[activation](inputs) if number else inputs
        inputs = inputs @ kernel + bias
    return inputs


def layers(params):
    in_float64 = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    return [(in_float64[name]["kernel"], in_float64[name]["bias"]) for name in sorted(params)]


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_mlp(activation):
    network = MLP((5, 6), 7, activation)
    params = with_numbers(network, f32(X))
    found = network.apply({"params": params}, f32(X))
    np.testing.assert_allclose(found, by_hand(layers(params), X, activation), rtol=1e-4, atol=1e-5)


def both(module, x, z):
    return module(module.first_layer_x(x), z)


@pytest.mark.parametrize(("hidden", "activation"), [((5,), "tanh"), ((5, 6), "relu")])
@pytest.mark.parametrize("features", [3, 0])
def test_conditioned_mlp_is_an_mlp_of_x_and_z_joined(hidden, activation, features):
    network, x = ConditionedMLP(hidden, 7, activation), X[:, :features]
    params = with_numbers(network, f32(x), f32(Z), method=both)
    assert set(params) == {"first_z", "rest"} | ({"first_x"} if features else set())
    found = network.apply({"params": params}, f32(x), f32(Z), method=both)
    (kernel, bias), *_ = layers({"first_z": params["first_z"]})
    if features:
        kernel = np.concatenate([np.asarray(params["first_x"]["kernel"], np.float64), kernel])
    stacked = [(kernel, bias), *layers(params["rest"])]
    assert [kernel.shape[1] for kernel, _ in stacked] == [*hidden, 7]
    joined = np.concatenate([x, Z], 1)
    np.testing.assert_allclose(found, by_hand(stacked, joined, activation), rtol=1e-4, atol=1e-5)
