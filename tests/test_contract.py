import dataclasses

import contract
import jax
import linear_gaussian
import numpy as np
import pytest
from contract import moved
from specs import task_of

from configs import mnist_class, mnist_image, mnist_quadrants, mnist_vae
from cvae_jax.model import Fitted, has_latents


@pytest.mark.parametrize("factored", [False, True])
def test_linear_gaussian(factored):
    of = linear_gaussian.LinearGaussian(x_size=3, z_size=4, y_size=4, factored=factored)
    contract.check_model(of.fitted(scale=1.2, shift=0.1), of.batch_of(*of.data(4)))


def test_a_fitted_model_is_a_pytree_of_its_variables():
    fitted, batch = linear_gaussian.fitted(1.2), linear_gaussian.batch_of(*linear_gaussian.data(3))
    assert len(jax.tree.leaves(fitted)) == len(jax.tree.leaves(fitted.variables)) > 0
    traced = []

    @jax.jit
    def mean_of(fitted, batch):
        traced.append(fitted.predicts_from)
        return fitted.draw(fitted.encode(batch), jax.random.split(jax.random.key(0), 3), fitted.predicts_from).p_y.mean

    first, again = mean_of(fitted, batch), mean_of(jax.tree.map(lambda leaf: 2 * leaf, fitted), batch)
    assert traced == ["prior"]  # other variables are the same program
    assert (first != again).all()
    at_mean = dataclasses.replace(fitted, predicts_from="prior_mean", has_recognition=False, exact=True)
    assert (mean_of(at_mean, batch) != first).all() and traced == ["prior", "prior_mean"]
    copied = jax.tree.map(lambda leaf: leaf, at_mean)
    assert (copied.model, copied.exact, copied.has_recognition) == (fitted.model, True, False)
    assert (fitted.estimator, at_mean.estimator) == ("is", "mc")


def test_which_models_have_latents():
    fitted, batch = linear_gaussian.fitted(), linear_gaussian.batch_of(*linear_gaussian.data(3))
    assert has_latents(fitted, batch) and has_latents(fitted, batch._replace(y=None))


def quadrants_of(number, network):
    config = mnist_quadrants.get_config(f"{number},smoke")
    config.cvae.network = network
    return task_of(config)


@pytest.fixture(scope="module", params=["plain", "residual"])
def quadrants(request):
    """The models and their variables, and a batch for each number of quadrants: the mask is in the batch alone."""
    images = np.random.default_rng(0).uniform(size=(3, 8, 8))
    batches = {number: quadrants_of(number, request.param).from_user(images, images) for number in (1, 2, 3)}
    baseline, cvae = (stage.model for stage in quadrants_of(1, request.param).stages)
    frozen = {"baseline": moved(jax.jit(baseline.init)(jax.random.key(0), batches[1], {}))}
    variables = moved(jax.jit(cvae.init)(jax.random.key(0), batches[1], frozen))
    return Fitted(baseline, frozen["baseline"]), Fitted(cvae, {**variables, "frozen": frozen}), batches


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 2, 3])
def test_quadrants_baseline(quadrants, number):
    baseline, _, batches = quadrants
    assert not has_latents(baseline, batches[number])
    contract.check_model(baseline, batches[number])


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 2, 3])
def test_quadrants_cvae(quadrants, number):
    _, cvae, batches = quadrants
    contract.check_model(cvae, batches[number])


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
    """The only model of a task with variables, and a batch."""
    config = module.get_config(variant)
    config.cvae.update(hidden=(16,), latent=4, **changes)
    if module is mnist_image:
        config.cvae.channels = 2
    task = task_of(config)
    batch, model = task.from_user(x, y), task.stages[0].model
    return Fitted(model, moved(jax.jit(model.init)(jax.random.key(0), batch, {}))), batch


@pytest.mark.slow
@pytest.mark.parametrize("name", SINGLE)
def test_tasks_of_one_stage(name):
    contract.check_model(*single(*SINGLE[name]))


@pytest.mark.slow
def test_residual_networks_given_a_label():
    contract.check_without_y(
        *single(mnist_class, "smoke", {"network": "residual", "activation": "gelu", **LEARNED}, LABELS, IMAGES)
    )
