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


def promise_too_much(path):
    """An entry whose header declares a terabyte."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (2**20, 2**20)})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("image.npy", header.getvalue() + b"little")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.unlink(), "test.npz is missing"),
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
    with pytest.raises(UserError, match="is not a folder; it should hold"):
        load("")
