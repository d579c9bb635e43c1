"""Distributions as named tuples of arrays, and the one place where a z is drawn.

Every distribution has `mean`, `sample(keys)` with one key per example, and element-wise `log_prob` in nats.
"""

import math
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import entr

from cvae_jax.model import Proposal


class Normal(NamedTuple):
    """Independent Gaussians, mean and standard deviation of the same shape [batch, ...]."""

    mean: Array
    scale: Array

    def sample(self, keys: Array) -> Array:
        """One sample for every example, reparameterised: mean + scale * noise. `keys` is [batch]."""
        shape, dtype = self.mean.shape[1:], self.mean.dtype
        noise = jax.vmap(lambda key: jax.random.normal(key, shape, dtype))(keys)
        return self.mean + self.scale * noise

    def log_prob(self, value: Array) -> Array:
        """Log density of every element, nats."""
        standardised = (value - self.mean) / self.scale
        return -0.5 * standardised**2 - jnp.log(self.scale) - 0.5 * math.log(2 * math.pi)

    def kl(self, other: "Normal") -> Array:
        """KL(self || other) of every element, nats, exact."""
        ratio = self.scale / other.scale
        distance = (self.mean - other.mean) / other.scale
        return 0.5 * (ratio**2 + distance**2 - 1) - jnp.log(ratio)


class Bernoulli(NamedTuple):
    """Independent Bernoulli variables given by their logits [batch, ...]."""

    logits: Array

    @property
    def mean(self) -> Array:
        """Probability of a 1."""
        return jax.nn.sigmoid(self.logits)

    def sample(self, keys: Array) -> Array:
        """One sample of zeros and ones for every example. `keys` is [batch]."""
        dtype = self.logits.dtype
        return jax.vmap(jax.random.bernoulli)(keys, self.mean).astype(dtype)

    def log_prob(self, value: Array) -> Array:
        """y log p + (1 - y) log(1 - p) of every element, nats.

        A value strictly between 0 and 1 gives the cross-entropy with that probability, which is how grey
        images are scored in the literature; it is not a density over grey values.
        """
        return value * self.logits - jax.nn.softplus(self.logits)

    def floor(self, value: Array) -> Array:
        """Returns the least -log_prob(value) that any logits give, nats: the entropy of values between 0 and 1."""
        return entr(value) + entr(1 - value)


class Categorical(NamedTuple):
    """One of several classes, given by unnormalised log probabilities [batch, ..., classes]."""

    logits: Array

    @property
    def mean(self) -> Array:
        """Probability of every class, [batch, ..., classes]."""
        return jax.nn.softmax(self.logits)

    def sample(self, keys: Array) -> Array:
        """One class for every example, int32 [batch, ...]. `keys` is [batch].

        By the inverse of the cumulative probabilities: one random number an element, where the Gumbel trick takes one
        a class.
        """
        cumulative = jnp.cumsum(self.mean, -1)
        shape, dtype = cumulative.shape[1:-1], cumulative.dtype
        uniform = jax.vmap(lambda key: jax.random.uniform(key, shape, dtype))(keys)[..., None]
        # Of all but the last, which stands where rounding leaves the sum below 1.
        return (uniform >= cumulative[..., :-1]).sum(-1, dtype=jnp.int32)

    def log_prob(self, value: Array) -> Array:
        """Log probability of the classes `value`, int32 [batch, ...], nats."""
        log_probabilities = jax.nn.log_softmax(self.logits)
        return jnp.take_along_axis(log_probabilities, value[..., None], -1)[..., 0]


MAX_LOG_SCALE = 7.0  # standard deviations within [e^-7, e^7], so no KL can overflow float32


def bounded_normal(mean: Array, log_scale: Array) -> Normal:
    """A Normal from a network's outputs, its log standard deviation bounded smoothly to ±MAX_LOG_SCALE."""
    return Normal(mean, jnp.exp(MAX_LOG_SCALE * jnp.tanh(log_scale / MAX_LOG_SCALE)))


def standard_normal(shape: tuple[int, ...]) -> Normal:
    """Returns N(0, I) of that shape, [..., batch, latent]."""
    return Normal(jnp.zeros(shape), jnp.ones(shape))


class Joint(NamedTuple):
    """A y of several heads that are independent given z: name -> the distribution of that head."""

    heads: dict[str, Any]

    @property
    def mean(self) -> dict[str, Array]:
        """Every head's mean."""
        return {name: head.mean for name, head in self.heads.items()}

    def sample(self, keys: Array) -> dict[str, Array]:
        """One sample of every head for every example. `keys` is [batch]."""
        apart = jax.vmap(lambda key: jax.random.split(key, len(self.heads)), out_axes=1)(keys)
        named = zip(sorted(self.heads.items()), apart, strict=True)
        return {name: head.sample(head_keys) for (name, head), head_keys in named}

    def log_prob(self, value: dict[str, Array]) -> dict[str, Array]:
        """Log probability of every element of every head, nats."""
        return {name: head.log_prob(value[name]) for name, head in self.heads.items()}


def sum_per_example(elements: Array, num_factors: int = 0) -> Array:
    """Sums all axes but the first, and those of factors after it: [batch, *factors, ...] -> [batch, *factors]."""
    return elements.sum(tuple(range(1 + num_factors, elements.ndim)))


def log_likelihood(p_y: Any, y: Any, weight: Any, num_factors: int = 0) -> Array | None:
    """Returns log p(y|x,z) [batch, *factors], its elements weighted; None without y.

    Args:
      p_y: the likelihood; the log probabilities of a `Joint`'s heads are added.
      y: values, a dict for a `Joint`; None: not known.
      weight: like y, broadcastable; None: all elements count.
      num_factors: axes behind the batch's that are kept.
    """
    if y is None:
        return None
    elements = p_y.log_prob(y)
    if weight is not None:
        elements = jax.tree.map(lambda elements, weight: elements * weight, elements, weight)
    return jnp.asarray(sum(sum_per_example(leaf, num_factors) for leaf in jax.tree.leaves(elements)))


def floor(p_y: Any, y: Any, weight: Any) -> Array:
    """Returns what no -log p(y|x,z) by such a likelihood falls below, because y is probabilities: [batch], nats.

    0 of likelihoods other than the Bernoulli's, and of values 0 and 1. Arguments are those of `log_likelihood`.
    """
    heads = p_y.heads if isinstance(p_y, Joint) else {"": p_y}
    values, weights = (tree if isinstance(p_y, Joint) and tree is not None else {"": tree} for tree in (y, weight))
    total = jnp.zeros(len(jax.tree.leaves(y)[0]))
    for name, head in heads.items():
        if isinstance(head, Bernoulli):
            elements, beside = head.floor(values[name]), weights.get(name)
            total += sum_per_example(elements if beside is None else elements * beside)
    return total


class Latent(NamedTuple):
    """A latent layer's z and its KL(q || p), [batch, *factors, ...], with its densities [batch, *factors], nats."""

    z: Array
    log_p_z: Array
    log_q_z: Array
    kl: Array


def draw_latent(
    prior: Normal,
    posterior: Normal | None,
    keys: Array,
    proposal: Proposal,
    z: Array | None = None,
    num_factors: int = 0,
    live: Array | None = None,
) -> Latent:
    """Draws, or takes, the z of one latent layer and scores it under prior and posterior.

    Args:
      prior: p(z|x), [batch, *factors, ...].
      posterior: q(z|x,y), or None where y is not known.
      keys: random keys [batch]; unused where nothing is drawn.
      proposal: where z comes from.
      z: [batch, *factors, ...], when the proposal is "given" or "given_by_prior".
      num_factors: how many axes of independent factors there are; each factor has a z of its own.
      live: 1 for factors that have a z, and 0 for padding, whose z is 0 with certainty; floats that broadcast against
        [batch, *factors]. None: all are.

    Raises:
      ValueError: for a proposal of the recognition network without a posterior, "given" without z, or an unknown one.
    """
    if proposal in ("recognition", "recognition_mean"):
        if posterior is None:
            raise ValueError("a draw from the recognition network needs y, and a model that has such a network")
        z = posterior.sample(keys) if proposal == "recognition" else posterior.mean
    elif proposal == "prior":
        z = prior.sample(keys)
    elif proposal == "prior_mean":
        z = prior.mean
    elif proposal not in ("given", "given_by_prior"):
        raise ValueError(f"unknown proposal {proposal!r}; choose from {', '.join(get_args(Proposal))}")
    if z is None:
        raise ValueError(f"the proposal {proposal!r} needs the z to score")
    if proposal == "given_by_prior":
        z = prior.mean + prior.scale * jax.lax.stop_gradient((z - prior.mean) / prior.scale)
    log_p_z = sum_per_example(prior.log_prob(z), num_factors)
    if posterior is None:
        layer = Latent(z, log_p_z, jnp.full_like(log_p_z, jnp.nan), jnp.full_like(z, jnp.nan))
    else:
        layer = Latent(z, log_p_z, sum_per_example(posterior.log_prob(z), num_factors), posterior.kl(prior))
    if live is None:
        return layer
    beside = live.reshape(live.shape + (1,) * (z.ndim - live.ndim))
    return Latent(layer.z * beside, layer.log_p_z * live, layer.log_q_z * live, layer.kl * beside)
