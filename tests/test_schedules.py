from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from cvae_jax import schedules
from cvae_jax.errors import UserError


def settings(**changes):
    defaults = {"learning_rate": 0.01, "schedule": "constant", "warmup_steps": 0, "weight_decay": 0.0, "clip_norm": 0.0}
    defaults["epsilon"] = 1e-8
    return SimpleNamespace(**{**defaults, **changes})


@pytest.mark.parametrize("warmup", [0, 1, 25])
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_learning_rate(schedule, warmup):
    num_steps = 100
    steps = np.arange(num_steps + 1)
    with jax.numpy_dtype_promotion("standard"):  # Optax's cosine mixes int32 and float32
        rate = jax.vmap(schedules.learning_rate(settings(schedule=schedule, warmup_steps=warmup), num_steps))(steps)

    progress = (steps - warmup) / (num_steps - warmup)
    after = 0.5 * (1 + np.cos(np.pi * progress)) if schedule == "cosine" else 1.0
    wanted = 0.01 * np.where(steps < warmup, steps / max(warmup, 1), after)
    np.testing.assert_allclose(rate, wanted, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("num_steps", [6560, 256, 5])
def test_learning_rate_in_stages(num_steps):
    # Burda et al. (2016): 3^i of 3,280 parts of the run at 0.001 * 10^(-i/7), i = 0 ... 7, however short they are.
    ends = np.cumsum(3 ** np.arange(8)) / 3280 * num_steps
    wanted = [0.001 * 10 ** (-np.sum(ends[:7] <= step) / 7) for step in range(num_steps)]
    rate = jax.vmap(schedules.learning_rate(settings(learning_rate=0.001, schedule="stages"), num_steps))
    with jax.numpy_dtype_promotion("standard"):
        np.testing.assert_allclose(rate(np.arange(num_steps)), wanted, rtol=1e-5)
    assert wanted[-1] == pytest.approx(1e-4)


def adamw(params, grads, rate, weight_decay, epsilon):
    """Decoupled Adam in NumPy (Loshchilov and Hutter 2019): the parameters after each gradient."""
    first = second = np.zeros_like(params)
    for count, grad in enumerate(grads, 1):
        first, second = 0.9 * first + 0.1 * grad, 0.999 * second + 0.001 * grad**2
        step = (first / (1 - 0.9**count)) / (np.sqrt(second / (1 - 0.999**count)) + epsilon)
        params = params - rate * (step + weight_decay * params * np.array([[1], [0]]))
        yield params


@pytest.mark.parametrize("epsilon", [1e-8, 1e-2])
@pytest.mark.parametrize(("clip_norm", "weight_decay"), [(0.0, 0.0), (0.0, 0.1), (0.5, 0.0), (0.5, 0.1)])
def test_optimizer(clip_norm, weight_decay, epsilon):
    # A kernel [1, 2], which decays, above a bias [2], which does not; norms on both sides of 0.5.
    grads = np.array([[[3.0, -4.0], [1.0, 0.0]], [[0.3, 0.1], [0.2, 0.1]], [[-2.0, 0.5], [0.0, 0.1]], [[0.0, 7.0]] * 2])
    norms = np.linalg.norm(grads, axis=(1, 2), keepdims=True)
    clipped = grads * np.minimum(1, clip_norm / norms) if clip_norm else grads
    optimizer = schedules.optimizer(settings(clip_norm=clip_norm, weight_decay=weight_decay, epsilon=epsilon), 100)
    start = np.array([[1.0, -2.0], [3.0, 0.5]])
    params = {"kernel": jnp.asarray(start[:1], jnp.float32), "bias": jnp.asarray(start[1], jnp.float32)}
    state = optimizer.init(params)
    for grad, wanted in zip(grads, adamw(start, clipped, 0.01, weight_decay, epsilon), strict=True):
        grad = {"kernel": jnp.asarray(grad[:1], jnp.float32), "bias": jnp.asarray(grad[1], jnp.float32)}
        updates, state = optimizer.update(grad, state, params)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(params["kernel"], wanted[:1], rtol=1e-5)
        np.testing.assert_allclose(params["bias"], wanted[1], rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": "linear"}, "optimizer.schedule='linear'"),
        ({"warmup_steps": 100}, "optimizer.warmup_steps=100"),
    ],
)
def test_errors_name_the_key(changes, message):
    with pytest.raises(UserError, match=message):
        schedules.learning_rate(settings(**changes), 100)


# The KL's weight.


def weight(name, steps, at, cycles=1):
    settings = SimpleNamespace(annealing=name, annealing_steps=steps, annealing_cycles=cycles)
    return np.asarray(jax.jit(jax.vmap(schedules.annealing(settings)))(jnp.asarray(at)))


def test_constant_annealing():
    np.testing.assert_array_equal(weight("constant", 0, [0, 1, 1000]), 1)


def test_linear_annealing():
    np.testing.assert_allclose(weight("linear", 40, [0, 1, 10, 39, 40, 1000]), [0, 1 / 40, 0.25, 39 / 40, 1, 1])


def test_monotonic_annealing_is_logistic():
    found = weight("monotonic", 100, np.arange(101))
    np.testing.assert_allclose(found[:100], 1 / (1 + np.exp(5 - 0.1 * np.arange(100))), rtol=1e-5)
    assert found[100] == 1 and (np.diff(found) > 0).all()


def test_cyclical_annealing():
    found = weight("cyclical", 60, np.arange(100), cycles=3)
    cycle = np.minimum(np.arange(20) / 10, 1)
    np.testing.assert_allclose(found, [*cycle, *cycle, *cycle, *np.ones(40)], atol=1e-5)


def forcing(**changes):
    return ConfigDict({"first": 1.0, "last": 0.0, "begin": 50, "steps": 200, **changes})


def test_teacher_forcing():
    steps = np.arange(400)
    share = jax.vmap(schedules.teacher_forcing(forcing(last=0.25)))(steps)
    np.testing.assert_allclose(share, np.clip(1 - (steps - 50) * 0.75 / 200, 0.25, 1), atol=1e-6)
    assert share.dtype == jnp.float32
    np.testing.assert_array_equal(schedules.teacher_forcing(forcing(first=0.0))(7), 0)
    assert schedules.teacher_forcing(forcing(last=1.0)) is None
