import contract
import jax
import linear_gaussian
import numpy as np
import pytest

from configs import mnist_quadrants
from cvae_jax import inference, tasks


def test_linear_gaussian():
    variables = linear_gaussian.variables(scale=1.2, shift=0.1)
    contract.check_model(linear_gaussian.MODEL, variables, linear_gaussian.batch_of(*linear_gaussian.data(4)))


@pytest.fixture(scope="module")
def quadrants():
    """The models and their variables, and a batch for each number of quadrants: the mask is in the batch alone."""
    images = np.random.default_rng(0).uniform(size=(3, 8, 8))
    made = [tasks.make_task(mnist_quadrants.get_config(f"{number},smoke")) for number in (1, 2, 3)]
    batches = {number: task.observe(images, images) for number, task in enumerate(made, 1)}
    baseline, cvae = (stage.model for stage in made[0].stages)
    frozen = jax.jit(baseline.init)(jax.random.key(0), batches[1])
    variables = jax.jit(cvae.init)(jax.random.key(1), batches[1])
    return (baseline, frozen), (cvae, {**variables, "frozen": {"baseline": frozen}}), batches


@pytest.mark.parametrize("number", [1, 2, 3])
def test_quadrants_baseline(quadrants, number):
    (model, variables), _, batches = quadrants
    assert not inference.has_latents(model, variables, batches[number])
    contract.check_model(model, variables, batches[number])


@pytest.mark.parametrize("number", [1, 2, 3])
def test_quadrants_cvae(quadrants, number):
    _, (model, variables), batches = quadrants
    contract.check_model(model, variables, batches[number])
