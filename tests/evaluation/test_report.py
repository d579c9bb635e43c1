"""What tasks measure, by hand: numbers, tables and histograms."""

import json
import math

import numpy as np
import pytest
from results import cells, estimate, result

from cvae_jax.evaluation import figures, report
from cvae_jax.evaluation.report import Findings, Measurement
from cvae_jax.inference import Ais
from cvae_jax.task import Metric

NAME = "entropy of labels, nats"  # with its unit
LN2 = math.log(2)
VALUES = np.array([[1.0, 2.0, 3.0], [3.0, 2.0, 7.0]])  # of two seeds


def measure(values=VALUES, name=NAME, model="m cvae", perfect=LN2, column="label", **options):
    name, _, unit = name.partition(", ")
    metric = Metric(values, unit, perfect, **options)
    return Measurement("w", column, model, name, tuple(range(len(values))), metric)


def test_mean_its_standard_error_and_its_deviation_over_seeds():
    # Means over seeds 2, 2, 5; over examples 2, 4.
    mean, of_seeds = measure().mean()
    assert (mean.value, mean.standard_error, of_seeds) == pytest.approx((3, 1, math.sqrt(2)))
    assert mean.error == 0
    mean, of_seeds = measure(VALUES[:1]).mean()
    assert (mean.value, mean.standard_error) == pytest.approx((2, 1 / math.sqrt(3))) and math.isnan(of_seeds)
    mean, _ = measure(VALUES[:, :1]).mean()
    assert mean.value == 2 and math.isnan(mean.standard_error)


def test_the_jackknife_claims_no_error_where_an_example_is_all_there_is():
    def ratio(sums):
        with np.errstate(invalid="ignore"):
            return sums[..., 0] / sums[..., 1]

    alone = np.array([[[1.0, 1.0], [0.0, 0.0], [0.0, 0.0]]])  # without the first it is 0 / 0
    mean, _ = measure(alone, pool=ratio).mean()
    assert mean.value == 1 and math.isnan(mean.standard_error)
    mean, _ = measure(0 * alone, pool=ratio).mean()
    assert math.isnan(mean.value) and math.isnan(mean.standard_error)


def test_summary_and_examples_are_json():
    identity = {"workdir": "w", "column": "label", "model": "m cvae", "name": NAME}
    summary = json.loads(json.dumps(measure(perfect=None).summary(), allow_nan=False))
    assert summary == {
        **identity,
        "seeds": [0, 1],
        "known": None,
        "mean": 3.0,
        "standard_error": pytest.approx(1),
        "deviation_over_seeds": pytest.approx(math.sqrt(2)),
        "of_seeds": [2.0, 4.0],
    }
    single = json.loads(json.dumps(measure(VALUES[:1, :1]).summary(), allow_nan=False))
    assert (single["mean"], single["standard_error"], single["deviation_over_seeds"]) == (1.0, None, None)
    of_examples = json.loads(json.dumps(measure().examples(), allow_nan=False))
    assert of_examples == {**identity, "seeds": [0, 1], "known": LN2, "values": VALUES.tolist()}


def test_the_table_of_measures():
    likelihoods = [result("label", "m cvae", "is", 10, estimate([-3.0, -5.0]))]
    accuracy = measure(np.array([[1.0, 1.0, 0.0]]), "accuracy", "n cvae", None, "image")
    other = measure(np.array([[2.0, 2.0, 2.0]]), model="n cvae")
    baseline = measure(np.array([[0.0, 0.0, 1.0]]), "accuracy", "a guess", None, "image")._replace(seeds=())
    text = report.text(Findings(likelihoods, [], [], [measure(), other, accuracy, baseline]), Ais())
    before, table = text.split("## What the tasks measure")
    assert cells(before)[2][:2] == ["m cvae", "is"]
    assert [row for row in cells(table) if not set("".join(row)) <= set("-")] == [
        ["label", "m cvae", "n cvae", "a perfect model"],
        [NAME, "3.00 ± 1.00, seeds 1.41", "2.00 ± 0.00", "0.6931"],
        ["image", "n cvae", "a guess"],
        ["accuracy", "0.67 ± 0.33", "0.33 ± 0.33"],
    ]
    assert "## What the tasks measure" not in report.text(Findings(likelihoods, [], [], []), Ais())


def test_a_pooled_measure_is_of_sums_with_the_error_of_the_jackknife():
    """The correlation of 2 x 40 pairs of numbers, each example's share five sums."""
    x, y = np.random.default_rng(0).normal(size=(2, 2, 40))
    y = y + x
    values = np.stack([x, y, x * x, y * y, x * y], -1)

    def correlation(sums):
        x, y, xx, yy, xy = np.moveaxis(sums, -1, 0) / (40 if np.ndim(sums) == 2 else 39)
        return (xy - x * y) / np.sqrt((xx - x**2) * (yy - y**2))

    pooled = measure(values, pool=correlation)
    mean, of_seeds = pooled.mean()
    by_seed = [np.corrcoef(*both)[0, 1] for both in zip(x, y, strict=True)]
    without = [
        np.mean([np.corrcoef(np.delete(a, left), np.delete(b, left))[0, 1] for a, b in zip(x, y, strict=True)])
        for left in range(40)
    ]
    assert mean.value == pytest.approx(np.mean(by_seed)) and of_seeds == pytest.approx(np.std(by_seed, ddof=1))
    assert mean.standard_error == pytest.approx(np.sqrt(39 / 40 * ((without - np.mean(without)) ** 2).sum()))
    assert pooled.summary()["of_seeds"] == pytest.approx(by_seed)
    assert "pool" not in pooled.examples() and len(pooled.examples()["values"]) == 2


def test_histograms_of_what_is_no_yes_or_no(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(figures, "histograms", lambda values, path, *rest: drawn.update({path: (values, *rest)}))
    right = np.array([[1.0, 0.0, 1.0]])
    other = measure(VALUES + 1, model="n cvae")
    report.draw([measure(), measure(right, "accuracy"), other, measure(right, "accuracy", "n cvae")], tmp_path, "test")
    ((values, *rest),) = drawn.values()
    assert list(drawn) == [tmp_path / "entropy_of_labels.png"]
    assert rest == ["label, test split", NAME, LN2]
    assert list(values) == ["m cvae, seed 0", "n cvae, seed 0"]
    np.testing.assert_array_equal(list(values.values()), [VALUES[0], VALUES[0] + 1])
    drawn.clear()
    report.draw([measure(right), other], tmp_path, "test")  # of a model that answers yes or no and one that does not
    assert list(drawn[tmp_path / "entropy_of_labels.png"][0]) == ["m cvae", "n cvae, seed 0"]
    drawn.clear()
    report.draw([measure(), measure(column="other")], tmp_path, "test")  # two tasks, one name
    assert [path.name for path in drawn] == ["entropy_of_labels_label.png", "entropy_of_labels_other.png"]


def test_a_measure_of_every_step_has_a_curve(tmp_path, monkeypatch):
    """The table has its mean over steps; the figure every step of all models, baselines too."""
    values = np.random.default_rng(0).normal(size=(2, 5, 3))  # [seeds, examples, steps]
    per_step = measure(values, "PSNR, dB", step="frame")
    mean, of_seeds = per_step.mean()
    of_examples = values.mean((0, 2))
    assert mean.value == pytest.approx(values.mean()) and of_seeds == pytest.approx(values.mean((1, 2)).std(ddof=1))
    assert mean.standard_error == pytest.approx(of_examples.std(ddof=1) / np.sqrt(5))
    summary = json.loads(json.dumps(per_step.summary(), allow_nan=False))
    error = values.mean(0).std(0, ddof=1) / np.sqrt(5)
    assert summary["of_steps"] == pytest.approx(values.mean((0, 1))) and summary["errors_of_steps"] == pytest.approx(
        error
    )
    assert summary["of_seeds"] == pytest.approx(values.mean((1, 2)))
    assert np.isnan(measure(values[:, :1], "PSNR, dB", step="frame").by_step()[1]).all()
    drawn = {}
    monkeypatch.setattr(figures, "curves", lambda values, path, *rest: drawn.update({path: (values, *rest)}))
    baseline = measure(values[:1] + 1, "PSNR, dB", "copying", step="frame")._replace(seeds=())
    report.draw([baseline, per_step], tmp_path, "test")
    ((path, (curves, *rest)),) = drawn.items()
    assert path == tmp_path / "PSNR.png" and rest == ["label, test split", "frame", "PSNR, dB"]
    assert list(curves) == ["copying", "m cvae"]
    np.testing.assert_allclose(curves["m cvae"][1], error)


# Examples that have no value, or a perfect value of their own.

HOLES = np.array([[1.0, math.nan, 3.0, 8.0], [3.0, math.nan, 7.0, math.nan]])  # of two seeds


def test_examples_without_a_value_are_left_out():
    # Means over seeds of the examples that both have: 2, 5. Of each seed alone: 4, 5.
    mean, of_seeds = measure(HOLES).mean()
    assert (mean.value, mean.standard_error, of_seeds) == pytest.approx((3.5, 1.5, math.sqrt(0.5)))
    summary = json.loads(json.dumps(measure(HOLES).summary(), allow_nan=False))
    assert summary["of_seeds"] == [4.0, 5.0] and summary["mean"] == 3.5
    of_examples = json.loads(json.dumps(measure(HOLES).examples(), allow_nan=False))
    assert of_examples["values"] == [[1.0, None, 3.0, 8.0], [3.0, None, 7.0, None]]
    nothing, _ = measure(np.full((1, 3), np.nan)).mean()
    assert math.isnan(nothing.value) and math.isnan(nothing.standard_error)
    assert "undefined" in report.text(Findings(LIKELIHOOD, [], [], [measure(np.full((1, 3), np.nan))]), Ais())


LIKELIHOOD = [result("label", "m cvae", "is", 10, estimate([-3.0, -5.0]))]


def ratio(sums):
    return sums[..., 0] / sums[..., 1]


def test_examples_without_a_value_are_left_out_of_a_pooled_one():
    values = np.random.default_rng(0).uniform(1, 2, (2, 6, 2))
    holes = np.insert(values, [0, 2, 6], np.nan, axis=1)
    clusters = np.array([0, 1, 1, 2, 2, 3])
    for of_values, of_holes in ((None, None), (clusters, np.insert(clusters, [0, 2, 6], [7, 1, 3]))):
        without = measure(holes, pool=ratio)._replace(clusters=of_holes).mean()
        assert without == measure(values, pool=ratio)._replace(clusters=of_values).mean()


def test_examples_without_a_value_are_left_out_of_every_step():
    values = np.random.default_rng(0).normal(size=(1, 5, 3))
    values[0, 2, 1] = np.nan
    means, errors = measure(values, step="frame").by_step()
    for number in range(3):
        there = values[0, ~np.isnan(values[0, :, number]), number]
        assert (means[number], errors[number]) == pytest.approx((there.mean(), there.std(ddof=1) / len(there) ** 0.5))


def test_a_perfect_model_of_each_example():
    bounds = np.array([1.0, math.nan, 2.0])
    assert measure(perfect=bounds).perfect == 1.5
    assert measure(perfect=bounds).summary()["known"] == 1.5
    assert measure(HOLES, perfect=np.array([1.0, 7.0, 2.0, 7.0])).perfect == 1.5  # of the examples that have a value
    assert measure(perfect=np.full(3, np.nan)).perfect is None
    of_steps = measure(np.ones((1, 3, 2)), perfect=np.array([1.0, 2.0, 6.0]), step="frame")
    assert of_steps.perfect == 3
    lines = cells(report.text(Findings(LIKELIHOOD, [], [], [measure(perfect=bounds)]), Ais()))
    assert ["label", "m cvae", "a perfect model"] in lines and lines[-1][-1] == "1.5000"


def test_figures_leave_out_examples_without_a_value(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(figures, "histograms", lambda values, path, *rest: drawn.update({path.name: values}))
    yes_or_no = np.array([[1.0, math.nan, 0.0]])
    report.draw([measure(HOLES), measure(yes_or_no, "accuracy")], tmp_path, "test")
    assert list(drawn) == ["entropy_of_labels.png"]
    np.testing.assert_array_equal(drawn["entropy_of_labels.png"]["m cvae, seed 0"], [1, 3, 8])


def test_a_model_without_any_value_is_not_in_a_figure(tmp_path):
    nothing = measure(np.full((1, 4), np.nan), model="n cvae")
    report.draw([measure(HOLES), nothing], tmp_path, "test")
    assert (tmp_path / "entropy_of_labels.png").exists()


# Clusters: examples that were measured several times must not pass for more of them.


def repeated(values, times=(3, 1, 2, 4, 1)):
    """Examples along the second axis, each as often as `times` says, and which of them are one."""
    numbers = np.repeat(np.arange(len(times)), times)
    return values[:, numbers], numbers


@pytest.mark.parametrize("seeds", [1, 2])
def test_equal_examples_of_a_cluster_count_once(seeds):
    values = np.random.default_rng(0).normal(size=(seeds, 5))
    thrice, clusters = repeated(values, (3,) * 5)
    clustered = measure(thrice)._replace(clusters=clusters)
    (mean, of_seeds), (wanted, of_seeds_wanted) = clustered.mean(), measure(values).mean()
    assert mean == pytest.approx(wanted) and of_seeds == pytest.approx(of_seeds_wanted, nan_ok=True)
    assert measure(thrice).mean()[0].standard_error < 0.7 * mean.standard_error


def test_clusters_of_unequal_size():
    values = np.random.default_rng(0).normal(size=(1, 11))
    clusters = np.array([5, 5, 5, 0, 2, 2, 7, 7, 7, 7, 1])
    mean, _ = measure(values)._replace(clusters=clusters).mean()
    from_mean = values[0] - values[0].mean()
    sums = [sum(from_mean[clusters == cluster]) for cluster in set(clusters)]
    assert mean.value == pytest.approx(values.mean())
    assert mean.standard_error == pytest.approx(math.sqrt(5 / 4 * sum(s**2 for s in sums)) / 11)


def test_a_single_cluster_tells_nothing_of_the_error():
    alone = measure()._replace(clusters=np.zeros(3, int))
    assert math.isnan(alone.mean()[0].standard_error)
    pooled = measure(np.ones((1, 3, 2)), pool=ratio)._replace(clusters=np.zeros(3, int))
    assert pooled.mean()[0].value == 1 and math.isnan(pooled.mean()[0].standard_error)


def test_the_jackknife_leaves_out_clusters():
    values = np.random.default_rng(0).uniform(1, 2, (2, 5, 2))
    many, clusters = repeated(values)
    summed = np.stack([many[:, clusters == cluster].sum(1) for cluster in range(5)], 1)  # one example a cluster
    clustered = measure(many, pool=ratio)._replace(clusters=clusters)
    assert clustered.mean()[0] == pytest.approx(measure(summed, pool=ratio).mean()[0])
    assert clustered.mean()[0].standard_error > 1.2 * measure(many, pool=ratio).mean()[0].standard_error


def test_clusters_of_every_step():
    values = np.random.default_rng(0).normal(size=(2, 5, 3))
    thrice, clusters = repeated(values, (3,) * 5)
    (means, errors), wanted = measure(thrice, step="frame")._replace(clusters=clusters).by_step(), measure(values)
    np.testing.assert_allclose(means, measure(values, step="frame").by_step()[0])
    np.testing.assert_allclose(errors, measure(values, step="frame").by_step()[1])
    assert wanted.metric.values.shape == (2, 5, 3)


def test_the_text_says_over_how_many_clusters_errors_are():
    (cell,) = LIKELIHOOD
    twice = np.tile(cell.estimates[0].value, 3)
    clustered = result("label", "m cvae", "is", 10, estimate(twice))._replace(clusters=np.array(["a", "b"] * 3))
    text = report.text(Findings([clustered], [], [], []), Ais())
    assert "± is the standard error over 2 clusters of examples," in text and ", 6 examples, " in text
    assert "± is the standard error over examples," in report.text(Findings(LIKELIHOOD, [], [], []), Ais())
