"""Training objectives, per example and to be maximised, as a few lines over draws.

Each takes `draw`, which makes the draws it asks for, and the batch. It returns the objective [batch] in nats and the
terms [batch] that are logged.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import Array
from ml_collections import ConfigDict

from cvae_jax import schedules
from cvae_jax.distributions import sum_per_example
from cvae_jax.errors import UserError
from cvae_jax.model import Batch, Draw, Fitted, Model, Proposal, PyTree, Train, Variables, has_latents
from cvae_jax.settings import Choice, Real, Whole, check
from cvae_jax.task import Stage

Terms = dict[str, Array]

stop = jax.lax.stop_gradient


class Draws(Protocol):
    """A function that draws many z for every example, and returns a `Draw` whose leaves begin with the samples.

    `z` is handed in, leaves [samples, batch, ...], when the proposal is "given" or "given_by_prior". With `frozen`
    the model's variables and encoding are constants, so that gradients flow through z alone.
    """

    def __call__(self, proposal: Proposal, z: PyTree = None, frozen: bool = False) -> Draw:
        """Draws, or scores z."""


def draws_of(model: Model, held: tuple[Variables, PyTree], keys: Array, train: Train | None = None) -> Draws:
    """Returns what draws from a model: the same noise whatever the proposal.

    Args:
      model: that draws.
      held: its variables, and the encoding of the batch.
      keys: [samples, batch].
      train: what only training knows; None when validating.
    """

    def draw(proposal: Proposal, z: PyTree = None, frozen: bool = False) -> Draw:
        constants = stop(held) if frozen else held
        return jax.vmap(lambda k, z: model.draw(*constants, k, proposal, z, train))(keys, z)

    return draw


def total_kl(draw: Draw) -> Array:
    """Returns KL(q || p) of one draw, summed over its factors and latent dimensions: [batch]."""
    start = sum_per_example(jnp.zeros_like(draw.log_p_z))
    return jax.tree.reduce(lambda total, layer: total + sum_per_example(layer), draw.kl, start)


def elbo(
    draw: Draws, batch: Batch, *, beta: Array | float = 1.0, free_bits: float = 0.0, gradient: str = "reparameterised"
) -> tuple[Array, Terms]:
    """Returns the evidence lower bound E_q[log p(y|x,z)] - beta KL(q(z|x,y) || p(z|x)), eq. 4 of Sohn et al. 2015::

        encoding = model.encode(variables, batch)
        keys = jax.random.split(jax.random.key(0), (10, len(batch.ids)))  # ten draws for every example
        value, terms = objectives.elbo(objectives.draws_of(model, (variables, encoding), keys), batch)

    The bound of a model without latent variables is log p(y|x) itself.

    Args:
      draw: makes the draws.
      batch: what they are of.
      beta: weight of the KL.
      free_bits: nats below which a latent dimension's KL costs nothing (Kingma et al. 2016, eq. 15; here for every
        example by itself, not for the mean of a minibatch, so that no example depends on the others).
      gradient: "reparameterised", or "sticking_the_landing" (Roeder et al. 2017), which leaves out the score of q:
        unbiased, and without variance where q is the posterior.
    """
    drawn = draw("recognition")
    log_p_y = jax.vmap(sum_per_example)(drawn.log_p_y).mean(0)
    if not jax.tree.leaves(drawn.kl):
        return log_p_y, {}
    kl = jax.vmap(total_kl)(drawn).mean(0)
    paid = drawn._replace(kl=jax.tree.map(lambda layer: jnp.maximum(layer, free_bits), drawn.kl))
    value = log_p_y - beta * jax.vmap(total_kl)(paid).mean(0)
    if gradient == "sticking_the_landing":
        share = jnp.full_like(drawn.log_p_z, 1 / len(drawn.log_p_z))
        by_parameters, by_z = _score(draw, drawn.z, share, beta), _path(draw, drawn.z, share, beta)
        value = _with_gradient_of(by_parameters + by_z, value)
    return value, {"log_p_y": log_p_y, "kl": kl}


def gsnn(draw: Draws, batch: Batch) -> tuple[Array, Terms]:
    """Returns E_p(z|x)[log p(y|x,z)], the Gaussian stochastic neural network: eq. 6 of Sohn et al. 2015.

    z comes from the prior in training too; the recognition network is not trained.
    """
    log_p_y = jax.vmap(sum_per_example)(draw("prior").log_p_y).mean(0)
    return log_p_y, {"log_p_y_prior": log_p_y}


def gdnn(draw: Draws, batch: Batch) -> tuple[Array, Terms]:
    """Returns log p(y|x,z) at z = E[z|x]: the GSNN with zero covariance, a deterministic network."""
    log_p_y = jax.vmap(sum_per_example)(draw("prior_mean").log_p_y).mean(0)
    return log_p_y, {"log_p_y_prior": log_p_y}


def hybrid(
    draw: Draws, batch: Batch, *, beta: Array | float = 1.0, alpha: float = 0.5, free_bits: float = 0.0
) -> tuple[Array, Terms]:
    """Returns alpha ELBO + (1 - alpha) GSNN, eq. 7 of Sohn et al. 2015: z comes from where prediction takes it too.

    Args:
      draw: makes the draws.
      batch: what they are of.
      beta: weight of the KL.
      alpha: share of the ELBO.
      free_bits: as in `elbo`.
    """
    bound, terms = elbo(draw, batch, beta=beta, free_bits=free_bits)
    predicted, more = gsnn(draw, batch)
    return alpha * bound + (1 - alpha) * predicted, {**terms, **more}


def iwae(
    draw: Draws, batch: Batch, *, beta: Array | float = 1.0, gradient: str = "reparameterised"
) -> tuple[Array, Terms]:
    """Returns the importance-weighted bound log mean_k p(y|x,z_k) (p(z_k|x) / q(z_k|x,y))^beta (Burda et al. 2016).

    Args:
      draw: makes the draws.
      batch: what they are of.
      beta: 1 for the bound; less in a warm-up.
      gradient: "reparameterised"; "doubly_reparameterised" (Tucker et al. 2019), where the score of q, whose signal
        fades as k grows, is reparameterised again; or "generalised" (Bauer and Mnih 2021), where the prior's is too,
        which pays once q fits. All are unbiased.
    """
    drawn = draw("recognition")
    log_weights = _log_weights(drawn, beta)
    bounds = jax.nn.logsumexp(log_weights, 0) - jnp.log(len(log_weights))
    value = sum_per_example(bounds)
    if gradient != "reparameterised":
        # With v the normalised weights, E_q[v ∂log q] = E_q[(v - v²) ∂log w ∂z], and likewise for p with z moved by it.
        share = stop(jax.nn.softmax(log_weights, 0))
        again = beta * (share - share**2)
        by_z = _path(draw, drawn.z, share - again, beta)
        if gradient == "generalised":
            moved = draw("given_by_prior", stop(drawn.z)).z
            by_prior = draw("given", moved, frozen=True)
            by_parameters = _score(draw, drawn.z, share, 0.0) + _sum_of_samples(
                again * _log_weights(by_prior, beta) - beta * share * (by_prior.log_p_z - by_prior.log_q_z)
            )
        else:
            by_parameters = _score(draw, drawn.z, share, beta)
        value = _with_gradient_of(by_parameters + by_z, value)
    if not jax.tree.leaves(drawn.kl):
        return value, {}
    log_p_y = jax.vmap(sum_per_example)(drawn.log_p_y).mean(0)
    return value, {"log_p_y": log_p_y, "kl": jax.vmap(total_kl)(drawn).mean(0)}


def _log_weights(draw: Draw, beta: Array | float) -> Array:
    return draw.log_p_y + beta * (draw.log_p_z - draw.log_q_z)


def _sum_of_samples(terms: Array) -> Array:
    """[samples, batch, *factors] -> [batch]."""
    return sum_per_example(terms.sum(0))


def _score(draw: Draws, z: PyTree, share: Array, beta: Array | float) -> Array:
    """Its gradient is that of log p(y|x,z) + beta log p(z|x) at a fixed z, weighted by `share`."""
    scored = draw("given", stop(z))
    return _sum_of_samples(share * (scored.log_p_y + beta * scored.log_p_z))


def _path(draw: Draws, z: PyTree, share: Array, beta: Array | float) -> Array:
    """Its gradient is that of the log weights through z alone, weighted by `share`."""
    return _sum_of_samples(share * _log_weights(draw("given", z, frozen=True), beta))


def _with_gradient_of(surrogate: Array, value: Array) -> Array:
    """`value`, with the gradient of `surrogate`."""
    return stop(value) + surrogate - stop(surrogate)


class Kind(NamedTuple):
    """An objective and the settings that it reads, beside num_samples."""

    function: Callable[..., tuple[Array, Terms]]
    reads: tuple[str, ...]
    gradients: tuple[str, ...] = ("reparameterised",)
    trains_recognition: bool = True
    predicts_from: Proposal = "prior"  # where z comes from once it is trained


_BETA = ("beta", "beta_schedule", "beta_steps", "beta_cycles")
OBJECTIVES: Mapping[str, Kind] = {
    "elbo": Kind(elbo, (*_BETA, "free_bits", "gradient"), ("reparameterised", "sticking_the_landing")),
    "gsnn": Kind(gsnn, (), trains_recognition=False),
    "gdnn": Kind(gdnn, (), trains_recognition=False, predicts_from="prior_mean"),
    "hybrid": Kind(hybrid, (*_BETA, "free_bits", "alpha")),
    "iwae": Kind(iwae, (*_BETA, "gradient"), ("reparameterised", "doubly_reparameterised", "generalised")),
}

# A config's section `objective`.
DEFAULTS = {
    "name": "elbo",  # or any of OBJECTIVES
    "num_samples": 1,  # draws of z for every example
    "beta": 1.0,  # weight of the KL, once its schedule is over
    "beta_schedule": "constant",  # or from 0 up: "linear", "monotonic", "cyclical", see schedules.beta
    "beta_steps": 0,
    "beta_cycles": 1,
    "free_bits": 0.0,  # nats of each latent dimension's KL that cost nothing
    "alpha": 0.5,  # the hybrid's share of the ELBO
    "gradient": "reparameterised",  # iwae: or "doubly_reparameterised", "generalised"; elbo: or "sticking_the_landing"
}

KINDS = {
    "name": Choice(OBJECTIVES),
    "num_samples": Whole(1, 2**16),
    "beta": Real(),
    "free_bits": Real(),
    "alpha": Real(0, 1),
}

# (draws, batch, steps taken) -> the objective and its terms. Without a step, when validating, beta stands at its end
# and no bits are free: a model is chosen by the objective that it ends with.
Objective = Callable[[Draws, Batch, Array | None], tuple[Array, Terms]]


def from_config(settings: ConfigDict, section: str = "objective") -> Objective:
    """Returns the objective that a config's section describes, see DEFAULTS.

    Args:
      settings: the section.
      section: its name, for messages.

    Raises:
      UserError: for a value that cannot be, or one that the objective of that name does not read.
    """
    check(settings, KINDS, section)
    kind = OBJECTIVES[settings.name]
    for key, default in DEFAULTS.items():
        if key not in ("name", "num_samples", *kind.reads) and settings[key] != default:
            readers = ", ".join(name for name, reader in OBJECTIVES.items() if key in reader.reads)
            raise UserError(
                f"{section}.{key}={settings[key]!r} is not read by {settings.name}, only by {readers}; "
                f"leave it at {default!r}"
            )
    if settings.gradient not in kind.gradients:
        known = ", ".join(kind.gradients)
        raise UserError(f"{section}.gradient={settings.gradient!r} must be one of {known} for {settings.name}")
    if settings.gradient == "sticking_the_landing" and settings.free_bits:
        raise UserError(f"{section}.free_bits does not go with gradient='sticking_the_landing'; leave one of them out")
    options = {key: settings[key] for key in ("beta", "free_bits", "alpha", "gradient") if key in kind.reads}
    weight = schedules.beta(settings, section)

    def objective(draw: Draws, batch: Batch, step: Array | None) -> tuple[Array, Terms]:
        now = dict(options)
        if step is not None and "beta" in now:
            now["beta"] = settings.beta * weight(step)
        if step is None and "free_bits" in now:
            now["free_bits"] = 0.0
        value, terms = kind.function(draw, batch, **now)
        if step is not None and settings.beta_schedule != "constant":
            terms = {**terms, "beta": jnp.asarray(now["beta"], value.dtype)}
        return value, terms

    return objective


def stage(name: str, model: Model, settings: ConfigDict, shares: str = "") -> Stage:
    """Returns a training stage with the objective of its settings, see `from_config`.

    Args:
      name: of the stage, and of its section in the config.
      model: what is trained.
      settings: the section, see `config.stage`.
      shares: name of another stage, where the settings are those of its section.

    Raises:
      UserError: for an objective that cannot be.
    """
    objective = from_config(settings.objective, f"{shares or name}.objective")
    if model.log_units is not None:
        objective = _in_units_of_data(objective, model.log_units)
    return Stage(name, model, objective, settings, units={"beta": "weight of the KL"}, shares=shares)


def _in_units_of_data(objective: Objective, log_units: Callable[[Batch], Array]) -> Objective:
    """Returns the objective with `Model.log_units` added, to log p(y|x,z) among its terms too: a constant."""

    def shifted(draw: Draws, batch: Batch, step: Array | None) -> tuple[Array, Terms]:
        value, terms = objective(draw, batch, step)
        shift = sum_per_example(log_units(batch))
        logged = {name: term + shift if name.startswith("log_p_y") else term for name, term in terms.items()}
        return value + shift, logged

    return shifted


def trains_recognition(settings: ConfigDict) -> bool:
    """Returns whether the objective of that section trains the recognition network, so that others may draw from it."""
    return OBJECTIVES[settings.name].trains_recognition and not (settings.name == "hybrid" and settings.alpha == 0)


def predicts_from(settings: ConfigDict) -> Proposal:
    """Returns where a model that was trained with the objective of that section takes z from when it predicts."""
    return OBJECTIVES[settings.name].predicts_from


def fitted(stage: Stage, variables: Variables, batch: Batch) -> Fitted:
    """Returns a stage's model with variables, and how its objective lets it be measured.

    Args:
      stage: whose model.
      variables: of the model, those of earlier stages under "frozen".
      batch: any of the task's, of which only shapes are read.
    """
    settings = stage.settings.objective
    model = Fitted(stage.model, variables, predicts_from=predicts_from(settings))
    exact = model.predicts_from == "prior_mean" or not has_latents(model, batch)
    return dataclasses.replace(model, exact=exact, has_recognition=not exact and trains_recognition(settings))
