"""The contract between models and everything that is written once for all of them.

A conditional deep generative model p(y|x) = ∫ p(y|x,z) p(z|x) dz is two pure functions. `encode` computes all that
does not depend on z; `draw` takes one z for every example and returns its densities. Objectives, estimators, training
and evaluation see nothing else of a model. The other half of the contract, a system with its data, is in `task.py`.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol

import jax
from jax import Array

from cvae_jax import keys

PyTree = Any
Variables = dict[str, PyTree]

# Where z comes from: q(z|x,y) or its mean, p(z|x) or its mean, or the caller, who wants it scored. "given_by_prior" is
# the caller's z too, but with the gradient it would have if the prior had drawn it: mean and scale of p(z|x) move it.
Proposal = Literal["recognition", "recognition_mean", "prior", "prior_mean", "given", "given_by_prior"]


class Batch(NamedTuple):
    """Examples as a model sees them; every leaf begins with the axis of the batch."""

    x: PyTree  # all that is known when predicting
    y: PyTree  # one leaf per head of the likelihood; None when predicting
    weight: PyTree  # like y: multiplies the element-wise log p(y|x,z), so that 0 masks an output; None: all count
    ids: Array  # int32 [batch], position in the split; the random keys of each example are folded from it
    num_targets: Array  # float32 [batch], how many y of this x the row holds: 1, more, or 0 for a padding row


class Draw(NamedTuple):
    """One z for every example. Densities are in nats, [batch, *factors]."""

    z: PyTree  # leaves [batch, ...]; () for a model without latent variables
    log_p_y: Any  # Array, log p(y|x,z), less `Model.log_units`; None without y
    log_p_z: Array  # log p(z|x)
    log_q_z: Array  # log q(z|x,y), whatever z was drawn from; NaN without y, 0 without latent variables
    kl: PyTree  # KL(q || p), one entry per latent dimension, [batch, *factors, ...]; () without latent variables
    p_y: PyTree  # the likelihood p(y|x,z): mean, sample(keys), log_prob(y); a Joint where y has several heads
    updates: PyTree = ()  # in training, what replaces variables after the step, such as batch statistics; () otherwise


class Train(NamedTuple):
    """Keys and step of a training step; a model is given None instead when it is evaluated."""

    keys: Array  # [batch] random keys, for dropout and other noise
    step: Array  # int32, the number of steps taken


class Encode(Protocol):
    """Computes all that does not depend on z, once however many z follow."""

    def __call__(self, variables: Variables, batch: Batch, train: Train | None = None) -> PyTree:
        """Returns the encoding."""


class DrawFn(Protocol):
    """Draws one z for every example; it is handed in when the proposal is "given" (by the prior)."""

    def __call__(
        self,
        variables: Variables,
        encoding: PyTree,
        keys: Array,
        proposal: Proposal,
        z: PyTree = None,
        train: Train | None = None,
    ) -> Draw:
        """Returns z and its densities; `keys` is [batch]."""


class Model(NamedTuple):
    """A conditional generative model as pure functions.

    `variables` hold "params", perhaps "batch_stats", and under "frozen" the variables of earlier stages by their name.
    """

    # (key, batch, best variables of earlier stages by name) -> variables: a stage may go on from their weights
    init: Callable[[Array, Batch, Variables], Variables]
    encode: Encode
    draw: DrawFn
    # How many axes of z and y, behind the batch's, are independent given x: densities keep them, estimators add them.
    num_factors: int = 0
    # Whether p(y|x,z) is a product over parts of y, each given the true parts before it. Without y, predictions stand
    # for these: what is drawn then has another distribution than the one that is scored.
    autoregressive: bool = False
    # (variables, encoding, y) -> the encoding with the posterior of that y: all else of it is kept. None: not to be had
    recognise: Callable[[Variables, PyTree, PyTree], PyTree] | None = None
    # (batch) -> [batch, *factors], nats: what log p(y|x,z) of a draw lacks, because y is in other units there than in
    # the data. Objectives and estimators add it; kept apart, it changes the rounding of nothing. None: it lacks nothing
    log_units: Callable[[Batch], Array] | None = None
    # (batch) -> the weight of its y. For a y that the model has drawn: `weight` of the batch is then that of another y,
    # and is to be read only where it does not depend on y. None: nowhere does it depend on y
    weight: Callable[[Batch], PyTree] | None = None


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["variables"],
    meta_fields=["model", "exact", "has_recognition", "predicts_from"],
)
@dataclasses.dataclass(frozen=True)
class Fitted:
    """A model with its variables, and how it may be measured. A pytree: `jax.jit` takes it as an argument.

    Attributes:
      model: the functions.
      variables: best variables, those of earlier stages under "frozen".
      exact: the model draws no z, or was trained at the prior's mean, so that log p(y|x) is known.
      has_recognition: its recognition network was trained, so that estimators may draw from it.
      predicts_from: where z comes from when it predicts, "prior" or "prior_mean".
    """

    model: Model
    variables: Variables
    exact: bool = False
    has_recognition: bool = True
    predicts_from: Proposal = "prior"

    @property
    def estimator(self) -> str:
        """The estimator of log p(y|x) to use where one is to be chosen."""
        return "is" if self.has_recognition else "mc"

    def encode(self, batch: Batch) -> PyTree:
        """Returns all that does not depend on z."""
        return self.model.encode(self.variables, batch)

    def draw(self, encoding: PyTree, keys: Array, proposal: Proposal, z: PyTree = None) -> Draw:
        """Returns one z for every example with its densities; `keys` is [batch]."""
        return self.model.draw(self.variables, encoding, keys, proposal, z)


def has_latents(fitted: Fitted, batch: Batch) -> bool:
    """Returns whether the model draws a z at all; without one its log p(y|x) is exact."""
    unused = keys.unused(batch.ids)
    draw = jax.eval_shape(lambda fitted, batch: fitted.draw(fitted.encode(batch), unused, "prior"), fitted, batch)
    return bool(jax.tree.leaves(draw.z))
