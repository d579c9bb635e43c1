"""A canary for compilers that are known to be wrong; requirements.txt excludes them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytestmark = pytest.mark.usefixtures("optimized")


def test_jit_of_vmapped_product_and_sum():
    # jaxlib 0.10.2 errs from 32,769 rows on (jax-ml/jax#39103).
    count = np.arange(32_769)
    x = np.stack([count, 0 * count, 0 * count], 1).astype(np.float32)
    squares = jax.jit(jax.vmap(lambda row: jnp.sum((jnp.eye(3) @ row) ** 2)))(x)
    np.testing.assert_array_equal(squares, (x.astype(np.float64) ** 2).sum(1).astype(np.float32))


def test_jit_of_a_sum_in_seven_dimensions():
    # jaxlib 0.10.2 kills the process here (jax-ml/jax#40412).
    a, b = np.random.default_rng(0).normal(size=(2, 3, 1, 2, 2, 8, 8, 8)).astype(np.float32)
    summed = jax.jit(lambda a, b: jnp.sum(a * b, 3))(a, b)
    wanted = (a.astype(np.float64) * b).sum(3)
    np.testing.assert_allclose(summed, wanted, rtol=1e-6, atol=1e-6)
