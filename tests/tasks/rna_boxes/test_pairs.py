import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cvae_jax.tasks.rna_boxes import pairs

SHAPES = {"on": (3,), "location": (6, 12), "plain": ()}  # of what heads say of a pixel


def test_fold_holds_each_pixel_of_the_upper_triangle_once_and_unfold_brings_it_back():
    square = np.random.default_rng(0).normal(size=(2, 6, 6, 3)).astype(np.float32)
    folded = pairs.fold(jnp.asarray(square), 1)
    assert folded.shape == (2, 3, 6, 3)
    upper = square[:, *np.triu_indices(6, 1)]
    # Beside them three pixels of the diagonal are left over.
    assert np.isin(upper, folded).all() and folded.size - upper.size == 2 * 3 * 3
    np.testing.assert_array_equal(pairs.unfold(folded, 1), square * np.triu(np.ones((6, 6)), 1)[..., None])
    np.testing.assert_array_equal(
        pairs.unfold(pairs.fold(jnp.asarray(square[0, ..., 0]), 0), 0), np.triu(square[0, ..., 0], 1)
    )


def test_the_first_structure_of_every_head_as_a_square():
    rng = np.random.default_rng(2)
    heads = {name: rng.normal(size=(2, 3, 4, 8, *rest)).astype(np.float32) for name, rest in SHAPES.items()}
    squares = pairs.unfold_first(heads)
    assert list(squares) == sorted(heads)
    for name, values in heads.items():
        wanted = np.zeros((2, 8, 8, *SHAPES[name]), np.float32)
        for i, j in zip(*np.triu_indices(8, 1), strict=True):
            wanted[:, i, j] = values[:, 0, i, j] if i < 4 else values[:, 0, 7 - i, 7 - j]
        np.testing.assert_array_equal(squares[name], wanted)


def test_run_sums_against_loops():
    rng = np.random.default_rng(1)
    values, bond = (
        rng.normal(size=(2, 7, 7, 3)).astype(np.float32),
        (rng.uniform(size=(2, 7, 7)) < 0.7).astype(np.float32),
    )
    for outside, step in ((False, 1), (True, -1)):
        sums = pairs.run_sums(jnp.asarray(values), jnp.asarray(bond), outside)
        for b, i, j in np.ndindex(2, 7, 7):
            total, row, column = np.zeros(3), i, j
            while 0 <= row < 7 and 0 <= column < 7 and bond[b, row, column]:
                total += values[b, row, column]
                row, column = row + step, column - step
            np.testing.assert_allclose(sums[b, i, j], total, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", pairs.TOWERS)
def test_towers_do_not_see_padding(name):
    """The same features in a longer bucket and beside a longer sequence, when evaluated."""
    tower = pairs.TOWERS[name]((8, 8), 3)
    letters = jax.nn.one_hot(jax.random.randint(jax.random.key(0), (2, 9), 0, 4), 4)
    inside = jnp.arange(9)[None] < jnp.array([[9], [5]])
    letters = letters * inside[..., None].astype(letters.dtype)
    variables = tower.init(jax.random.key(1), letters, inside)
    together = tower.apply(variables, letters, inside)
    alone = tower.apply(variables, letters[1:, :5], inside[1:, :5])
    np.testing.assert_allclose(together[1:, :5, :5], alone, atol=1e-5)
    longer = tower.apply(variables, jnp.pad(letters, ((0, 0), (0, 3), (0, 0))), jnp.pad(inside, ((0, 0), (0, 3))))
    np.testing.assert_allclose(longer[:, :9, :9], together, atol=1e-5)
    assert not longer[:, 9:].any() and not together[1, 5:].any() and not together[1, :, 5:].any()


def test_batch_statistics_are_of_valid_pixels():
    """Against NumPy: mean and variance over the pixels inside, moved by a tenth."""
    tower = pairs.ConvTower((4,), 1)
    letters = jax.nn.one_hot(jax.random.randint(jax.random.key(0), (3, 6), 0, 4), 4)
    inside = jnp.arange(6)[None] < jnp.array([[6], [4], [2]])
    letters = letters * inside[..., None].astype(letters.dtype)
    variables = tower.init(jax.random.key(1), letters, inside)
    _, updates = tower.apply(variables, letters, inside, mutable=["batch_stats"])
    kernel = np.asarray(variables["params"]["Conv_0"]["kernel"])[0, 0]
    x = np.asarray(letters)
    pixels = [np.concatenate([x[b, i], x[b, j]]) @ kernel for b, n in enumerate((6, 4, 2)) for i, j in np.ndindex(n, n)]
    statistics = updates["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(statistics["mean"], 0.1 * np.mean(pixels, 0), atol=1e-6)
    np.testing.assert_allclose(statistics["var"], 0.9 + 0.1 * np.var(pixels, 0), atol=1e-5)
