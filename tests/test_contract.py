import contract
import jax
import linear_gaussian
import numpy as np
import pytest
from contract import moved

from configs import mnist_class, mnist_image, mnist_quadrants, mnist_vae
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


@pytest.fixture(scope="module", params=["plain", "residual"])
def quadrants(request):
    """The models and their variables, and a batch for each number of quadrants: the mask is in the batch alone."""
    images = np.random.default_rng(0).uniform(size=(3, 8, 8))
    batches = {number: task_of(number, request.param).observe(images, images) for number in (1, 2, 3)}
    baseline, cvae = (stage.model for stage in task_of(1, request.param).stages)
    frozen, variables = (moved(jax.jit(model.init)(jax.random.key(0), batches[1])) for model in (baseline, cvae))
    return (baseline, frozen), (cvae, {**variables, "frozen": {"baseline": frozen}}), batches


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 2, 3])
def test_quadrants_baseline(quadrants, number):
    (model, variables), _, batches = quadrants
    assert not has_latents(model, variables, batches[number])
    contract.check_model(model, variables, batches[number])


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 2, 3])
def test_quadrants_cvae(quadrants, number):
    _, (model, variables), batches = quadrants
    contract.check_model(model, variables, batches[number])


# Tasks of a single stage: their config, changes of that stage, a user's x and y. Hidden layers and z are of one size,
# so that eager operations are compiled once.
IMAGES = np.random.default_rng(0).uniform(size=(3, 8, 8))
LABELS = np.array([0, 3, 9])
LEARNED, TIED = {"prior": "learned"}, {"prior": "learned", "tie_weights": True}
SINGLE = {
    "vae": (mnist_vae, "smoke", {}, None, IMAGES.round()),
    "label": (mnist_class, "smoke", {}, LABELS, IMAGES),
    "image": (mnist_image, "smoke", {}, IMAGES, LABELS),
    "image, learned": (mnist_image, "smoke", LEARNED, IMAGES, LABELS),
    "image, tied": (mnist_image, "smoke", TIED, IMAGES, LABELS),
    "superres": (mnist_image, "superres,smoke", LEARNED, IMAGES[:, :2, :2], IMAGES.round()),
}


def single(module, variant, changes, x, y):
    """The only model of a task, its variables and a batch."""
    config = module.get_config(variant)
    config.cvae.update(hidden=(16,), latent=4, **changes)
    if module is mnist_image:
        config.cvae.channels = 2
    task = tasks.make_task(config)
    batch, model = task.observe(x, y), task.stages[0].model
    return model, moved(jax.jit(model.init)(jax.random.key(0), batch)), batch


@pytest.mark.slow
@pytest.mark.parametrize("name", SINGLE)
def test_tasks_of_one_stage(name):
    contract.check_model(*single(*SINGLE[name]))


@pytest.mark.slow
def test_residual_networks_given_a_label():
    contract.check_without_y(
        *single(mnist_class, "smoke", {"network": "residual", "activation": "gelu", **LEARNED}, LABELS, IMAGES)
    )
