"""How far estimates of log p(y|x), and of the gradient of IWAE's bound, are from closed forms, and what is flagged.

The models are the linear-Gaussian ones, of 2 to 32 latent dimensions. benchmarks/README.md has the tables of the same
with more samples, chains and repeats.
"""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear_gaussian import LinearGaussian

from cvae_jax import inference, keys, objectives
from cvae_jax.inference import Ais, ais
from cvae_jax.inference.estimators import unreliable

pytestmark = pytest.mark.slow

KEY = jax.random.key(0)
SIGMAS = 4.5
DRAWN = [name for name in inference.ESTIMATOR_NAMES if name not in ("elbo", "ais")]  # those made of draws
MODELS = pytest.mark.parametrize(
    "model", [LinearGaussian(2, 2, 4), LinearGaussian(3, 8, 16), LinearGaussian(4, 32, 64)], ids=lambda of: of.z_size
)
WIDTH = 1.05  # of q, over the posterior's: an adequate proposal
ANNEALED = Ais("recognition", 100)


def estimates(model, requests, scale, x, y, settings=ANNEALED):
    """Estimates with a q that is `scale` times as wide as the posterior: (estimator, samples) -> Estimate."""
    return inference.log_probs(model.fitted(scale), model.batch_of(x, y), requests, KEY, settings)


# Accuracy, nats: q is a little wider than the posterior.


@MODELS
def test_draws(model):
    num_samples = 50_000 if model.z_size == 32 else 20_000
    largest = {"is": 0.002, "jackknife": 0.002, "defensive": 0.003}
    x, y = model.data(10)
    truth = model.log_p_y(x, y)
    by_name = estimates(model, [(name, num_samples) for name in DRAWN], WIDTH, x, y)
    for (name, _), estimate in by_name.items():
        missed, flags = np.abs(estimate.value - truth), unreliable(estimate)
        if name != "mc":
            assert missed.mean() < largest[name]
            assert not flags.any()
        assert (missed < SIGMAS * estimate.error)[~flags].all()
    np.testing.assert_allclose(by_name["is", num_samples].ess, num_samples * model.relative_ess(WIDTH), rtol=0.02)
    prior = by_name["mc", num_samples]
    if model.z_size == 2:
        assert np.abs(prior.value - truth).mean() < 0.02
    if model.z_size == 32:  # hopeless from the prior, and told so
        assert np.abs(prior.value - truth).mean() > 1
        assert unreliable(prior).all()


@MODELS
def test_annealing(model):
    chains = 16
    x, y = model.data(10)
    batch, truth = model.batch_of(x, None), model.log_p_y(x, y)
    (annealed,) = estimates(model, [("ais", chains)], WIDTH, x, y).values()
    bidirectional = ais.bdmc(model.fitted(WIDTH), batch, chains, KEY, ANNEALED)
    simulated = model.log_p_y(x, np.asarray(bidirectional.batch.y, np.float64))
    lower, upper = ais.bounds(bidirectional)
    for estimate, known in ((annealed, truth), (lower, simulated), (upper, simulated)):
        missed = np.abs(estimate.value - known)
        assert estimate is upper or (missed < SIGMAS * estimate.error).all()
        assert missed.mean() < 0.04
        assert not unreliable(estimate).any()
    # In expectation the truth lies between the bounds.
    for below in (lower.value - simulated, simulated - upper.value):
        assert below.mean() < SIGMAS * below.std(ddof=1) / np.sqrt(len(below))


# Coverage: independent replicates of one example's estimate, q 1.2 times as wide.


@pytest.mark.parametrize("names", [DRAWN, ["ais"]], ids=["draws", "ais"])
def test_intervals_hold_the_truth(names):
    replicates, count = (500, 1000) if names == DRAWN else (120, 64)
    model = LinearGaussian(3, 4, 6)
    x, y = (np.repeat(array, replicates, 0) for array in model.data(1))  # other ids: other random numbers
    truth = model.log_p_y(x[:1], y[:1])
    requests = [(name, count) for name in names]
    for estimate in estimates(model, requests, 1.2, x, y, Ais("recognition", 50)).values():
        missed = estimate.value - estimate.bias - truth
        assert abs((np.abs(missed) < 1.96 * estimate.error).mean() - 0.95) < 3 * np.sqrt(0.95 * 0.05 / replicates)
        np.testing.assert_allclose(missed.std(), estimate.error.mean(), rtol=0.15)
        assert abs(missed.mean()) < SIGMAS * missed.std() / np.sqrt(replicates)


# Proposals too narrow and too wide: 8 latent dimensions.

OF_PROPOSALS, COUNT = LinearGaussian(3, 8, 16), 5000


@cache
def with_proposal(scale):
    """Errors, and what is said of them, by estimator."""
    x, y = OF_PROPOSALS.data(100)
    by_name = estimates(OF_PROPOSALS, [(name, COUNT) for name in DRAWN], scale, x, y)
    truth = OF_PROPOSALS.log_p_y(x, y)
    return {name: (estimate.value - truth, estimate.error, unreliable(estimate))
            for (name, _), estimate in by_name.items()}  # fmt: skip


@pytest.mark.parametrize(
    ("scale", "least", "most"),  # the shares that are flagged
    [(0.5, 0.9, 1), (0.7, 0.1, 0.5), (1.2, 0, 0), (2.0, 0, 0)],
)
def test_bad_proposals_are_flagged(scale, least, most):
    missed, error, flags = with_proposal(scale)["is"]
    assert least <= flags.mean() <= most
    if scale > 1:
        assert (np.abs(missed) < SIGMAS * error).all()
    if scale == 0.5:
        assert np.abs(missed).mean() > 0.3
        assert (np.abs(missed) < 1.96 * error).mean() < 0.7  # rightly flagged: the errors are wrong


@pytest.mark.parametrize("scale", [0.5, 0.7, 1.2, 2.0])
def test_what_mends_bad_proposals(scale):
    by_name = with_proposal(scale)
    plain, mended, defensive = (by_name[name][0] for name in ("is", "jackknife", "defensive"))
    assert abs(mended.mean()) < abs(plain.mean())
    # The mixture mends a narrow proposal, and costs little where there is nothing to mend.
    assert np.abs(defensive).mean() < (0.5 if scale < 1 else 1.4) * np.abs(plain).mean()
    _, _, flags = by_name["defensive"]
    assert flags.mean() <= {0.5: 0.9, 0.7: 0.05}.get(scale, 0)
    np.testing.assert_array_equal(by_name["mc"][0], with_proposal(1.2)["mc"][0])  # which does not draw from q


@pytest.mark.parametrize("scale", [0.5, 0.7, 1.2, 2.0])
def test_annealing_from_bad_proposals(scale):
    x, y = OF_PROPOSALS.data(20)
    (estimate,) = estimates(OF_PROPOSALS, [("ais", 32)], scale, x, y, Ais("recognition", 300)).values()
    missed = np.abs(estimate.value - OF_PROPOSALS.log_p_y(x, y))
    assert (missed < SIGMAS * estimate.error).all() and missed.mean() < 0.2
    assert not unreliable(estimate).any()


# Gradients of IWAE's bound: 2 examples, each repeat with the same noise for all estimates.

OF_GRADIENTS, REPEATS = LinearGaussian(3, 4, 6), 2000
GROUPS = {"q": ("bias", "q_scale", "by_x", "by_y"), "p(z|x)": ("A", "s_p"), "p(y|x,z)": ("B", "C")}


@partial(jax.jit, static_argnums=(0, 1))
def gradients(kind, k, variables):
    """Estimates of the gradient by every parameter, leaves [repeats, ...]."""
    batch = OF_GRADIENTS.batch_of(*OF_GRADIENTS.data(2))

    def of_repeat(repeat):
        def bound(variables):
            example_keys = keys.per_example(jax.random.fold_in(KEY, repeat), batch.ids)
            sample_keys = keys.per_sample(example_keys, jnp.arange(k))
            encoding = OF_GRADIENTS.model.encode(variables, batch)
            draw = objectives.draws_of(OF_GRADIENTS.model, (variables, encoding), sample_keys)
            return objectives.iwae(draw, batch, gradient=kind)[0].mean()

        return jax.grad(bound)(variables)["params"]

    return jax.lax.map(of_repeat, jnp.arange(REPEATS), batch_size=500)


def total_variance(by_parameter, names):
    return sum(np.var(by_parameter[name], 0, dtype=np.float64).sum() for name in names)


@pytest.mark.parametrize(
    ("scale", "shift", "k", "of_q", "of_prior"),  # variances over those of the plain estimate
    [
        (1.2, 0.3, 1, 0.096, 0.209),
        (1.2, 0.3, 8, 0.004, 0.484),
        (1.2, 0.3, 64, 0.000, 0.579),
        (0.7, 1.0, 1, 1.074, 1.755),
        (0.7, 1.0, 8, 1.252, 2.927),
        (0.7, 1.0, 64, 1.481, 4.742),
    ],
)
def test_gradients_of_iwae(scale, shift, k, of_q, of_prior):
    variables = OF_GRADIENTS.variables(scale, shift)
    plain = jax.device_get(gradients("reparameterised", k, variables))
    for kind in ("doubly_reparameterised", "generalised"):
        other = jax.device_get(gradients(kind, k, variables))
        for group, names in GROUPS.items():
            for name in names:  # no bias
                difference = (other[name] - plain[name]).astype(np.float64)
                error = difference.std(0) / np.sqrt(REPEATS)
                assert (np.abs(difference.mean(0)) < SIGMAS * error + 1e-6).all()
            ratio = total_variance(other, names) / total_variance(plain, names)
            generalised = kind == "generalised" and group == "p(z|x)"
            known = of_q if group == "q" else of_prior if generalised else 1.0  # else it is the plain estimate
            assert ratio == pytest.approx(known, rel=0.15, abs=1e-3)
