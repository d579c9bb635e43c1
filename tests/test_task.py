"""A system from outside: what a task has to say, and what it gets by default."""

import importlib
import pathlib
import sys
from types import MappingProxyType, SimpleNamespace

import contract
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from specs import load

import cvae_jax
from cvae_jax import UserError, data, tasks
from cvae_jax.task import Spec, Task

OUTSIDE = pathlib.Path(__file__).parent / "support" / "outside"


@pytest.fixture
def outside(monkeypatch):
    """The folder of a system outside the package, where Python finds it; the task is forgotten afterwards."""
    monkeypatch.syspath_prepend(str(OUTSIDE))
    monkeypatch.setattr(tasks, "_REGISTERED", {})
    for name in ("vectors", "vectors_config"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return OUTSIDE


def write_vectors(folder, dtype=np.float64, patient=False):
    """Linear-Gaussian pairs of two features and one number, as .npz files."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", 200), ("valid", 60), ("test", 60)):
        x = rng.normal(size=(count, 2))
        y = x @ [1.0, -2.0] + 0.5 * rng.normal(size=count)  # [count]: one number an example
        more = {"patient": np.arange(count) // 2} if patient else {}
        np.savez(folder / f"{split}.npz", x=x.astype(dtype), y=y.astype(dtype), **more)
    return folder


def vectors_config(outside, folder):
    tasks.import_module("vectors")
    config = importlib.import_module("vectors_config").get_config()
    config.data.dir = str(folder)
    return config


def test_the_least_system_is_short():
    lines = {path.stem: len(path.read_text().splitlines()) for path in OUTSIDE.glob("*.py")}
    assert lines["vectors"] <= 30 and lines["vectors_config"] <= 24


@pytest.mark.slow
def test_a_system_from_outside_keeps_the_contract(outside, tmp_path):
    task, arrays = load(vectors_config(outside, write_vectors(tmp_path)))
    # Not far from what networks say that were not trained: else weights degenerate.
    raw = {name: jnp.asarray(0.3 * array[:4]) for name, array in arrays["test"].items()}
    ids = jnp.arange(4, dtype=jnp.int32)
    batch = task.batch(raw, ids, jnp.ones(4), None, None)
    (stage,) = task.stages
    variables = contract.moved(jax.jit(stage.model.init)(jax.random.key(0), batch, {}))
    contract.check_model(cvae_jax.Fitted(stage.model, variables), batch)


@pytest.mark.slow
def test_a_system_from_outside_trains_and_loads(outside, tmp_path):
    config = vectors_config(outside, write_vectors(tmp_path / "data"))
    with jax.numpy_dtype_promotion("standard"):
        cvae_jax.train(config, str(tmp_path / "run"))
    trained = cvae_jax.load(str(tmp_path / "run"))
    assert '"task": "vectors"' in (tmp_path / "run" / "config.json").read_text()
    assert trained.predict(np.zeros((3, 2))).shape == (3, 1)
    assert trained.sample(np.zeros((3, 2)), 5, jax.random.key(0)).shape == (5, 3, 1)
    estimate = trained.log_prob(np.zeros((3, 2)), np.zeros(3), 50, jax.random.key(0))
    assert np.isfinite(estimate.value).all()
    assert (tmp_path / "run" / "figures" / "cvae" / "best.png").exists()
    tasks._REGISTERED.clear()
    with pytest.raises(UserError, match=r"task='vectors' is not known.*--task_module"):
        cvae_jax.load(str(tmp_path / "run"))


def test_the_page_shows_the_system_as_it_is():
    page = (pathlib.Path(__file__).parents[1] / "docs" / "own_data.md").read_text()
    for path in OUTSIDE.glob("*.py"):
        assert f"```python\n{path.read_text()}```" in page, path.name


@pytest.mark.slow
def test_the_metric_of_the_page_measures(outside, tmp_path):
    page = (pathlib.Path(__file__).parents[1] / "docs" / "own_data.md").read_text()
    example = page.split("## A metric of your own")[1].split("```python\n")[1].split("```")[0]
    names: dict = {}
    exec(example, names)
    assert tasks.find("measured") is names["Measured"]
    tasks.register("vectors", names["Measured"])
    config = importlib.import_module("vectors_config").get_config()
    config.data.dir = str(write_vectors(tmp_path, patient=True))
    task, arrays = load(config)
    batch = task.from_user(arrays["test"]["x"], arrays["test"]["y"])
    (stage,) = task.stages
    fitted = cvae_jax.Fitted(stage.model, jax.jit(stage.model.init)(jax.random.key(0), batch, {}))
    metric = task.metrics(fitted, batch, jax.random.key(0))["mean absolute error"]
    predicted = cvae_jax.inference.predict(fitted, batch)
    np.testing.assert_allclose(metric.values, np.abs(predicted - batch.y)[:, 0], rtol=1e-6)
    assert (metric.unit, metric.perfect) == ("mm", 0.0)


def test_float64_and_single_numbers_serve(outside, tmp_path):
    task, arrays = load(vectors_config(outside, write_vectors(tmp_path, np.float64)))
    assert arrays["train"]["y"].shape == (200, 1) and arrays["train"]["y"].dtype == np.float32
    assert task.raw["x"].shape == (2,)


def test_users_arrays_are_checked(outside, tmp_path):
    task, _ = load(vectors_config(outside, write_vectors(tmp_path)))
    batch = task.from_user([[1, 2], [3, 4]], [0.5, 1.5])
    np.testing.assert_array_equal(batch.x, [[1.0, 2.0], [3.0, 4.0]])
    np.testing.assert_array_equal(batch.y, [[0.5], [1.5]])
    assert task.from_user(np.zeros((2, 2))).y is None
    for x, y, message in (
        (np.zeros((2, 3)), None, r"x has shape \[2, 3\], expected \[examples, 2\]"),
        (np.zeros((0, 2)), None, r"x has shape \[0, 2\]"),
        (np.full((2, 2), np.nan), None, "x has values that are NaN or infinite"),
        ("words", None, "x is no array of numbers"),
        (np.zeros((2, 2)), np.zeros(3), "x has 2 examples but y has 3"),
        (np.zeros((2, 2)), np.zeros((2, 2)), r"y has shape \[2, 2\], expected \[examples, 1\]"),
    ):
        with pytest.raises(UserError, match=message):
            task.from_user(x, y)


def test_registering_and_finding(outside):
    with pytest.raises(UserError, match=r"task='vectors' is not known; choose from .*quadrants"):
        tasks.find("vectors")
    tasks.import_module("vectors")
    assert tasks.find("vectors").title == "y given x"
    with pytest.raises(UserError, match=r"one of cvae_jax's own"):
        tasks.register("quadrants", Task)
    with pytest.raises(UserError, match=r"no class derived from cvae_jax.Task"):
        tasks.register("mine", "Task")
    with pytest.raises(UserError, match=r"task_module='nowhere' is not found"):
        tasks.import_module("nowhere")


def test_a_module_that_lacks_something_says_what(tmp_path, monkeypatch):
    (tmp_path / "needs_more.py").write_text("import not_installed_anywhere\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="not_installed_anywhere"):
        tasks.import_module("needs_more")


def clinic(settings):
    """Two images of each patient."""
    return {"train": {"x": np.zeros((settings.count, 2)), "patient": np.arange(settings.count) // 2}}


def test_a_task_brings_its_source_and_its_clusters():
    class Patients(Task):
        """Whose errors are over patients."""

        sources = MappingProxyType({"clinic": clinic})
        cluster = "patient"

        def __init__(self, config, spec):
            self.raw = {"x": spec.raw["x"]}

    settings = SimpleNamespace(source="clinic", count=6)
    splits = data.load(settings, Patients.sources)
    task = Patients(None, data.spec(splits))
    checked = data.check(splits, task, "clinic")
    np.testing.assert_array_equal(checked["train"]["patient"], [0, 0, 1, 1, 2, 2])
    splits["train"]["patient"] = np.arange(6.0)
    with pytest.raises(UserError, match=r"patient, over which errors are taken, must be whole numbers or strings"):
        data.check(splits, task, "clinic")
    del splits["train"]["patient"]
    with pytest.raises(UserError, match=r"no array 'patient', over which errors are taken"):
        data.check(splits, task, "clinic")


def test_default_grid_shows_numbers_and_images():
    class Plain(Task):
        """The defaults alone."""

    task = Plain(None, Spec({}, {}, {}, {}))
    batch = cvae_jax.Batch(np.array([[1.0, 2.5]]), np.zeros((1, 2, 2)), None, np.arange(1), np.ones(1))
    grid = task.sample_grid(batch, {"cvae": np.ones((2, 1, 2, 2))})
    assert list(grid.columns) == ["x", "truth", "sample 1", "sample 2"]
    assert grid.columns["x"].tolist() == ["1\n2.5"]
    assert grid.columns["truth"].shape == (1, 2, 2)
