"""Batches that are measured or shown: every example once, padding that counts nothing, draws that depend on ids."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cvae_jax.data import batches
from cvae_jax.model import Batch
from cvae_jax.task import Buckets, Task


class Noisy(Task):
    """x as it is, and a y that is drawn."""

    def __init__(self, buckets=None, measured=False):
        self.raw = {"x": jax.ShapeDtypeStruct((4,), jnp.float32), "size": jax.ShapeDtypeStruct((), jnp.int32)}
        self.measured = {"guess": jax.ShapeDtypeStruct((), jnp.float32)} if measured else {}
        self.buckets = buckets

    def batch(self, raw, ids, num_targets, keys, step):
        assert step is None or step.dtype == jnp.int32
        x = {**raw, "measuring": jnp.full(len(ids), step is None)}
        return Batch(x, jax.vmap(lambda key: jax.random.normal(key, (2,)))(keys), None, ids, num_targets)


def split_of(count):
    rng = np.random.default_rng(0)
    return {
        "x": rng.normal(size=(count, 4)).astype(np.float32),
        "size": rng.integers(1, 5, count).astype(np.int32),
        "guess": np.arange(count, dtype=np.float32),
    }


@pytest.mark.parametrize("count", [1, 5, 100, 105, 200])
def test_every_example_is_in_one_batch(count):
    assert jax.device_count() == 2  # which the size of a batch does not depend on
    arrays, ids = split_of(count), []
    for batch, live in batches.of_split(Noisy(measured=True), arrays, seed=0):
        rows = np.asarray(batch.ids)
        assert len(rows) == min(count, batches.EXAMPLES_PER_BATCH)
        assert (batch.ids.dtype, batch.num_targets.dtype) == (jnp.int32, jnp.float32)
        np.testing.assert_array_equal(batch.num_targets, np.arange(len(rows)) < live)
        np.testing.assert_array_equal(rows[live:], count - 1)  # padding repeats the last example
        for name in ("x", "size", "guess"):
            np.testing.assert_array_equal(batch.x[name], arrays[name][rows])
        assert batch.x["measuring"].all()
        ids += rows[:live].tolist()
    assert ids == list(range(count))


def test_draws_depend_on_seed_and_id_alone():
    arrays, task = split_of(105), Noisy()
    (first, _), (second, _) = batches.of_split(task, arrays, seed=0)
    few = batches.first(task, arrays, 3)
    np.testing.assert_array_equal(few.y, first.y[:3])
    np.testing.assert_array_equal(second.y[5:], np.tile(second.y[4], (95, 1)))
    assert len(np.unique(np.concatenate([first.y, second.y[:5]]))) == 2 * 105
    again, _ = next(batches.of_split(task, arrays, seed=1))
    assert (again.y != first.y).all()


def test_the_first_examples():
    arrays = split_of(5)
    few, all_of_them = (batches.first(Noisy(measured=True), arrays, count) for count in (3, 9))
    np.testing.assert_array_equal(few.ids, [0, 1, 2])
    np.testing.assert_array_equal(few.num_targets, 1)
    np.testing.assert_array_equal(few.x["guess"], [0, 1, 2])
    np.testing.assert_array_equal(all_of_them.ids, np.arange(5))


def test_an_example_is_of_zeros_as_training_has_it():
    batch = batches.example(Noisy())
    assert not batch.x["measuring"].any() and batch.num_targets == 1 and batch.ids == 0
    np.testing.assert_array_equal(batch.x["x"], np.zeros((1, 4)))


def cut(arrays, limit):
    return {**arrays, "x": arrays["x"][:, :limit]}


def test_buckets_keep_the_positions_in_the_split():
    arrays = split_of(30)
    task = Noisy(Buckets((2, 4), lambda raw: raw["size"], cut))
    ids = []
    for batch, live in batches.of_split(task, arrays, seed=0):
        rows, limit = np.asarray(batch.ids), batch.x["x"].shape[1]
        np.testing.assert_array_equal(np.searchsorted((2, 4), arrays["size"][rows]), (2, 4).index(limit))
        np.testing.assert_array_equal(batch.x["x"], arrays["x"][rows, :limit])
        ids += rows[:live].tolist()
    assert sorted(ids) == list(range(30))
    small = {name: array[arrays["size"] <= 2] for name, array in arrays.items()}
    assert batches.first(task, small, 4).x["x"].shape == (4, 2)
