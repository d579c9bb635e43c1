"""Annealed importance sampling (Neal 2001) of log p(y|x), and bidirectional Monte Carlo (Grosse et al. 2015).

A chain moves z along the geometric path log f_t(z) = log start(z) + t (log p(y,z|x) - log start(z)), which starts
at q(z|x,y) or p(z|x), by Hamiltonian transitions that leave f_t unchanged. The weight it gathers is unbiased for
p(y|x). For a y drawn from the model an exact sample of p(z|x,y) is at hand, and the weight of a chain that runs
from there back to the start is unbiased for p(y|x) when both are inverted. So the truth is caught between two
bounds (Wu et al. 2017). Step sizes are tuned by a pilot with keys of its own, then frozen: weights stay unbiased.

Rounding depends on shapes and on the compiled program, and a Metropolis test turns rounding into another chain. So
everything is computed in blocks of one shape, each on one device, by programs that know nothing of other blocks and
devices: the numbers are the same, to the bit, whatever else is in the batch and however many devices there are.
(One `shard_map` over all devices compiles otherwise for one device than for several.)
"""

import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from cvae_jax import keys, parallel
from cvae_jax.errors import UserError
from cvae_jax.inference.estimators import Estimate, log_mean_exp
from cvae_jax.inference.hmc import Point, transitions
from cvae_jax.model import Batch, Fitted, PyTree

BLOCK_EXAMPLES = 10  # that a device computes at once
BLOCK_CHAINS = 16  # of each example at once; as many in the pilot
SCALE_DRAWS = 128  # draws of the start that give the scale of each element of z, to 6%
FIRST_STEP = 0.5  # the pilot's first step size, in units of that scale
TARGET_ACCEPTANCE = 0.7  # 0.65 is the optimum in many dimensions (Beskos et al. 2013); too small a step costs less
# Of the pilot, in log step size. Acceptance falls by about 0.6 a unit: five temperatures mend a wrong step, and the
# noise of 16 chains, about 0.08, moves it by 4%.
GAIN = 0.5


class Ais(NamedTuple):
    """How chains of annealed importance sampling run.

    One costs num_steps * num_leapfrog evaluations of the densities, with two gradients each. They run BLOCK_CHAINS at
    once, so that 17 cost as much as 32; the pilot costs as much as BLOCK_CHAINS.
    """

    start: Literal["recognition", "prior"] = "recognition"
    num_steps: int = 500  # of the temperature; with 1 it is importance sampling from the start, and no bdmc
    num_leapfrog: int = 5  # steps in each Hamiltonian transition


class Chains(NamedTuple):
    """The chains of one direction."""

    log_weights: np.ndarray  # float64 [chains, batch, *factors], nats
    acceptance: np.ndarray  # float32, as large: the mean over temperatures; NaN with one step


NOT_SIMULATED = (
    "bdmc scores y that the model draws, but this one scores each part of y given the true ones before it, which it "
    "does not draw from; leave bdmc out"
)


class Bidirectional(NamedTuple):
    """Chains in both directions, for a y that the model drew."""

    batch: Batch
    forward: Chains
    reverse: Chains


class ChainKeys(NamedTuple):
    """Keys [chains, batch]."""

    start: Array  # for the z that a chain starts from
    move: Array  # from which the keys of its transitions are folded


def ais(fitted: Fitted, batch: Batch, num_chains: int, key: Array, settings: Ais) -> Chains:
    """Runs annealed importance sampling: exp(log_weights) is unbiased for p(y|x), see `estimators.log_mean_exp`.

    Each chain depends on (key, settings, id of the example, number of the chain) alone.

    Args:
      fitted: a model with its variables.
      batch: with y.
      num_chains: for every example.
      key: of all random numbers.
      settings: how chains run.

    Raises:
      UserError: for wrong settings, a batch without y, a model without z or without the network to start from.
    """
    if batch.y is None:
        raise UserError("log p(y|x) needs y")
    return _run(fitted, batch, None, num_chains, key, settings)[0]


def simulate(fitted: Fitted, batch: Batch, key: Array) -> tuple[Batch, PyTree]:
    """Returns the batch with a y drawn from p(y|x), and the z it was drawn with: an exact sample of p(z|x,y).

    The weight is that of this y where the model says how it depends on y (`Model.weight`). Elements of weight 0, which
    p(y|x,z) leaves out, are 0: a recognition network that saw them would know more of that z than y tells.
    """
    shared = (fitted, keys.substream(key, "simulate"))
    done = _in_blocks(_simulate, shared, batch._replace(y=None))
    y, weight, z = jax.tree.map(lambda *leaves: np.concatenate(leaves)[: len(batch.ids)], *done)
    return batch._replace(y=y, weight=weight), z


def bdmc(fitted: Fitted, batch: Batch, num_chains: int, key: Array, settings: Ais) -> Bidirectional:
    """Runs bidirectional Monte Carlo: it tells how far from the truth annealing is, on y drawn from the model.

    The batch's y is not looked at. The weight must be 0 or 1: else p(y|x,z) is no density, and nothing is bounded.

    Args:
      fitted: a model with its variables.
      batch: whose x is taken.
      num_chains: for every example, in each direction.
      key: of all random numbers.
      settings: how chains run.

    Raises:
      UserError: for wrong settings, a model without z or without the network to start from, or one that scores parts
        of y given the true ones before them.
    """
    check(num_chains, settings, bidirectional=True)
    if fitted.model.autoregressive:
        raise UserError(NOT_SIMULATED)
    simulated, z = simulate(fitted, batch, key)
    weights = [np.asarray(weight) for weight in jax.tree.leaves(simulated.weight)]
    if any(((weight != 0) & (weight != 1)).any() for weight in weights):
        raise UserError("bdmc needs weights of 0 or 1: with others p(y|x,z) is no density, and nothing is bounded")
    return Bidirectional(simulated, *_run(fitted, simulated, z, num_chains, key, settings))


def bounds(chains: Bidirectional) -> tuple[Estimate, Estimate]:
    """Returns a lower and an upper bound, in expectation, of log p(y|x), summed over factors: float64 [batch], nats.

    The reverse chains of an example begin at one and the same z, so their spread says little of how far the upper bound
    would move with another z: a single example's error is NaN. That of a mean over examples is known, from the spread
    of the upper bound's distance to the lower one.
    """
    forward, inverse = log_mean_exp(chains.forward.log_weights), log_mean_exp(-chains.reverse.log_weights)
    assert inverse.per_factor is not None
    zero = np.zeros_like(forward.value)
    lower = forward._replace(bias=zero)  # which is part of the bound
    unknown = zero + np.nan
    flags = lower.flagged, lower.doubt  # where chains in one direction hardly move, they do not in the other
    upper = Estimate(-inverse.value, unknown, inverse.ess, unknown, zero, *flags, -inverse.per_factor, lower)
    return lower, upper


def temperatures(num_steps: int) -> np.ndarray:
    """Sigmoidal from 0 to 1, as in Wu et al. (2017): float32 [num_steps + 1].

    Steps should be as 1/sd(log_ratio) under f_t. From the prior sd grows towards t = 0; from a q that is too narrow,
    towards t = 1. For Gaussians and 500 steps the variance of the weights is 1.4 times the least possible where q is
    half to twice as wide as the posterior (even steps: 1.0 to 1.2), 1.7 times from a prior 10 times as wide (5.1)
    and 4.1 times from one 30 times as wide (45).
    """
    sigmoid = 1 / (1 + np.exp(-np.linspace(-4, 4, num_steps + 1)))
    return ((sigmoid - sigmoid[0]) / (sigmoid[-1] - sigmoid[0])).astype(np.float32)


# On the host.


def check(num_chains: int, settings: Ais, bidirectional: bool = False) -> None:
    """Raises a UserError for settings that cannot be, of one direction or of both."""
    numbers = {"num_chains": num_chains, "num_steps": settings.num_steps, "num_leapfrog": settings.num_leapfrog}
    for name, number in numbers.items():
        if number < 1:
            raise UserError(f"{name}={number} must be at least 1")
    if settings.start not in ("recognition", "prior"):
        raise UserError(f"start={settings.start!r} is not known; choose recognition or prior")
    if bidirectional and settings.num_steps == 1:
        raise UserError("num_steps=1 leaves bdmc no temperature between, where chains could move; take more")


def _check_model(fitted: Fitted, batch: Batch, settings: Ais) -> None:
    """Raises a UserError where there is no z, or nothing to start from."""
    z, log_q_z = _draw_from_prior(fitted, jax.tree.map(lambda leaf: leaf[:1], batch))
    if not jax.tree.leaves(z):
        raise UserError("the model has no latent variables: its log p(y|x) is exact, there is nothing to anneal")
    if settings.start == "recognition" and np.isnan(log_q_z).all():
        raise UserError('log q(z|x,y) is NaN: the model has no recognition network to start from; set start="prior"')


@jax.jit
def _draw_from_prior(fitted: Fitted, batch: Batch) -> tuple[PyTree, Array]:
    draw = fitted.draw(fitted.encode(batch), keys.unused(batch.ids), "prior")
    return draw.z, draw.log_q_z


def _run(fitted: Fitted, batch: Batch, exact: PyTree, num_chains: int, key: Array, settings: Ais) -> list[Chains]:
    """Runs forward chains, and reverse ones if `exact` holds a z for every example to start them from."""
    check(num_chains, settings)
    _check_model(fitted, batch, settings)
    key = keys.substream(key, settings.start)  # estimates from different starts are independent
    ladder = temperatures(settings.num_steps)
    increments = np.diff(ladder.astype(np.float64))  # of the float32 temperatures that the chains are at: they add to 1

    def run_block(shared: PyTree, stream_keys: list[Array], block: Batch, z: PyTree) -> list[Chains]:
        pilot_key, *direction_keys = stream_keys
        tuning = _tune(settings, shared, block, _chain_keys(pilot_key, block.ids, 0, SCALE_DRAWS))

        def chains(key: Array, start: PyTree) -> Chains:
            parts = []
            for first in range(0, num_chains, BLOCK_CHAINS):
                chain_keys = _chain_keys(key, block.ids, np.int32(first), BLOCK_CHAINS)
                annealed = _anneal(settings, shared, block, tuning, start, chain_keys)
                log_ratio, acceptance = jax.device_get(annealed)
                parts.append(Chains(np.tensordot(increments, log_ratio.astype(np.float64), 1), acceptance))
            return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:num_chains], *parts)

        return [chains(key, start) for key, start in zip(direction_keys, (None, z), strict=False)]

    names = ("pilot", "forward") if exact is None else ("pilot", "forward", "reverse")
    shared = (fitted, ladder), [keys.substream(key, name) for name in names]
    done = _in_blocks(run_block, shared, batch, exact)
    return jax.tree.map(lambda *leaves: np.concatenate(leaves, 1)[:, : len(batch.ids)], *done)


def _in_blocks(function: Callable[..., Any], shared: tuple[Any, ...], batch: Batch, *more: PyTree) -> list[PyTree]:
    """Returns function(*shared, *block), on the host, for blocks of BLOCK_EXAMPLES; the last example fills the last up.

    Every device takes the next block when it is free.
    """
    trees, count = jax.device_get((batch, *more)), len(batch.ids)
    shared_on = cache(partial(jax.device_put, shared))

    def run(device: jax.Device, first: int) -> PyTree:
        rows = np.minimum(np.arange(first, first + BLOCK_EXAMPLES), count - 1)
        block = jax.tree.map(lambda leaf: leaf[rows], trees)
        return function(*shared_on(device), *jax.device_put(block, device))

    return parallel.on_devices(run, range(0, count, BLOCK_EXAMPLES))


# On a device: one block, whose shapes are always the same.


@jax.jit
def _simulate(fitted: Fitted, key: Array, batch: Batch) -> tuple[PyTree, PyTree, PyTree]:
    """Returns y, its weight and z of every example."""
    z_keys, y_keys = jax.vmap(jax.random.split, out_axes=1)(keys.per_example(key, batch.ids))
    draw = fitted.draw(fitted.encode(batch), z_keys, "prior")
    y, weight = draw.p_y.sample(y_keys), batch.weight
    if fitted.model.weight is not None:
        weight = fitted.model.weight(batch._replace(y=y))
    if weight is not None:
        y = jax.tree.map(lambda leaf, weight: jnp.where(weight == 0, jnp.zeros_like(leaf), leaf), y, weight)
    return y, weight, draw.z


@partial(jax.jit, static_argnums=0)
def _tune(settings: Ais, shared: PyTree, batch: Batch, chain_keys: ChainKeys) -> tuple[PyTree, Array]:
    """Runs the pilot: forward chains whose acceptance steers the step size from one temperature to the next.

    Returns the scale of z, its standard deviation under the start, and in units of it the step sizes of the
    temperatures between the start and the target, [num_steps - 1, batch, *factors].
    """
    fitted, ladder = shared
    draw, evaluate = _path(settings, fitted, batch)
    draws = jax.vmap(draw)(chain_keys.start)
    scale = jax.tree.map(lambda leaf: leaf.std(0), draws)
    move_all = transitions(evaluate, settings.num_leapfrog, scale)

    def move(state: tuple[Point, Array], at: tuple[Array, Array]) -> tuple[tuple[Point, Array], Array]:
        points, log_step = state
        number, t = at
        points, acceptance = move_all(points, _at(chain_keys.move[:BLOCK_CHAINS], number), t, jnp.exp(log_step))
        log_step += GAIN * (acceptance.mean(0) - TARGET_ACCEPTANCE)
        return (points, log_step), jnp.exp(log_step)

    points = jax.vmap(evaluate)(jax.tree.map(lambda leaf: leaf[:BLOCK_CHAINS], draws))
    log_step = jnp.full_like(points.log_start[0], math.log(FIRST_STEP))
    numbers = jnp.arange(1, settings.num_steps)
    _, step_sizes = jax.lax.scan(move, (points, log_step), (numbers, ladder[1:-1]))
    return scale, step_sizes


@partial(jax.jit, static_argnums=0)
def _anneal(
    settings: Ais,
    shared: PyTree,
    batch: Batch,
    tuning: tuple[PyTree, Array],
    exact: PyTree,
    chain_keys: ChainKeys,
) -> tuple[Array, Array]:
    """Runs chains forward, or in reverse from the z that are `exact`.

    Returns log_ratio on the way from each temperature to the next one, [num_steps, chains, batch, *factors], and the
    mean acceptance [chains, batch, *factors].
    """
    fitted, ladder = shared
    draw, evaluate = _path(settings, fitted, batch)
    reverse = exact is not None
    scale, step_sizes = tuning
    move_all = transitions(evaluate, settings.num_leapfrog, scale)

    def move(points: Point, at: tuple[Array, Array, Array]) -> tuple[Point, tuple[Array, Array]]:
        number, t, step_size = at
        moved, acceptance = move_all(points, _at(chain_keys.move, number), t, step_size)
        return moved, (points.log_ratio, acceptance)

    if reverse:
        z = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (BLOCK_CHAINS, *leaf.shape)), exact)
    else:
        z = jax.vmap(draw)(chain_keys.start)
    # The transition at each inner temperature satisfies detailed balance, so it is its own reversal, and the
    # same ones in the other order are the reverse chain.
    inner = (jnp.arange(1, settings.num_steps), ladder[1:-1], step_sizes)
    points, (log_ratio, acceptance) = jax.lax.scan(move, jax.vmap(evaluate)(z), inner, reverse=reverse)
    last = points.log_ratio[None]
    log_ratio = jnp.concatenate([last, log_ratio] if reverse else [log_ratio, last])
    return log_ratio, acceptance.mean(0)


@partial(jax.jit, static_argnums=3)
def _chain_keys(key: Array, ids: Array, first: Array, count: int) -> ChainKeys:
    """Returns keys of chains first, ..., first + count - 1, by a program that no model makes compile again."""
    chains = keys.per_sample(keys.per_example(key, ids), first + jnp.arange(count))
    return ChainKeys(_at(chains, 0), _at(chains, 1))


def _at(chain_keys: Array, number: int | Array) -> Array:
    """Returns keys [chains, batch] below these, by number."""
    return jax.vmap(jax.vmap(jax.random.fold_in, (0, None)), (0, None))(chain_keys, number)


# One chain.


def _path(settings: Ais, fitted: Fitted, batch: Batch) -> tuple[Callable[[Array], PyTree], Callable[[PyTree], Point]]:
    """Returns what draws a z from the start for keys [batch], and what evaluates a z on the path."""
    encoding = fitted.encode(batch)

    def densities(z: PyTree) -> tuple[Array, Array]:
        draw = fitted.draw(encoding, keys.unused(batch.ids), "given", z)
        if settings.start == "prior":
            return draw.log_p_z, draw.log_p_y
        return draw.log_q_z, draw.log_p_y + draw.log_p_z - draw.log_q_z

    def with_gradient(part: int, z: PyTree) -> tuple[Array, PyTree]:
        def total(z: PyTree) -> tuple[Array, Array]:
            values = densities(z)[part]
            return values.sum(), values

        (_, values), gradient = jax.value_and_grad(total, has_aux=True)(z)
        return values, gradient

    def evaluate(z: PyTree) -> Point:
        # Two gradients serve every temperature. Compiled, what they share is computed once.
        log_start, grad_start = with_gradient(0, z)
        log_ratio, grad_ratio = with_gradient(1, z)
        return Point(z, log_start, log_ratio, grad_start, grad_ratio)

    return lambda example_keys: fitted.draw(encoding, example_keys, settings.start).z, evaluate
