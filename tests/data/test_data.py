import gzip
import struct
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from cvae_jax import data
from cvae_jax.data import digits, images, mnist
from cvae_jax.errors import UserError

NAMES = tuple(mnist.CHECKSUMS)


def idx(array):
    """The bytes of an IDX file."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    sizes = {"train": 5_003, "t10k": 7}
    made = {}
    for half, size in sizes.items():
        made[f"{half}-images-idx3-ubyte"] = rng.integers(0, 256, (size, 4, 5), np.uint8)
        made[f"{half}-labels-idx1-ubyte"] = rng.integers(0, 10, size, np.uint8)
    return made


@pytest.fixture
def folder(tmp_path, arrays):
    """The four files, two of them gzipped."""
    for name, array in arrays.items():
        if name.startswith("train"):
            (tmp_path / name).write_bytes(idx(array))
        else:
            (tmp_path / f"{name}.gz").write_bytes(gzip.compress(idx(array), 1))
    return tmp_path


def settings(folder="", verify_checksums=False):
    return SimpleNamespace(source="mnist", dir=str(folder), verify_checksums=verify_checksums)


def message_of(*arguments):
    """The one line that `mnist.load` fails with."""
    with pytest.raises(UserError) as caught:
        mnist.load(settings(*arguments))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_digits():
    splits = digits.load()
    assert {split: len(arrays["label"]) for split, arrays in splits.items()} == {
        "train": 1297,
        "valid": 200,
        "test": 300,
    }
    images = np.concatenate([arrays["image"] for arrays in splits.values()])
    labels = np.concatenate([arrays["label"] for arrays in splits.values()])
    assert images.shape == (1797, 8, 8) and images.dtype == np.uint8
    assert (images.min(), images.max()) == (0, 255)

    from sklearn.datasets import load_digits

    # Every original stands in exactly one split, beside its own label.
    original = load_digits()
    cells = np.round(images / 255 * 16).astype(int).reshape(1797, 64)
    found = sorted([*row, label] for row, label in zip(cells.tolist(), labels.tolist(), strict=True))
    wanted = np.concatenate([original.data, original.target[:, None]], 1).astype(int).tolist()
    assert found == sorted(wanted)


def test_digits_are_the_same_each_time():
    jax.tree.map(np.testing.assert_array_equal, digits.load(), digits.load())


def test_idx_files(folder, arrays):
    splits = mnist.load(settings(folder))
    for name, key in (("images-idx3", "image"), ("labels-idx1", "label")):
        train = arrays[f"train-{name}-ubyte"]
        np.testing.assert_array_equal(splits["train"][key], train[:3])
        np.testing.assert_array_equal(splits["valid"][key], train[3:])
        np.testing.assert_array_equal(splits["test"][key], arrays[f"t10k-{name}-ubyte"])
    assert splits["test"]["image"].dtype == np.uint8
    assert splits["test"]["label"].dtype == np.int32


def test_missing_folder(tmp_path):
    message = message_of(tmp_path / "nowhere")
    assert "data.dir=" in message and str(tmp_path / "nowhere") in message


@pytest.mark.parametrize("name", NAMES)
def test_missing_file(folder, name):
    for path in folder.glob(f"{name}*"):
        path.unlink()
    message = message_of(folder)
    assert str(folder / name) in message and "missing" in message


def flipped(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize("name", ["t10k-images-idx3-ubyte.gz", "train-images-idx3-ubyte"])
@pytest.mark.parametrize(
    "damage",
    [lambda content: content[:-3], lambda content: content[:3], lambda content: content[:9], lambda content: b""],
    ids=["tail", "three bytes", "within the header", "empty"],
)
def test_truncated_file(folder, name, damage):
    path = folder / name
    path.write_bytes(damage(path.read_bytes()))
    assert str(path) in message_of(folder)


def test_flipped_bit_in_a_gzipped_file(folder):
    path = folder / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(flipped(path.read_bytes()))
    assert str(path) in message_of(folder)


@pytest.mark.parametrize(
    "content",
    [
        idx(np.zeros((3, 4), np.uint8))[:-1],
        idx(np.zeros((3, 4), np.uint8)) + b"\0",
        b"\0\0\x0d" + idx(np.zeros((3, 4), np.uint8))[3:],  # floats
        b"\x89PNG\r\n\x1a\n",
        b"\0\0\x08\0",  # no axes
        b"\0\0\x08\xff\0\0",  # 255 axes
        b"\0\0\x08\x02\xff\xff\xff\xff\xff\xff\xff\xfa123456",  # -1 x -6
    ],
    ids=["short", "long", "floats", "png", "no axes", "255 axes", "negative sizes"],
)
def test_damaged_content(folder, content):
    path = folder / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(content))
    assert str(path) in message_of(folder)


def test_unreadable_file(folder):
    path = folder / "train-images-idx3-ubyte"
    path.unlink()
    path.mkdir()
    assert str(path) in message_of(folder)


def test_images_and_labels_of_different_number(folder, arrays):
    name = "t10k-labels-idx1-ubyte"
    (folder / f"{name}.gz").write_bytes(gzip.compress(idx(arrays[name][:-1])))
    message = message_of(folder)
    assert "7 images" in message and "6 labels" in message


def test_checksums(folder):
    message = message_of(folder, True)
    assert str(folder / "train-images-idx3-ubyte") in message and "checksum" in message


def reads(check=lambda arrays: None, **raw):
    """What `data.load` looks at of a task that reads these arrays: name=(shape, dtype) of an example."""
    return SimpleNamespace(raw={name: jax.ShapeDtypeStruct(*one) for name, one in raw.items()}, check=check)


def test_too_few_for_a_validation_split(folder, arrays):
    for name in NAMES[:2]:
        (folder / name).write_bytes(idx(arrays[name][:5_000]))
    assert "5000" in message_of(folder)


def test_real_mnist(real_data):
    splits = data.load(settings(real_data / "mnist", True), reads(image=((28, 28), np.uint8)))
    shapes = {split: arrays["image"].shape for split, arrays in splits.items()}
    assert shapes == {"train": (55_000, 28, 28), "valid": (5_000, 28, 28), "test": (10_000, 28, 28)}
    # The mean pixel of the 60,000 training images is 0.1307 and that of the 10,000 test images 0.1325.
    train = (splits["train"]["image"].sum() + splits["valid"]["image"].sum()) / (60_000 * 784 * 255)
    assert train == pytest.approx(0.1307, abs=5e-5)
    assert splits["test"]["image"].mean() / 255 == pytest.approx(0.1325, abs=5e-5)
    assert np.bincount(splits["test"]["label"]).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


def test_tfds():
    import tensorflow_datasets as tfds

    with tfds.testing.mock_data(num_examples=5_002):
        splits = mnist.load(settings())
        rows = tfds.data_source("mnist", split="train")
        first, last = rows[0], rows[5_001]
    assert {split: arrays["image"].shape for split, arrays in splits.items()} == {
        "train": (2, 28, 28),
        "valid": (5_000, 28, 28),
        "test": (5_002, 28, 28),
    }
    for example, (split, position) in ((first, ("train", 0)), (last, ("valid", -1))):
        np.testing.assert_array_equal(splits[split]["image"][position], example["image"][..., 0])
        assert splits[split]["label"][position] == example["label"]
    assert splits["test"]["image"].dtype == np.uint8
    assert splits["test"]["label"].dtype == np.int32


def test_tfds_that_cannot_deliver(monkeypatch):
    import tensorflow_datasets as tfds

    def fail(*args, **kwargs):
        raise ModuleNotFoundError("No module named 'tensorflow'\nand much more")

    monkeypatch.setattr(tfds, "data_source", fail)
    message = message_of()
    assert "No module named 'tensorflow'" in message and "data.dir" in message


def test_unknown_source():
    with pytest.raises(UserError, match=r"data.source='cifar' .*digits, mnist"):
        data.load(SimpleNamespace(source="cifar"), reads())


@pytest.mark.parametrize(("shape", "dtype"), [((28, 28), np.uint8), ((8, 8), np.float32)])
def test_data_that_the_task_cannot_read(shape, dtype):
    with pytest.raises(UserError, match=r"digits, split train: image is uint8\[8, 8\]"):
        data.load(SimpleNamespace(source="digits"), reads(image=(shape, dtype)))


def of_one_split(monkeypatch, **arrays):
    monkeypatch.setitem(data.SOURCES, "digits", lambda settings: {"train": arrays})
    return SimpleNamespace(source="digits")


def test_labels_of_any_width(monkeypatch):
    source = of_one_split(monkeypatch, label=np.arange(3, dtype=np.int64))
    found = data.load(source, reads(label=((), np.int32)))["train"]["label"]
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, np.arange(3))


def test_labels_are_checked_before_they_are_cast(monkeypatch):
    source = of_one_split(monkeypatch, label=np.array([2**32 + 3]))
    with pytest.raises(UserError, match="label has values from 4294967299 to 4294967299, expected 0 to 9"):
        data.load(source, reads(lambda arrays: images.check_labels(arrays["label"], 10), label=((), np.int32)))


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("label", np.zeros(3), r"label is float64\[\] an example, .*int32\[\]; save whole numbers \[n\]$"),
        ("label", np.zeros((3, 10), int), r"label is int64\[10\] an example, .*save whole numbers \[n\]$"),
        ("image", np.zeros((3, 8, 8)), r"image is float64\[8, 8\] .*; save uint8 \[n, 8, 8\]$"),
        ("image", np.zeros((3, 8, 8, 1), np.uint8), r"; save uint8 \[n, 8, 8\]$"),
        ("image", np.zeros((3, 9, 8), np.uint8), "; make image_shape match the data$"),
    ],
)
def test_how_to_mend_what_cannot_be_read(monkeypatch, name, array, message):
    wanted = {"label": ((), np.int32), "image": ((8, 8), np.uint8)}
    with pytest.raises(UserError, match=f"^digits, split train: .*{message}"):
        data.load(of_one_split(monkeypatch, **{name: array}), reads(**{name: wanted[name]}))


def test_arrays_that_the_task_refuses():
    def refuse(arrays):
        raise UserError(f"{len(arrays['label'])} labels refused")

    with pytest.raises(UserError, match="digits, split train: 1297 labels refused"):
        data.load(SimpleNamespace(source="digits"), reads(refuse, image=((8, 8), np.uint8)))
