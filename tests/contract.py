"""The checks that every model passes, whatever its task: see `check_model`."""

from functools import partial
from typing import Any

import jax
import numpy as np

from cvae_jax import inference, keys
from cvae_jax.distributions import sum_per_example
from cvae_jax.estimators import Estimator, plain_mean
from cvae_jax.model import Batch, Draw, Model, Variables

SIGMAS = 4.5  # of a Monte Carlo error: a right answer misses by so much once in 150,000 comparisons
NUM_SAMPLES = 4000
KL_BY_SAMPLES = Estimator("KL", "recognition", lambda draw: draw.log_q_z - draw.log_p_z, plain_mean)


def check_model(model: Model, variables: Variables, batch: Batch) -> None:
    """Runs every check that applies; `batch` has a y."""
    check_without_y(model, variables, batch)
    check_alone(model, variables, batch)
    check_compiled(model, variables, batch)
    if inference.has_latents(model, variables, batch):
        check_given(model, variables, batch)
        check_kl(model, variables, batch)
        check_estimators_agree(model, variables, batch)


def draw_eagerly(model: Model, proposal: Any, variables: Variables, batch: Batch, z: Any = None) -> Draw:
    """One draw under keys that depend on the examples' index alone."""
    encoding = model.encode(variables, batch)
    return model.draw(variables, encoding, keys.per_example(jax.random.key(0), batch.index), proposal, z)


draw = partial(jax.jit, static_argnums=(0, 1))(draw_eagerly)


def proposals(model: Model, variables: Variables, batch: Batch) -> list[str]:
    """The ways of drawing that this model has."""
    return ["prior", "prior_mean", "recognition"] if inference.has_latents(model, variables, batch) else ["prior"]


def assert_close(actual: Any, wanted: Any) -> None:
    """Equal up to the rounding of float32 sums taken in another order."""
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), actual, wanted)


def check_without_y(model: Model, variables: Variables, batch: Batch) -> None:
    """Predicting leaves out what needs y and changes nothing else: same z, same p(y|x,z), same log p(z|x)."""
    known = draw(model, "prior", variables, batch)
    predicting = draw(model, "prior", variables, batch._replace(y=None))
    assert known.log_p_y.shape == batch.index.shape
    assert predicting.log_p_y is None
    if inference.has_latents(model, variables, batch):
        assert np.isfinite(known.log_q_z).all()
        assert np.isnan(predicting.log_q_z).all()
    for name in ("z", "p_y", "log_p_z"):
        assert_close(getattr(predicting, name), getattr(known, name))


def check_alone(model: Model, variables: Variables, batch: Batch) -> None:
    """An example does not see the others of its batch."""
    alone = jax.tree.map(lambda leaf: leaf[-1:], batch)
    for proposal in proposals(model, variables, batch):
        together = jax.tree.map(lambda leaf: leaf[-1:], draw(model, proposal, variables, batch))
        assert_close(draw(model, proposal, variables, alone), together)


def check_compiled(model: Model, variables: Variables, batch: Batch) -> None:
    """Compiled equals eager."""
    for proposal in proposals(model, variables, batch):
        assert_close(draw(model, proposal, variables, batch), draw_eagerly(model, proposal, variables, batch))


def check_given(model: Model, variables: Variables, batch: Batch) -> None:
    """A draw that is handed back to be scored returns its own numbers, wherever it came from."""
    for proposal in proposals(model, variables, batch):
        drawn = draw(model, proposal, variables, batch)
        assert_close(draw(model, "given", variables, batch, drawn.z), drawn)


def check_kl(model: Model, variables: Variables, batch: Batch) -> None:
    """The analytic KL(q || p) is the mean of log q - log p under q."""
    by_samples = plain_mean(inference.scores(model, variables, batch, KL_BY_SAMPLES, NUM_SAMPLES, jax.random.key(1)))
    units = jax.tree.leaves(draw(model, "recognition", variables, batch).kl)
    analytic = sum(np.asarray(sum_per_example(kl)) for kl in units)
    assert (by_samples.error > 0).all()
    assert (np.abs(by_samples.value - analytic) < SIGMAS * by_samples.error).all()


def check_estimators_agree(model: Model, variables: Variables, batch: Batch) -> None:
    """Importance sampling and simple Monte Carlo, which draw from different places, find the same log p(y|x)."""
    by_is, by_mc = (
        inference.log_prob(model, variables, batch, name, NUM_SAMPLES, jax.random.key(2)) for name in ("is", "mc")
    )
    assert (np.minimum(by_is.ess, by_mc.ess) > 50).all(), "too few effective samples to compare"
    assert (np.abs(by_is.value - by_mc.value) < SIGMAS * np.hypot(by_is.error, by_mc.error)).all()
