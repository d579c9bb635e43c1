"""What a run's folder keeps of its config and data, and which runs it refuses."""

import json
import shutil

import kill
import numpy as np
import pytest
from small_runs import forget_run, small_config, small_identity
from specs import NOTHING, load, task_of

import cvae_jax
from configs import mnist_class
from cvae_jax import data
from cvae_jax.errors import DivergenceError, UserError
from cvae_jax.training import log as metrics
from cvae_jax.training import workdir

RNG = np.random.default_rng(0)
ARRAYS = {
    "image": RNG.integers(0, 256, (7, 2, 3), np.uint8),
    "label": np.array([0, 3, 1, 2, 2, 0, 3], np.int32),
    "offset": np.array([-1, 3, 1, 2, 2, 0, 3], np.int32),  # not all from 0 on: no classes
    "x": np.stack([RNG.normal(size=7) * 1e-3, np.full(7, 1 / 3)], 1).astype(np.float32),  # the second is constant
    "flag": RNG.uniform(size=(7, 1)) > 0.5,
}


def assert_same(spec, wanted):
    assert spec.raw == wanted.raw
    assert spec.num_classes == wanted.num_classes
    for moments, of_wanted in ((spec.mean, wanted.mean), (spec.scale, wanted.scale)):
        assert list(moments) == list(of_wanted)
        for name, values in moments.items():
            assert values.dtype == np.float64
            np.testing.assert_array_equal(values, of_wanted[name])  # bit for bit: the task is made of them again


def test_a_spec_is_read_as_it_was_written(tmp_path):
    spec = data.spec({"train": ARRAYS})
    assert list(spec.mean) == ["label", "offset", "x"] and spec.num_classes["label"] == 4
    workdir.write_spec(tmp_path, spec)
    assert_same(workdir.read_spec(tmp_path), spec)


def test_an_opened_workdir_holds_what_it_belongs_to(tmp_path):
    spec, digests = data.spec({"train": ARRAYS}), {"train": "12ab"}
    with workdir.open_workdir(str(tmp_path / "run"), small_identity()._replace(fingerprint=digests, spec=spec)) as path:
        assert_same(workdir.read_spec(path), spec)
        assert workdir.read_config(path).to_dict() == json.loads(small_config().to_json_best_effort())
        assert workdir.read_fingerprint(str(path)) == digests


def test_a_run_without_a_spec_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(small_config().to_json_best_effort())
    with pytest.raises(UserError) as error:
        cvae_jax.load(str(tmp_path))
    assert str(error.value) == (
        f"workdir {tmp_path} holds no data.spec.json: it was trained by an older version, or the file is lost; train "
        "it again, or put back a copy of the file"
    )
    workdir.write_spec(tmp_path, NOTHING)
    with pytest.raises(UserError, match="holds no checkpoint yet"):
        cvae_jax.load(str(tmp_path))


WHOLE = {"raw": {"x": [[2], "float32"]}, "num_classes": {}, "mean": {"x": [0.0, 1.0]}, "scale": {"x": [1.0, 1.0]}}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[1, 2",
        b"null",
        b"[]",
        b"\xff\xfe\x00",
        *(json.dumps({key: value for key, value in WHOLE.items() if key != left_out}).encode() for left_out in WHOLE),
        *(
            json.dumps({**WHOLE, key: value}).encode()
            for key, value in (
                ("raw", {"x": [2]}),
                ("raw", {"x": [[2], "float31"]}),
                ("num_classes", 3),
                ("mean", {"x": ["a", "b"]}),
                ("scale", {"x": [[1.0], [1.0, 2.0]]}),
            )
        ),
    ],
)
def test_a_damaged_spec_is_one_line(tmp_path, content):
    (tmp_path / "config.json").write_text(small_config().to_json_best_effort())
    (tmp_path / workdir.SPEC_FILE).write_bytes(content)
    with pytest.raises(UserError) as error:
        cvae_jax.load(str(tmp_path))
    assert str(error.value).startswith(f"{tmp_path / 'data.spec.json'} is ")
    assert "damaged" in str(error.value) and str(error.value).endswith("; put back a copy of it")


def test_a_fingerprint_is_of_every_split_and_of_every_byte_that_the_task_reads():
    task = task_of(small_config())
    splits = {split: {"image": RNG.integers(0, 256, (5, 8, 8), np.uint8)} for split in ("train", "valid")}
    before = workdir.fingerprint(task, splits)
    assert set(before) == {"train", "valid"} and before["train"] != before["valid"]
    splits["valid"] = {**splits["valid"], "unread": np.zeros(5)}
    assert workdir.fingerprint(task, splits) == before
    splits["valid"]["image"] = splits["valid"]["image"].copy()
    splits["valid"]["image"][4, 7, 7] ^= 1
    after = workdir.fingerprint(task, splits)
    assert after["train"] == before["train"] and after["valid"] != before["valid"]


# Whole runs, and what is refused.


@pytest.mark.slow
def test_a_run_that_left_no_checkpoint_does_not_bind_its_workdir(tmp_path):
    config = small_config(**{"baseline.optimizer.learning_rate": 1e6, "baseline.optimizer.weight_decay": 1e6})
    with pytest.raises(DivergenceError):
        cvae_jax.train(config, str(tmp_path))
    cvae_jax.train(small_config(), str(tmp_path))
    assert len(metrics.read(tmp_path)) == 8


@pytest.mark.slow
def test_a_refused_run_changes_no_byte(small_run, tmp_path):
    """Though nothing else is left that says which data the checkpoints are of."""
    shutil.copytree(small_run, tmp_path / "run")
    (tmp_path / "run" / workdir.DATA_FILE).unlink()
    spec = json.loads((tmp_path / "run" / workdir.SPEC_FILE).read_text())
    files = ("config.json", workdir.SPEC_FILE, "metrics.jsonl")
    before = [(tmp_path / "run" / name).read_bytes() for name in files]
    manifest = next((tmp_path / "run" / "checkpoints" / "baseline").glob("*.sha256.json"))
    content = json.loads(manifest.read_text())
    for path in manifest.parent.glob("*.sha256.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "run": {**content["run"], "spec": "of others"}}))
    with pytest.raises(UserError, match=r"checkpoint .*/baseline/160 is of another run, with other spec"):
        cvae_jax.train(small_config(), str(tmp_path / "run"))
    assert [(tmp_path / "run" / name).read_bytes() for name in files] == before and spec
    assert not (tmp_path / "run" / workdir.DATA_FILE).exists()


@pytest.mark.slow
def test_a_forgotten_source_is_told_before_any_data_are_loaded(small_run, monkeypatch):
    """Such as those that would be downloaded."""

    def load(*arguments):
        raise AssertionError("data are loaded")

    monkeypatch.setattr(data, "load", load)
    with pytest.raises(UserError, match=r"holds a run of another config \(data.source: digits there, mnist now\)"):
        cvae_jax.train(small_config(**{"data.source": "mnist"}), str(small_run))


@pytest.mark.slow
def test_arrays_that_are_not_read_and_other_widths_are_the_same_data(tmp_path):
    rng = np.random.default_rng(0)
    image, label = rng.integers(0, 256, (40, 8, 8), np.uint8), rng.integers(0, 10, 40)
    config = mnist_class.get_config("smoke")
    config.data = {"source": "npz", "dir": str(tmp_path)}
    config.cvae.update(epochs=1, hidden=(8,), figure_every=0)
    for split in ("train", "valid", "test"):
        np.savez(tmp_path / f"{split}.npz", image=image, label=label.astype(np.uint8))
    cvae_jax.train(config, str(tmp_path / "run"))
    for split in ("train", "valid", "test"):
        np.savez(tmp_path / f"{split}.npz", image=image, label=label.astype(np.int64), age=rng.normal(size=40))
    cvae_jax.train(config, str(tmp_path / "run"))
    assert cvae_jax.load(str(tmp_path / "run")).stages


@pytest.mark.slow
def test_a_run_of_a_version_that_knew_fewer_keys_goes_on(small_run, tmp_path):
    shutil.copytree(small_run, tmp_path / "run")
    forget_run(tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    config = json.loads(path.read_text())
    del config["control"], config["cvae"]["start_from"], config["baseline"]["start_from"]
    path.write_text(json.dumps(config))
    cvae_jax.load(str(tmp_path / "run"))
    cvae_jax.train(small_config(measure_num_samples=7), str(tmp_path / "run"))  # how it is measured may change, too
    assert kill.fingerprint(tmp_path / "run") == kill.fingerprint(small_run)


@pytest.mark.slow
def test_other_data_are_refused(tmp_path):
    _, splits = load(small_config())
    for folder, shift in (("a", 0), ("b", 1)):
        (tmp_path / folder).mkdir()
        for split, arrays in splits.items():
            np.savez(tmp_path / folder / f"{split}.npz", image=arrays["image"] // 2 + np.uint8(shift))
    keys = {"data.source": "npz", "data.dir": str(tmp_path / "a"), "baseline.epochs": 1, "cvae.epochs": 1}
    cvae_jax.train(small_config(**keys), str(tmp_path / "run"))
    with pytest.raises(UserError, match="holds a run on other data"):
        cvae_jax.train(small_config(**{**keys, "data.dir": str(tmp_path / "b")}), str(tmp_path / "run"))


def test_a_workdir_has_one_owner(tmp_path):
    identity = small_identity()
    with (
        workdir.open_workdir(str(tmp_path), identity),
        pytest.raises(UserError, match="another process is training in workdir"),
        workdir.open_workdir(str(tmp_path), identity),
    ):
        pass


@pytest.mark.slow
def test_damaged_files_of_a_workdir_are_one_line(small_run, tmp_path):
    shutil.copytree(small_run, tmp_path / "run")
    for name, spoil, message in (
        ("config.json", lambda text: text[:50], "config.json is damaged"),
        ("config.json", lambda text: "[]", "config.json is damaged"),
        (
            "config.json",
            lambda text: text.replace('"latent": 4', '"latent": 6'),
            "is of another run, with other settings",
        ),
        ("metrics.jsonl", lambda text: "{bad}\n" + text, "metrics.jsonl, line 1 is damaged"),
    ):
        path = tmp_path / "run" / name
        text = path.read_text()
        path.write_text(spoil(text))
        with pytest.raises(UserError, match=message) as error:
            cvae_jax.load(str(tmp_path / "run"))
        assert "\n" not in str(error.value)
        path.write_text(text)
    forget_run(tmp_path / "run")
    text = (tmp_path / "run" / "config.json").read_text()
    (tmp_path / "run" / "config.json").write_text(text.replace('"latent": 4', '"latent": 6'))
    with pytest.raises(UserError, match=r"does not fit config.json"):
        cvae_jax.load(str(tmp_path / "run"))
    (tmp_path / "run" / "config.json").write_text(text)
    for manifest in (tmp_path / "run" / "checkpoints" / "cvae").glob("*.json"):
        manifest.unlink()
    with pytest.raises(UserError, match="manifests"):
        cvae_jax.load(str(tmp_path / "run"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_seeds", "1"),
        ("num_seeds", 1.0),
        ("num_seeds", None),
        ("num_seeds", -1),
        ("seed", "0"),
        ("seed", None),
        ("seed", 2**31),
        ("image_shape", None),
        ("cvae.hidden", 5),
        ("cvae.epochs", "4"),
        ("cvae.epochs", None),
        ("cvae.objective.beta", "x"),
        ("cvae.objective.num_samples", None),
        ("cvae.objective.free_bits", []),
        ("cvae.objective.beta_steps", "x"),
        ("cvae.optimizer.warmup_steps", None),
        ("cvae.optimizer", 3),
        ("cvae", None),
        ("task", 7),
        ("task", None),
        ("a.b", {}),
    ],
)
def test_a_config_of_wrong_types_is_one_line(small_run, tmp_path, key, value):
    """Of an older version too, whose checkpoints do not know which config they are of."""
    shutil.copytree(small_run, tmp_path / "run")
    forget_run(tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    config = json.loads(path.read_text())
    section, _, last = ("", "", key) if key == "a.b" else key.rpartition(".")
    inner = config
    for name in section.split(".") if section else ():
        inner = inner[name]
    inner[last] = value
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"config\.json") as refusal:
        cvae_jax.load(str(tmp_path / "run"))
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 400


@pytest.mark.slow
def test_a_workdir_of_another_config_is_refused_and_unharmed(small_run, tmp_path):
    shutil.copytree(small_run, tmp_path, dirs_exist_ok=True)
    before = kill.fingerprint(tmp_path)
    with pytest.raises(UserError, match=r"cvae.latent: 4 there, 5 now"):
        cvae_jax.train(small_config(**{"cvae.latent": 5}), str(tmp_path))
    assert kill.fingerprint(tmp_path) == before
    # Data may move: that changes no number.
    cvae_jax.train(small_config(**{"data.dir": "/elsewhere"}), str(tmp_path))


def test_an_unwritable_workdir_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to workdir"):
        cvae_jax.train(small_config(), str(tmp_path / "file" / "workdir"))
