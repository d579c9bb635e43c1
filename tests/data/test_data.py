import gzip
import struct
import warnings
from types import MappingProxyType, SimpleNamespace

import jax
import numpy as np
import pytest

from configs import mnist_class, mnist_image
from cvae_jax import data
from cvae_jax.data import digits, images, mnist
from cvae_jax.errors import UserError
from cvae_jax.tasks import from_image, from_label

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


def reads(check=lambda arrays: None, cluster="", measured=MappingProxyType({}), **raw):
    """What `data.check` looks at of a task that reads these arrays: name=(shape, dtype) of an example."""
    raw, measured = ({name: jax.ShapeDtypeStruct(*pair) for name, pair in named.items()} for named in (raw, measured))
    return SimpleNamespace(raw=raw, measured=measured, cluster=cluster, check=check)


def loaded(task, settings=None, **arrays):
    """The checked splits of a source; of one with these arrays in its training split if it has no settings."""
    settings = settings or SimpleNamespace(source="made")
    splits = data.load(settings, {"made": lambda settings: {"train": arrays}})
    return data.check(splits, task, settings.source)


def test_too_few_for_a_validation_split(folder, arrays):
    for name in NAMES[:2]:
        (folder / name).write_bytes(idx(arrays[name][:5_000]))
    assert "5000" in message_of(folder)


def test_real_mnist(real_data):
    splits = loaded(reads(image=((28, 28), np.uint8)), settings(real_data / "mnist", True))
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


def test_tfds_as_far_as_the_download(monkeypatch, tmp_path):
    """The real builder, but for the network: what it needs is installed, and these four files are what it asks for."""
    import requests
    import tensorflow_datasets as tfds

    asked = []

    def fail(session, method, url, **options):
        asked.append(url.rsplit("/", 1)[1])
        raise requests.ConnectionError("the network is cut")

    monkeypatch.setattr(requests.Session, "request", fail)
    with monkeypatch.context() as patched:
        patched.setenv("TFDS_DATA_DIR", str(tmp_path))
        patched.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its own, and those of what it imports
            message = message_of()
    assert "cannot deliver mnist (the network is cut); connect to the network" in message and "data.dir" in message
    assert set(asked) <= {f"{name}.gz" for name in mnist.CHECKSUMS} and asked


def test_tfds_that_cannot_deliver(monkeypatch):
    import tensorflow_datasets as tfds

    def fail(*args, **kwargs):
        raise ModuleNotFoundError("No module named 'tensorflow'\nand much more")

    monkeypatch.setattr(tfds, "data_source", fail)
    message = message_of()
    assert "No module named 'tensorflow'" in message and "data.dir" in message


def test_unknown_source():
    with pytest.raises(UserError, match=r"data.source='cifar' .*digits, glyphs, mnist"):
        data.load(SimpleNamespace(source="cifar"), {})


@pytest.mark.parametrize(("shape", "dtype"), [((28, 28), np.uint8), ((8, 8), np.float32)])
def test_data_that_the_task_cannot_read(shape, dtype):
    with pytest.raises(UserError, match=r"digits, split train: image is uint8\[8, 8\]"):
        loaded(reads(image=(shape, dtype)), SimpleNamespace(source="digits"))


def test_labels_of_any_width():
    labels = loaded(reads(label=((), np.int32)), label=np.arange(3, dtype=np.int64))["train"]["label"]
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels, np.arange(3))


def test_labels_are_checked_before_they_are_cast():
    task = reads(lambda arrays: images.check_labels(arrays["label"], 10), label=((), np.int32))
    with pytest.raises(UserError, match="label has whole numbers beyond 32 bits"):
        loaded(task, label=np.array([2**32 + 3]))
    with pytest.raises(UserError, match="label has values from 300 to 300, expected 0 to 9"):
        loaded(task, label=np.array([300], np.uint16))


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("label", np.zeros(3), r"label is float32\[1\] per example, .*int32\[\]; save whole numbers \[n\]$"),
        ("label", np.zeros((3, 10), int), r"label is int32\[10\] per example, .*save whole numbers \[n\]$"),
        ("image", np.full((3, 8, 8), "a"), r"; save uint8 \[n, 8, 8\]$"),
        ("image", np.zeros((3, 8, 8, 1), np.uint8), r"; drop the last axis: image\[\.\.\., 0\]$"),
        ("image", np.zeros((3, 9, 9, 3), np.uint8), "; colour is not supported: take the mean over the last axis, "),
        ("image", np.zeros((3, 8, 8, 4)), "; colour is not supported: take the mean over the last axis, "),
        ("image", np.zeros((3, 64), np.uint8), r"; reshape it to \[n, 8, 8\]$"),
        ("image", np.full((3, 8, 8), np.nan), "image has values that are NaN; fill them in"),
        (
            "image",
            np.full((3, 8, 8), 2.0),
            r"image is float32 .* from 2 to 2, .*; save np\.rint\(image\)\.astype\(np\.uint8\)$",
        ),
        ("image", np.full((3, 8, 8), -0.5), r"from -0\.5 to -0\.5, .*; scale them to 0 to 1$"),
        (
            "image",
            np.full((3, 8, 8), 256),
            r"image is int32 with values from 256 to 256, expected 0 to 255; divide 16 bits",
        ),
        ("image", np.full((3, 8, 8), -1), r"from -1 to -1, expected 0 to 255; scale them$"),
        ("image", np.full((3, 8, 8), 0.9).astype(np.uint8), "from 0 to 0, of 255: all but black; save floats in"),
        ("image", np.ones((3, 8, 8), int), "from 1 to 1, of 255: all but black; save floats in"),
        (
            "image",
            np.zeros((3, 9, 8), np.uint8),
            r"; make image_shape match the data: --config.image_shape='\(9, 8\)'$",
        ),
        ("vector", np.zeros((3, 4)), r"vector is float32\[4\] .*float32\[5\]; save float32 \[n, 5\]$"),
        ("flag", np.zeros((3, 2), int), r"flag is int32\[2\] .*bool\[2\]; save bool \[n, 2\]$"),
    ],
)
def test_how_to_mend_what_cannot_be_read(name, array, message):
    wanted = {
        "label": ((), np.int32),
        "image": ((8, 8), np.uint8),
        "vector": ((5,), np.float32),
        "flag": ((2,), np.bool_),
    }
    with pytest.raises(UserError, match=f"^made, split train: .*{message}"):
        loaded(reads(**{name: wanted[name]}), **{name: array})


GREY = np.arange(192).reshape(3, 8, 8)  # 0 to 191 of 255


@pytest.mark.parametrize(
    "image",
    [
        GREY.astype(np.uint8),
        GREY,
        GREY.astype(np.uint16),
        GREY.astype(np.uint8).astype(np.float64) / 255,
        (GREY / 255).astype(np.float32),
        (GREY / 255).astype(np.float16),
    ],
)
def test_grey_values_are_bytes_or_floats_to_1(image):
    checked = loaded(reads(image=((8, 8), np.uint8)), image=image)["train"]["image"]
    assert checked.dtype == np.uint8
    np.testing.assert_array_equal(checked, GREY)


def test_bits_are_black_and_white():
    checked = loaded(reads(image=((8, 8), np.uint8)), image=GREY % 3 == 0)["train"]["image"]
    np.testing.assert_array_equal(checked, np.where(GREY % 3 == 0, 255, 0))


@pytest.mark.parametrize(
    ("labels", "mend"),
    [
        ([1, 10], "from 1 to 10, expected 0 to 9; subtract 1, or set num_classes=11"),
        ([0, 11], "from 0 to 11, expected 0 to 9; set num_classes=12"),
        ([-1, 3], "from -1 to 3, expected 0 to 9; number them from 0"),
    ],
)
def test_how_to_mend_labels(labels, mend):
    task = reads(lambda arrays: images.check_labels(arrays["label"], 10), label=((), np.int32))
    with pytest.raises(UserError, match=f"^made, split train: label has values {mend}$"):
        loaded(task, label=np.array(labels))


@pytest.mark.parametrize("make", [from_label.TASK, from_image.TASK])
def test_classes_that_are_empty_are_named(make, caplog):
    config = (mnist_class if make is from_label.TASK else mnist_image).get_config()
    for labels, lines in (([0, 1], ["classes 0 to 1, so 8 of num_classes=10 are empty; set num_classes=2"]), ([9], [])):
        caplog.clear()
        make(config, data.spec({"train": {"label": np.array(labels, np.int32)}}))
        assert [message.split("have ")[1] for message in caplog.messages] == lines


@pytest.mark.parametrize("source", ["mnist", "digits"])
def test_own_data_without_their_source(tmp_path, source):
    chosen = SimpleNamespace(source=source, dir=str(tmp_path), verify_checksums=True)
    for name in ("a/0.png", "0.png", "val.npz", "train.npz"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
        with pytest.raises(UserError, match=rf"^found {path}: .*add --config\.data\.source=npz$"):
            data.load(chosen, {})
        path.unlink()


def test_arrays_that_the_task_refuses():
    def refuse(arrays):
        raise UserError(f"{len(arrays['label'])} labels refused")

    with pytest.raises(UserError, match="digits, split train: 1297 labels refused"):
        loaded(reads(refuse, image=((8, 8), np.uint8)), SimpleNamespace(source="digits"))


# What `load` makes of arrays.


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_become_vectors_of_float32(dtype):
    values = np.random.default_rng(0).normal(size=5).astype(dtype)
    splits = data.load(SimpleNamespace(source="made"), {"made": lambda settings: {"valid": {"y": values}}})
    y = splits["valid"]["y"]
    assert (y.dtype, y.shape) == (np.float32, (5, 1))
    np.testing.assert_array_equal(y[:, 0], values.astype(np.float32))


@pytest.mark.parametrize(
    ("dtype", "wanted"),
    [
        (np.int64, np.int32),
        (np.uint64, np.int32),
        (np.uint32, np.int32),
        (np.int32, np.int32),
        (np.uint16, np.uint16),
        (np.uint8, np.uint8),
        (np.bool_, np.bool_),
        ("U3", "U3"),
    ],
)
def test_dtypes_that_are_loaded(dtype, wanted):
    array = np.array([[0, 1], [1, 1]]).astype(dtype)
    settings, sources = SimpleNamespace(source="made"), {"made": lambda settings: {"train": {"x": array}}}
    x = data.load(settings, sources)["train"]["x"]
    assert x.dtype == wanted
    np.testing.assert_array_equal(x, array)


@pytest.mark.parametrize(
    ("array", "fits"),
    [
        (np.array([-(2**31), 2**31 - 1]), True),
        (np.array([2**31]), False),
        (np.array([-(2**31) - 1]), False),
        (np.array([2**32 - 1], np.uint32), False),
        (np.array([2**64 - 1], np.uint64), False),
        (np.zeros((0, 2), np.int64), True),
        (np.zeros((2, 0), np.int64), True),
    ],
)
def test_whole_numbers_are_at_most_of_32_bits(array, fits):
    settings, sources = SimpleNamespace(source="made"), {"made": lambda settings: {"test": {"count": array}}}
    if fits:
        np.testing.assert_array_equal(data.load(settings, sources)["test"]["count"], array)
    else:
        with pytest.raises(UserError, match=r"^made, split test: count has whole numbers beyond 32 bits; number them"):
            data.load(settings, sources)


def test_a_source_of_the_task_stands_beside_those_that_all_have():
    splits = data.load(SimpleNamespace(source="digits"), {"made": lambda settings: {}})
    assert splits["train"]["image"].shape == (1297, 8, 8)
    with pytest.raises(
        UserError, match=r"data.source='rain' is not known; choose from digits, glyphs, mnist, npz, made$"
    ):
        data.load(SimpleNamespace(source="rain"), {"made": lambda settings: {}})


# What `check` says.


def test_an_array_that_is_missing():
    for task in (reads(x=((2,), np.float32)), reads(measured={"x": ((2,), np.float32)})):
        with pytest.raises(UserError, match=r"^made, split train: no array 'x' among y, z$"):
            loaded(task, y=np.zeros(3), z=np.zeros(3))


def test_arrays_that_only_measuring_reads_are_checked():
    task = reads(x=((2,), np.float32), measured={"guess": ((), np.int32)})
    splits = loaded(task, x=np.zeros((3, 2)), guess=np.arange(3, dtype=np.uint8))
    assert splits["train"]["guess"].dtype == np.int32
    with pytest.raises(UserError, match=r"guess is float32\[1\] per example, .*; save whole numbers \[n\]$"):
        loaded(task, x=np.zeros((3, 2)), guess=np.zeros(3))


def test_the_array_of_clusters_is_missing():
    task, x = reads(cluster="patient", x=((2,), np.float32)), np.zeros((3, 2))
    message = r"^made, split train: no array 'patient', over which errors are taken, among x$"
    with pytest.raises(UserError, match=message):
        loaded(task, x=x)
    splits = loaded(task, x=x, patient=np.array(["a", "b", "a"]))
    np.testing.assert_array_equal(splits["train"]["patient"], ["a", "b", "a"])


def test_the_split_is_named():
    with pytest.raises(UserError, match=r"the data have no split 'valid', only train, test; add it"):
        data.of({"train": {}, "test": {}}, "valid")
    with pytest.raises(UserError, match="no split 'train'"):
        data.spec({"test": {"x": np.zeros((3, 2), np.float32)}})
    with pytest.raises(
        UserError, match=r"no split 'test', only train, valid; add it, or measure another with --split=va"
    ):
        data.of({"train": {}, "valid": {}}, "test")


# What `spec` says of the training split, against NumPy.


def numbers(count):
    """Far from 0, where the sums of float32 would not do."""
    return (1e4 + np.random.default_rng(count).normal(size=(count, 2, 3)) * [1.0, 10.0, 0.1]).astype(np.float32)


@pytest.mark.parametrize("count", [1, 7, data.ROWS_AT_ONCE, data.ROWS_AT_ONCE + 1, 2 * data.ROWS_AT_ONCE + 5])
def test_moments_of_the_training_split(count):
    x, ages = numbers(count), np.arange(count, dtype=np.int32) - 3
    spec = data.spec({"train": {"x": x, "age": ages}, "valid": {"x": x[:1] + 1e6, "age": ages[:1]}})
    assert set(spec.mean) == set(spec.scale) == {"x", "age"}
    for name, values in (("x", x), ("age", ages)):
        exact = values.astype(np.float64)
        assert spec.mean[name].dtype == spec.scale[name].dtype == np.float64
        np.testing.assert_allclose(spec.mean[name], exact.mean(0), rtol=1e-12)
        wanted = exact.std(0) if count > 1 else np.ones(exact.shape[1:])
        np.testing.assert_allclose(spec.scale[name], wanted, rtol=1e-9)


def test_moments_leave_nan_out():
    x = numbers(data.ROWS_AT_ONCE + 50)
    holes = np.random.default_rng(0).uniform(size=x.shape) < 0.3
    x[holes] = np.nan
    x[:, 1, 2] = np.nan  # no value at all
    x[:, 0, 1] = 5  # constant
    spec = data.spec({"train": {"x": x}})
    masked = np.ma.masked_invalid(x.astype(np.float64))
    np.testing.assert_allclose(spec.mean["x"], masked.mean(0).filled(0), rtol=1e-12)
    wanted = masked.std(0).filled(1)
    wanted[0, 1] = 1
    np.testing.assert_allclose(spec.scale["x"], wanted, rtol=1e-9)


def test_infinite_values_are_left_to_the_task():
    spec = data.spec({"train": {"x": np.array([[1.0, np.inf], [3.0, 0.0]], np.float32)}})  # no warning
    assert (spec.mean["x"][0], spec.scale["x"][0]) == (2, 1)
    assert not np.isfinite(spec.mean["x"][1])


def test_shapes_and_classes_of_the_training_split():
    train = {
        "x": np.zeros((4, 2, 3), np.float32),
        "label": np.array([0, 6, 2, 2], np.int32),
        "shift": np.array([-1, 6, 2, 2], np.int32),
        "image": np.full((4, 8, 8), 9, np.uint8),
        "flag": np.array([True, False, True, True]),
        "name": np.array(["a", "b", "c", "d"]),
    }
    other = {name: array[:2] for name, array in train.items()} | {"label": np.array([9, 9], np.int32)}
    spec = data.spec({"valid": other, "train": train})
    assert {name: (of.shape, of.dtype) for name, of in spec.raw.items()} == {
        "x": ((2, 3), np.float32),
        "label": ((), np.int32),
        "shift": ((), np.int32),
        "image": ((8, 8), np.uint8),
        "flag": ((), np.bool_),
    }
    assert spec.num_classes == {"label": 7, "image": 10}
    assert set(spec.mean) == set(spec.scale) == {"x", "label", "shift"}
    assert [spec.size(name) for name in spec.raw] == [6, 1, 1, 64, 1]


def test_arrays_of_a_split_have_as_many_examples():
    lists = {"train": {"x": [[1.0], [2.0]], "y": [1, 2]}}
    splits = data.load(SimpleNamespace(source="lists"), {"lists": lambda settings: lists})
    assert splits["train"]["x"].dtype == np.float32
    lists["train"]["y"] = [1]
    with pytest.raises(UserError, match=r"lists, split train: every array needs the same number of examples; .*'y': 1"):
        data.load(SimpleNamespace(source="lists"), {"lists": lambda settings: lists})
    lists["train"]["y"] = 1.0
    with pytest.raises(UserError, match="y is one value"):
        data.load(SimpleNamespace(source="lists"), {"lists": lambda settings: lists})
