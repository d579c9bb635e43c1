"""What a run's folder keeps of its config and data."""

import json

import numpy as np
import pytest
from small_runs import small_config, small_identity
from specs import NOTHING, task_of

import cvae_jax
from cvae_jax import data
from cvae_jax.errors import UserError
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
