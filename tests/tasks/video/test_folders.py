"""Videos in folders: what is read, and what is refused."""

import os
import re
import struct
import types
import zlib

import numpy as np
import pytest
from PIL import Image

from cvae_jax.errors import UserError
from cvae_jax.tasks.video import folders as videos

RNG = np.random.default_rng(0)


def settings(folder, **changes):
    made = {
        "dir": str(folder),
        "num_frames": 3,
        "size": 4,
        "conditions": ("actions.csv", "positions.csv"),
        "num_columns": 3,
    }
    return types.SimpleNamespace(**{**made, "num_train": 0, "num_valid": 1, **changes})


def write(folder, num_frames=3, side=8):
    """A video, as it was written: frames [frames, side, side, 3] and rows [frames, 3]."""
    folder.mkdir(parents=True)
    frames = RNG.integers(0, 256, (num_frames, side, side, 3), np.uint8)
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{number}.png")
    rows = RNG.normal(size=(num_frames, 3)).round(3)
    np.savetxt(folder / "actions.csv", rows[:, :2], "%.3f", ",")
    np.savetxt(folder / "positions.csv", rows[:, 2:], "%.3f", ",")
    return frames, rows


@pytest.fixture
def folder(tmp_path):
    for name in ("train/a/0", "train/a/1", "train/b/0", "test/c/0"):
        write(tmp_path / name)
    return tmp_path


def test_frames_are_means_of_blocks_and_conditions_stand_side_by_side(folder):
    written = {split: write(folder / name / "z") for split, name in videos.FOLDERS.items()}
    splits = videos.load(settings(folder))
    assert {split: arrays["frames"].shape for split, arrays in splits.items()} == {
        "train": (4, 3, 4, 4, 3), "valid": (1, 3, 4, 4, 3), "test": (2, 3, 4, 4, 3)
    }  # fmt: skip
    for split, (frames, rows) in written.items():
        means = frames.reshape(3, 4, 2, 4, 2, 3).mean((2, 4))
        assert np.abs(splits[split]["frames"][-1] - means).max() <= 0.5
        np.testing.assert_array_equal(splits[split]["condition"][-1], rows.astype(np.float32))


def test_validation_is_held_out_of_training_where_there_is_none(folder):
    splits = videos.load(settings(folder, size=8))
    assert [len(splits[split]["frames"]) for split in ("train", "valid", "test")] == [2, 1, 1]
    every = np.concatenate([splits["train"]["frames"], splits["valid"]["frames"]])
    assert len(np.unique(every.reshape(3, -1), axis=0)) == 3
    np.testing.assert_array_equal(splits["train"]["other_condition"], splits["train"]["condition"][::-1])  # of two
    again = videos.load(settings(folder, size=8))
    np.testing.assert_array_equal(splits["valid"]["frames"], again["valid"]["frames"])


def test_no_more_than_half_is_held_out(folder, caplog):
    splits = videos.load(settings(folder, num_valid=10))
    assert [len(splits[split]["frames"]) for split in ("train", "valid", "test")] == [2, 1, 1]
    assert caplog.messages == ["data.num_valid=10 is more than half of 3 training videos: 1 is held out"]


def test_palettes_and_grey_frames_are_colours(folder):
    with Image.open(folder / "test/c/0/1.png") as image:
        frame = image.convert("P", palette=Image.Palette.ADAPTIVE, colors=3)
    frame.save(folder / "test/c/0/1.png")
    Image.fromarray(np.full((8, 8), 7, np.uint8)).save(folder / "test/c/0/2.png")
    test = videos.load(settings(folder, size=8, conditions=(), num_columns=0))["test"]
    np.testing.assert_array_equal(test["frames"][0, 1], np.asarray(frame.convert("RGB")))
    assert (test["frames"][0, 2] == 7).all()
    assert test["condition"].shape == (1, 3, 0)


def test_frames_of_16_bits_are_scaled_to_8(folder):
    """65535 is white, as 255 is: every value v becomes the nearest whole number to v / 257."""
    values = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1040
    Image.fromarray(values).save(folder / "test/c/0/0.png")
    test = videos.load(settings(folder, size=8))["test"]
    np.testing.assert_array_equal(test["frames"][0, 0], np.rint(values / 257)[..., None].repeat(3, -1))


def refused(folder, frame):
    """The line with which a folder is refused whose frame 1.png holds these bytes."""
    (folder / "test/c/0/1.png").write_bytes(frame)
    with pytest.raises(UserError) as refusal:
        videos.load(settings(folder, size=8))
    line = str(refusal.value)
    assert (
        f"{folder}/test/c/0/1.png is no PNG image" in line and "\n" not in line and len(line) < 400 + len(str(folder))
    )
    return line


def test_nothing_but_png_is_opened(folder, monkeypatch, tmp_path):
    """PostScript would be executed, by Ghostscript; here a stand-in notes that it was called."""
    called, stand_in = tmp_path / "called", tmp_path / "bin" / "gs"
    stand_in.parent.mkdir()
    stand_in.write_text(f"#!/bin/sh\ntouch {called}\n")
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", str(stand_in.parent), prepend=os.pathsep)
    refused(folder, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n")
    assert not called.exists()
    Image.fromarray(np.full((8, 8), 0.5, np.float32)).save(tmp_path / "floats.tiff")
    assert "floats in [0, 1] times 255" in refused(folder, (tmp_path / "floats.tiff").read_bytes())


def png(width, height, rows=b"", colour=0):
    """The bytes of a PNG that says it is of that size, 8 bits a channel."""
    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    chunks = (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize("side", [5_000, 12_000, 20_000, 2**31 - 1])
def test_large_frames_are_refused_before_they_are_decoded(folder, side):
    """Pillow would warn of some, and raise what is neither OSError nor ValueError for others."""
    refused(folder, png(side, side))


def test_a_damaged_png(folder):
    whole = (folder / "test/c/0/1.png").read_bytes()
    refused(folder, whole[:60])
    refused(folder, whole.replace(b"IDAT", b"IDAX"))


def remove(name):
    return lambda folder: (folder / "test/c/0" / name).unlink()


def rewrite(name, text):
    return lambda folder: (folder / "test/c/0" / name).write_text(text)


def resize(folder, height=8, width=10):
    Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(folder / "test/c/0/2.png")


@pytest.mark.parametrize(
    ("damage", "changes", "expected"),
    [
        (remove("1.png"), {}, "c/0/1.png is missing, the config expects 3 frames; complete the video"),
        (remove("actions.csv"), {}, "c/0/actions.csv is missing; put it there, or leave its name out"),
        (rewrite("1.png", "no image"), {}, "c/0/1.png is no PNG image"),
        (rewrite("1.png", ""), {}, "c/0/1.png is no PNG image"),
        (resize, {}, "c/0/2.png is 10 pixels wide and 8 high, 0.png 8 and 8; make the frames of"),
        (lambda folder: resize(folder, 16, 16), {}, "c/0/2.png is 16 pixels wide and 16 high, 0.png 8 and 8"),
        (rewrite("actions.csv", "1,2\n3,4\n"), {}, "c/0/actions.csv has 2 rows for 3 frames; add what is missing"),
        (rewrite("actions.csv", "1,2\n3\n5,6\n"), {}, "c/0/actions.csv, row 2: 1 columns where the first row has 2"),
        (
            rewrite("actions.csv", "1,2\n3,4\nleft,6\n"),
            {},
            "c/0/actions.csv, row 3: 'left' is no number; rows are numbers",
        ),
        (
            rewrite("actions.csv", "1,2\n3,4\n5," + "x" * 10**6),
            {},
            f"actions.csv, row 3: '{'x' * 36}... is no number; rows are",
        ),
        (rewrite("actions.csv", "1,2\n3,4\n5,nan\n"), {}, "c/0/actions.csv, row 3: 'nan' is not finite"),
        (
            rewrite("actions.csv", "1\n3\n5\n"),
            {},
            "c/0: columns of actions.csv, positions.csv: 2, the config expects 3; set data.num_columns=2",
        ),
        (lambda folder: None, {"num_frames": 4}, "0/3.png is missing, the config expects 4 frames"),
        (
            lambda folder: None,
            {"size": 3},
            "0.png is 8 pixels wide and 8 high, the config expects squares of a multiple of 3",
        ),
        (lambda folder: None, {"num_valid": 0}, "data.num_valid=0 must be at least 1"),
        (lambda folder: None, {"num_train": 1}, "1 training video leaves none to hold out for validation"),
        (lambda folder: None, {"dir": "/nowhere"}, "data.dir='/nowhere' is not a folder"),
        (lambda folder: (folder / "test").rename(folder / "tests"), {}, "test holds no video"),
        (lambda folder: (folder / "validate").mkdir(), {}, "validate holds no video"),
        (rewrite("actions.csv", "1,2\n3,1e39\n5,6\n"), {}, "c/0/actions.csv, row 2: '1e39' is not finite"),
    ],
)
def test_bad_input_is_named(folder, damage, changes, expected):
    damage(folder)
    with pytest.raises(UserError, match=re.escape(expected)) as refusal:
        videos.load(settings(folder, **changes))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("key", "value", "least"),
    [("size", 0, 1), ("size", -4, 1), ("num_frames", 0, 1), ("num_train", -1, 0), ("num_columns", -1, 0)],
)
def test_numbers_that_cannot_be_are_refused_before_anything_is_read(folder, key, value, least):
    """In folders and in BAIR's videos, which are not even looked for; by one line that names the key."""
    for source in (folder, ""):
        with pytest.raises(UserError) as refusal:
            videos.load(settings(source, **{key: value}))
        assert str(refusal.value) == f"data.{key}={value} must be at least {least}"


def test_another_condition_is_that_of_the_video_before(folder):
    """In every split, whose first video has that of the last."""
    for name in ("train/b/1", "validate/a", "validate/b", "validate/c", "test/d/0", "test/e/0"):
        write(folder / name)
    splits = videos.load(settings(folder))
    assert [len(splits[split]["condition"]) for split in ("train", "valid", "test")] == [4, 3, 3]
    for split, arrays in splits.items():
        before = [arrays["condition"][number - 1] for number in range(len(arrays["condition"]))]
        np.testing.assert_array_equal(arrays["other_condition"], before, split)
        assert arrays["other_condition"].dtype == np.float32


def test_the_first_training_videos(folder):
    splits = videos.load(settings(folder, size=8, num_train=2))
    assert [len(splits[split]["frames"]) for split in ("train", "valid", "test")] == [1, 1, 1]


def test_bair():
    import tensorflow_datasets

    names = {"conditions": tuple(videos.BAIR_TABLES), "num_columns": 7, "num_frames": 12, "size": 32}
    with tensorflow_datasets.testing.mock_data(num_examples=5):
        splits = videos.load(settings("", **names, num_train=4))
        first = tensorflow_datasets.data_source(videos.BAIR, split="test")[0]
        for changes, expected in (
            ({"num_columns": 3}, "BAIR has 30 frames of 64 x 64 pixels and 7 columns of actions.csv"),
            ({"size": 48}, "BAIR has 30 frames of 64 x 64 pixels"),
            ({"conditions": ("speeds.csv",)}, "data.conditions='speeds.csv' is none of BAIR's actions.csv"),
        ):
            with pytest.raises(UserError, match=re.escape(expected)):
                videos.load(settings("", **{**names, **changes}))
    assert {split: arrays["frames"].shape for split, arrays in splits.items()} == {
        "train": (3, 12, 32, 32, 3), "valid": (1, 12, 32, 32, 3), "test": (5, 12, 32, 32, 3)
    }  # fmt: skip
    means = first["image_main"][:12].reshape(12, 32, 2, 32, 2, 3).mean((2, 4))
    assert np.abs(splits["test"]["frames"][0] - means).max() <= 0.5
    np.testing.assert_array_equal(splits["test"]["condition"][0, :, :4], first["action"][:12])
    np.testing.assert_array_equal(splits["test"]["condition"][0, :, 4:], first["endeffector_pos"][:12])
    np.testing.assert_array_equal(splits["test"]["other_condition"][1:], splits["test"]["condition"][:-1])


def test_two_cubes(real_data):
    names = ("actions.csv", "endeffector_positions.csv")
    splits = videos.load(
        settings(real_data / "two_cubes", num_frames=30, size=32, num_valid=10, conditions=names, num_columns=7)
    )
    assert [len(arrays["frames"]) for arrays in splits.values()] == [96, 10, 30]
    action, position = np.split(splits["train"]["condition"], [4], 2)
    np.testing.assert_allclose(position[:, 1:] - position[:, :-1], action[:, :-1, :3], atol=1e-6)
