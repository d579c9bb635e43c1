"""What tasks measure, by hand: numbers, tables and histograms."""

import json
import math

import numpy as np
import pytest
from results import cells, estimate, result

from cvae_jax import figures
from cvae_jax.evaluation import report
from cvae_jax.evaluation.report import Findings, TaskMeasure
from cvae_jax.inference.ais import Annealing

NAME = "entropy of labels, nats"
LN2 = math.log(2)
VALUES = np.array([[1.0, 2.0, 3.0], [3.0, 2.0, 7.0]])  # of two seeds


def measure(values=VALUES, name=NAME, model="m cvae", known=LN2, column="label"):
    return TaskMeasure("w", column, model, name, tuple(range(len(values))), values, known)


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
    mean, _ = measure(alone)._replace(pool=ratio).mean()
    assert mean.value == 1 and math.isnan(mean.standard_error)
    mean, _ = measure(0 * alone)._replace(pool=ratio).mean()
    assert math.isnan(mean.value) and math.isnan(mean.standard_error)


def test_summary_and_examples_are_json():
    identity = {"workdir": "w", "column": "label", "model": "m cvae", "name": NAME}
    found = json.loads(json.dumps(measure(known=None).summary(), allow_nan=False))
    assert found == {
        **identity,
        "seeds": [0, 1],
        "known": None,
        "mean": 3.0,
        "standard_error": pytest.approx(1),
        "deviation_over_seeds": pytest.approx(math.sqrt(2)),
        "of_seeds": [2.0, 4.0],
    }
    one = json.loads(json.dumps(measure(VALUES[:1, :1]).summary(), allow_nan=False))
    assert (one["mean"], one["standard_error"], one["deviation_over_seeds"]) == (1.0, None, None)
    of_examples = json.loads(json.dumps(measure().examples(), allow_nan=False))
    assert of_examples == {**identity, "seeds": [0, 1], "known": LN2, "values": VALUES.tolist()}


def test_the_table_of_measures():
    likelihoods = [result("label", "m cvae", "is", 10, estimate([-3.0, -5.0]))]
    accuracy = measure(np.array([[1.0, 1.0, 0.0]]), "accuracy", "n cvae", None, "image")
    other = measure(np.array([[2.0, 2.0, 2.0]]), model="n cvae")
    baseline = measure(np.array([[0.0, 0.0, 1.0]]), "accuracy", "a guess", None, "image")._replace(seeds=())
    text = report.text(Findings(likelihoods, [], [], [measure(), other, accuracy, baseline]), Annealing())
    before, table = text.split("## What the tasks measure")
    assert cells(before)[2][:2] == ["m cvae", "is"]
    assert [row for row in cells(table) if not set("".join(row)) <= set("-")] == [
        ["label", "m cvae", "n cvae", "a perfect model"],
        [NAME, "3.00 ± 1.00, seeds 1.41", "2.00 ± 0.00", "0.6931"],
        ["image", "n cvae", "a guess"],
        ["accuracy", "0.67 ± 0.33", "0.33 ± 0.33"],
    ]
    assert "## What the tasks measure" not in report.text(Findings(likelihoods, [], [], []), Annealing())


def test_a_pooled_measure_is_of_sums_with_the_error_of_the_jackknife():
    """The correlation of 2 x 40 pairs of numbers, each example's share five sums."""
    x, y = np.random.default_rng(0).normal(size=(2, 2, 40))
    y = y + x
    values = np.stack([x, y, x * x, y * y, x * y], -1)

    def correlation(sums):
        x, y, xx, yy, xy = np.moveaxis(sums, -1, 0) / (40 if np.ndim(sums) == 2 else 39)
        return (xy - x * y) / np.sqrt((xx - x**2) * (yy - y**2))

    one = measure(values)._replace(pool=correlation)
    mean, of_seeds = one.mean()
    each = [np.corrcoef(*both)[0, 1] for both in zip(x, y, strict=True)]
    without = [
        np.mean([np.corrcoef(np.delete(a, left), np.delete(b, left))[0, 1] for a, b in zip(x, y, strict=True)])
        for left in range(40)
    ]
    assert mean.value == pytest.approx(np.mean(each)) and of_seeds == pytest.approx(np.std(each, ddof=1))
    assert mean.standard_error == pytest.approx(np.sqrt(39 / 40 * ((without - np.mean(without)) ** 2).sum()))
    assert one.summary()["of_seeds"] == pytest.approx(each)
    assert "pool" not in one.examples() and len(one.examples()["values"]) == 2


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


def test_a_measure_of_every_step_has_a_course(tmp_path, monkeypatch):
    """The table has its mean over steps; the figure every step of all models, baselines too."""
    values = np.random.default_rng(0).normal(size=(2, 5, 3))  # [seeds, examples, steps]
    one = measure(values, "PSNR, dB")._replace(step="frame")
    mean, of_seeds = one.mean()
    of_examples = values.mean((0, 2))
    assert mean.value == pytest.approx(values.mean()) and of_seeds == pytest.approx(values.mean((1, 2)).std(ddof=1))
    assert mean.standard_error == pytest.approx(of_examples.std(ddof=1) / np.sqrt(5))
    summary = json.loads(json.dumps(one.summary(), allow_nan=False))
    error = values.mean(0).std(0, ddof=1) / np.sqrt(5)
    assert summary["of_steps"] == pytest.approx(values.mean((0, 1))) and summary["errors_of_steps"] == pytest.approx(
        error
    )
    assert summary["of_seeds"] == pytest.approx(values.mean((1, 2)))
    assert np.isnan(one._replace(values=values[:, :1]).of_steps()[1]).all()
    drawn = {}
    monkeypatch.setattr(figures, "courses", lambda values, path, *rest: drawn.update({path: (values, *rest)}))
    baseline = measure(values[:1] + 1, "PSNR, dB", "copying")._replace(step="frame", seeds=())
    report.draw([baseline, one], tmp_path, "test")
    ((path, (courses, *rest)),) = drawn.items()
    assert path == tmp_path / "PSNR.png" and rest == ["label, test split", "frame", "PSNR, dB"]
    assert list(courses) == ["copying", "m cvae"]
    np.testing.assert_allclose(courses["m cvae"][1], error)
