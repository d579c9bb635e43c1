"""Images and labels as targets, and a user's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from cvae_jax.data import images
from cvae_jax.errors import UserError

RAMP = np.arange(256, dtype=np.uint8).reshape(4, 8, 8)  # every grey value once
GREY = RAMP / 255


def targets(kind, image=RAMP):
    return images.targets(jnp.asarray(image), kind, jax.random.split(jax.random.key(0), len(image)))


def test_targets():
    np.testing.assert_allclose(targets("grey"), GREY, rtol=1e-7)
    np.testing.assert_array_equal(targets("threshold"), GREY > 0.5)
    drawn = np.asarray(targets("dynamic"))
    assert set(np.unique(drawn)) == {0.0, 1.0}
    assert drawn[0, 0, 0] == 0 and drawn[-1, -1, -1] == 1  # grey values of 0 and 1 leave nothing to chance
    for kind in images.TARGETS:
        assert targets(kind).dtype == jnp.float32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_shape": (8,)}, r"image_shape=\(8,\) must be a height and a width of at least 2"),
        ({"image_shape": (8, 1)}, r"image_shape=\(8, 1\) must be"),
        ({"image_shape": (8, 8.0)}, r"image_shape=\(8, 8.0\) must be"),
        ({"targets": "binary"}, "targets='binary' is not known; choose from grey, threshold, dynamic"),
    ],
)
def test_settings_that_cannot_be(changes, message):
    with pytest.raises(UserError, match=message):
        images.check_settings(ConfigDict({"image_shape": (8, 6), "targets": "grey", **changes}))


def test_own_images_are_taken_as_targets_of_their_kind():
    np.testing.assert_allclose(images.as_images("x", GREY.tolist(), (8, 8), "grey"), GREY, rtol=1e-7)
    np.testing.assert_array_equal(images.as_images("x", GREY, (8, 8), "threshold"), GREY > 0.5)
    np.testing.assert_array_equal(images.as_images("x", GREY.round(), (8, 8), "dynamic"), GREY.round())
    np.testing.assert_array_equal(
        images.as_images("x", 9 - 30 * GREY.round(), (8, 8), "grey", False), 9 - 30 * GREY.round()
    )


@pytest.mark.parametrize(
    ("image", "kind", "bounded", "message"),
    [
        (GREY, "dynamic", True, "y has grey values, but the model was trained on binary ones"),
        (GREY[:0], "grey", True, "y holds no image"),
        (np.full((1, 8, 8), np.inf), "grey", False, "y has values that are NaN or infinite"),
        (None, "grey", True, "y is no array of numbers, but NoneType"),
        ("seven", "grey", True, "y is no array of numbers, but str"),
        ([[1], [2, 3]], "grey", True, "y is no array of numbers, but list"),
        (7, "grey", True, r"y has shape \(\), expected \[batch, 8, 8\]"),
    ],
)
def test_own_images_that_cannot_be(image, kind, bounded, message):
    with pytest.raises(UserError, match=f"^{message}"):
        images.as_images("y", image, (8, 8), kind, bounded)


@pytest.mark.parametrize("labels", [[0, 9, 3], np.array([0, 9, 3], np.uint8), np.array([0, 9, 3])])
def test_own_labels(labels):
    found = images.as_labels("x", labels, 10)
    assert found.dtype == jnp.int32
    np.testing.assert_array_equal(found, [0, 9, 3])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 10], "x has labels outside 0 to 9"),
        ([-1], "x has labels outside 0 to 9"),
        (np.array([255], np.uint8), "x has labels outside 0 to 9"),
        ([0.0, 1.0], r"x is float64 \(2,\), expected whole numbers \[batch\]"),
        ([True], r"x is bool \(1,\), expected whole numbers"),
        ([[1], [2]], r"x is int64 \(2, 1\), expected whole numbers"),
        (3, r"x is int64 \(\), expected whole numbers"),
        (np.zeros(0, int), "x holds no label"),
        (np.array([2**32]), "x has labels outside 0 to 9"),
        ([2**70], "x is object"),
        ("3", "x is <U1"),
        ([[1], [2, 3]], "x is no array of labels, but list"),
    ],
)
def test_own_labels_that_cannot_be(labels, message):
    with pytest.raises(UserError, match=f"^{message}"):
        images.as_labels("x", labels, 10)


def test_raw_labels_are_checked_at_both_ends():
    images.check_labels(np.array([0, 9]), 10)
    for labels in ([0, 10], [-1, 9]):
        with pytest.raises(UserError, match=f"label has values from {labels[0]} to {labels[1]}, expected 0 to 9"):
            images.check_labels(np.array(labels), 10)
