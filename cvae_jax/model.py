"""The contract between the models and everything that is written once for all of them.

A conditional deep generative model p(y|x) = ∫ p(y|x,z) p(z|x) dz is two pure functions: `encode`, all that
does not depend on z, and `draw`, one z for every example with its densities. Objectives, estimators,
inference, training and evaluation see nothing else of a model.
"""

import pathlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Protocol

import jax
import numpy as np
from jax import Array

from cvae_jax import keys

PyTree = Any
Variables = dict[str, PyTree]

# Where z comes from: q(z|x,y), p(z|x), the mean of p(z|x), or the caller, who wants it scored. "given_by_prior" is
# the caller's z too, but with the gradient it would have if the prior had drawn it: mean and scale of p(z|x) move it.
Proposal = Literal["recognition", "prior", "prior_mean", "given", "given_by_prior"]


class Batch(NamedTuple):
    """Examples as a model sees them; leaves begin with a batch axis."""

    x: PyTree  # all that is known when predicting
    y: PyTree  # one leaf per head of the likelihood; None when predicting
    weight: PyTree  # like y: multiplies the element-wise log p(y|x,z), so 0 masks an output
    # Array [batch] int32, position in the split, from which evaluation keys are folded. Any, because a named tuple's
    # own method of that name, which nobody calls on a batch, would contradict an array.
    index: Any
    # Array [batch] float32: how many y a row holds, by whose number means are divided. 1, more where the objective's
    # factors are several y of one x, and 0 for rows that only fill up the last batch.
    valid: Array


class Draw(NamedTuple):
    """One z for every example. Densities are in nats, [batch, *factors]."""

    z: PyTree  # leaves [batch, ...]; () for a model without latent variables
    log_p_y: Any  # Array, log p(y|x,z); None without y
    log_p_z: Array  # log p(z|x)
    log_q_z: Array  # log q(z|x,y), whatever z was drawn from; NaN without y, 0 without latent variables
    kl: PyTree  # KL(q || p), one entry per latent unit, [batch, *factors, units]; () without latent variables
    p_y: PyTree  # the likelihood p(y|x,z): mean, sample(keys), log_prob(y); a Joint where y has several heads
    updates: PyTree = ()  # in training, what replaces variables after the step, such as batch statistics; () otherwise


class Train(NamedTuple):
    """What only training knows; a model is given None instead when it is evaluated."""

    keys: Array  # [batch] random keys, for dropout and the like
    step: Array  # int32, the number of steps taken


class Encode(Protocol):
    """All that does not depend on z, computed once however many z follow."""

    def __call__(self, variables: Variables, batch: Batch, train: Train | None = None) -> PyTree: ...


class DrawFn(Protocol):
    """One z for every example: `keys` is [batch], and `z` is handed in when the proposal is "given" (by the prior)."""

    def __call__(
        self,
        variables: Variables,
        encoding: PyTree,
        keys: Array,
        proposal: Proposal,
        z: PyTree = None,
        train: Train | None = None,
    ) -> Draw: ...


class Model(NamedTuple):
    """A conditional generative model as pure functions.

    `variables` hold "params", perhaps "batch_stats", and under "frozen" the variables of earlier stages by their name.
    """

    init: Callable[[Array, Batch], Variables]
    encode: Encode
    draw: DrawFn
    # Whether p(y|x,z) is a product over parts of y, each given the true parts before it. Without y, predictions stand
    # for these: what is drawn then has another distribution than the one that is scored.
    autoregressive: bool = False


def has_latents(model: Model, variables: Variables, batch: Batch) -> bool:
    """Whether the model draws a z at all; without one its log p(y|x) is exact."""
    unused = keys.unused(batch.index)
    draw = jax.eval_shape(lambda v, b: model.draw(v, model.encode(v, b), unused, "prior"), variables, batch)
    return bool(jax.tree.leaves(draw.z))


class Stage(NamedTuple):
    """One training run; later stages see its best weights, frozen."""

    name: str
    model: Model
    objective: Callable[..., tuple[Array, dict[str, Array]]]  # see objectives.from_config
    settings: Any  # epochs, patience, batch_size, averaging, optimizer: see configs/


class How(NamedTuple):
    """How a trained model is measured."""

    exact: bool  # it draws no z, or was trained at the prior's mean: log p(y|x) is known
    has_recognition: bool  # its recognition network was trained, so that estimators may draw from it
    predicts_from: Proposal

    @property
    def estimator(self) -> str:
        """The estimator of log p(y|x) to use where one is to be chosen."""
        return "is" if self.has_recognition else "mc"


class Columns(NamedTuple):
    """A figure of rows of images: heading -> images [rows, height, width] in [0, 1], or one text a row."""

    columns: dict[str, np.ndarray]
    rows: tuple[str, ...] = ()  # a label left of each row
    title: str = ""  # what it shows


DrawPicture = Callable[[pathlib.Path, str], None]


class Measures(NamedTuple):
    """What a task measures of a trained model beside log p(y|x)."""

    # (model, variables, batch, how, key) -> name, with its unit -> a value for every example, [batch], or the numbers
    # [batch, numbers] that it contributes to a measure in `pooled`; filling rows at the end may be left out
    of_batch: Callable[[Model, Variables, Batch, How, Array], dict[str, np.ndarray]]
    known: dict[str, float]  # name -> the value of a perfect model, where that is known
    # Measures that are no means over examples, such as a correlation: name -> (sums over examples [..., numbers] ->
    # values [...])
    pooled: Mapping[str, Callable[[np.ndarray], np.ndarray]] = MappingProxyType({})
    # Measures of every step of a sequence, [batch, steps]: name -> what a step is, from 1 on. Tables have their mean.
    profiles: Mapping[str, str] = MappingProxyType({})
    # (batch) -> name of a baseline that is no model of ours -> what `of_batch` gives
    baselines: Callable[[Batch], dict[str, dict[str, np.ndarray]]] = lambda batch: {}


class Buckets(NamedTuple):
    """Examples of varying size in groups, each padded no further than to its own limit: see buckets.py."""

    limits: tuple[int, ...]  # sizes, ascending; the last holds every example
    size: Callable[[dict[str, np.ndarray]], np.ndarray]  # raw arrays -> the size of every example, int [n]
    cut: Callable[[dict[str, np.ndarray], int], dict[str, np.ndarray]]  # raw arrays, limit -> padded no further


class Task(NamedTuple):
    """A system: how raw arrays become batches, its models, what it measures and how it is shown."""

    column: str  # heading of its column in a table of results: "1 quadrant"
    protocol: str  # what y is, named beside every likelihood: "grey targets"
    raw: dict[str, Any]  # name -> jax.ShapeDtypeStruct of one raw example
    batch: Callable[[dict[str, Array], Array, Array, Array, bool], Batch]  # raw, index, valid, keys, train
    observe: Callable[..., Batch]  # a user's own x, and y or None
    stages: tuple[Stage, ...]
    panels: Callable[..., dict[str, np.ndarray]]  # (batch, stage name -> [samples, batch, ...]) -> heading -> images
    measures: Measures | None = None
    # (model, variables, batch, how, key) -> name -> figure: what is drawn once a model is trained, beside samples. Of
    # columns, or drawn by a function of the PNG's path and a title.
    pictures: Callable[[Model, Variables, Batch, How, Array], Mapping[str, Columns | DrawPicture]] = lambda *args: {}
    # (model, variables, batch, keys) -> name -> a value of every example, [batch]: what is followed on the validation
    # split while a model is trained, beside the terms of its loss
    followed: Callable[[Model, Variables, Batch, Array], dict[str, Array]] = lambda *args: {}
    check: Callable[[dict[str, np.ndarray]], None] = lambda arrays: None  # a split's raw arrays; raises a UserError
    buckets: Buckets | None = None  # of examples whose size varies; `raw` is then of the largest
