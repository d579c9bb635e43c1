"""A trained model from Python, and its evaluation: the same numbers by every road."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from small_runs import forget_run, small_config
from specs import load, task_of

import cvae_jax
from cvae_jax import keys
from cvae_jax.data import batches
from cvae_jax.errors import UserError
from cvae_jax.evaluation import Request, evaluate, measure
from cvae_jax.evaluation.measure import Plan
from cvae_jax.inference import Ais, draws
from cvae_jax.trained import load_seeds

pytestmark = pytest.mark.slow  # all of them train, or read a trained run


@pytest.fixture
def workdir(small_run):
    return small_run


@pytest.fixture(scope="module")
def trained(small_run):
    return cvae_jax.load(str(small_run))


@pytest.fixture(scope="module")
def images(trained):
    _, splits = load(trained.config)
    return splits["test"]["image"].astype(np.float32) / 255


def first(config, count):
    """The first examples of the test split."""
    _, splits = load(config)
    return {name: array[:count] for name, array in splits["test"].items()}


def test_predict_is_the_likelihoods_mean_at_the_priors_mean(trained, images):
    predicted = np.asarray(trained.predict(images[:3], stage="baseline"))
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), trained.best["baseline"]["params"])
    mask = np.zeros((8, 8))
    mask[4:, :4] = 1
    hidden = np.maximum((images[:3] * mask).reshape(3, -1) @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"], 0)
    logits = hidden @ params["Dense_1"]["kernel"] + params["Dense_1"]["bias"]
    np.testing.assert_allclose(predicted.reshape(3, -1), scipy.special.expit(logits), atol=1e-5)
    assert trained.predict(images[:3]).shape == (3, 8, 8)


def test_a_stage_is_measured_as_it_was_trained(trained):
    baseline, cvae = trained.fitted("baseline"), trained.fitted()
    assert (baseline.exact, baseline.has_recognition) == (True, False)  # it has no z
    assert (cvae.exact, cvae.has_recognition, cvae.predicts_from, cvae.estimator) == (False, True, "prior", "is")
    assert baseline.variables["frozen"] == {} and list(cvae.variables["frozen"]) == ["baseline"]
    assert cvae.variables["frozen"]["baseline"] is trained.best["baseline"]
    assert cvae.model is trained.stages[1].model and cvae.variables["params"] is trained.params


def test_predictions_and_samples_read_only_the_observed_quadrant(trained, images):
    other = images[:4].copy()
    other[:, :4], other[:, 4:, 4:] = 0.5, 0.25
    key = jax.random.key(0)
    np.testing.assert_array_equal(trained.predict(images[:4]), trained.predict(other))
    np.testing.assert_array_equal(trained.sample(images[:4], 2, key), trained.sample(other, 2, key))


def test_samples_have_the_mean_of_the_model(trained, images):
    key = jax.random.key(1)
    noisy, means = (np.asarray(trained.sample(images[:5], 4000, key, noise=noise)) for noise in (True, False))
    assert noisy.shape == means.shape == (4000, 5, 8, 8)
    assert set(np.unique(noisy)) == {0.0, 1.0} and (means > 0).all() and (means < 1).all()
    error = np.sqrt(noisy.var(0) / 4000 + means.var(0) / 4000) + 1e-4
    assert (abs(noisy.mean(0) - means.mean(0)) / error).max() < 5


def test_log_prob_agrees_with_the_estimators_and_with_evaluation(trained, images):
    key = keys.stream(0, "evaluation")  # evaluation's own, for seed 0
    by_is = trained.log_prob(images[:6], images[:6], 2000, key)
    by_mc = trained.log_prob(images[:6], images[:6], 2000, jax.random.key(7), estimator="mc")
    assert (abs(by_is.value - by_mc.value) < 5 * np.hypot(by_is.error, by_mc.error)).all()
    arrays = {"image": (images[:6] * 255).round().astype(np.uint8)}
    measured = measure(trained, "cvae", arrays, Plan([("is", 2000)])).cells["is", 2000]
    np.testing.assert_allclose(measured.value, by_is.value, atol=1e-5)


def test_measuring_depends_neither_on_batches_nor_on_chunks(trained, images, monkeypatch):
    arrays = {"image": (images[:25] * 255).round().astype(np.uint8)}
    values = []
    for examples, at_once in ((100, 2000), (10, 2000), (7, 50), (25, 1)):
        monkeypatch.setattr(batches, "EXAMPLES_PER_BATCH", examples)
        monkeypatch.setattr(draws, "DRAWS_PER_CALL", at_once)
        values.append(measure(trained, "cvae", arrays, Plan([("is", 30)])).cells["is", 30].value)
    for other in values[1:]:
        np.testing.assert_allclose(other, values[0], atol=1e-5)


def test_every_batch_is_measured_by_the_same_programs(trained, images, monkeypatch):
    monkeypatch.setattr(batches, "EXAMPLES_PER_BATCH", 4)

    def compiled(count):
        arrays = {"image": (images[:count] * 255).round().astype(np.uint8)}
        measure(trained, "cvae", arrays, Plan([("elbo", 3), ("is", 3), ("mc", 3)]))
        return draws._scores._cache_size() + draws._encode._cache_size()

    assert compiled(4) == compiled(16)


def test_fewer_samples_are_the_first_of_more(trained, images):
    arrays = {"image": (images[:5] * 255).round().astype(np.uint8)}
    both = measure(trained, "cvae", arrays, Plan([("is", 10), ("is", 40)])).cells
    alone = measure(trained, "cvae", arrays, Plan([("is", 10)])).cells
    np.testing.assert_allclose(both[("is", 10)].value, alone[("is", 10)].value, atol=1e-5)
    assert (both[("is", 40)].ess > both[("is", 10)].ess).mean() > 0.5


def test_evaluate_writes_what_the_estimates_say(trained, workdir, tmp_path):
    evaluate([str(workdir)], Request(["elbo", "is"], [20], num_examples=50, output=str(tmp_path)))
    written = json.loads((tmp_path / "results.json").read_text())
    rows = {row["estimator"]: row for row in written["likelihoods"]}
    arrays = first(trained.config, 50)
    baseline = measure(trained, "baseline", arrays, Plan([])).cells["exact", 1]
    measured = measure(trained, "cvae", arrays, Plan([("is", 20)]))
    sampled = measured.cells["is", 20]
    row = rows["is"]
    assert row["negative_log_likelihood"] == pytest.approx(-sampled.value.mean(), abs=1e-5)
    assert row["standard_error"] == pytest.approx(sampled.value.std(ddof=1) / 50**0.5, rel=1e-4)
    assert row["monte_carlo_error"] == pytest.approx((sampled.error**2).sum() ** 0.5 / 50, rel=1e-3)
    difference = sampled.value - baseline.value
    (gain,) = row["gains"]
    assert gain["gain"] == pytest.approx(difference.mean(), abs=1e-5)
    assert gain["standard_error"] == pytest.approx(difference.std(ddof=1) / 50**0.5, rel=1e-4)
    assert rows["exact"]["monte_carlo_error"] == 0 and rows["exact"]["gains"] == []
    assert row["bias"] == pytest.approx(-sampled.bias.mean(), abs=1e-5) and row["bias"] > 0
    assert row["share_of_examples_flagged"] == (sampled.ess < 10).mean()  # of 20 samples no tail is fitted
    # Grey targets are no density, and the floor is their own entropy.
    pixels = arrays["image"] / 255 * np.asarray(trained.task.from_user(arrays["image"] / 255).weight)
    floor = scipy.special.entr(pixels).sum() + scipy.special.entr(1 - pixels).sum()
    assert row["floor"] == pytest.approx(floor / 50, rel=1e-4) and row["floor"] > 5
    assert row["protocol"] == "cross-entropy of grey targets, no density, digits test"
    of_examples = json.loads((tmp_path / "examples.json").read_text())["likelihoods"]
    (of_is,) = (row for row in of_examples if row["estimator"] == "is")
    for field in ("value", "error", "ess"):
        np.testing.assert_allclose(of_is[field], getattr(sampled, field), rtol=1e-3, atol=1e-5)
    (code,) = written["latent_code"]
    assert code["kl"] == pytest.approx(measured.code.kl.sum(1).mean(), rel=1e-5)
    assert code["units"] == len(code["kl_of_units"]) == 4


def test_dynamic_targets_are_the_same_for_every_model_and_stage(trained):
    config = trained.config.copy_and_resolve_references()
    config.targets = "dynamic"
    task = task_of(config)
    arrays = first(config, 20)
    ids = jnp.arange(20)
    raw = {"image": jnp.asarray(arrays["image"])}
    drawn = [
        task.batch(raw, ids, jnp.ones(20), keys.per_example(keys.stream(seed, "targets"), ids), None)
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(drawn[0].y, drawn[1].y)
    assert (np.asarray(drawn[0].y) != np.asarray(drawn[2].y)).any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"estimators": ["is", "jackknife"], "num_samples": [1]}, "num_samples=1 must be at least 2 for the jackknife"),
        ({"estimators": ["foo"]}, "estimator='foo' is not known; choose from elbo, mc, is, jackknife, defensive"),
        ({"num_samples": ["0"]}, "num_samples=0 must be a whole number of at least 1"),
        ({"num_samples": ["ten"]}, "num_samples=ten must be a whole number of at least 1"),
        ({"num_examples": -1}, "num_examples=-1 must not be negative"),
        ({"ais": Ais(num_steps=0)}, "num_steps=0 must be at least 1"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is(workdir, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        evaluate([str(workdir)], Request(output=str(tmp_path / "eval"), **changes))
    assert not (tmp_path / "eval").exists()


def test_a_run_of_an_older_version_is_refused(workdir, tmp_path):
    shutil.copytree(workdir, tmp_path / "old")
    config = json.loads((tmp_path / "old" / "config.json").read_text())
    (tmp_path / "old" / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "num_seeds"}))
    with pytest.raises(UserError, match=r"config.json lacks 'num_seeds': another version wrote it; train it again"):
        cvae_jax.load(str(tmp_path / "old"))


def test_a_config_that_lacks_a_key_is_refused(workdir, tmp_path):
    shutil.copytree(workdir, tmp_path / "old")
    forget_run(tmp_path / "old")
    config = json.loads((tmp_path / "old" / "config.json").read_text())
    del config["cvae"]["optimizer"]["epsilon"]
    (tmp_path / "old" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"config.json lacks 'epsilon': another version wrote it; train it again"):
        cvae_jax.load(str(tmp_path / "old"))


def test_two_runs_of_one_config_stand_under_their_workdirs(workdir, tmp_path):
    shutil.copytree(workdir, tmp_path / "copy")
    both = [str(workdir), str(tmp_path / "copy")]
    evaluate(both, Request(["is"], [2, 2], num_examples=5, output=str(tmp_path / "eval")))
    rows = json.loads((tmp_path / "eval" / "results.json").read_text())["likelihoods"]
    assert [row["workdir"] for row in rows] == [both[0], both[0], both[1], both[1]]
    assert len({row["model"] for row in rows}) == 4
    assert rows[1]["negative_log_likelihood"] == rows[3]["negative_log_likelihood"]
    assert len(list((tmp_path / "eval").glob("samples_*.png"))) == 2


@pytest.mark.parametrize("change", [{"quadrants": 2}, {"targets": "threshold"}, {"seed": 1}])
def test_a_config_that_was_changed_is_refused(workdir, tmp_path, change):
    """It would fit the checkpoints, and predict something else."""
    shutil.copytree(workdir, tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    (tmp_path / "run" / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(UserError, match=r"checkpoint .* is of another run, with other .*settings; put back"):
        cvae_jax.load(str(tmp_path / "run"))
    # Where the data lie, how long it is trained and how it is measured may change.
    free = {**config, "measure_num_samples": 7, "data": {**config["data"], "dir": "elsewhere"}}
    free["cvae"] = {**config["cvae"], "epochs": 500}
    (tmp_path / "run" / "config.json").write_text(json.dumps(free))
    assert cvae_jax.load(str(tmp_path / "run")).stages[-1].name == "cvae"


def test_runs_on_other_targets_do_not_share_a_column(workdir, tmp_path):
    shutil.copytree(workdir, tmp_path / "other")
    forget_run(tmp_path / "other")
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    (tmp_path / "other" / "config.json").write_text(json.dumps({**config, "targets": "dynamic"}))
    with pytest.raises(UserError, match="cannot stand in one column"):
        evaluate([str(workdir), str(tmp_path / "other")], Request(["is"], [2], output=str(tmp_path / "eval")))
    assert not (tmp_path / "eval").exists()


def test_one_sample_of_one_example_has_no_errors_to_tell(workdir, tmp_path):
    table = evaluate([str(workdir)], Request(["is"], [1], num_examples=1, output=str(tmp_path)))
    assert "± ?" in table and "nan" not in table
    written = json.loads((tmp_path / "results.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    rows = written["likelihoods"]
    assert rows[1]["standard_error"] is None and rows[1]["monte_carlo_error"] is None


def test_unknown_names_are_refused(trained, images):
    with pytest.raises(UserError, match="estimator 'iss' is not known; choose from elbo, mc, is, jackknife"):
        trained.log_prob(images[:1], images[:1], 5, jax.random.key(0), estimator="iss")
    with pytest.raises(UserError, match="num_samples=0 must be at least 1"):
        trained.log_prob(images[:1], images[:1], 0, jax.random.key(0))
    with pytest.raises(UserError, match="num_samples=0 must be at least 1"):
        trained.sample(images[:1], 0, jax.random.key(0))
    with pytest.raises(UserError, match="stage 'vae' is not trained here; there are baseline, cvae"):
        trained.predict(images[:1], stage="vae")


def test_a_code_tells_y_and_a_line_between_two(trained, images):
    """Of the plain CVAE: mean of q(z|x,y) by the recognition network, and p(y|x,z) by the generation network alone."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), trained.params)

    def mlp(net, inputs):
        for number in range(len(net) - 1):
            layer = net[f"Dense_{number}"]
            inputs = np.maximum(inputs @ layer["kernel"] + layer["bias"], 0)
        layer = net[f"Dense_{len(net) - 1}"]
        return inputs @ layer["kernel"] + layer["bias"]

    (z,) = trained.encode(images[:3], images[:3])
    assert isinstance(z, np.ndarray) and z.shape == (3, 4)
    image = scipy.special.expit(mlp(params["generation_net"], z.astype(np.float64))).reshape(3, 8, 8)
    np.testing.assert_allclose(trained.reconstruct(images[:3], images[:3]), image, atol=1e-5)
    (other,) = trained.encode(images[:3], images[3:6])
    line = trained.interpolate(images[:3], images[:3], images[3:6], 5)
    assert line.shape == (5, 3, 8, 8)
    np.testing.assert_allclose(line[0], image, atol=1e-5)
    halfway = scipy.special.expit(mlp(params["generation_net"], (z + other).astype(np.float64) / 2))
    np.testing.assert_allclose(line[2].reshape(3, -1), halfway, atol=1e-5)
    batch = trained.task.from_user(images[:3], images[:3])
    drawn = draws.scores(trained.fitted(), batch, "recognition", lambda draw: draw.z[0], 4000, jax.random.key(0))
    assert (np.abs(drawn.mean(0) - z) < 5 * drawn.std(0) / np.sqrt(4000) + 1e-6).all()


def test_what_has_no_code_says_so(trained, images):
    with pytest.raises(UserError, match="'baseline' is deterministic: it has no z"):
        trained.encode(images[:1], images[:1], stage="baseline")
    with pytest.raises(UserError, match="num_steps=1 must be"):
        trained.interpolate(images[:1], images[:1], images[1:2], 1)


def test_numbers_and_keys_that_cannot_be(trained, images):
    for count, key, message in (
        (1e2, jax.random.key(0), "num_samples=100.0 must be a whole number"),
        (True, jax.random.key(0), "num_samples=True must be"),
        (10, 0, "key=0 is no key of random numbers; write jax.random.key"),
        (10, None, "key=None is no key"),
        (10, jax.random.split(jax.random.key(0)), "is no key"),
        (10, np.zeros(3, np.uint32), "is no key"),
    ):
        for call in (
            lambda count=count, key=key: trained.log_prob(images[:1], images[:1], count, key),
            lambda count=count, key=key: trained.sample(images[:1], count, key),
        ):
            with pytest.raises(UserError, match=message) as refusal:
                call()
            assert "\n" not in str(refusal.value)
    raw = jax.random.PRNGKey(0)  # a key of before
    np.testing.assert_array_equal(trained.sample(images[:1], 2, raw), trained.sample(images[:1], np.int64(2), raw))


def test_seeds_are_measured_one_by_one_and_averaged(tmp_path):
    cvae_jax.train(small_config(num_seeds=2, **{"cvae.epochs": 1, "baseline.epochs": 1}), str(tmp_path / "run"))
    table = evaluate([str(tmp_path / "run")], Request(["is"], [30], num_examples=20, output=str(tmp_path / "eval")))
    assert "seeds" in table
    rows = json.loads((tmp_path / "eval" / "results.json").read_text())
    both = load_seeds(str(tmp_path / "run"))
    arrays = first(both[0].config, 20)
    for number, trained in enumerate(both):
        by_is = measure(trained, "cvae", arrays, Plan([("is", 30)])).cells["is", 30]
        assert rows["likelihoods"][1]["of_seeds"][number] == pytest.approx(-by_is.value.mean(), abs=1e-5)
    assert [code["seed"] for code in rows["latent_code"]] == [0, 1]


# What an objective leaves untrained is not measured.


@pytest.fixture(scope="module", params=["gsnn", "gdnn"])
def without_q(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("without_q") / request.param
    with jax.numpy_dtype_promotion("standard"):
        cvae_jax.train(
            small_config(**{"cvae.objective.name": request.param, "cvae.epochs": 1, "baseline.epochs": 1}), str(folder)
        )
    return folder


def test_a_network_that_was_not_trained_is_not_drawn_from(without_q, images, tmp_path, caplog):
    trained, key = cvae_jax.load(str(without_q)), jax.random.key(0)
    if without_q.name == "gdnn":  # its z has no spread, so its likelihood is exact
        estimate = trained.log_prob(images[:3], images[:3], 1, key)
        samples = trained.sample(images[:3], 2, key, noise=False)
        np.testing.assert_array_equal(samples[0], samples[1])
        np.testing.assert_array_equal(samples[0], trained.predict(images[:3]))
        mean = np.clip(np.asarray(samples[0], np.float64), 1e-12, 1)
        hidden = np.asarray(trained.task.from_user(images[:3]).weight)
        wanted = (hidden * (images[:3] * np.log(mean) + (1 - images[:3]) * np.log1p(-mean))).sum((1, 2))
        np.testing.assert_allclose(estimate.value, wanted, rtol=1e-4)
        assert (estimate.error == 0).all()
        evaluate([str(without_q)], Request(["is"], [5], num_examples=5, output=str(tmp_path)))
        rows = json.loads((tmp_path / "results.json").read_text())
        assert [row["estimator"] for row in rows["likelihoods"]] == ["exact", "exact"]
        return
    with pytest.raises(UserError, match="'is' draws from the recognition network, which was not trained; use"):
        trained.log_prob(images[:3], images[:3], 5, key)
    by_mc = trained.log_prob(images[:3], images[:3], 4000, key, estimator="mc")
    by_ais = trained.log_prob(images[:3], images[:3], 16, key, estimator="ais", settings=Ais("prior", 50))
    assert (abs(by_mc.value - by_ais.value) < 5 * np.hypot(by_mc.error, by_ais.error) + 0.02).all()
    with pytest.raises(UserError, match="without its recognition network, from which 'is' would draw; add"):
        evaluate([str(without_q)], Request(["is"], [5], num_examples=5, output=str(tmp_path)))
    table = evaluate([str(without_q)], Request(["is", "mc"], [5], num_examples=5, output=str(tmp_path)))
    assert "mc" in table and "| is " not in table and "## Latent code" not in table
    assert "cvae was trained without its recognition network: no 'is'" in caplog.text
    for estimator in ("iss", "bdmc"):
        with pytest.raises(UserError, match=f"estimator '{estimator}' is not known"):
            trained.log_prob(images[:1], images[:1], 5, key, estimator=estimator)


def test_bidirectional_monte_carlo_stands_in_a_table_of_its_own(workdir, tmp_path):
    request = Request(["is", "bdmc"], [500], num_examples=6, output=str(tmp_path), ais=Ais(num_steps=50))
    table = evaluate([str(workdir)], request)
    assert "## On y drawn from each model itself" in table
    rows = {row["estimator"]: row for row in json.loads((tmp_path / "results.json").read_text())["simulated"]}
    assert list(rows) == ["bdmc, lower bound", "bdmc, upper bound", "is"]
    assert {row["protocol"] for row in rows.values()} == {"binary y drawn from the model, x of digits test"}
    assert not any("gains" in row or row["floor"] for row in rows.values())
    lower, upper, sampled = (row["negative_log_likelihood"] for row in rows.values())
    errors = [row["monte_carlo_error"] for row in rows.values()]
    assert upper - 4 * errors[1] < sampled + 4 * errors[2] and sampled - 4 * errors[2] < lower + 4 * errors[0]
    assert abs(upper - lower) < 0.3
