"""Predictions, samples and likelihoods from any model of the contract."""

from collections.abc import Callable, Sequence
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from cvae_jax import keys, parallel
from cvae_jax.distributions import sum_per_example
from cvae_jax.errors import UserError
from cvae_jax.inference import ais as annealing
from cvae_jax.inference.ais import Annealing
from cvae_jax.inference.estimators import ESTIMATORS, PRIOR_SHARE, Estimate, Source, log_mean_exp, plain_mean
from cvae_jax.model import Batch, Draw, Model, Proposal, PyTree, Variables

DRAWS_PER_CALL = 2_000  # samples times examples: enough to fill the cores, few enough to stay in cache
BYTES_PER_CALL = 2**28  # of the likelihoods p(y|x,z) of these draws, where they are large: at least a draw an example


def predict(model: Model, variables: Variables, batch: Batch) -> PyTree:
    """E[y | x, z = E[z|x]], one prediction for every example: leaves [batch, ...]."""
    encoding = model.encode(variables, batch._replace(y=None))
    return model.draw(variables, encoding, keys.unused(batch.index), "prior_mean").p_y.mean


def sample(
    model: Model,
    variables: Variables,
    batch: Batch,
    keys: Array,
    noise: bool,
    proposal: Proposal = "prior",
    keep: Callable[[PyTree], PyTree] = lambda y: y,
    samples_per_call: int = 0,
) -> PyTree:
    """Samples of y given x: leaves [samples, batch, ...].

    Args:
      model: any model of the contract.
      variables: its variables.
      batch: what is known; its y is not looked at.
      keys: [samples, batch].
      noise: draw y from the likelihood p(y|x,z); False gives its mean E[y|x,z], as images are usually shown.
      proposal: where z comes from: "prior", or "prior_mean".
      keep: what to return of each sample, leaves [batch, ...].
      samples_per_call: how many are held at once before that; 0: all.
    """
    encoding = model.encode(variables, batch._replace(y=None))

    def one(keys: Array) -> PyTree:
        z_keys, y_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
        p_y = model.draw(variables, encoding, z_keys, proposal).p_y
        return keep(p_y.sample(y_keys) if noise else p_y.mean)

    return jax.lax.map(one, keys, batch_size=samples_per_call) if samples_per_call else jax.vmap(one)(keys)


def scores(
    model: Model,
    variables: Variables,
    batch: Batch,
    proposal: Source,
    score: Callable[[Draw], PyTree],
    num_samples: int,
    key: Array,
    draws_per_call: int | None = None,
) -> PyTree:
    """What `score` makes of every sample of every example.

    [batch, *factors] -> float32 [num_samples, batch, *factors], leaf by leaf. Each depends on (key, index of the
    example, number of the sample) alone, whatever else is in the batch and however many draws are made at once; only
    the numbers are kept, so memory hardly grows with the samples. The examples are spread over all devices when they
    divide.

    Raises:
      UserError: where z is to come from a recognition network and the model has none.
    """
    key = keys.substream(key, proposal)  # estimates from different proposals are independent
    mesh = parallel.make_mesh()
    variables = jax.device_put(variables, parallel.replicated(mesh))
    batch = parallel.place_batch(mesh, batch)
    with jax.default_matmul_precision("highest"):
        encoding = _encode(model, variables, batch)
        example_keys = keys.per_example(key, batch.index)
        draws = draws_per_call or min(DRAWS_PER_CALL, _draws_that_fit(model, variables, encoding, example_keys))
        size = min(num_samples, max(1, draws // len(batch.index)))
        starts = jnp.arange(0, num_samples, size)
        if proposal in ("recognition", "defensive") and _lacks_q(model, variables, encoding, example_keys):
            raise UserError("this estimator draws from q(z|x,y), and the model has no recognition network; use mc")
        values = _scores(model, proposal, score, size, variables, encoding, example_keys, starts)
    return jax.tree.map(lambda leaf: np.asarray(leaf).reshape(-1, *leaf.shape[2:])[:num_samples], values)


def _draws_that_fit(model: Model, variables: Variables, encoding: PyTree, keys: Array) -> int:
    """How many draws make BYTES_PER_CALL of likelihoods."""
    p_y = jax.eval_shape(lambda v, e, k: model.draw(v, e, k, "prior").p_y, variables, encoding, keys)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(p_y))
    return BYTES_PER_CALL * len(keys) // max(1, size)


@partial(jax.jit, static_argnums=0)
def _encode(model: Model, variables: Variables, batch: Batch) -> PyTree:
    return model.encode(variables, batch)


@partial(jax.jit, static_argnums=0)
def _lacks_q(model: Model, variables: Variables, encoding: PyTree, keys: Array) -> Array:
    """Whether log q(z|x,y) is NaN throughout, as the contract has it for a model without a recognition network."""
    return jnp.isnan(model.draw(variables, encoding, keys, "prior").log_q_z).all()


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _scores(
    model: Model,
    proposal: Source,
    score: Callable[[Draw], PyTree],
    size: int,
    variables: Variables,
    encoding: PyTree,
    example_keys: Array,
    starts: Array,
) -> PyTree:
    """Scores [len(starts), size, batch, *factors]: `size` samples at once, vmapped, from each start in turn."""

    def from_start(start: Array) -> PyTree:
        sample_keys = keys.per_sample(example_keys, start + jnp.arange(size))
        return jax.vmap(lambda k: score(_draw(model, variables, encoding, k, proposal)))(sample_keys)

    return jax.lax.map(from_start, starts)


def _draw(model: Model, variables: Variables, encoding: PyTree, keys: Array, proposal: Source) -> Draw:
    """A draw of the model, or one from the mixture of prior and recognition network; `keys` is [batch]."""
    if proposal != "defensive":
        return model.draw(variables, encoding, keys, proposal)
    # Nothing but z is taken from these two, so the compiler leaves out their likelihoods.
    z_keys, coin_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
    prior, recognition = (model.draw(variables, encoding, z_keys, one) for one in ("prior", "recognition"))
    # A coin for every factor. Fixed shares of the samples would do with less variance, but a sample would then depend
    # on how many there are, and the first few would not be drawn from the mixture.
    factors = prior.log_p_z.shape[1:]
    from_prior = jax.vmap(lambda key: jax.random.bernoulli(key, PRIOR_SHARE, factors))(coin_keys)

    def choose(a: Array, b: Array) -> Array:
        return jnp.where(jnp.expand_dims(from_prior, range(from_prior.ndim, a.ndim)), a, b)

    return model.draw(variables, encoding, keys, "given", jax.tree.map(choose, prior.z, recognition.z))


# Estimators of log p(y|x): those that are made of draws, and annealed importance sampling.
ESTIMATOR_NAMES = (*ESTIMATORS, "ais")


def check(wanted: Sequence[tuple[str, int]]) -> None:
    """Raises a UserError for an estimator that is not known, or that cannot do with so few samples."""
    for name, num_samples in wanted:
        if name not in ESTIMATOR_NAMES:
            raise UserError(f"estimator {name!r} is not known; choose from {', '.join(ESTIMATOR_NAMES)}")
        if num_samples < 1:
            raise UserError(f"num_samples={num_samples} must be at least 1")
        if name == "jackknife" and num_samples < 2:
            raise UserError(f"num_samples={num_samples} must be at least 2 for the jackknife")


def draws_from_recognition(estimator: str, settings: Annealing = Annealing()) -> bool:
    """Whether an estimator draws from the recognition network."""
    if estimator == "ais":
        return settings.start == "recognition"
    return ESTIMATORS[estimator].proposal in ("recognition", "defensive")


def log_prob(
    model: Model,
    variables: Variables,
    batch: Batch,
    estimator: str,
    num_samples: int,
    key: Array,
    settings: Annealing = Annealing(),
) -> Estimate:
    """Estimates log p(y|x) of every example, float64 [batch], nats; see `log_probs`."""
    return log_probs(model, variables, batch, [(estimator, num_samples)], key, settings)[estimator, num_samples]


def log_probs(
    model: Model,
    variables: Variables,
    batch: Batch,
    wanted: Sequence[tuple[str, int]],
    key: Array,
    settings: Annealing = Annealing(),
) -> dict[tuple[str, int], Estimate]:
    """Estimates log p(y|x) of every example by several estimators, float64 [batch], nats.

    Estimators with one proposal share its draws, and the fewer samples are the first of the more.

    Args:
      model: any model of the contract.
      variables: its variables.
      batch: with y.
      wanted: of ESTIMATOR_NAMES, each with its number of samples; with "ais" that of chains.
      key: of all random numbers.
      settings: of "ais".

    Raises:
      UserError: for an unknown estimator or one that needs a recognition network where there is none, too few
        samples, a batch without y, or weights that are not finite.
    """
    check(wanted)
    if batch.y is None:
        raise UserError("log p(y|x) needs y")
    made_of_draws = [(name, count) for name, count in wanted if name in ESTIMATORS]
    numbers: dict[str, np.ndarray] = {}
    for proposal in dict.fromkeys(ESTIMATORS[name].proposal for name, _ in made_of_draws):
        names = tuple(dict.fromkeys(name for name, _ in made_of_draws if ESTIMATORS[name].proposal == proposal))
        most = max(count for name, count in made_of_draws if name in names)
        numbers |= scores(model, variables, batch, proposal, _scores_of(names), most, key)
    found: dict[tuple[str, int], Estimate] = {}
    for name, count in wanted:
        if name == "ais":
            chains = annealing.ais(model, variables, batch, count, key, settings)
            found[name, count] = log_mean_exp(chains.log_weights)
        else:
            found[name, count] = ESTIMATORS[name].summarise(numbers[name][:count])
    return found


@cache  # one function for the same names, so that it is compiled once
def _scores_of(names: tuple[str, ...]) -> Callable[[Draw], dict[str, Array]]:
    """The scores of several estimators by name; equal ones are computed once."""
    return lambda draw: {name: ESTIMATORS[name].score(draw) for name in names}


def exact(model: Model, variables: Variables, batch: Batch) -> Estimate:
    """log p(y|x, z = E[z|x]) of every example: log p(y|x) of a model without latent variables, or with no spread."""
    unused = jax.random.key(0)
    value = plain_mean(scores(model, variables, batch, "prior_mean", _log_p_y, 1, unused)).value
    return Estimate(value, np.zeros_like(value), np.ones_like(value), np.full_like(value, np.nan))


def _log_p_y(draw: Draw) -> Array:
    return sum_per_example(draw.log_p_y)
