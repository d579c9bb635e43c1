"""Moving digits: where they are, when they turn, and that no two clips are alike."""

import types

import jax
import numpy as np
import pytest

from cvae_jax.errors import UserError
from cvae_jax.tasks.video import moving_digits

SIZE, SPEED, FRAMES = 12, 3, 40


def settings(**changes):
    return types.SimpleNamespace(**{"of": "digits", "num_digits": 2, "digit_size": 8, **changes})


def clips(still, seed=0, num_frames=FRAMES):
    keys = jax.random.split(jax.random.key(seed), len(still))
    make = jax.jit(moving_digits.clips, static_argnums=(2, 3, 4))
    return [np.asarray(array) for array in make(still, keys, num_frames, SIZE, SPEED)]


def test_digits_of_a_clip():
    splits = moving_digits.load(settings())
    assert {split: arrays["digits"].shape for split, arrays in splits.items()} == {
        "train": (1297, 2, 8, 8), "valid": (200, 2, 8, 8), "test": (300, 2, 8, 8)
    }  # fmt: skip
    first, second = np.moveaxis(splits["test"]["digits"], 1, 0)
    np.testing.assert_array_equal(np.sort(first.sum((1, 2))), np.sort(second.sum((1, 2))))  # each digit twice
    assert (first != second).any((1, 2)).mean() > 0.9
    np.testing.assert_array_equal(first, moving_digits.load(settings(num_digits=1))["test"]["digits"][:, 0])
    assert moving_digits.load(settings(digit_size=4))["test"]["digits"].shape == (300, 2, 4, 4)


def test_a_digit_moves_straight_until_it_hits_a_wall():
    still = np.full((50, 1, 3, 2), 200, np.uint8)
    frames, turns = clips(still)
    assert frames.dtype == np.uint8 and frames.shape == (50, FRAMES, SIZE, SIZE)
    assert (frames.sum((2, 3)) == 6 * 200).all()  # always whole
    place = np.stack([frames.max(3).argmax(2), frames.max(2).argmax(2)], -1)
    velocity = np.diff(place, axis=1)
    assert (np.abs(velocity) <= SPEED).all()
    room = np.array([SIZE - 3, SIZE - 2])
    at_wall = ((place == 0) | (place == room)).any(-1)
    assert turns[:, 1:].mean() > 0.1 and at_wall[turns].all() and not turns[:, 0].any()
    # Without a turn at this frame or the next, where it is stopped short, the velocity stays.
    straight = ~turns[:, 1:-1] & ~turns[:, 2:]
    np.testing.assert_array_equal(velocity[:, 1:][straight], velocity[:, :-1][straight])
    # A turn leads away from the wall, at any speed along it.
    for axis in range(2):
        hit = turns[:, 1:-1] & ~turns[:, 2:] & (place[:, 1:-1, axis] + velocity[:, :-1, axis] < 0)
        assert set(np.unique(velocity[:, 1:, 1 - axis][hit])) <= set(range(-SPEED, SPEED + 1))
        after = velocity[:, 1:, axis][turns[:, 1:-1] & ~turns[:, 2:] & (place[:, 1:-1, axis] == 0)]
        assert (after >= 0).all() and after.max() == SPEED


def test_digits_overlap_and_clips_differ():
    still = np.full((200, 2, 8, 8), 150, np.uint8)
    frames, _ = clips(still)
    assert set(np.unique(frames)) == {0, 150, 255}
    assert len(np.unique(frames.reshape(200, -1), axis=0)) == 200
    np.testing.assert_array_equal(clips(still)[0], frames)
    assert (clips(still, seed=1)[0] != frames).any((1, 2, 3)).all()
    np.testing.assert_array_equal(clips(still[:3])[0].shape, (3, FRAMES, SIZE, SIZE))


def test_places_and_velocities_are_drawn_evenly():
    still = np.full((4000, 1, 3, 2), 200, np.uint8)
    frames, _ = clips(still, num_frames=2)
    rows = frames[:, 0].max(2).argmax(1)
    share = np.bincount(rows, minlength=SIZE - 2) / len(rows)
    np.testing.assert_allclose(share, 1 / (SIZE - 2), atol=4.5 * np.sqrt(0.1 * 0.9 / len(rows)))
    columns = np.diff(frames.max(2).argmax(2), axis=1)[:, 0]
    inside = (frames[:, 0].max(1).argmax(1) >= SPEED) & (frames[:, 0].max(1).argmax(1) <= SIZE - 2 - SPEED)
    share = np.bincount(columns[inside] + SPEED) / inside.sum()
    np.testing.assert_allclose(share, 1 / 7, atol=4.5 * np.sqrt(1 / 7 * 6 / 7 / inside.sum()))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"of": "letters"}, "data.of='letters' is not known; choose from digits, mnist"),
        ({"num_digits": 0}, "data.num_digits=0 must be at least 1"),
        ({"digit_size": 0}, "data.digit_size=0 must be at least 1"),
    ],
)
def test_bad_settings_are_named(changes, expected):
    with pytest.raises(UserError, match=expected):
        moving_digits.load(settings(**changes))
