import contract
import jax
import linear_gaussian
import numpy as np
import pytest

from configs import mnist_quadrants
from cvae_jax import tasks
from cvae_jax.model import has_latents


@pytest.mark.parametrize("factored", [False, True])
def test_linear_gaussian(factored):
    of = linear_gaussian.LinearGaussian(x_size=3, z_size=4, y_size=4, factored=factored)
    contract.check_model(of.model, of.variables(scale=1.2, shift=0.1), of.batch_of(*of.data(4)))


def task_of(number, network):
    config = mnist_quadrants.get_config(f"{number},smoke")
    config.cvae.network = network
    return tasks.make_task(config)


def moved(variables):
    """Away from where networks start, where q may equal p and hide a wrong KL; not far, so that samples reach it."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: 0.7 * leaf + 0.05 * rng.normal(size=leaf.shape).astype(np.float32), variables)


@pytest.fixture(scope="module", params=["plain", "residual"])
def quadrants(request):
    """The models and their variables, and a batch for each number of quadrants: the mask is in the batch alone."""
    images = np.random.default_rng(0).uniform(size=(3, 8, 8))
    batches = {number: task_of(number, request.param).observe(images, images) for number in (1, 2, 3)}
    baseline, cvae = (stage.model for stage in task_of(1, request.param).stages)
    frozen, variables = (moved(jax.jit(model.init)(jax.random.key(0), batches[1])) for model in (baseline, cvae))
    return (baseline, frozen), (cvae, {**variables, "frozen": {"baseline": frozen}}), batches


@pytest.mark.parametrize("number", [1, 2, 3])
def test_quadrants_baseline(quadrants, number):
    (model, variables), _, batches = quadrants
    assert not has_latents(model, variables, batches[number])
    contract.check_model(model, variables, batches[number])


@pytest.mark.parametrize("number", [1, 2, 3])
def test_quadrants_cvae(quadrants, number):
    _, (model, variables), batches = quadrants
    contract.check_model(model, variables, batches[number])
