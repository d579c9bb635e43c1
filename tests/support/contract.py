"""The checks that every model passes, whatever its task: see `check_model`."""

from functools import partial
from typing import Any

import jax
import numpy as np
from jax import Array

from cvae_jax import inference, keys
from cvae_jax.distributions import sum_per_example
from cvae_jax.inference.estimators import elbo_score, plain_mean
from cvae_jax.model import Batch, Draw, Fitted, has_latents

SIGMAS = 4.5  # of a Monte Carlo error: a right answer misses by so much once in 150,000 comparisons
NUM_SAMPLES = 4000


def check_model(fitted: Fitted, batch: Batch) -> None:
    """Runs every check that applies; `batch` has a y."""
    check_without_y(fitted, batch)
    check_alone(fitted, batch)
    check_compiled(fitted, batch)
    if has_latents(fitted, batch):
        check_given(fitted, batch)
        check_kl(fitted, batch)
        check_estimators_agree(fitted, batch)
    if fitted.model.recognise is not None:
        check_recognise(fitted, batch)


def moved(variables):
    """Away from where networks start, where q may equal p and hide a wrong KL; not far, so that samples reach it."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: 0.7 * leaf + 0.05 * rng.normal(size=leaf.shape).astype(np.float32), variables)


def draw_eagerly(proposal: Any, fitted: Fitted, batch: Batch, z: Any = None) -> Draw:
    """One draw under keys that depend on the examples' ids alone."""
    return fitted.draw(fitted.encode(batch), keys.per_example(jax.random.key(0), batch.ids), proposal, z)


draw = partial(jax.jit, static_argnums=0)(draw_eagerly)


def richest(fitted: Fitted, batch: Batch) -> str:
    """The proposal that takes part in the most of the model."""
    return "recognition" if has_latents(fitted, batch) else "prior"


def assert_close(actual: Any, wanted: Any) -> None:
    """Equal up to the rounding of float32 sums taken in another order."""
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), actual, wanted)


def check_without_y(fitted: Fitted, batch: Batch) -> None:
    """Predicting leaves out what needs y and changes nothing else: same z, same p(y|x,z), same log p(z|x)."""
    known = draw("prior", fitted, batch)
    predicting = draw("prior", fitted, batch._replace(y=None))
    assert known.log_p_y.shape[:1] == batch.ids.shape
    assert known.log_p_y.shape == known.log_p_z.shape
    assert predicting.log_p_y is None
    if has_latents(fitted, batch):
        assert np.isfinite(known.log_q_z).all()
        assert np.isnan(predicting.log_q_z).all()
    for name in ("z", "p_y", "log_p_z"):
        assert_close(getattr(predicting, name), getattr(known, name))


def check_alone(fitted: Fitted, batch: Batch) -> None:
    """An example does not see the others of its batch."""
    proposal = richest(fitted, batch)
    alone = draw(proposal, fitted, jax.tree.map(lambda leaf: leaf[-1:], batch))
    together = draw(proposal, fitted, batch)
    assert_close(alone, jax.tree.map(lambda leaf: leaf[-1:], together))


def check_compiled(fitted: Fitted, batch: Batch) -> None:
    """Compiled equals eager."""
    proposal = richest(fitted, batch)
    assert_close(draw(proposal, fitted, batch), draw_eagerly(proposal, fitted, batch))


def check_given(fitted: Fitted, batch: Batch) -> None:
    """A draw that is handed back to be scored returns its own numbers, wherever it came from."""
    for proposal in ("recognition", "recognition_mean", "prior", "prior_mean"):
        drawn = draw(proposal, fitted, batch)
        assert_close(draw("given", fitted, batch, drawn.z), drawn)


def kl_error(draw: Draw) -> Array:
    """How far log q - log p of one draw is from the analytic KL given the layers of z above: 0 on average."""
    return sum_per_example(draw.log_q_z - draw.log_p_z - draw.log_p_y) + elbo_score(draw)


def check_kl(fitted: Fitted, batch: Batch) -> None:
    """The analytic KL(q || p) is the mean of log q - log p under q."""
    found = plain_mean(inference.scores(fitted, batch, "recognition", kl_error, NUM_SAMPLES, jax.random.key(1)))
    assert (found.error > 1e-3).all(), "q equals p: nothing to compare"
    assert (np.abs(found.value) < SIGMAS * found.error).all()


def check_estimators_agree(fitted: Fitted, batch: Batch) -> None:
    """Importance sampling and simple Monte Carlo, which draw from different places, find the same log p(y|x)."""
    by_is, by_mc = (inference.log_prob(fitted, batch, name, NUM_SAMPLES, jax.random.key(2)) for name in ("is", "mc"))
    assert (np.minimum(by_is.ess, by_mc.ess) > 50).all(), "too few effective samples to compare"
    assert (np.abs(by_is.value - by_mc.value) < SIGMAS * np.hypot(by_is.error, by_mc.error)).all()


def check_recognise(fitted: Fitted, batch: Batch) -> None:
    """Replacing y in an encoding gives what encoding that y gives."""
    changed = batch._replace(y=jax.tree.map(lambda leaf: leaf[::-1], batch.y))
    recognised = fitted.model.recognise(fitted.variables, fitted.encode(batch), changed.y)
    example_keys = keys.per_example(jax.random.key(0), batch.ids)
    assert_close(
        fitted.draw(recognised, example_keys, "recognition"),
        fitted.draw(fitted.encode(changed), example_keys, "recognition"),
    )
