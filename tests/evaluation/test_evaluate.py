"""Evaluation of a system whose log p(y|x) is known: several y of one x, clusters, what a task measures, its baselines.

Weights hardly move in training, so that its model is the linear-Gaussian one of `linear_gaussian`.
"""

import json
from types import MappingProxyType

import jax
import linear_gaussian as lg
import numpy as np
import pytest
from scipy import stats

import cvae_jax
from cvae_jax import Batch, Grid, Metric, Task, config, objectives, tasks
from cvae_jax.errors import UserError
from cvae_jax.evaluation import Request, evaluate
from cvae_jax.evaluation.measure import joined_metrics
from cvae_jax.training import log

GAUSSIAN = lg.LinearGaussian(x_size=3, z_size=2, y_size=2, factored=True)
X, Y = GAUSSIAN.data(30)
PATIENT = np.repeat(np.arange(10), 3)[np.random.default_rng(0).permutation(30)]
GUESS = X.sum(1, dtype=np.float32)


def load(settings):
    arrays = {"x": X.astype(np.float32), "y": Y.astype(np.float32), "patient": PATIENT, "guess": GUESS}
    return dict.fromkeys(("train", "valid", "test"), arrays)


def log_p_of_each():
    """log p of each of the two y of an x, [examples, 2]: they are independent given x."""
    n = GAUSSIAN._numbers
    diagonal = np.diag(n["B"])
    return stats.norm.logpdf(Y, X @ (n["B"] @ n["A"] + n["C"]).T, np.hypot(diagonal * n["s_p"], lg.S_Y))


def ratio(sums):
    return sums[..., 0] / sums[..., 1]


def encode(variables, batch, train=None):
    return GAUSSIAN.model.encode(variables, batch._replace(x=batch.x["x"]), train)


MODEL = GAUSSIAN.model._replace(encode=encode)


class Pairs(Task):
    """Two y of each x."""

    title, protocol = "two y", "both"
    sources = MappingProxyType({"pairs": load})

    def __init__(self, config, spec):
        self.raw = {name: spec.raw[name] for name in ("x", "y")}
        self.measured = {"guess": spec.raw["guess"]}
        self.cluster = config.cluster
        self.stages = (objectives.stage("lg", MODEL, config.lg),)

    def batch(self, raw, ids, num_targets, keys, step):
        assert step is None or "guess" not in raw  # what is measured alone is not there in training
        x = {name: raw[name] for name in ("x", "guess") if name in raw}
        return Batch(x, raw["y"], None, ids, 2 * num_targets)

    def metrics(self, fitted, batch, key):
        x = np.asarray(batch.x["x"], np.float64)
        return {
            "of some": Metric(np.where(x[:, 0] > 0, x[:, 1], np.nan), "m", perfect=x[:, 2]),
            "ratio": Metric(1 + x[:, :2] ** 2, pool=ratio),
            "of steps": Metric(x, step="step"),
        }

    def baselines(self, batch):
        return {"a guess": {"of some": Metric(np.asarray(batch.x["guess"][:, 0], np.float64), "m")}}

    def sample_grid(self, batch, samples):
        return Grid({"y": np.asarray(batch.y)[:, None]})


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Workdirs of a run without clusters and of one with them."""
    folder = tmp_path_factory.mktemp("pairs")
    tasks.register("pairs", Pairs)
    for name, cluster in (("alone", ""), ("patients", "patient")):
        run = config.experiment("pairs", "pairs")
        run.cluster, run.data = cluster, {"source": "pairs", "dir": ""}
        optimizer = {"name": "sgd", "learning_rate": 1e-20}
        run.lg = config.stage(batch_size=10, epochs=1, optimizer=optimizer, objective={"name": "iwae"})
        with jax.numpy_dtype_promotion("standard"):
            cvae_jax.train(run, str(folder / name))
    yield folder
    del tasks._REGISTERED["pairs"]


@pytest.fixture(scope="module")
def measured(runs):
    """What an evaluation of each run says: its text, results.json and examples.json."""
    return {name: measure(runs / name) for name in ("alone", "patients")}


def measure(workdir, **options):
    text = evaluate([str(workdir)], Request(["elbo", "is"], [4], output=str(workdir / "eval"), **options))
    return text, *(json.loads((workdir / "eval" / f"{name}.json").read_text()) for name in ("results", "examples"))


@pytest.mark.slow
def test_log_p_is_that_of_a_single_y(measured):
    _, results, examples = measured["alone"]
    truth = log_p_of_each()
    elbo, by_is = results["likelihoods"]
    for row in (elbo, by_is):
        assert row["num_examples"] == 30
    # The recognition network is the posterior, so that every sample of the importance weights is log p itself.
    assert by_is["negative_log_likelihood"] == pytest.approx(-truth.mean(), abs=1e-5)
    assert by_is["standard_error"] == pytest.approx(truth.mean(1).std(ddof=1) / 30**0.5, rel=1e-4)
    assert elbo["negative_log_likelihood"] == pytest.approx(-truth.mean(), abs=5 * elbo["monte_carlo_error"])
    (of_examples,) = (row for row in examples["likelihoods"] if row["estimator"] == "is")
    np.testing.assert_allclose(of_examples["value"], truth.mean(1), atol=1e-5)
    np.testing.assert_allclose(of_examples["per_factor"], truth, atol=1e-5)


@pytest.mark.slow
def test_the_loss_is_that_of_a_single_y(runs):
    (row,) = log.read(runs / "alone")
    assert row["valid/loss"] == row["best_loss"] == pytest.approx(-log_p_of_each().mean(), abs=1e-5)
    assert row["train/loss"] == pytest.approx(row["valid/loss"], abs=1e-5)  # all examples are in both


@pytest.mark.slow
def test_errors_are_over_clusters(measured):
    truth = log_p_of_each().mean(1)
    (without, *_), (text, results, _) = measured["alone"], measured["patients"]
    by_is = results["likelihoods"][1]
    of_patients = np.array([truth[number == PATIENT].mean() for number in range(10)])  # all of the same size
    assert by_is["standard_error"] == pytest.approx(of_patients.std(ddof=1) / 10**0.5, rel=1e-4)
    assert by_is["negative_log_likelihood"] == measured["alone"][1]["likelihoods"][1]["negative_log_likelihood"]
    assert "± is the standard error over 10 clusters of examples" in text and "clusters" not in without


@pytest.mark.slow
def test_what_the_task_measures(measured):
    _, results, examples = measured["patients"]
    rows = {(row["model"], row["name"]): row for row in results["task_measures"]}
    assert list(rows) == [
        ("a guess", "of some, m"), ("pairs lg", "of some, m"), ("pairs lg", "ratio"), ("pairs lg", "of steps"),
    ]  # fmt: skip
    x = X.astype(np.float32).astype(np.float64)
    there = x[:, 0] > 0
    of_some = rows["pairs lg", "of some, m"]
    assert of_some["mean"] == pytest.approx(x[there, 1].mean()) and of_some["known"] == pytest.approx(
        x[there, 2].mean()
    )
    from_mean, present = x[there, 1] - x[there, 1].mean(), sorted(set(PATIENT[there]))
    sums = np.array([from_mean[PATIENT[there] == number].sum() for number in present])
    error = np.sqrt(len(sums) / (len(sums) - 1) * (sums**2).sum()) / there.sum()
    assert of_some["standard_error"] == pytest.approx(error)
    values = examples["task_measures"][1]["values"][0]
    assert values == pytest.approx(np.where(there, x[:, 1], None).tolist())
    squares = 1 + x[:, :2] ** 2
    by_patient = np.array([squares[number == PATIENT].sum(0) for number in range(10)])
    without = ratio(by_patient.sum(0) - by_patient)
    assert rows["pairs lg", "ratio"]["mean"] == pytest.approx(ratio(squares.sum(0)))
    jackknife = np.sqrt(9 / 10 * ((without - without.mean()) ** 2).sum())
    assert rows["pairs lg", "ratio"]["standard_error"] == pytest.approx(jackknife)
    assert rows["pairs lg", "of steps"]["of_steps"] == pytest.approx(x.mean(0))
    assert rows["a guess", "of some, m"]["mean"] == pytest.approx(GUESS.mean(dtype=np.float64))
    assert rows["a guess", "of some, m"]["seeds"] == []


@pytest.mark.slow
def test_fewer_examples_are_the_first_in_fewer_clusters(runs):
    text, results, _ = measure(runs / "patients", num_examples=4)
    count = len(set(PATIENT[:4]))
    assert f"over {count} clusters of examples" in text and ", 4 examples, " in text
    truth = log_p_of_each()[:4].mean()
    assert results["likelihoods"][1]["negative_log_likelihood"] == pytest.approx(-truth, abs=1e-5)


@pytest.mark.slow
def test_data_that_lack_the_clusters_are_refused(runs, monkeypatch):
    def without(settings):
        return {split: {k: v for k, v in arrays.items() if k != "patient"} for split, arrays in load(settings).items()}

    monkeypatch.setattr(Pairs, "sources", {"pairs": without})
    assert "10 clusters" not in measure(runs / "alone")[0]
    with pytest.raises(UserError, match="pairs, split train: no array 'patient', over which errors are taken, among"):
        measure(runs / "patients")


def test_metrics_of_batches_are_joined_in_the_order_of_the_split():
    def metrics(*values):
        perfect = -np.array(values)
        return {"own": Metric(np.array(values), "m", perfect), "common": Metric(np.array(values), perfect=3.0)}

    joined = joined_metrics([(metrics(4.0, 2.0), 2), (metrics(1.0, 3.0, 9.0), 2)], np.array([2, 1, 3, 0]))
    np.testing.assert_array_equal(joined["own"].values, [1, 2, 3, 4])
    np.testing.assert_array_equal(joined["own"].perfect, [-1, -2, -3, -4])
    assert (joined["own"].unit, joined["common"].perfect) == ("m", 3.0)
    assert joined["common"].values.shape == (4,)


def test_what_cannot_be_requested():
    for options, message in (
        ({"estimators": []}, "name at least one estimator and one number of samples"),
        ({"num_samples": ()}, "name at least one estimator and one number of samples"),
        ({"num_samples": ["1.5"]}, "num_samples=1.5 must be a whole number of at least 1"),
        ({"num_chains": 0, "estimators": ["ais"]}, "num_chains=0 must be at least 1"),
    ):
        with pytest.raises(UserError, match=message):
            Request(**options).plan()
    plan = Request(["ais", "is", "bdmc"], [5, "10"], num_chains=3).plan()
    assert plan.estimators == [("ais", 3), ("is", 5), ("is", 10)] and plan.simulate == 3


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (np.ones(4), "metric 'error' is a ndarray; return cvae_jax.Metric"),
        (Metric(np.ones(3)), r"metric 'error' has values of shape \[3\] for 4 examples"),
        (Metric(np.float64(1)), r"values of shape \[\] for 4 examples; return \[batch\]"),
        (Metric(np.ones((4, 2))), "name a step or pool"),
        (Metric(np.ones(4), step="frame"), r"return \[batch, steps or numbers\]"),
    ],
)
def test_a_metric_of_the_wrong_form_is_named(metric, message):
    with pytest.raises(UserError, match=message):
        joined_metrics([({"error": metric}, 4)], np.arange(4))


@pytest.mark.parametrize(
    ("workdirs", "request_", "message"),
    [
        ([], Request(), "at least one workdir"),
        ("nowhere", Request(), "workdir nowhere holds no run"),
        (["nowhere"], Request(estimators="is"), "must be sequences"),
        (["nowhere"], Request(num_samples=10), "must be sequences"),
    ],
)
def test_requests_that_cannot_be_end_in_a_line(workdirs, request_, message):
    with pytest.raises(UserError, match=message):
        evaluate(workdirs, request_)
