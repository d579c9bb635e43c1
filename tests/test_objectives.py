from functools import partial

import jax
import jax.numpy as jnp
import linear_gaussian as lg
import numpy as np
import pytest
from ml_collections import ConfigDict
from specs import task_of

from configs import mnist_quadrants
from cvae_jax import keys, objectives
from cvae_jax.errors import UserError

SIGMAS = 4.5
X_, Y_ = lg.data(5)
NUM_DRAWS = 6000


def draws(gaussian, variables, batch, repeat, num_samples):
    """Draws of the samples repeat * num_samples, ..., as objectives are given them."""
    sample_keys = keys.per_sample(
        keys.per_example(jax.random.key(0), batch.ids), repeat * num_samples + jnp.arange(num_samples)
    )
    held = variables, gaussian.model.encode(variables, batch)
    return objectives.draws_of(gaussian.model, held, sample_keys)


def values(objective, variables, num_samples, gaussian=lg.DEFAULT, x=X_, y=Y_):
    """The objective and its terms, [repeats, batch], of NUM_DRAWS draws."""
    batch = gaussian.batch_of(x, y)

    @jax.jit
    @jax.vmap
    def of_repeat(repeat):
        return objective(draws(gaussian, variables, batch, repeat, num_samples), batch)

    return of_repeat(jnp.arange(NUM_DRAWS // num_samples))


def gradients(objective, variables, num_samples, repeats=NUM_DRAWS, gaussian=lg.DEFAULT, x=X_, y=Y_):
    """Gradients of the objective's mean over the batch, by parameter: leaves [repeats, ...]."""
    batch = gaussian.batch_of(x, y)

    @jax.jit
    @partial(jax.vmap, in_axes=(None, 0))
    @jax.grad
    def of_repeat(variables, repeat):
        return objective(draws(gaussian, variables, batch, repeat, num_samples), batch)[0].mean()

    return of_repeat(variables, jnp.arange(repeats))["params"]


def assert_mean_is(found, wanted, largest_error=0.1):
    found = np.asarray(found, np.float64)
    error = found.std(0, ddof=1) / np.sqrt(len(found))
    assert error.max() < largest_error
    np.testing.assert_array_less(np.abs(found.mean(0) - wanted), SIGMAS * error + 1e-5)


# The ELBO.


@pytest.mark.parametrize(("beta", "num_samples"), [(0.0, 1), (1.0, 1), (2.0, 3)])
def test_elbo(beta, num_samples):
    found, terms = values(partial(objectives.elbo, beta=beta), lg.variables(1.2, 0.3), num_samples)
    q = lg.proposal(X_, Y_, 1.2, 0.3)
    assert_mean_is(found, lg.elbo(X_, Y_, q, beta))
    assert_mean_is(terms["log_p_y"], lg.elbo(X_, Y_, q, 0.0))
    np.testing.assert_allclose(terms["kl"][0], lg.kl(X_, q), rtol=1e-5)


@pytest.mark.parametrize(("beta", "gradient"), [(1.0, "reparameterised"), (0.5, "sticking_the_landing")])
def test_gradient_of_the_elbo(beta, gradient):
    found = gradients(partial(objectives.elbo, beta=beta, gradient=gradient), lg.variables(1.2, 0.3), 2)
    wanted = lg.elbo_gradients(X_, Y_, lg.proposal(X_, Y_, 1.2, 0.3), beta)
    for name in ("C", "bias"):
        assert_mean_is(found[name], wanted[name])


def test_sticking_the_landing_has_no_variance_at_the_posterior():
    plain, sticking = (
        gradients(partial(objectives.elbo, gradient=name), lg.variables(), 1, repeats=200)
        for name in ("reparameterised", "sticking_the_landing")
    )
    for name in ("bias", "q_scale", "by_y"):
        assert np.std(plain[name], 0).max() > 0.1
        np.testing.assert_allclose(sticking[name], 0, atol=1e-4)


def test_sticking_the_landing_keeps_the_value():
    for name in ("reparameterised", "sticking_the_landing"):
        found, _ = values(partial(objectives.elbo, gradient=name), lg.variables(1.2, 0.3), 3)
        wanted, _ = values(objectives.elbo, lg.variables(1.2, 0.3), 3)
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)


def test_free_bits():
    variables, q = lg.variables(1.2, 0.3), lg.proposal(X_, Y_, 1.2, 0.3)
    s_p, location = lg.DEFAULT._numbers["s_p"], X_ @ lg.DEFAULT._numbers["A"].T
    of_dimensions = np.log(s_p / q.scale) + 0.5 * ((q.scale / s_p) ** 2 + ((q.mean - location) / s_p) ** 2 - 1)
    free = float(np.median(of_dimensions))
    plain, _ = values(objectives.elbo, variables, 1)
    found, terms = values(partial(objectives.elbo, free_bits=free), variables, 1)
    extra = np.maximum(of_dimensions, free).sum(-1) - of_dimensions.sum(-1)
    assert extra.max() > 0.1
    np.testing.assert_allclose(plain - found, np.tile(extra, (len(found), 1)), rtol=0, atol=1e-4)
    np.testing.assert_allclose(terms["kl"][0], lg.kl(X_, q), rtol=1e-5)  # what is told is the KL itself


@pytest.mark.parametrize("objective", [objectives.elbo, objectives.iwae])
def test_without_latents_the_bound_is_log_p_y(objective):
    log_p_y = jnp.arange(3.0)
    drawn = lg.Draw((), log_p_y[None], jnp.zeros((1, 3)), jnp.zeros((1, 3)), (), None)
    found, terms = objective(lambda proposal: drawn, None)
    np.testing.assert_array_equal(found, log_p_y)
    assert terms == {}


# GSNN, GDNN, hybrid: the ELBO's closed form with the prior for q and no KL, and at its mean.


def prior(x):
    return lg.Gaussian(x @ lg.DEFAULT._numbers["A"].T, lg.DEFAULT._numbers["s_p"])


def gsnn_gradients(x, y):
    """Of E_p(z|x)[log p(y|x,z)], averaged over the batch, by A, B and C."""
    n, p = lg.DEFAULT._numbers, prior(x)
    residual = (y - p.mean @ n["B"].T - x @ n["C"].T) / lg.S_Y**2
    by_b = residual.T @ p.mean / len(x) - n["B"] * p.scale**2 / lg.S_Y**2
    return {"A": (residual @ n["B"]).T @ x / len(x), "B": by_b, "C": residual.T @ x / len(x)}


@pytest.mark.parametrize("num_samples", [1, 3])
def test_gsnn(num_samples):
    found, terms = values(objectives.gsnn, lg.variables(), num_samples)
    assert_mean_is(found, lg.elbo(X_, Y_, prior(X_), 0.0), 0.2)
    np.testing.assert_array_equal(terms["log_p_y_prior"], found)


def test_gradient_of_gsnn():
    found, wanted = gradients(objectives.gsnn, lg.variables(1.2, 0.3), 2), gsnn_gradients(X_, Y_)
    for name in ("A", "B", "C"):
        assert_mean_is(found[name], wanted[name], 0.2)
    for name in ("by_x", "by_y", "bias", "q_scale"):  # the recognition network is not trained
        assert (np.asarray(found[name]) == 0).all()


def test_gdnn():
    found, _ = values(objectives.gdnn, lg.variables(), 1)
    at_mean = lg.Gaussian(prior(X_).mean, np.full(4, 1e-30))
    np.testing.assert_allclose(found[0], lg.elbo(X_, Y_, at_mean, 0.0), rtol=1e-5)


@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_hybrid(alpha):
    variables, q = lg.variables(1.2, 0.3), lg.proposal(X_, Y_, 1.2, 0.3)
    objective = partial(objectives.hybrid, alpha=alpha, beta=0.7)
    found, terms = values(objective, variables, 2)
    wanted = alpha * lg.elbo(X_, Y_, q, 0.7) + (1 - alpha) * lg.elbo(X_, Y_, prior(X_), 0.0)
    assert_mean_is(found, wanted, 0.2)
    assert set(terms) == {"log_p_y", "kl", "log_p_y_prior"}
    of_elbo, of_gsnn = lg.elbo_gradients(X_, Y_, q, 0.7), gsnn_gradients(X_, Y_)
    by = gradients(objective, variables, 2)
    assert_mean_is(by["C"], alpha * of_elbo["C"] + (1 - alpha) * of_gsnn["C"], 0.2)
    assert_mean_is(by["bias"], alpha * of_elbo["bias"])


# The importance-weighted bound.


@pytest.mark.parametrize("num_samples", [1, 2, 50])
def test_iwae_with_the_exact_posterior_is_log_p_y(num_samples):
    found, _ = values(objectives.iwae, lg.variables(), num_samples)
    np.testing.assert_allclose(found, np.tile(lg.log_p_y(X_, Y_), (len(found), 1)), rtol=0, atol=2e-5)


def test_iwae_of_one_sample_is_the_elbo_in_expectation():
    found, terms = values(objectives.iwae, lg.variables(1.2, 0.3), 1)
    q = lg.proposal(X_, Y_, 1.2, 0.3)
    assert_mean_is(found, lg.elbo(X_, Y_, q))
    assert_mean_is(terms["log_p_y"], lg.elbo(X_, Y_, q, 0.0))
    np.testing.assert_allclose(terms["kl"][0], lg.kl(X_, q), rtol=1e-5)


SMALL = lg.LinearGaussian(x_size=1, z_size=1, y_size=1, seed=3)
ESTIMATES_OF_GRADIENT = ["reparameterised", "doubly_reparameterised", "generalised"]


def iwae_by_quadrature(params, x, y, beta):
    """The bound of two samples averaged over the batch, by Gauss-Hermite quadrature over both in float64."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    weights = weights / weights.sum()
    p = {name: np.asarray(value, np.float64).reshape(()) for name, value in params.items()}
    x, y = x[:, :1], y[:, :1]
    z = p["by_x"] * x + p["by_y"] * y + p["bias"] + p["q_scale"] * nodes
    log_q_z = -0.5 * nodes**2 - np.log(p["q_scale"])
    log_p_z = -0.5 * ((z - p["A"] * x) / p["s_p"]) ** 2 - np.log(p["s_p"])
    residual = (y - p["B"] * z - p["C"] * x) / lg.S_Y
    log_p_y = -0.5 * residual**2 - np.log(lg.S_Y) - 0.5 * np.log(2 * np.pi)
    log_w = log_p_y + beta * (log_p_z - log_q_z)
    both = np.logaddexp(log_w[:, :, None], log_w[:, None, :]) - np.log(2)
    return np.einsum("bij,i,j->b", both, weights, weights).mean()


@pytest.mark.parametrize(
    ("gradient", "beta"),
    [("reparameterised", 1.0), ("doubly_reparameterised", 1.0), ("generalised", 1.0), ("generalised", 0.5)],
)
def test_iwae_and_its_gradients_against_quadrature(gradient, beta):
    x, y = SMALL.data(2)
    variables = SMALL.variables(1.4, 0.5)
    objective = partial(objectives.iwae, beta=beta, gradient=gradient)
    found, _ = values(objective, variables, 2, SMALL, x, y)
    params = {name: np.asarray(value, np.float64) for name, value in variables["params"].items()}
    assert_mean_is(found.mean(1), iwae_by_quadrature(params, x, y, beta))
    by = gradients(objective, variables, 2, 60_000, SMALL, x, y)
    assert set(by) == {"A", "B", "C", "s_p", "by_x", "by_y", "bias", "q_scale"}
    for name, value in params.items():
        up, down = ({**params, name: value + h} for h in (1e-5, -1e-5))
        wanted = (iwae_by_quadrature(up, x, y, beta) - iwae_by_quadrature(down, x, y, beta)) / 2e-5
        assert_mean_is(np.asarray(by[name]).reshape(-1), wanted, 0.02)


def test_doubly_reparameterised_gradients_have_no_variance_at_the_posterior():
    plain = gradients(objectives.iwae, lg.variables(), 8, repeats=100)
    for name in ESTIMATES_OF_GRADIENT[1:]:
        found = gradients(partial(objectives.iwae, gradient=name), lg.variables(), 8, repeats=100)
        for parameter in ("bias", "q_scale", "by_y"):
            assert np.std(plain[parameter], 0).max() > 0.01
            np.testing.assert_allclose(found[parameter], 0, atol=1e-4)


@pytest.mark.slow
def test_gradients_of_two_layers_of_latents_are_unbiased():
    # Each layer's q and p depend on the layer above, so a distribution whose numbers are stopped would lose a path.
    config = mnist_quadrants.get_config("1,strong,smoke")
    config.cvae.update(hidden=(6,), latent=4)
    task = task_of(config)
    baseline, cvae = (stage.model for stage in task.stages)
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(2, 8, 8))
    batch = task.from_user(images, images)

    def started(model, earlier):
        return jax.tree.map(
            lambda leaf: leaf + 0.3 * rng.normal(size=leaf.shape).astype(np.float32),
            jax.jit(model.init)(jax.random.key(0), batch, earlier)["params"],
        )

    frozen = started(baseline, {})
    params = started(cvae, {"baseline": {"params": frozen}})

    @partial(jax.jit, static_argnums=0)
    def of_repeats(gradient, params, repeats):
        def of_repeat(repeat):
            def objective(params):
                variables = {"params": params, "frozen": {"baseline": {"params": frozen}}}
                example_keys = keys.per_example(jax.random.fold_in(jax.random.key(0), repeat), batch.ids)
                sample_keys = keys.per_sample(example_keys, jnp.arange(4))
                draw = objectives.draws_of(cvae, (variables, cvae.encode(variables, batch)), sample_keys)
                return objectives.iwae(draw, batch, gradient=gradient)[0].mean()

            return jax.flatten_util.ravel_pytree(jax.grad(objective)(params))[0]

        return jax.lax.map(of_repeat, repeats, batch_size=500)

    repeats = jnp.arange(2500)
    plain = of_repeats("reparameterised", params, repeats)
    for gradient in ESTIMATES_OF_GRADIENT[1:]:
        difference = np.asarray(of_repeats(gradient, params, repeats) - plain)
        error = difference.std(0, ddof=1) / np.sqrt(len(difference))
        sigmas = np.abs(difference.mean(0)) / np.where(error > 1e-9, error, np.inf)
        assert (error > 1e-9).mean() > 0.5
        assert sigmas.max() < 6  # of about 1,500 parameters


# Factors: z and y in parts that are independent given x.

FACTORED = lg.LinearGaussian(x_size=2, z_size=3, y_size=3, factored=True)


def test_factors_are_weighted_by_themselves():
    x, y = FACTORED.data(4)
    batch, variables = FACTORED.batch_of(x, y), FACTORED.variables(1.3, 0.4)
    drawn = draws(FACTORED, variables, batch, 0, 10)("recognition")
    assert drawn.log_p_y.shape == (10, 4, 3)
    weights = np.exp(np.asarray(drawn.log_p_y + drawn.log_p_z - drawn.log_q_z, np.float64))
    for gradient in ESTIMATES_OF_GRADIENT:
        found, terms = objectives.iwae(draws(FACTORED, variables, batch, 0, 10), batch, gradient=gradient)
        np.testing.assert_allclose(found, np.log(weights.mean(0)).sum(-1), rtol=0, atol=1e-5)
        assert terms["log_p_y"].shape == terms["kl"].shape == (4,)
    q = FACTORED.proposal(x, y, 1.3, 0.4)
    for objective, wanted in (
        (objectives.elbo, FACTORED.elbo(x, y, q)),
        (partial(objectives.hybrid, alpha=1.0), FACTORED.elbo(x, y, q)),
    ):
        assert_mean_is(values(objective, variables, 1, FACTORED, x, y)[0], wanted)


# Configs.


def config(**changes):
    return ConfigDict({**objectives.DEFAULTS, **changes})


STEP = jnp.int32(15)


@pytest.mark.parametrize(
    ("settings", "training", "validating"),
    [
        (config(beta=0.3), partial(objectives.elbo, beta=0.3), partial(objectives.elbo, beta=0.3)),
        (
            config(beta=2.0, beta_schedule="linear", beta_steps=20, free_bits=0.5),
            partial(objectives.elbo, beta=1.5, free_bits=0.5),
            partial(objectives.elbo, beta=2.0),
        ),
        (config(name="gsnn"), objectives.gsnn, objectives.gsnn),
        (config(name="gdnn"), objectives.gdnn, objectives.gdnn),
        (
            config(name="hybrid", alpha=0.2, beta_schedule="cyclical", beta_steps=80, beta_cycles=2),
            partial(objectives.hybrid, alpha=0.2, beta=0.75),
            partial(objectives.hybrid, alpha=0.2),
        ),
        (
            config(name="iwae", gradient="generalised", beta_schedule="linear", beta_steps=30),
            partial(objectives.iwae, beta=0.5, gradient="generalised"),
            objectives.iwae,
        ),
    ],
)
def test_from_config(settings, training, validating):
    batch = lg.batch_of(X_, Y_)
    draw = draws(lg.DEFAULT, lg.variables(1.2, 0.3), batch, 0, 3)
    for step, wanted in ((STEP, training), (None, validating)):
        found, terms = objectives.from_config(settings)(draw, batch, step)
        np.testing.assert_allclose(found, wanted(draw, batch)[0], rtol=1e-6)
        assert ("beta" in terms) == (step is not None and settings.beta_schedule != "constant")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "vae"}, "objective.name='vae' .*elbo, gsnn, gdnn, hybrid, iwae"),
        ({"num_samples": 0}, "objective.num_samples=0"),
        ({"beta": -0.1}, "objective.beta=-0.1 must be at least 0"),
        ({"name": "hybrid", "alpha": 1.5}, "objective.alpha=1.5 must be between 0 and 1"),
        ({"name": "hybrid", "alpha": -0.5}, "objective.alpha=-0.5 must be between 0 and 1"),
        ({"alpha": 0.3}, "objective.alpha=0.3 is not read by elbo, only by hybrid; leave it at 0.5"),
        ({"name": "gsnn", "beta": 0.5}, "objective.beta=0.5 is not read by gsnn, only by elbo, hybrid, iwae"),
        ({"name": "iwae", "free_bits": 0.5}, "objective.free_bits=0.5 is not read by iwae"),
        (
            {"gradient": "sticking_the_landing", "free_bits": 1.0},
            "free_bits does not go with gradient='sticking_the",
        ),
        ({"free_bits": -1.0}, "objective.free_bits=-1.0 must be at least 0"),
        ({"gradient": "doubly_reparameterised"}, "must be one of reparameterised, sticking_the_landing for elbo"),
        ({"name": "iwae", "gradient": "sticking_the_landing"}, "must be one of .*doubly_.*, generalised for iwae"),
        ({"beta_schedule": "slow", "beta_steps": 10}, "objective.beta_schedule='slow' .*cyclical"),
        ({"beta_schedule": "linear"}, "objective.beta_steps=0 does not go with beta_schedule='linear'"),
        ({"beta_steps": 5}, "objective.beta_steps=5 does not go with beta_schedule='constant'"),
        ({"beta_schedule": "linear", "beta_steps": 5, "beta_cycles": 2}, "objective.beta_cycles=2"),
    ],
)
def test_from_config_errors(changes, message):
    with pytest.raises(UserError, match=message):
        objectives.from_config(config(**changes))


def test_which_networks_an_objective_trains():
    trains = {name: objectives.trains_recognition(config(name=name)) for name in objectives.OBJECTIVES}
    assert trains == {"elbo": True, "gsnn": False, "gdnn": False, "hybrid": True, "iwae": True}
    assert not objectives.trains_recognition(config(name="hybrid", alpha=0.0))
    predicts = {name: objectives.predicts_from(config(name=name)) for name in objectives.OBJECTIVES}
    assert predicts == {name: "prior_mean" if name == "gdnn" else "prior" for name in objectives.OBJECTIVES}


def test_an_objective_is_handed_the_batch(monkeypatch):
    def distance(draw, batch, *, beta):
        return -((draw("prior_mean").p_y.mean[0] - batch.y) ** 2).sum(-1), {"beta": jnp.asarray(beta)}

    monkeypatch.setitem(objectives.OBJECTIVES, "distance", objectives.Kind(distance, ("beta",)))
    batch = lg.batch_of(X_, Y_)
    draw = draws(lg.DEFAULT, lg.variables(), batch, 0, 1)
    objective = objectives.from_config(config(name="distance", beta=0.25))
    n = lg.DEFAULT._numbers
    wanted = -((X_ @ (n["B"] @ n["A"] + n["C"]).T - Y_) ** 2).sum(-1)
    for step in (STEP, None):
        value, terms = objective(draw, batch, step)
        np.testing.assert_allclose(value, wanted, rtol=1e-5)
        assert terms["beta"] == 0.25


# Stages.


def stage(**changes):
    return objectives.stage("cvae", lg.MODEL, ConfigDict({"objective": config(**changes).to_dict()}))


def test_a_stage_has_the_objective_of_its_settings():
    batch = lg.batch_of(X_, Y_)
    draw = draws(lg.DEFAULT, lg.variables(1.2, 0.3), batch, 0, 3)
    made = stage(name="iwae", beta=0.5)
    assert (made.name, made.model, made.auxiliary) == ("cvae", lg.MODEL, None)
    np.testing.assert_allclose(made.objective(draw, batch, STEP)[0], objectives.iwae(draw, batch, beta=0.5)[0])
    assert made.units["beta"] == "weight of the KL"
    with pytest.raises(UserError, match=r"^cvae.objective.beta=-1.0 must be at least 0$"):
        stage(beta=-1.0)


@pytest.mark.parametrize(
    ("changes", "exact", "has_recognition", "predicts_from"),
    [
        ({"name": "elbo"}, False, True, "prior"),
        ({"name": "iwae"}, False, True, "prior"),
        ({"name": "hybrid"}, False, True, "prior"),
        ({"name": "hybrid", "alpha": 0.0}, False, False, "prior"),
        ({"name": "gsnn"}, False, False, "prior"),
        ({"name": "gdnn"}, True, False, "prior_mean"),
    ],
)
def test_how_a_fitted_model_may_be_measured(changes, exact, has_recognition, predicts_from):
    fitted = objectives.fitted(stage(**changes), lg.variables(), lg.batch_of(X_, Y_))
    assert (fitted.exact, fitted.has_recognition, fitted.predicts_from) == (exact, has_recognition, predicts_from)
    assert fitted.estimator == ("is" if has_recognition else "mc")


def test_a_model_without_latents_is_exact():
    def draw(variables, encoding, keys, proposal, z=None, train=None):
        drawn = lg.MODEL.draw(variables, encoding, keys, "prior_mean")
        return drawn._replace(z=(), kl=())

    without = stage(name="elbo")._replace(model=lg.MODEL._replace(draw=draw))
    fitted = objectives.fitted(without, lg.variables(), lg.batch_of(X_, Y_))
    assert fitted.exact and not fitted.has_recognition
