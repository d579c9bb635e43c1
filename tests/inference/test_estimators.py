import functools

import jax
import linear_gaussian as lg
import numpy as np
import pytest
import results
from linear_estimates import FACTORED, SIGMAS, X_, Y_, estimate
from scipy import stats

from cvae_jax import inference
from cvae_jax.errors import UserError
from cvae_jax.inference import estimators
from cvae_jax.inference.estimators import (
    ESTIMATORS,
    Estimate,
    cautions,
    jackknife,
    log_mean_exp,
    mean_over_examples,
    mean_over_seeds,
    paired_difference,
    pareto_k,
    per_target,
    plain_mean,
    standard_error,
    unreliable,
)


@functools.cache
def replicates(name, num_samples, scale, shift=0.0, repeats=1000, of=lg.DEFAULT):
    """Independent estimates of log p(y|x) of one example, and the truth: under other ids it is another one."""
    x, y = of.data(1)
    found = estimate(name, num_samples, scale, shift, np.repeat(x, repeats, 0), np.repeat(y, repeats, 0), of)
    truth = of.elbo(x, y, of.proposal(x, y, scale, shift)) if name == "elbo" else of.log_p_y(x, y)
    return found, truth


# The summaries, by hand.


@pytest.mark.parametrize("offset", [0.0, -1e5, 1e5])
def test_log_mean_exp(offset):
    log_weights = np.random.default_rng(0).normal(size=(50, 3)) * 2
    weights = np.exp(log_weights)
    found = log_mean_exp(log_weights + offset)
    np.testing.assert_allclose(found.value - offset, np.log(weights.mean(0)), atol=1e-9)
    np.testing.assert_allclose(found.ess, weights.sum(0) ** 2 / (weights**2).sum(0), rtol=1e-8)
    # The jackknife's error is that of the delta method where weights are nearly alike.
    alike = np.exp(0.01 * log_weights)
    delta = np.sqrt(alike.var(0, ddof=1) / 50) / alike.mean(0)
    np.testing.assert_allclose(log_mean_exp(np.log(alike) + offset).error, delta, rtol=1e-3)


@pytest.mark.parametrize("summarise", [log_mean_exp, jackknife])
def test_equal_and_degenerate_weights(summarise):
    equal, degenerate, less = np.full(50, -1e5), np.array([0.0, *[-1e5] * 49]), np.array([0.0, *[-60.0] * 49])
    found = summarise(np.stack([equal, degenerate, less], 1))
    # The jackknife's correction, infinite in the limit, stops at the largest weight.
    best = [-1e5, 0, 0] if summarise is jackknife else [-1e5, -np.log(50), -np.log(50)]
    np.testing.assert_allclose(found.value, best, atol=1e-12)
    # Without the largest weight the value would be lower by more than float64 can tell.
    np.testing.assert_allclose(found.error, [0, 36, 36], atol=0.5)
    np.testing.assert_allclose(found.ess, [50, 1, 1])
    np.testing.assert_array_equal(found.flagged, [0, 1, 1])
    np.testing.assert_array_equal(unreliable(found), [False, True, True])
    np.testing.assert_array_equal(pareto_k(np.tile(np.stack([equal, degenerate], 1), (20, 1))), [np.nan, np.inf])


@pytest.mark.parametrize("num_samples", [2, 3, 30])
def test_jackknife_leaves_out_every_sample(num_samples):
    log_weights = np.random.default_rng(0).normal(size=(num_samples, 4))
    weights = np.exp(log_weights)
    left_out = [np.log(np.delete(weights, sample, 0).mean(0)) for sample in range(num_samples)]
    mended, plain = jackknife(log_weights - 700), log_mean_exp(log_weights - 700)
    pseudo = num_samples * np.log(weights.mean(0)) - (num_samples - 1) * np.array(left_out)
    np.testing.assert_allclose(mended.value + 700, np.minimum(pseudo.mean(0), log_weights.max(0)), atol=1e-10)
    np.testing.assert_allclose(mended.error, pseudo.std(0, ddof=1) / np.sqrt(num_samples), rtol=1e-8)
    np.testing.assert_allclose(plain.value - plain.bias, mended.value, rtol=1e-12)
    assert (plain.bias < 0).all() and (mended.bias == 0).all()
    for name in ("error", "ess", "k_hat", "flagged", "doubt"):
        np.testing.assert_array_equal(getattr(mended, name), getattr(plain, name))


def test_summaries_are_float64_whatever_they_are_given():
    # In float32 the sum of so many would be off by more than the tolerance.
    scores = np.random.default_rng(0).normal(-100, 0.01, size=(100_000, 1)).astype(np.float32)
    exact = scores.astype(np.float64)
    log_mean = np.log(np.exp(exact + 100).mean()) - 100
    for summarise, wanted in ((plain_mean, exact.mean()), (log_mean_exp, log_mean), (jackknife, log_mean + 5e-10)):
        found = summarise(scores)
        assert {array.dtype for array in jax.tree.leaves(found)} == {np.dtype(np.float64)}
        np.testing.assert_allclose(found.value, wanted, rtol=1e-12)


def test_plain_mean():
    scores = np.random.default_rng(0).normal(size=(50, 3))
    found = plain_mean(scores)
    np.testing.assert_allclose(found.value, scores.sum(0) / 50)
    np.testing.assert_allclose(found.error, np.sqrt(((scores - scores.mean(0)) ** 2).sum(0) / 49 / 50))
    np.testing.assert_array_equal(found.ess, 50)
    assert np.isnan(found.k_hat).all()


@pytest.mark.parametrize("summarise", [log_mean_exp, plain_mean])
def test_one_sample_has_no_error(summarise):
    found = summarise(np.array([[-3.0, 2.0]]))
    np.testing.assert_array_equal(found.value, [-3, 2])
    assert np.isnan(found.error).all()
    np.testing.assert_array_equal(found.ess, 1)


@pytest.mark.parametrize("summarise", [log_mean_exp, jackknife, plain_mean])
def test_factors_are_summarised_one_by_one(summarise):
    scores = np.random.default_rng(0).normal(size=(1000, 2, 3, 4)) * np.arange(1, 5)
    scores[:, 1, 0, 0] = 0  # equal weights: no tail to fit
    total = summarise(scores)
    parts = jax.tree.map(
        lambda *arrays: np.stack(arrays), *(summarise(scores[:, :, i, j]) for i, j in np.ndindex(3, 4))
    )
    np.testing.assert_allclose(total.value, parts.value.sum(0))
    np.testing.assert_allclose(total.error, np.sqrt((parts.error**2).sum(0)))
    np.testing.assert_allclose(total.bias, parts.bias.sum(0))
    np.testing.assert_array_equal(total.ess, parts.ess.min(0))
    np.testing.assert_array_equal(total.k_hat, np.nan if summarise is plain_mean else np.nanmax(parts.k_hat, 0))
    np.testing.assert_allclose(total.flagged, parts.flagged.sum(0) / [12, 12 if summarise is plain_mean else 11])
    np.testing.assert_allclose(total.doubt, (parts.error**2 * parts.flagged).sum(0) / (parts.error**2).sum(0))
    if summarise is not plain_mean:
        assert (total.flagged > 0).all() and (total.flagged < total.doubt).all()
    np.testing.assert_allclose(total.per_factor, parts.value.reshape(3, 4, 2).sum(1).T)  # the second axis is added up


@pytest.mark.parametrize(
    ("summarise", "bad", "refused"),
    [
        (log_mean_exp, [np.nan, 0, 0], True),
        (log_mean_exp, [np.inf, 0, 0], True),
        (log_mean_exp, [-np.inf, -np.inf, -np.inf], True),
        (log_mean_exp, [-np.inf, -np.inf, 0], False),
        (jackknife, [np.nan, 0, 0], True),
        (jackknife, [-np.inf, 0, 0], False),
        (plain_mean, [np.nan, 0, 0], True),
        (plain_mean, [-np.inf, 0, 0], True),
    ],
)
@pytest.mark.parametrize("factors", [(), (2,)])
def test_numbers_that_are_not_finite_are_refused(summarise, bad, refused, factors):
    numbers = np.random.default_rng(0).normal(size=(3, 5, *factors))
    for example in (2, 4):
        numbers[(slice(None), example, *(1 for _ in factors))] = bad
    if refused:
        with pytest.raises(UserError, match="2 of 5 examples, first at position 2"):
            summarise(numbers)
    else:
        assert np.isfinite(summarise(numbers).value).all()


def test_mean_over_examples():
    mean = mean_over_examples(results.estimate([1.0, 2.0, 6.0], [0.3, 0.4, 1.2], bias=[-0.1, 0.0, -0.5]))
    assert mean == pytest.approx((3.0, 1.3 / 3, np.sqrt(7 / 3), -0.2, False))


@pytest.mark.parametrize(("error", "doubted"), [(0.9, True), (0.6, False)])
def test_a_mean_is_doubted_where_flagged_examples_make_up_its_error(error, doubted):
    estimates = results.estimate([0.0, 0.0, 0.0], [error, 0.6, 1.0], flagged=[1.0, 0.0, 0.0])
    assert mean_over_examples(estimates).unreliable == doubted == (error**2 > (error**2 + 1.36) / 3)


def test_differences_are_paired():
    rng = np.random.default_rng(0)
    common, difference = rng.normal(-100, 20, 400), rng.normal(1, 0.5, 400)
    a = results.estimate(common + difference, 0.3, 9.0, np.nan, bias=-0.2)
    b = results.estimate(common, 0.4, 5.0, 0.2, bias=-0.3)
    found = paired_difference(a, b)
    assert found.value == pytest.approx(difference.mean())
    assert found.standard_error == pytest.approx(difference.std(ddof=1) / 20)
    assert found.error == pytest.approx(0.5 / 20) and found.bias == pytest.approx(0.1)
    unpaired = np.hypot(mean_over_examples(a).standard_error, mean_over_examples(b).standard_error)
    assert found.standard_error < unpaired / 20


def test_mean_over_seeds():
    value, error, ess, k_hat, bias = np.random.default_rng(0).uniform(size=(5, 3, 5))
    k_hat[0] = np.nan
    flagged = np.zeros((3, 5))
    flagged[0, :2] = 1
    numbers = zip(value, error, ess, k_hat, bias, flagged, flagged, strict=True)
    mean = mean_over_seeds([Estimate(*parts, parts[0][:, None]) for parts in numbers])
    np.testing.assert_allclose(mean.bias, bias.sum(0) / 3)
    np.testing.assert_allclose(mean.flagged, flagged.mean(0))
    np.testing.assert_allclose(mean.doubt, (flagged * error**2).sum(0) / (error**2).sum(0))
    np.testing.assert_allclose(mean.value, value.sum(0) / 3)
    np.testing.assert_allclose(mean.error, np.sqrt((error**2).sum(0)) / 3)
    np.testing.assert_array_equal(mean.ess, ess.min(0))
    np.testing.assert_array_equal(mean.k_hat, k_hat[1:].max(0))
    assert mean.per_factor is None


# Standard errors over clusters of examples.

CLUSTERS = np.repeat(np.arange(40), np.random.default_rng(1).integers(1, 12, 40))


def clustered(seed=0):
    """Values [examples] that are alike within a cluster."""
    rng = np.random.default_rng(seed)
    return rng.normal(2, 3, 40)[CLUSTERS] + rng.normal(size=len(CLUSTERS))


def test_standard_error_over_clusters():
    values, mean = clustered(), clustered().mean()
    sums = [sum(value - mean for value, label in zip(values, CLUSTERS, strict=True) if label == g) for g in range(40)]
    wanted = np.sqrt(40 / 39 * np.sum(np.square(sums))) / len(values)
    assert standard_error(values, CLUSTERS) == pytest.approx(wanted, rel=1e-12)
    assert wanted > 1.8 * standard_error(values)
    shuffled = np.random.default_rng(2).permutation(len(values))
    names = np.array([f"patient {label}" for label in CLUSTERS])
    assert standard_error(values[shuffled], names[shuffled]) == pytest.approx(wanted, rel=1e-12)


def test_a_cluster_of_its_own_for_every_example():
    values = clustered()
    plain = standard_error(values)
    assert plain == pytest.approx(np.sqrt(values.var(ddof=1) / len(values)), rel=1e-12)
    assert standard_error(values, np.arange(len(values))) == pytest.approx(plain, rel=1e-12)


@pytest.mark.parametrize("times", [2, 3])
def test_copies_of_an_example_tell_nothing_more(times):
    values = clustered()
    copies, examples = np.tile(values, times), np.tile(np.arange(len(values)), times)
    assert standard_error(copies, examples) == pytest.approx(standard_error(values), rel=1e-12)
    assert standard_error(copies) < 0.75 * standard_error(values)


def test_standard_error_over_clusters_is_that_of_a_bootstrap_of_clusters():
    values, rng = clustered(), np.random.default_rng(3)
    sums, counts = np.bincount(CLUSTERS, values), np.bincount(CLUSTERS)
    drawn = rng.integers(0, 40, (20_000, 40))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    assert standard_error(values, CLUSTERS) == pytest.approx(means.std(), rel=0.05)


@pytest.mark.parametrize("clusters", [None, CLUSTERS], ids=["examples", "clusters"])
def test_values_that_are_nan_are_left_out(clusters):
    values = clustered()
    holes = np.random.default_rng(4).uniform(size=len(values)) < 0.3
    holes |= CLUSTERS == 7  # a cluster without any value
    values[holes] = np.nan
    rest = None if clusters is None else clusters[~holes]
    assert standard_error(values, clusters) == standard_error(values[~holes], rest)


def test_standard_errors_that_are_not_known():
    single = np.array([np.nan, 2.0])
    for clusters in (None, np.array([0, 1])):
        assert np.isnan(standard_error(single, clusters))
        assert np.isnan(standard_error(np.full(2, np.nan), clusters))
    assert np.isnan(standard_error(np.array([1.0, 2.0, 4.0]), np.array(["a", "a", "a"])))


def test_means_and_differences_over_clusters():
    values, rivals = clustered(0), clustered(5)
    a, b = (results.estimate(numbers, 0.3) for numbers in (values, rivals))
    mean, gain = mean_over_examples(a, CLUSTERS), paired_difference(a, b, CLUSTERS)
    assert mean.value == pytest.approx(values.mean())
    assert mean.error == mean_over_examples(a).error  # the Monte Carlo errors of examples are independent
    assert mean.standard_error == standard_error(values, CLUSTERS)
    assert gain.value == pytest.approx((values - rivals).mean())
    assert gain.standard_error == pytest.approx(standard_error(values - rivals, CLUSTERS))


# k̂, and what it says.


@pytest.mark.parametrize("k", [-1.0, 0.0, 0.2, 0.5, 0.7, 1.0])
def test_pareto_k_of_generalised_pareto_weights(k):
    u = np.random.default_rng(0).uniform(size=(5000, 300))
    weights = -np.log(u) if k == 0 else (u**-k - 1) / k
    tail = 212
    prior = 10 / (tail + 10) * (0.5 - k)  # the fit is drawn towards 1/2 as by 10 more draws
    found = pareto_k(np.log(weights) - 300)
    assert found.shape == (300,)
    np.testing.assert_allclose(found.mean(), k + prior, atol=0.03)
    np.testing.assert_allclose(found.std(), (1 + k) / np.sqrt(tail) if k > 0 else 0.07, rtol=0.4)


def test_pareto_k_where_there_is_no_tail_to_fit():
    rng = np.random.default_rng(0)
    rounding = rng.choice([-90.00001, -90.0, -89.99999], 1000)
    saturated = np.where(rng.uniform(size=1000) < 0.3, 0.0, -rng.uniform(1, 50, 1000))
    underflowing = rng.normal(0, 1000, 1000)
    np.testing.assert_array_equal(pareto_k(np.stack([rounding, saturated, underflowing], 1)), [np.nan, np.nan, np.inf])
    wider = [pareto_k(spread * rng.normal(size=(1000, 20))).min() for spread in (10, 30, 100, 300, 1000)]
    assert wider == sorted(wider) and wider[0] > 2


def test_few_samples_are_flagged_by_their_effective_number():
    weights = np.zeros((999, 3))
    weights[:9, 0] = weights[:10, 1] = weights[:, 2] = 1
    with np.errstate(divide="ignore"):
        estimates = log_mean_exp(np.log(weights))
        of_twelve = log_mean_exp(np.log(weights[3:15, :2]))  # 6 and 7 of them
    assert np.isnan(estimates.k_hat).all()
    np.testing.assert_array_equal(estimates.flagged, [1, 0, 0])
    np.testing.assert_array_equal(of_twelve.flagged, [0, 0])
    np.testing.assert_array_equal(log_mean_exp(np.array([[0.0, 0.0], [0.1, -50.0], [0.0, -60.0]])).flagged, [0, 1])
    assert np.isfinite(pareto_k(np.random.default_rng(0).normal(size=(1000, 3)))).all()


def test_weights_that_are_nearly_alike_are_believed():
    rng = np.random.default_rng(0)
    for num_samples in (16, 32, 100, 1000):
        assert unreliable(log_mean_exp(0.05 * rng.normal(size=(num_samples, 300)))).mean() < 0.01


@pytest.mark.parametrize("num_samples", [100, 1000])
def test_what_is_not_flagged_is_not_selected_backwards(num_samples):
    """Log-normal weights: a tail is seen only where a large weight was drawn, and there the value is too high."""
    repeats, log_weights = 6000, np.random.default_rng(0).normal(size=(num_samples, 6000)) - 0.5
    estimates = log_mean_exp(log_weights)
    missed, believed = estimates.value - estimates.bias, ~unreliable(estimates)
    assert believed.mean() > 0.95
    covered = np.abs(missed[believed]) < 1.96 * estimates.error[believed]
    assert covered.mean() > 0.93 - 3 * np.sqrt(0.07 * 0.93 / repeats)
    # No lower than all of them are.
    assert missed[believed].mean() > missed.mean() - 0.002


@pytest.mark.parametrize("num_factors", [1, 30, 300])
def test_good_factors_are_believed_however_many(num_factors):
    log_weights = 0.02 * np.random.default_rng(0).normal(size=(1000, 10, num_factors))
    estimates = log_mean_exp(log_weights)
    assert not unreliable(estimates).any() and estimates.flagged.max() < 0.05
    # One that is bad is told where it matters, and its share whether it does or not.
    log_weights[:, :, 0] *= 250
    bad = log_mean_exp(log_weights)
    assert unreliable(bad).all() and (bad.k_hat > 1).all() and (bad.ess < 50).all()
    assert (bad.flagged >= 1 / num_factors).all() and bad.flagged.max() < 0.05 + 1 / num_factors


def test_padding_is_no_factor():
    log_weights = np.random.default_rng(0).normal(size=(1000, 3, 20))
    log_weights[:, :, 5:] *= 6
    padded = np.concatenate([log_weights, np.zeros((1000, 3, 500))], 2)
    plain, more = log_mean_exp(log_weights), log_mean_exp(padded)
    np.testing.assert_array_equal(plain.flagged, more.flagged)
    assert (plain.flagged > 0.5).all()


def test_equal_weights_have_neither_error_nor_bias():
    estimates = log_mean_exp(np.full((1000, 4), -123.456))
    np.testing.assert_array_equal([estimates.error, estimates.bias, estimates.flagged], 0)


def test_examples_are_summarised_a_few_at_once(monkeypatch):
    log_weights = np.random.default_rng(0).normal(size=(50, 7, 3))
    whole = log_mean_exp(log_weights)
    monkeypatch.setattr(estimators, "NUMBERS_AT_ONCE", 400)
    jax.tree.map(np.testing.assert_array_equal, log_mean_exp(log_weights), whole)


def test_the_limit_of_k_hat():
    assert estimators.largest_shape(1000) == pytest.approx(2 / 3)
    assert estimators.largest_shape(5000) == estimators.largest_shape(10**6) == 0.7


def test_cautions():
    def about(num_samples, *flagged):
        return cautions(results.estimate(np.zeros(len(flagged)), 1.0, flagged=flagged), num_samples)

    assert about(5000, 0, 0) == []
    (values,) = about(5000, 0, 0, 1, 0.3, 0.4, 1)
    assert values.startswith("k-hat above 0.70 for 3 of 6 examples: neither their values nor their errors")
    (values,) = about(1000, 0, 0, 1)
    assert values.startswith("k-hat above 0.67 for 1 of 3 examples")
    (few,) = about(999, 0, 1)
    assert few.startswith("fewer than 10 effective samples for 1 of 2 examples")


# The estimators, against the linear-Gaussian model.


@pytest.mark.parametrize("name", ["is", "jackknife"])
def test_importance_sampling_from_the_exact_posterior(name):
    found = estimate(name, 2000)
    np.testing.assert_allclose(found.value, lg.log_p_y(X_, Y_), rtol=0, atol=1e-5)
    np.testing.assert_allclose(found.ess, 2000, rtol=1e-6)
    assert (found.error < 1e-6).all() and (np.abs(found.bias) < 1e-9).all()
    assert np.isnan(found.k_hat).all()


@pytest.mark.parametrize(("scale", "shift"), [(1.2, 0.0), (2.0, 0.0), (1.2, 0.5)])
def test_importance_sampling_from_a_wide_proposal(scale, shift):
    found = estimate("is", 10_000, scale, shift)
    missed = np.abs(found.value - lg.log_p_y(X_, Y_))
    assert (missed < SIGMAS * found.error).all() and missed.max() < 0.1
    np.testing.assert_allclose(found.ess / 10_000, lg.relative_ess(scale, shift), rtol=0.1)
    assert not unreliable(found).any()


@pytest.mark.slow
def test_narrow_proposals_are_flagged():
    # The tail of the weights has shape 1 - scale²: 0.75 and 0.51.
    flags = {scale: unreliable(replicates("is", 5000, scale, repeats=100)[0]) for scale in (0.5, 0.7, 1.2, 2.0)}
    shares = {scale: flag.mean() for scale, flag in flags.items()}
    assert shares[0.5] > 0.7 and 0 < shares[0.7] < 0.25 and shares[1.2] == shares[2.0] == 0
    found, truth = replicates("is", 5000, 0.5, repeats=100)
    assert (np.abs(found.value - truth) < 1.96 * found.error).mean() < 0.8  # rightly so: the errors are wrong


def test_the_defensive_mixture_mends_a_narrow_proposal():
    found, truth = replicates("defensive", 5000, 0.5, repeats=100)
    narrow, _ = replicates("is", 5000, 0.5, repeats=100)
    assert np.abs(narrow.value - truth).max() > 0.5
    assert np.abs(found.value - truth).max() < 0.25
    assert np.abs(found.value.mean() - truth) < 0.02 < 0.05 < np.abs(narrow.value.mean() - truth)
    assert (np.abs(found.value - truth) < 1.96 * found.error).mean() > 0.9
    assert unreliable(found).mean() < 0.2


@pytest.mark.parametrize("name", ["mc", "jackknife", "defensive"])
def test_estimates(name):
    found = estimate(name, 10_000, 1.3, 0.2)
    missed = np.abs(found.value - lg.log_p_y(X_, Y_))
    assert (missed < SIGMAS * found.error).all() and missed.max() < 0.2


@pytest.mark.parametrize(("scale", "shift"), [(0.5, 0.0), (0.7, 0.0), (1.0, 0.0), (1.2, 0.5), (2.0, 0.0)])
def test_elbo(scale, shift):
    found = estimate("elbo", 10_000, scale, shift)
    missed = np.abs(found.value - lg.elbo(X_, Y_, lg.proposal(X_, Y_, scale, shift)))
    assert (missed < SIGMAS * found.error).all() and missed.max() < 0.2
    assert cautions(found, 10_000) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ESTIMATORS)
def test_reported_errors_cover_the_truth(name):
    estimates, truth = replicates(name, 1000, 1.2, 0.3)
    z = (estimates.value - estimates.bias - truth) / estimates.error
    assert 0.93 < (np.abs(z) < 1.96).mean() < 0.97
    assert abs((z**2).mean() - 1) < SIGMAS * np.sqrt(2 / 1000)


@pytest.mark.slow
@pytest.mark.parametrize("num_samples", [1, 3, 20])
@pytest.mark.parametrize("name", ["mc", "is", "defensive"])
def test_the_mean_weight_is_unbiased_however_few_the_samples(name, num_samples):
    repeats = 20_000
    found, truth = replicates(name, num_samples, 1.2, 0.8, repeats)
    ratio = np.exp(found.value - truth)
    assert abs(ratio.mean() - 1) < SIGMAS * ratio.std() / np.sqrt(repeats)
    assert ratio.std() / np.sqrt(repeats) < 0.05


@pytest.mark.parametrize("num_samples", [10, 20, 50])
def test_the_jackknife_removes_the_bias(num_samples):
    x, y = (np.repeat(one, 200, 0) for one in lg.data(1))
    of_q = ESTIMATORS["jackknife"]
    log_weights = inference.scores(
        lg.fitted(1.5, 0.5), lg.batch_of(x, y), of_q.proposal, of_q.score, 1000, jax.random.key(0)
    )
    repeats = log_weights.reshape(-1, num_samples, 200).swapaxes(0, 1).reshape(num_samples, -1)
    truth = lg.log_p_y(x[:1], y[:1])
    plain, mended = (summarise(repeats).value - truth for summarise in (log_mean_exp, jackknife))
    assert plain.mean() < -0.7 / num_samples
    assert abs(mended.mean()) < 0.12 * abs(plain.mean()) + 3 * mended.std() / np.sqrt(mended.size)
    assert mended.std() < plain.std()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["elbo", "is", "defensive"])
def test_factors_against_the_truth(name):
    found, truth = replicates(name, 400, 1.3, 0.2, of=FACTORED)
    z = (found.value - truth) / found.error
    assert 0.93 < (np.abs(z) < 1.96).mean() < 0.97
    assert found.value.shape == (1000,)


# Every factor by itself.


def log_p_of_factors(x, y):
    """log p(y_i|x) of each element of FACTORED's y: float64 [batch, factors]."""
    n = FACTORED._numbers
    mean = x @ (n["B"] @ n["A"] + n["C"]).T
    return stats.norm.logpdf(y, mean, np.hypot(np.diag(n["B"]) * n["s_p"], lg.S_Y))


def test_the_estimate_of_every_factor_is_exact_from_its_posterior():
    x, y = FACTORED.data(5)
    wanted = log_p_of_factors(x, y)
    np.testing.assert_allclose(wanted.sum(1), FACTORED.log_p_y(x, y), rtol=1e-12)
    for name in ("is", "jackknife"):
        estimates = estimate(name, 100, x=x, y=y, of=FACTORED)
        np.testing.assert_allclose(estimates.per_factor, wanted, rtol=0, atol=1e-5)
        np.testing.assert_allclose(estimates.per_factor.sum(1), estimates.value, rtol=1e-12)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_factor_has_the_estimate_that_it_would_have_alone(name):
    x, y = FACTORED.data(5)
    kind, batch = ESTIMATORS[name], FACTORED.batch_of(x, y)
    fitted, key = FACTORED.fitted(1.3, 0.2), jax.random.key(0)
    estimates = inference.log_prob(fitted, batch, name, 400, key)
    numbers = inference.scores(fitted, batch, kind.proposal, kind.score, 400, key)
    np.testing.assert_allclose(estimates.per_factor.sum(1), estimates.value, rtol=1e-12)
    if name == "elbo":  # a number of the whole example
        assert estimates.per_factor.shape == (5, 1)
        return
    alone = [kind.summarise(numbers[..., factor]) for factor in range(6)]
    value, error = (np.stack([getattr(factor, field) for factor in alone], 1) for field in ("value", "error"))
    np.testing.assert_allclose(estimates.per_factor, value, rtol=1e-12)
    assert (np.abs(value - log_p_of_factors(x, y)) < SIGMAS * error).all()


def test_the_exact_value_of_every_factor():
    x, y = FACTORED.data(5)
    n = FACTORED._numbers
    at_mean = stats.norm.logpdf(y, x @ (n["B"] @ n["A"] + n["C"]).T, lg.S_Y)
    estimates = inference.exact(FACTORED.fitted(), FACTORED.batch_of(x, y))
    np.testing.assert_allclose(estimates.per_factor, at_mean, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(estimates.value, at_mean.sum(1), rtol=1e-5)
    np.testing.assert_array_equal(estimates.error, 0)
    np.testing.assert_array_equal(estimates.ess, 1)
    assert np.isnan(estimates.k_hat).all()
    np.testing.assert_array_equal(estimates.bias, 0)
    assert not unreliable(estimates).any()


def test_one_factor_where_there_is_no_axis_of_them():
    numbers = np.random.default_rng(0).normal(size=(200, 4))
    for summarise in (log_mean_exp, jackknife, plain_mean):
        estimates = summarise(numbers)
        np.testing.assert_array_equal(estimates.per_factor, estimates.value[:, None])


def test_several_y_of_one_x_count_as_one():
    value, error = np.array([-12.0, -3.0, -8.0]), np.array([0.4, 0.3, 0.2])
    estimates = results.estimate(value, error, [5.0, 6.0, 7.0], [0.1, np.nan, 0.3], bias=-error)
    divided = per_target(estimates, np.array([4, 1, 0], np.float32))  # 0: a row of padding
    np.testing.assert_array_equal(divided.value, [-3, -3, -8])
    np.testing.assert_allclose(divided.error, [0.1, 0.3, 0.2])
    np.testing.assert_allclose(divided.bias, [-0.1, -0.3, -0.2])
    np.testing.assert_array_equal(divided.ess, estimates.ess)
    np.testing.assert_array_equal(divided.k_hat, estimates.k_hat)
    assert divided.value.dtype == divided.error.dtype == np.float64


# Requests.


def test_estimates_of_several_requests_are_those_of_each():
    batch, fitted, key = lg.batch_of(X_, Y_), lg.fitted(1.3, 0.2), jax.random.key(0)
    requests = [("is", 60), ("elbo", 60), ("is", 20), ("mc", 30)]
    together = inference.log_probs(fitted, batch, requests, key)
    assert list(together) == requests
    for name, count in requests:
        alone = inference.log_prob(fitted, batch, name, count, key)
        np.testing.assert_allclose(together[name, count].value, alone.value, rtol=0, atol=1e-5)
        np.testing.assert_allclose(together[name, count].error, alone.error, rtol=1e-3, atol=1e-6)


def test_estimates_need_y():
    with pytest.raises(UserError, match=r"^log p\(y\|x\) needs y$"):
        inference.log_prob(lg.fitted(), lg.batch_of(X_, None), "is", 10, jax.random.key(0))


def test_which_estimators_draw_from_the_recognition_network():
    drawing = {name for name in inference.ESTIMATOR_NAMES if inference.draws_from_recognition(name)}
    assert drawing == set(inference.ESTIMATOR_NAMES) - {"mc"}
    assert not inference.draws_from_recognition("ais", inference.Ais("prior"))


def test_known_numbers_are_added_to_an_estimate_and_to_each_of_its_factors():
    numbers = np.random.default_rng(0).normal(size=(20, 3, 4, 2))  # [samples, batch, targets, pixels]
    shift = np.random.default_rng(1).normal(size=(3, 4, 2))
    plain = estimators.log_mean_exp(numbers)
    moved = estimators.shifted(plain, shift)
    np.testing.assert_allclose(moved.value, plain.value + shift.sum((1, 2)), rtol=1e-12)
    np.testing.assert_allclose(moved.per_factor, plain.per_factor + shift.sum(2), rtol=1e-12)
    elbo = estimators.shifted(estimators.plain_mean(numbers.sum((2, 3))), shift)  # a score that adds factors up
    np.testing.assert_allclose(elbo.per_factor[:, 0], elbo.value, rtol=1e-12)
