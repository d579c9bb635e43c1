import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import integrate, special, stats

from cvae_jax.distributions import (
    MAX_LOG_SCALE,
    Bernoulli,
    Categorical,
    Joint,
    Normal,
    bounded_normal,
    draw_latent,
    log_likelihood,
    standard_normal,
)

RNG = np.random.default_rng(0)
MEAN, SCALE = RNG.normal(size=(4, 3)), np.exp(RNG.normal(size=(4, 3)))
OTHER_MEAN, OTHER_SCALE = RNG.normal(size=(4, 3)), np.exp(RNG.normal(size=(4, 3)))
VALUE = RNG.normal(size=(4, 3)) * 5
LOGITS = RNG.normal(size=(4, 3)) * 3
SIGMAS = 4.5


def f32(array):
    return jnp.asarray(array, jnp.float32)


def samples(distribution, count):
    """float64 [count, ...] of a distribution whose batch has one example."""
    keys = jax.random.split(jax.random.key(0), (count, 1))
    return np.asarray(jax.jit(jax.vmap(distribution.sample))(keys), np.float64)[:, 0]


def test_normal_log_prob():
    found = Normal(f32(MEAN), f32(SCALE)).log_prob(f32(VALUE))
    np.testing.assert_allclose(found, stats.norm.logpdf(VALUE, MEAN, SCALE), rtol=1e-5)
    np.testing.assert_allclose(found, dist.Normal(f32(MEAN), f32(SCALE)).log_prob(f32(VALUE)), rtol=1e-5)


def test_normal_kl():
    found = Normal(f32(MEAN), f32(SCALE)).kl(Normal(f32(OTHER_MEAN), f32(OTHER_SCALE)))

    def integrand(z, m, s, om, os):
        return stats.norm.pdf(z, m, s) * (stats.norm.logpdf(z, m, s) - stats.norm.logpdf(z, om, os))

    for one, *parameters in zip(*map(np.ravel, (found, MEAN, SCALE, OTHER_MEAN, OTHER_SCALE)), strict=True):
        m, s = parameters[:2]
        wanted, _ = integrate.quad(integrand, m - 12 * s, m + 12 * s, tuple(parameters))
        assert one == pytest.approx(wanted, rel=1e-5)
    by_numpyro = dist.kl_divergence(dist.Normal(f32(MEAN), f32(SCALE)), dist.Normal(f32(OTHER_MEAN), f32(OTHER_SCALE)))
    np.testing.assert_allclose(found, by_numpyro, rtol=1e-5)


def test_normal_sample():
    drawn = samples(Normal(f32(MEAN[:1]), f32(SCALE[:1])), 20_000)
    for unit in range(3):
        assert stats.kstest(drawn[:, unit], stats.norm(MEAN[0, unit], SCALE[0, unit]).cdf).pvalue > 1e-5
    assert np.abs(np.corrcoef(drawn.T)[np.triu_indices(3, 1)]).max() < SIGMAS / np.sqrt(20_000)


def test_a_sample_is_reparameterised():
    keys = jax.random.split(jax.random.key(0), 4)
    by_mean, by_scale = jax.grad(lambda m, s: Normal(m, s).sample(keys).sum(), (0, 1))(f32(MEAN), f32(SCALE))
    noise = (Normal(f32(MEAN), f32(SCALE)).sample(keys) - f32(MEAN)) / f32(SCALE)
    np.testing.assert_allclose(by_mean, 1)
    np.testing.assert_allclose(by_scale, noise, rtol=1e-4, atol=1e-5)


def test_a_sample_depends_on_its_own_key_alone():
    keys = jax.random.split(jax.random.key(0), 4)
    for distribution in (Normal(f32(MEAN), f32(SCALE)), Bernoulli(f32(LOGITS)), Categorical(f32(LOGITS))):
        first = jax.tree.map(lambda leaf: leaf[:1], distribution)
        np.testing.assert_array_equal(distribution.sample(keys)[:1], first.sample(keys[:1]))


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_bernoulli_log_prob(value):
    values = jnp.full((4, 3), value)
    found = Bernoulli(f32(LOGITS)).log_prob(values)
    # Sums over pixels are what counts, so an absolute bound too: the rounding of the logit.
    np.testing.assert_allclose(found, stats.bernoulli.logpmf(value, special.expit(LOGITS)), rtol=1e-6, atol=1e-6)
    with jax.numpy_dtype_promotion("standard"):  # NumPyro mixes bool and float
        by_numpyro = dist.BernoulliLogits(f32(LOGITS)).log_prob(values)
    np.testing.assert_allclose(found, by_numpyro, rtol=1e-6, atol=1e-6)


def test_bernoulli_log_prob_of_grey_is_the_cross_entropy():
    grey = RNG.uniform(size=(4, 3))
    p = special.expit(LOGITS)
    wanted = special.xlogy(grey, p) + special.xlog1py(1 - grey, -p)
    np.testing.assert_allclose(Bernoulli(f32(LOGITS)).log_prob(f32(grey)), wanted, rtol=1e-5)


def test_bernoulli_mean_and_sample():
    distribution = Bernoulli(f32(LOGITS[:1]))
    p = special.expit(LOGITS[0])
    np.testing.assert_allclose(distribution.mean[0], p, rtol=1e-5)
    drawn = samples(distribution, 20_000)
    assert set(np.unique(drawn)) == {0.0, 1.0}
    assert (np.abs(drawn.mean(0) - p) < SIGMAS * np.sqrt(p * (1 - p) / 20_000)).all()


@pytest.mark.parametrize("logit", [-100.0, 100.0])
@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_bernoulli_at_extreme_logits(logit, value):
    def log_prob_of(logit):
        return Bernoulli(logit).log_prob(jnp.float32(value))

    log_prob, gradient = jax.value_and_grad(log_prob_of)(jnp.float32(logit))
    # log p = value * logit - log(1 + e^logit)
    assert log_prob == pytest.approx(value * logit - np.logaddexp(0, logit), rel=1e-6, abs=1e-40)
    assert gradient == pytest.approx(value - special.expit(logit), rel=1e-6, abs=1e-40)


def test_categorical_log_prob_and_mean():
    logits = RNG.normal(size=(4, 2, 5)) * 3
    classes = RNG.integers(0, 5, (4, 2))
    wanted = special.log_softmax(logits, -1)
    distribution = Categorical(f32(logits))
    found = distribution.log_prob(jnp.asarray(classes, jnp.int32))
    np.testing.assert_allclose(found, np.take_along_axis(wanted, classes[..., None], -1)[..., 0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(distribution.mean, np.exp(wanted), rtol=1e-5)


def test_categorical_sample():
    logits = np.array([[[0.0, 1.0, -2.0, 0.5], [3.0, -3.0, -np.inf, 2.0]]])
    drawn = samples(Categorical(f32(logits)), 20_000)
    assert drawn.shape == (20_000, 2)
    assert Categorical(f32(logits)).sample(jax.random.split(jax.random.key(0), 1)).dtype == jnp.int32
    for unit, p in enumerate(special.softmax(logits[0], -1)):
        shares = (drawn[:, unit, None] == np.arange(4)).mean(0)
        assert (np.abs(shares - p) <= SIGMAS * np.sqrt(p * (1 - p) / 20_000)).all()


@pytest.mark.parametrize("value", [0, 1])
def test_categorical_at_extreme_logits(value):
    logits = jnp.array([1e4, -1e4, 1e4], jnp.float32)
    log_prob, gradient = jax.value_and_grad(lambda logits: Categorical(logits).log_prob(jnp.int32(value)))(logits)
    assert log_prob == pytest.approx([-np.log(2), -2e4 - np.log(2)][value], rel=1e-6)
    np.testing.assert_allclose(gradient, np.eye(3)[value] - [0.5, 0, 0.5], rtol=1e-6)
    np.testing.assert_allclose(Categorical(logits).mean, [0.5, 0, 0.5])


def test_standard_normal():
    np.testing.assert_allclose(standard_normal(VALUE.shape).log_prob(f32(VALUE)), stats.norm.logpdf(VALUE), rtol=1e-5)


def test_log_likelihood():
    p_y, y = Bernoulli(jnp.zeros((2, 2, 3))), jnp.ones((2, 2, 3))
    weight = jnp.asarray([[[1, 0, 0.5], [0, 0, 0]], [[2, 2, 2], [1, 1, 0]]], jnp.float32)
    np.testing.assert_allclose(log_likelihood(p_y, y, None), np.full(2, -6 * np.log(2)), rtol=1e-6)
    np.testing.assert_allclose(log_likelihood(p_y, y, weight), np.array([-1.5, -8]) * np.log(2), rtol=1e-6)
    assert log_likelihood(p_y, None, weight) is None
    labels = jnp.asarray([2, 0, 1, 1], jnp.int32)
    wanted = special.log_softmax(LOGITS, -1)[np.arange(4), labels]
    np.testing.assert_allclose(log_likelihood(Categorical(f32(LOGITS)), labels, None), wanted, rtol=1e-5, atol=1e-6)
    halved = log_likelihood(Categorical(f32(LOGITS)), labels, jnp.full(4, 0.5))
    np.testing.assert_allclose(halved, wanted / 2, rtol=1e-5, atol=1e-6)


def test_joint_is_its_heads_and_their_log_likelihoods_add():
    """Of two heads with an axis of factors behind the batch, against SciPy."""
    logits, labels = RNG.normal(size=(2, 3, 5, 4)), RNG.integers(0, 4, (2, 3, 5))
    mean, value = RNG.normal(size=(2, 2, 3, 6))
    p_y = Joint({"class": Categorical(f32(logits)), "a number": Normal(f32(mean), jnp.full((2, 3, 6), 0.5))})
    y = {"class": jnp.asarray(labels, jnp.int32), "a number": f32(value)}
    weight = {"class": jnp.asarray(RNG.uniform(size=(2, 3, 5)), jnp.float32), "a number": jnp.ones((2, 3, 1))}
    of_class = np.take_along_axis(special.log_softmax(logits, -1), labels[..., None], -1)[..., 0]
    of_number = stats.norm.logpdf(value, mean, 0.5)
    wanted = (of_class * weight["class"]).sum(2) + of_number.sum(2)
    np.testing.assert_allclose(log_likelihood(p_y, y, weight, 1), wanted, rtol=1e-5)
    np.testing.assert_allclose(log_likelihood(p_y, y, weight), wanted.sum(1), rtol=1e-5)
    np.testing.assert_array_equal(p_y.mean["a number"], f32(mean))
    keys = jax.random.split(jax.random.key(0), 2)
    drawn = p_y.sample(keys)
    assert {name: (values.shape, values.dtype) for name, values in drawn.items()} == {
        "class": ((2, 3, 5), jnp.int32), "a number": ((2, 3, 6), jnp.float32)
    }  # fmt: skip
    same = Joint({"a": Normal(f32(mean), f32(mean) * 0 + 1), "b": Normal(f32(mean), f32(mean) * 0 + 1)}).sample(keys)
    assert (same["a"] != same["b"]).all()


def test_draw_latent_keeps_factors():
    prior, posterior = Normal(f32(MEAN[None]), f32(SCALE[None])), Normal(f32(OTHER_MEAN[None]), f32(OTHER_SCALE[None]))
    drawn = draw_latent(prior, posterior, jax.random.split(jax.random.key(0), 1), "recognition", num_factors=1)
    z = np.asarray(drawn.z, np.float64)[0]
    np.testing.assert_allclose(drawn.log_p_z[0], stats.norm.logpdf(z, MEAN, SCALE).sum(1), rtol=1e-5)
    np.testing.assert_allclose(drawn.log_q_z[0], stats.norm.logpdf(z, OTHER_MEAN, OTHER_SCALE).sum(1), rtol=1e-5)


@pytest.mark.parametrize("log_scale", [-1e4, -20.0, 0.0, 20.0, 1e4])
def test_bounded_normal(log_scale):
    def log_of_scale(log_scale):
        return jnp.log(bounded_normal(jnp.float32(0), log_scale).scale)

    value, gradient = jax.value_and_grad(log_of_scale)(jnp.float32(log_scale))
    assert value == pytest.approx(MAX_LOG_SCALE * np.tanh(log_scale / MAX_LOG_SCALE), abs=1e-5)
    assert gradient == pytest.approx(1 - np.tanh(log_scale / MAX_LOG_SCALE) ** 2, abs=1e-5)


@pytest.mark.parametrize("posterior", [-1e4, 1e4])
@pytest.mark.parametrize("prior", [-1e4, 1e4])
def test_kl_of_bounded_normals_does_not_overflow(posterior, prior):
    def kl(parameters):
        mean, log_scale, other_mean, other_log_scale = parameters
        return bounded_normal(mean, log_scale).kl(bounded_normal(other_mean, other_log_scale))

    parameters = jnp.array([1e4, posterior, -1e4, prior])
    value, gradient = jax.value_and_grad(kl)(parameters)
    s, o = np.exp(np.clip([posterior, prior], -7, 7))
    assert value == pytest.approx(np.log(o / s) + (s**2 + 2e4**2) / (2 * o**2) - 0.5, rel=1e-4)
    assert np.isfinite(gradient).all()


def latent(proposal, z=None, with_posterior=True):
    prior, posterior = Normal(f32(MEAN), f32(SCALE)), Normal(f32(OTHER_MEAN), f32(OTHER_SCALE))
    keys = jax.random.split(jax.random.key(0), 4)
    return draw_latent(prior, posterior if with_posterior else None, keys, proposal, z)


@pytest.mark.parametrize("proposal", ["recognition", "recognition_mean", "prior", "prior_mean", "given"])
def test_draw_latent_scores_z_under_both(proposal):
    drawn = latent(proposal, f32(VALUE) if proposal == "given" else None)
    z = np.asarray(drawn.z, np.float64)
    np.testing.assert_allclose(drawn.log_p_z, stats.norm.logpdf(z, MEAN, SCALE).sum(1), rtol=1e-5)
    np.testing.assert_allclose(drawn.log_q_z, stats.norm.logpdf(z, OTHER_MEAN, OTHER_SCALE).sum(1), rtol=1e-5)


def test_draw_latent_takes_z_from_where_it_says():
    keys = jax.random.split(jax.random.key(0), 4)
    np.testing.assert_array_equal(latent("recognition").z, Normal(f32(OTHER_MEAN), f32(OTHER_SCALE)).sample(keys))
    np.testing.assert_array_equal(latent("recognition_mean").z, f32(OTHER_MEAN))
    np.testing.assert_array_equal(latent("prior").z, Normal(f32(MEAN), f32(SCALE)).sample(keys))
    np.testing.assert_array_equal(latent("prior_mean").z, f32(MEAN))
    np.testing.assert_array_equal(latent("given", f32(VALUE)).z, f32(VALUE))


def test_draw_latent_without_a_posterior():
    drawn = latent("prior", with_posterior=False)
    assert np.isfinite(drawn.log_p_z).all()
    assert np.isnan(drawn.log_q_z).all() and np.isnan(drawn.kl).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("recognition", None, False), "needs y"),
        (("recognition_mean", None, False), "needs y"),
        (("given", None), "needs the z to score"),
        (("posterior", None), "unknown proposal 'posterior'"),
    ],
)
def test_draw_latent_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        latent(*arguments)


def test_the_mean_of_the_recognition_network_moves_with_its_parameters():
    def z_at(mean, scale):
        prior, keys = Normal(f32(MEAN), f32(SCALE)), jax.random.split(jax.random.key(0), 4)
        return draw_latent(prior, Normal(mean, scale), keys, "recognition_mean").z.sum()

    by_mean, by_scale = jax.grad(z_at, (0, 1))(f32(OTHER_MEAN), f32(OTHER_SCALE))
    np.testing.assert_array_equal(by_mean, 1)
    np.testing.assert_array_equal(by_scale, 0)


# Padding among factors: 3 examples of 2 x 4 factors, each with a z of 5 dimensions.

WHICH = np.random.default_rng(2).uniform(size=(3, 2, 4)) < 0.5


def factors(live, num_factors, proposal="recognition", with_posterior=True, shift=0.0):
    """A layer whose factors are the second axis, or the second and third."""
    rng = np.random.default_rng(1)
    mean, other_mean, z = rng.normal(size=(3, 3, 2, 4, 5))
    scale, other_scale = np.exp(rng.normal(size=(2, 3, 2, 4, 5)))
    prior, posterior = Normal(f32(mean + shift), f32(scale)), Normal(f32(other_mean), f32(other_scale))
    keys = jax.random.split(jax.random.key(0), 3)
    live = None if live is None else f32(live)
    return draw_latent(prior, posterior if with_posterior else None, keys, proposal, f32(z), num_factors, live)


@pytest.mark.parametrize(
    ("live", "num_factors"),
    [(WHICH, 2), (WHICH[:, :, :1], 2), (WHICH[:1], 2), (WHICH[:, :, 0], 1)],
    ids=["all axes", "second axis alone", "the same for all examples", "one axis of factors"],
)
@pytest.mark.parametrize("proposal", ["recognition", "prior_mean", "given"])
def test_only_live_factors_have_a_z(live, num_factors, proposal):
    masked, whole = factors(live, num_factors, proposal), factors(None, num_factors, proposal)
    cells = np.broadcast_to(live, (3, 2, 4)[: 1 + num_factors])
    assert cells.any() and not cells.all()
    for name in ("z", "log_p_z", "log_q_z", "kl"):
        values, wanted = np.asarray(getattr(masked, name)), np.asarray(getattr(whole, name))
        assert values.shape == wanted.shape
        np.testing.assert_array_equal(values[cells], wanted[cells])
        assert (wanted[~cells] != 0).all()
        np.testing.assert_array_equal(values[~cells], 0)


def test_dead_factors_move_no_parameters():
    def total(shift):
        layer = factors(WHICH, 2, "recognition", shift=shift)
        return layer.log_p_z.sum() + layer.kl.sum()

    gradient = np.asarray(jax.grad(total)(jnp.zeros((3, 2, 4, 5))))
    assert (gradient[WHICH] != 0).all()
    np.testing.assert_array_equal(gradient[~WHICH], 0)


def test_live_factors_without_a_posterior():
    layer = factors(WHICH, 2, "prior", with_posterior=False)
    np.testing.assert_array_equal(np.asarray(layer.log_p_z) == 0, ~WHICH)
    assert np.isnan(layer.log_q_z).all() and np.isnan(layer.kl).all()
