"""A user's own arrays: what is read, and what is refused before anything is allocated."""

import io
import types
import zipfile

import numpy as np
import pytest

from cvae_jax.data import npz
from cvae_jax.errors import UserError


def load(folder):
    return npz.load(types.SimpleNamespace(dir=str(folder)))


@pytest.fixture
def folder(tmp_path):
    generator = np.random.default_rng(0)
    for split, count in (("train", 5), ("valid", 2), ("test", 3)):
        image = generator.integers(0, 256, (count, 8, 8), dtype=np.uint8)
        np.savez_compressed(tmp_path / f"{split}.npz", image=image, label=np.arange(count))
    return tmp_path


def test_arrays_come_back(folder):
    splits = load(folder)
    assert {split: len(arrays["image"]) for split, arrays in splits.items()} == {"train": 5, "valid": 2, "test": 3}
    np.testing.assert_array_equal(splits["train"]["image"], np.load(folder / "train.npz")["image"])


def rows_of(arrays):
    """The examples of a split, in any order."""
    return sorted([label, *image.ravel()] for label, image in zip(arrays["label"], arrays["image"], strict=True))


@pytest.mark.parametrize(("count", "held_out"), [(2, 1), (14, 1), (40, 4)])
def test_missing_splits(folder, caplog, count, held_out):
    """A tenth of the training examples, the same each time, stands in for valid.npz; nothing does for test.npz."""
    caplog.set_level("INFO", "cvae_jax")
    arrays = {"image": np.arange(count * 4, dtype=np.uint8).reshape(count, 2, 2), "label": np.arange(count)}
    np.savez(folder / "train.npz", **arrays)
    (folder / "valid.npz").unlink()
    (folder / "test.npz").unlink()
    splits = load(folder)
    assert {split: len(of["image"]) for split, of in splits.items()} == {"train": count - held_out, "valid": held_out}
    assert sorted(rows_of(splits["train"]) + rows_of(splits["valid"])) == rows_of(arrays)
    assert rows_of(load(folder)["valid"]) == rows_of(splits["valid"])
    assert f"train.npz: {held_out} of {count} examples are held out for validation, without valid.npz" in caplog.text


def test_one_example_cannot_be_divided(folder):
    np.savez(folder / "train.npz", x=np.zeros(1))
    (folder / "valid.npz").unlink()
    with pytest.raises(UserError, match=r"train\.npz has 1 example, which leaves none for validation; add some"):
        load(folder)


def test_files_of_other_names(folder):
    (folder / "valid.npz").rename(folder / "val.npz")
    with pytest.raises(UserError, match=r"^found .*/val\.npz; rename it to valid\.npz$"):
        load(folder)
    (folder / "val.npz").unlink()
    (folder / "train.npz").rename(folder / "all.npy")
    with pytest.raises(UserError, match=r"train\.npz is missing; .*; the folder holds all\.npy, test\.npz$"):
        load(folder)


def promise_too_much(path):
    """An entry whose header declares a terabyte."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (2**20, 2**20)})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("image.npy", header.getvalue() + b"little")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:200]), "no readable .npz file"),
        (lambda path: path.write_bytes(b"text"), "no readable .npz file"),
        (lambda path: np.savez(path, image=np.array([{}], object)), "holds Python objects"),
        (promise_too_much, "promises"),
        (lambda path: np.savez(path, image=np.zeros((2, 8, 8)), label=np.zeros(3)), "same number of examples"),
        (lambda path: np.savez(path, image=np.zeros((0, 8, 8))), "at least 1"),
    ],
)
def test_bad_files_are_refused_in_one_line(folder, spoil, message):
    spoil(folder / "test.npz")
    with pytest.raises(UserError, match=message) as error:
        load(folder)
    assert "test.npz" in str(error.value) and "\n" not in str(error.value)


def test_no_folder():
    with pytest.raises(UserError, match=r"is not a folder; set --config\.data\.dir=FOLDER"):
        load("")
