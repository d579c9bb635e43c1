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
    return ConfigDict({**schedules.DEFAULTS, "learning_rate": 0.01, **changes})


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


PARTS = 3280  # of a run, the stages being 1, 3, 9, ... of them
BY_HAND = {  # the share of the rate, by the share of the steps after the warm-up that are done
    "constant": lambda done: 1.0,
    "cosine": lambda done: 0.5 * (1 + np.cos(np.pi * done)),
    "stages": lambda done: 10.0 ** (-sum((3**i - 1) / 2 <= done * PARTS for i in range(1, 8)) / 7),
}


@pytest.mark.parametrize("warmup", [0, 30])
@pytest.mark.parametrize("schedule", schedules.SCHEDULES)
def test_every_schedule_follows_its_warm_up(schedule, warmup):
    num_steps = 700
    rate = schedules.learning_rate(settings(schedule=schedule, warmup_steps=warmup, learning_rate=0.2), num_steps)
    steps = np.arange(num_steps)
    with jax.numpy_dtype_promotion("standard"):
        rates = jax.vmap(rate)(steps)
    done = (steps - warmup) / (num_steps - warmup)
    wanted = [0.2 * (step / warmup if step < warmup else BY_HAND[schedule](done[step])) for step in steps]
    np.testing.assert_allclose(rates, wanted, rtol=1e-4, atol=1e-7)


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


def sgd(params, grads, rates, momentum, weight_decay):
    """Gradient descent in NumPy, as PyTorch has it: decay is added to the gradient, and momentum gathers both."""
    velocity = np.zeros_like(params)
    for grad, rate in zip(grads, rates, strict=True):
        velocity = momentum * velocity + grad + weight_decay * params * np.array([[1], [0]])
        params = params - rate * velocity
        yield params


def steps_of(optimizer, start, grads):
    """The parameters after each gradient: a kernel [1, 2] above a bias [2], float64 [2, 2]."""
    params = {"kernel": jnp.asarray(start[:1], jnp.float32), "bias": jnp.asarray(start[1], jnp.float32)}
    state = optimizer.init(params)
    for grad in grads:
        grad = {"kernel": jnp.asarray(grad[:1], jnp.float32), "bias": jnp.asarray(grad[1], jnp.float32)}
        updates, state = optimizer.update(grad, state, params)
        params = optax.apply_updates(params, updates)
        yield np.concatenate([params["kernel"], params["bias"][None]])


START = np.array([[1.0, -2.0], [3.0, 0.5]])
GRADS = np.random.default_rng(0).normal(size=(12, 2, 2))


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize("clip_norm", [0.0, 1.5])
@pytest.mark.parametrize(("momentum", "weight_decay"), [(0.0, 0.0), (0.9, 0.0), (0.0, 0.3), (0.9, 0.3), (0.5, 0.1)])
def test_sgd(momentum, weight_decay, clip_norm, schedule):
    norms = np.linalg.norm(GRADS, axis=(1, 2), keepdims=True)
    assert (norms < 1.5).any() and (norms > 1.5).any()
    clipped = GRADS * np.minimum(1, clip_norm / norms) if clip_norm else GRADS
    rates = 0.05 * np.array([BY_HAND[schedule](step / 20) for step in range(12)])
    changes = {"momentum": momentum, "weight_decay": weight_decay, "clip_norm": clip_norm, "schedule": schedule}
    optimizer = schedules.optimizer(settings(name="sgd", learning_rate=0.05, **changes), 20)
    wanted = sgd(START, clipped, rates, momentum, weight_decay)
    for params, exact in zip(steps_of(optimizer, START, GRADS), wanted, strict=True):
        np.testing.assert_allclose(params, exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_adam_is_that_of_optax(weight_decay):
    rate = optax.linear_schedule(0.0, 0.1, 5)
    with jax.numpy_dtype_promotion("standard"):
        mask = {"kernel": True, "bias": False}
        theirs = list(steps_of(optax.adamw(rate, eps=1e-3, weight_decay=weight_decay, mask=mask), START, GRADS))
    changes = {"epsilon": 1e-3, "weight_decay": weight_decay, "learning_rate": 0.1, "warmup_steps": 5}
    ours = list(steps_of(schedules.optimizer(settings(**changes), 20), START, GRADS))
    np.testing.assert_array_equal(ours, theirs)
    assert (ours[-1] != START).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": "linear"}, "optimizer.schedule='linear'"),
        ({"schedule": "cos"}, "optimizer.schedule='cos' is not known; choose from constant, cosine, stages$"),
        ({"warmup_steps": 100}, "optimizer.warmup_steps=100"),
    ],
)
def test_errors_name_the_key(changes, message):
    with pytest.raises(UserError, match=message):
        schedules.learning_rate(settings(**changes), 100)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "lion"}, "name='lion' is not known; choose from adam, sgd$"),
        ({"name": "sgd", "epsilon": 0.1}, "epsilon=0.1 is not read by sgd, only by adam; leave it at 1e-08$"),
        ({"momentum": 0.5}, "momentum=0.5 is not read by adam, only by sgd; leave it at 0.9$"),
        ({"learning_rate": 0.0}, "learning_rate=0.0 must be above 0$"),
        ({"learning_rate": float("nan")}, "learning_rate=nan must be above 0$"),
        ({"learning_rate": float("inf")}, "learning_rate=inf must be at most 1e[+]06$"),
        ({"epsilon": 0.0}, "epsilon=0.0 must be above 0$"),
        ({"name": "sgd", "momentum": 1.0}, "momentum=1.0 must be at least 0 and below 1$"),
        ({"name": "sgd", "momentum": -0.1}, "momentum=-0.1 must be at least 0 and below 1$"),
        ({"warmup_steps": -1}, "warmup_steps=-1 must be at least 0$"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1 must be at least 0$"),
        ({"clip_norm": -1.0}, "clip_norm=-1.0 must be at least 0$"),
    ],
)
def test_optimizers_that_cannot_be(changes, message):
    with pytest.raises(UserError, match=f"^cvae.optimizer.{message}"):
        schedules.check_optimizer(settings(**changes), "cvae.optimizer")


@pytest.mark.parametrize("changes", [{}, {"epsilon": 0.1}, {"name": "sgd"}, {"name": "sgd", "momentum": 0.0}])
def test_optimizers_that_can_be(changes):
    schedules.check_optimizer(settings(**changes))


def test_every_optimizer_takes_a_step_downhill():
    for name in schedules.OPTIMIZERS:
        (params,) = steps_of(schedules.optimizer(settings(name=name), 20), START, GRADS[:1])
        np.testing.assert_array_equal(np.sign(START - params), np.sign(GRADS[0]))


# The KL's weight.


def weight(name, steps, at, cycles=1):
    settings = SimpleNamespace(beta_schedule=name, beta_steps=steps, beta_cycles=cycles)
    return np.asarray(jax.jit(jax.vmap(schedules.beta(settings)))(jnp.asarray(at)))


def test_constant_weight():
    np.testing.assert_array_equal(weight("constant", 0, [0, 1, 1000]), 1)


def test_linear_weight():
    np.testing.assert_allclose(weight("linear", 40, [0, 1, 10, 39, 40, 1000]), [0, 1 / 40, 0.25, 39 / 40, 1, 1])


def test_monotonic_weight_is_logistic():
    found = weight("monotonic", 100, np.arange(101))
    np.testing.assert_allclose(found[:100], 1 / (1 + np.exp(5 - 0.1 * np.arange(100))), rtol=1e-5)
    assert found[100] == 1 and (np.diff(found) > 0).all()


def test_cyclical_weight():
    found = weight("cyclical", 60, np.arange(100), cycles=3)
    cycle = np.minimum(np.arange(20) / 10, 1)
    np.testing.assert_allclose(found, [*cycle, *cycle, *cycle, *np.ones(40)], atol=1e-5)


@pytest.mark.parametrize("schedule", schedules.BETA_SCHEDULES)
def test_every_weight_ends_at_one(schedule):
    share = weight(schedule, 0 if schedule == "constant" else 30, [29, 30, 1000], cycles=1)
    np.testing.assert_array_equal(share[1:], 1)
    assert 0.9 < share[0] <= 1


def forcing(**changes):
    return ConfigDict({"first": 1.0, "last": 0.0, "begin": 50, "steps": 200, **changes})


def test_teacher_forcing():
    steps = np.arange(400)
    share = jax.vmap(schedules.teacher_forcing(forcing(last=0.25)))(steps)
    np.testing.assert_allclose(share, np.clip(1 - (steps - 50) * 0.75 / 200, 0.25, 1), atol=1e-6)
    assert share.dtype == jnp.float32
    np.testing.assert_array_equal(schedules.teacher_forcing(forcing(first=0.0))(7), 0)
    assert schedules.teacher_forcing(forcing(last=1.0)) is None
