import itertools
import os
import subprocess
import sys

import numpy as np
import pytest
from command import ROOT
from rna_sets import command, settings, structures_of

from cvae_jax.errors import UserError
from cvae_jax.tasks.rna_boxes import boxes, ensemble
from cvae_jax.tasks.rna_boxes import data as rna
from cvae_jax.tasks.rna_boxes import files as rna_files
from cvae_jax.tasks.rna_boxes.data import Shares

PROGRAM = r"python -m cvae_jax rna_boxes"
CANONICAL = {"AU", "UA", "GC", "CG", "GU", "UG"}


@pytest.fixture(scope="module")
def splits():
    return rna.make(40, 10, 30, 4, seed=1)


def equal(splits, others):
    return list(splits) == list(others) and all(
        list(arrays) == list(others[split])
        and all(np.array_equal(array, others[split][name]) for name, array in arrays.items())
        for split, arrays in splits.items()
    )


def test_without_viennarna(monkeypatch):
    monkeypatch.setitem(sys.modules, "RNA", None)
    with pytest.raises(UserError, match=r"needs ViennaRNA; pip install -e '\.\[rna\]'"):
        rna.make(4, 10, 20, 1, 0)


def test_make(splits):
    assert {split: len(arrays["length"]) for split, arrays in splits.items()} == {"train": 32, "valid": 4, "test": 4}
    seen = []
    for arrays in splits.values():
        number = len(arrays["length"])
        shapes = {name: (array.shape, array.dtype) for name, array in arrays.items()}
        assert shapes == {
            "sequence": ((number, 30), np.int8),
            "length": ((number,), np.int32),
            "boxes": ((number, 4, boxes.max_boxes(30), 5), np.int16),
            "count": ((number,), np.int32),
        }
        assert (arrays["count"] == 4).all()
        for n in range(number):
            sequence, structures = structures_of(arrays, n)
            assert not arrays["sequence"][n, len(sequence) :].any() and "N" not in sequence
            for m, structure in enumerate(structures):
                pairs, _ = boxes.parse(structure)
                assert {sequence[i] + sequence[j] for i, j in pairs} <= CANONICAL
                wanted = boxes.boxes_of(pairs)
                np.testing.assert_array_equal(arrays["boxes"][n, m, : len(wanted)], wanted)
                assert not arrays["boxes"][n, m, len(wanted) :].any()
            seen.append(sequence)
    assert len(set(seen)) == 40
    lengths = sorted(map(len, seen))
    assert lengths[0] < 14 and lengths[-1] > 26


def test_make_follows_its_seed(splits):
    assert equal(splits, rna.make(40, 10, 30, 4, seed=1))
    assert not equal(splits, rna.make(40, 10, 30, 4, seed=2))


def test_make_within_a_gap():
    arrays = rna.make(6, 18, 18, 5, seed=0, energy_gap=1.0, shares=Shares(valid=0, test=0))
    assert list(arrays) == ["train"]
    counts = []
    for n in range(6):
        sequence, structures = structures_of(arrays["train"], n)
        assert structures == ensemble.within(sequence, 1.0, 5)
        assert not arrays["train"]["boxes"][n, len(structures) :].any()
        counts.append(len(structures))
    assert min(counts) < 5 and min(counts) >= 1


def test_make_all_that_exist():
    splits = rna.make(20, 1, 2, 1, seed=0, shares=Shares(valid=0.2, test=0))
    sequences = {structures_of(arrays, n)[0] for arrays in splits.values() for n in range(len(arrays["length"]))}
    assert sequences == {*"ACGU", *("".join(pair) for pair in itertools.product("ACGU", repeat=2))}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_seq": 21, "max_len": 2}, "only 20 sequences of 1 to 2 bases exist"),
        ({"num_seq": 0}, "num_seq=0"),
        ({"num_sample": 0}, "num_sample=0"),
        ({"seed": -1}, "seed=-1"),
        ({"min_len": 0}, "min_len=0"),
        ({"min_len": 9}, "min_len=9 and max_len=8"),
        ({"max_len": 40_000}, "max_len=40000"),
        ({"energy_gap": -1.0}, "energy_gap=-1.0"),
        ({"shares": Shares(valid=-0.1)}, "valid_share=-0.1"),
        ({"shares": Shares(0.5, 0.6)}, "test_share=0.6"),
        ({"num_seq": 2}, "2 sequences leave none for training"),
    ],
)
def test_numbers_that_cannot_be(changes, message):
    with pytest.raises(UserError, match=message):
        rna.make(**{"num_seq": 10, "min_len": 1, "max_len": 8, "num_sample": 1, "seed": 0} | changes)


def test_fit(splits):
    arrays = splits["train"]
    larger = rna_files.fit(arrays, 40, 6)
    assert larger["sequence"].shape == (32, 40) and larger["boxes"].shape == (32, 6, boxes.max_boxes(40), 5)
    assert [structures_of(larger, n) for n in range(32)] == [structures_of(arrays, n) for n in range(32)]
    longest = int(arrays["length"].max())
    smaller = rna_files.fit(larger, longest, 2)
    assert smaller["sequence"].shape == (32, longest) and smaller["boxes"].shape[1:3] == (2, boxes.max_boxes(longest))
    for n in range(32):
        sequence, structures = structures_of(arrays, n)
        assert structures_of(smaller, n) == (sequence, structures[:2])
    with pytest.raises(
        UserError, match=f"has {longest} bases, .*--config.data.max_length={longest}, or .*--max_len={longest - 1}"
    ):
        rna_files.fit(arrays, longest - 1, 4)


def test_load_made_anew():
    loaded = rna.load(settings(max_length=25))
    made = rna.make(12, 8, 20, 3, 0)
    assert loaded["train"]["sequence"].shape == (10, 25)
    assert equal(loaded, {split: rna_files.fit(arrays, 25, 3) for split, arrays in made.items()})
    with pytest.raises(UserError, match=r"max_length=15 is less than data\.max_len=20"):
        rna.load(settings(max_length=15))


def test_save_and_load(tmp_path, splits):
    rna_files.save(splits, tmp_path / "new" / "folder")
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == [
        "test.npz",
        "train.npz",
        "valid.npz",
    ]
    loaded = rna.load(settings(tmp_path / "new" / "folder", max_length=30, num_sample=4))
    assert equal(loaded, splits)
    with pytest.raises(UserError, match=r"train\.npz exists; choose another folder"):
        rna_files.save(splits, tmp_path / "new" / "folder")
    (tmp_path / "new" / "folder" / "train.npz").unlink()
    (tmp_path / "new" / "folder" / "valid.npz").unlink()
    assert list(rna.load(settings(tmp_path / "new" / "folder", max_length=30))) == ["test"]
    with pytest.raises(UserError, match=r"split test: a sequence has .* more than data.max_length=9"):
        rna.load(settings(tmp_path / "new" / "folder", max_length=9))


def test_save_where_nothing_can_be_written(tmp_path, splits):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        rna_files.save(splits, tmp_path / "file")


def test_a_save_that_fails_leaves_no_split(tmp_path, splits, monkeypatch):
    def fail(file, **arrays):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", fail)
    with pytest.raises(UserError, match="No space left on device"):
        rna_files.save(splits, tmp_path)
    assert not list(tmp_path.glob("*.npz"))


def test_folders_without_data(tmp_path):
    with pytest.raises(UserError, match=rf"is no folder with train\.npz; {PROGRAM} make"):
        rna.load(settings(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"is no folder with train\.npz"):
        rna.load(settings(tmp_path))


@pytest.mark.parametrize("name", ["table.pkl", "table.pkl.gz", "table.pickle"])
def test_pickles_are_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    for function, path in (
        (rna.load, settings(tmp_path / name)),
        (rna.load, settings(tmp_path)),
    ):
        with pytest.raises(UserError, match=rf"{name} is a pickle, .* {PROGRAM} convert"):
            function(path)


def with_box(row):
    def change(arrays):
        arrays["boxes"][0, 0, 0] = row
        return arrays

    return change


def with_array(name, change):
    return lambda arrays: arrays | {name: change(arrays[name].copy())}


def with_value(name, value):
    def change(arrays):
        arrays[name].flat[0] = value
        return arrays

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda arrays: {"sequence": arrays["sequence"]}, "the arrays are sequence, expected sequence, length"),
        (with_array("length", lambda array: array[:-1]), "differ in length"),
        (with_array("length", lambda array: array.astype(float)), "length is float64"),
        (with_array("count", lambda array: array[:, None]), r"count is int32\[32, 1\]"),
        (with_array("boxes", lambda array: array[..., :4]), "boxes have 4 numbers"),
        (with_value("sequence", 5), "codes outside 0 to 4"),
        (with_value("sequence", -1), "codes outside 0 to 4"),
        (with_value("length", 31), "length is outside 1 to 30"),
        (with_value("length", 2), "not 0 beyond its length"),
        (with_value("count", 0), "count is outside 1 to 4"),
        (with_value("count", 5), "count is outside 1 to 4"),
        (lambda arrays: with_value("count", 1)(with_box((1, 0, 9, 1, 1))(arrays)), "beyond count"),
        (with_box((4, 0, 9, 1, 1)), "types outside 0 to 3"),
        (with_box((1, 0, 40, 1, 1)), "beyond their sequence"),
        (with_box((1, -1, 5, 2, 2)), "beyond their sequence"),
        (with_box((1, 0, 5, 0, 1)), "beyond their sequence"),
        (with_box((1, 5, 5, 1, 1)), "beyond their sequence or its upper triangle"),
    ],
)
def test_damaged_arrays(tmp_path, splits, damage, message):
    arrays = {name: array.copy() for name, array in splits["train"].items()}
    arrays["boxes"][0] = [[(3, 0, 0, 9, 9)] + [(0,) * 5] * 19] * 4
    np.savez(tmp_path / "train.npz", **damage(arrays))
    with pytest.raises(UserError, match=rf"train\.npz: .*{message}.*; write it with python -m") as caught:
        rna.load(settings(tmp_path, max_length=30))
    assert "\n" not in str(caught.value)


def test_arrays_of_any_width(tmp_path, splits):
    np.savez(tmp_path / "train.npz", **{name: array.astype(np.int64) for name, array in splits["train"].items()})
    loaded = rna.load(settings(tmp_path, max_length=30, num_sample=4))
    assert equal(loaded, {"train": splits["train"]})
    assert [array.dtype for array in loaded["train"].values()] == [np.int8, np.int32, np.int16, np.int32]


@pytest.mark.slow
def test_command_make(tmp_path):
    """In a process of its own, as users start it."""
    flags = ["--min_len=10", "--max_len", "30", "--num_seq", "40", "--num_sample=4", "--seed=1", "--out", "data"]
    ran = subprocess.run(
        [sys.executable, "-m", "cvae_jax", "rna_boxes", "make", *flags],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0 and ran.stderr == ""
    assert "40 sequences (32 train, 4 valid, 4 test) of 10 to" in ran.stdout
    assert "160 structures" in ran.stdout and "multiloops" in ran.stdout and "sequences per second" in ran.stdout
    loaded = rna.load(settings(tmp_path / "data", max_length=30, num_sample=4))
    assert equal(loaded, rna.make(40, 10, 30, 4, seed=1))


def test_commands_that_fail(tmp_path, splits):
    rna_files.save(splits, tmp_path)
    assert command("make", "--out", tmp_path).startswith(f"error: {tmp_path}/train.npz exists")
    assert command("make", "--num_seq=0", "--out", tmp_path / "a").startswith("error: num_seq=0")
    assert command("make", "--num_seq=many", "--out", tmp_path / "a").startswith("error: argument --num_seq")
    assert command("make").startswith("error: the following arguments are required: --out")
    assert command().startswith("error: ")
    assert command("convert", tmp_path / "none.csv", "--out", tmp_path / "a") == (
        f"error: {tmp_path}/none.csv is missing; put the file there"
    )
    assert "--max_len=-5 and --num_sample=0 must be at least 0" in command(
        "convert", tmp_path / "none.csv", "--max_len=-5", "--out", tmp_path / "a"
    )
    assert "neither .csv" in command("convert", tmp_path / "none.txt", "--out", tmp_path / "a")
    assert not (tmp_path / "a").exists()
