"""Files that promise too much, or are damaged in ways of their own: one line, before anything is allocated."""

import contextlib
import gzip
import itertools
import struct
import tracemalloc
import types
import zipfile

import numpy as np
import pytest

from cvae_jax.data import files, mnist, npz
from cvae_jax.errors import UserError, reason, shortened


def message_of(function, *arguments):
    """The one line with which a function fails."""
    with pytest.raises(UserError) as caught:
        function(*arguments)
    line = str(caught.value)
    assert "\n" not in line and len(line) <= 400
    return line


@contextlib.contextmanager
def memory_below(limit):
    """Checks that no more MiB than this are allocated at a time."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("two\nlines", "two lines"),
        ("\x1b[31mred\u202e", "?[31mred?"),
        ("a" * 201, "a" * 197 + "..."),
        ("a" * 200, "a" * 200),
        ("a\n" * 5_000_000, "a " * 98 + "a..."),
    ],
)
def test_what_others_say_is_shortened(text, line):
    assert shortened(text) == line
    assert reason(ValueError(text)) == line


def test_errors_that_say_nothing():
    assert reason(KeyError()) == "KeyError"


# Arrays: npz.


def header(text, version=(1, 0)):
    """The bytes of an array whose header is this text."""
    text = text.encode() + b"\n"
    return b"\x93NUMPY" + bytes(version) + struct.pack("<H" if version == (1, 0) else "<I", len(text)) + text


def of_shape(shape, descr="|u1"):
    return header(f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}")


def archive(path, content, **entry):
    """A file of one array x with these bytes; `entry` changes what the archive says of it."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("x.npy", content)
        for name, value in entry.items():
            setattr(file.infolist()[0], name, value)
    return path


@pytest.mark.parametrize(
    ("content", "entry", "expected"),
    [
        (of_shape((2**200, 0)), {}, "is empty"),
        (of_shape((2**40, 0)), {}, "is empty"),
        (of_shape((3,), "|S0"), {}, "is empty"),
        (of_shape((0, 8, 8)), {}, "save at least 1 example"),
        (of_shape((2**200, 3)), {}, "promises 482"),
        (of_shape((9**999, 9)) + b"1", {}, "promises"),
        (header("{'descr': '|u1'"), {}, "no readable .npz file"),
        (header("-" * 5_000), {}, "no readable .npz file"),
        (header("(" * 9_000), {}, "no readable .npz file"),
        (header("9" * 5_000), {}, "no readable .npz file"),
        (header("{" + " " * 60_000 + "}"), {}, "no readable .npz file"),
        (header("__import__('os')"), {}, "no readable .npz file"),
        (b"", {}, "no readable .npz file"),
        (of_shape((1,)) + b"1", {"flag_bits": 1}, "encrypted"),
        (of_shape((1,)) + b"1", {"compress_type": 99}, "no readable .npz file"),
        (of_shape((1,)) + b"1", {"compress_type": 9}, "no readable .npz file"),
        (of_shape((1,)) + b"1", {"CRC": 7}, "Bad CRC-32"),
    ],
)
def test_arrays_that_cannot_be(tmp_path, content, entry, expected):
    """Whatever NumPy and zipfile raise of such a file, the user reads one line."""
    assert expected in message_of(npz.read, archive(tmp_path / "train.npz", content, **entry))


def test_each_flipped_bit_of_a_compressed_array(tmp_path):
    path = tmp_path / "train.npz"
    np.savez_compressed(path, x=np.random.default_rng(0).integers(0, 9, 40).astype(np.uint8))
    whole = path.read_bytes()
    for place, bit in itertools.product(range(len(whole)), (0, 7)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
        try:
            npz.read(path)
        except UserError as error:
            assert "\n" not in str(error) and len(str(error)) < 400


def test_what_an_archive_promises_is_counted_before_it_is_read(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "train.npz", x=np.zeros((3, 2**20), np.uint8), unread=np.zeros(2**24, np.uint8))
    monkeypatch.setattr(files, "MOST_BYTES", 2**23)
    with memory_below(1):
        line = message_of(npz.read, tmp_path / "train.npz")
    assert "train.npz, unpacked, would take 0.0 GiB, more than half of this machine's memory; leave out arrays" in line


def test_names_of_arrays_are_shortened(tmp_path):
    with zipfile.ZipFile(tmp_path / "train.npz", "w") as file:
        file.writestr("x\n" * 1_000 + ".npy", of_shape((2,)) + b"1")
    assert "x x x" in message_of(npz.read, tmp_path / "train.npz")
    arrays = {f"array_{n}" * 20: np.zeros(n + 1) for n in range(20)}
    np.savez(tmp_path / "train.npz", **arrays)
    assert "..." in message_of(npz.load, types.SimpleNamespace(dir=str(tmp_path)))


# Files that gzip packed.


def idx(shape, content=b""):
    return b"\0\0\x08" + bytes([len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + content


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (idx((1,) * 4, b"1"), "1 to 3 axes"),
        (idx((1,) * 100, b"1"), "1 to 3 axes"),
        (idx((1,) * 255, b"1"), "1 to 3 axes"),
        (idx((0, 2**32 - 1, 2**32 - 1)), "truncated, too long or empty"),
        (idx((0, 28, 28)), "truncated, too long or empty"),
        (idx((2**32 - 1,) * 3), "would take over a billion GiB"),
        (idx((10_000, 28, 28), b"little"), "6 bytes are there"),
    ],
)
@pytest.mark.parametrize("packed", [True, False])
def test_idx_files_that_cannot_be(tmp_path, content, expected, packed):
    name = "t10k-images-idx3-ubyte"
    path = tmp_path / (f"{name}.gz" if packed else name)
    path.write_bytes(gzip.compress(content) if packed else content)
    assert expected in message_of(mnist.read_idx, tmp_path, name, False)


def test_a_gzip_file_is_unpacked_no_further_than_promised(tmp_path):
    name = "t10k-images-idx3-ubyte"
    with gzip.open(tmp_path / f"{name}.gz", "wb", 1) as file:
        file.write(idx((2, 28, 28)))
        for _ in range(300):
            file.write(bytes(2**20))
    with memory_below(1):
        assert "1569 bytes are there" in message_of(mnist.read_idx, tmp_path, name, False)


def test_rows_are_read_as_they_are_asked_for(tmp_path):
    path = tmp_path / "table.csv.gz"
    row = b"1,2\n" * 2**18
    with gzip.open(path, "wb", 1) as file:
        for _ in range(50):
            file.write(row)
    with memory_below(1):
        assert list(itertools.islice(files.rows(path), 3)) == [["1", "2"]] * 3


@pytest.mark.parametrize("content", [b"1" * (files.LONGEST_LINE + 1), b'"' + b"1\n" * (files.LONGEST_LINE // 2 + 1)])
def test_lines_that_do_not_end(tmp_path, content):
    (tmp_path / "table.csv").write_bytes(content)
    line = message_of(list, files.rows(tmp_path / "table.csv"))
    assert "more than 4,194,304 letters" in line or "field larger than field limit" in line


def test_rows_of_text_that_is_none(tmp_path):
    (tmp_path / "table.csv").write_bytes(b"\xff\xfe\0")
    assert "is no readable CSV file" in message_of(list, files.rows(tmp_path / "table.csv"))


def test_a_mark_of_the_byte_order_is_no_letter(tmp_path):
    (tmp_path / "table.csv").write_bytes("\ufeffid,sequence\r\n\r\na,b\r\n".encode())
    assert list(files.rows(tmp_path / "table.csv")) == [["id", "sequence"], ["a", "b"]]
