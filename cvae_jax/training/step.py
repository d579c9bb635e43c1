"""A gradient step, and the end of an epoch, of one seed; `compiled` maps them over steps, seeds and devices.

All that the next step depends on is in `State`, and all of `State` is in the checkpoint. Keys are functions of (seed,
step), so a run that was killed and started again is the run that was never interrupted, bit for bit.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh
from ml_collections import ConfigDict

from cvae_jax import keys, objectives, parallel, schedules
from cvae_jax.data import batches
from cvae_jax.data.buckets import Bucket
from cvae_jax.errors import UserError
from cvae_jax.task import Batch, Draw, Fitted, PyTree, Stage, Task, Train, Variables
from cvae_jax.training import epochs


class State(NamedTuple):
    """All that the next step depends on.

    In a checkpoint, and outside the functions of one seed, every leaf begins with the axis of the seeds.
    """

    seed: Array  # int32
    step: Array  # int32, steps taken
    variables: Variables
    opt_state: PyTree
    averaged: Variables  # exponential moving average of the variables
    best: Variables  # `averaged` at the epoch with the lowest score: what the stage hands on
    best_score: Array  # of validation, see `score`
    bad_epochs: Array  # int32, epochs since then; once that is `patience`, `best` stays as it is


class Run(NamedTuple):
    """Everything that stays the same while a stage is trained."""

    stage: Stage
    task: Task
    optimizer: optax.GradientTransformation
    mesh: Mesh  # over which batches are spread
    seeds_by: str  # "map" or "vmap", see parallel.over_seeds


class Functions(NamedTuple):
    """A stage's functions of many seeds, jitted over the mesh; all but buckets begin with the axis of the seeds."""

    init: Any  # (seeds [seeds], earlier) -> state
    train_steps: Any  # (state, earlier, rows [seeds, steps, batch], bucket) -> state, terms [seeds, steps]
    close_epoch: Any  # (state, earlier, buckets) -> state, terms [seeds]


def make_optimizer(stage: Stage, counts: Sequence[int]) -> optax.GradientTransformation:
    """Makes the stage's optimiser for a run over buckets of so many examples."""
    settings = stage.settings
    return schedules.optimizer(settings.optimizer, settings.epochs * epochs.num_steps(settings.batch_size, counts))


def init_state(
    stage: Stage, task: Task, optimizer: optax.GradientTransformation, seed: Array, earlier: Variables
) -> State:
    """Makes the state before the first step.

    Args:
      stage: that is trained.
      task: makes the batch from which shapes are taken.
      optimizer: of the stage.
      seed: int32.
      earlier: best variables of earlier stages by name.
    """
    variables = stage.model.init(keys.stream(seed, f"init/{stage.name}"), batches.example(task, seed), earlier)
    zero = jnp.zeros((), jnp.int32)
    opt_state = optimizer.init(variables["params"])
    return State(seed, zero, variables, opt_state, variables, variables, jnp.array(jnp.inf), zero)


def check_start(own: Variables, given: Variables, name: str) -> None:
    """Raises a UserError where variables to start from are those of another model; names the first that differs.

    Args:
      own: of the model, leaves [seeds, ...]; of these, shapes and dtypes alone are read.
      given: to start from, leaves [seeds, ...].
      name: of where they come from, for the message.
    """
    shapes = [
        {jax.tree_util.keystr(path, simple=True, separator="/"): (leaf.shape[1:], leaf.dtype) for path, leaf in leaves}
        for leaves in map(jax.tree_util.tree_leaves_with_path, (given, own))
    ]
    for leaf in {**shapes[0], **shapes[1]}:
        there, now = (str(list(tree[leaf][0])) if leaf in tree else "missing" for tree in shapes)
        if shapes[0].get(leaf) != shapes[1].get(leaf):
            raise UserError(f"{name} is of another model: {leaf} is {there} there, {now} now; make the settings equal")


def started_from(state: State, variables: Variables) -> State:
    """Returns a state before the first step with other variables of the same model, leaves [seeds, ...]."""
    averaged, best = (jax.tree.map(jnp.copy, variables) for _ in range(2))  # each is donated to the first step
    return state._replace(variables=variables, averaged=averaged, best=best)


def fitted(stage: Stage, task: Task, variables: Variables) -> Fitted:
    """Returns a trained stage's model, see `objectives.fitted`; variables of earlier stages are under "frozen"."""
    # As in training, which fits the data at hand: of a user's own videos, more may be asked for.
    return objectives.fitted(stage, variables, jax.eval_shape(lambda: batches.example(task)))


def abstract_state(stage: Stage, task: Task, num_seeds: int, earlier: Variables) -> State:
    """Returns shapes, dtypes and placement of a stage's State on all devices, for restoring one.

    Args:
      stage: that was trained.
      task: of the stage.
      num_seeds: how many independent models there are.
      earlier: `best` of earlier stages' abstract states by name.
    """
    any_number = stage.settings.optimizer.warmup_steps + 1  # of steps: the shapes are the same
    optimizer = schedules.optimizer(stage.settings.optimizer, any_number)
    seeds = jax.ShapeDtypeStruct((num_seeds,), jnp.int32)
    init = jax.vmap(lambda seed, earlier: init_state(stage, task, optimizer, seed, earlier))
    shapes = jax.eval_shape(init, seeds, earlier)
    place = parallel.replicated(parallel.make_mesh())
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), shapes)


def make_batch(run: Run, bucket: Bucket, rows: Array, num_targets: Array, key: Array, step: Array | None) -> Batch:
    """Makes a batch of rows of a bucket, spread over the mesh.

    Args:
      run: whose task and mesh.
      bucket: of examples, on the device.
      rows: int32 [batch], of the bucket.
      num_targets: float32 [batch], 1, or 0 for padding rows; a row that holds several y raises it.
      key: of all that is drawn.
      step: how many steps were taken; None when validating.
    """
    raw = parallel.spread(run.mesh, {name: array[rows] for name, array in bucket.arrays.items()})
    ids: Any = bucket.ids
    return batches.make(run.task, raw, ids[rows], num_targets, key, step)


def loss_fn(
    stage: Stage, variables: Variables, batch: Batch, draw_keys: Array, train: Train | None
) -> tuple[Array, tuple[dict[str, Array], Variables]]:
    """Returns what is minimised (loss and auxiliary losses, nats), the logged means, and new batch statistics.

    Loss and terms are sums over the examples of the batch that are no padding, divided by the number of y that these
    hold; a term that is one number for all, such as the KL's weight, stays as it is. Auxiliary losses stand among the
    terms under their own names, and are added to what is minimised.

    Args:
      stage: whose model and objective.
      variables: of the model.
      batch: of examples.
      draw_keys: [batch], of z.
      train: None when validating.
    """
    encoding = stage.model.encode(variables, batch, train)
    samples = keys.per_sample(draw_keys, jnp.arange(stage.settings.objective.num_samples))
    draws = objectives.draws_of(stage.model, (variables, encoding), samples, train)
    statistics: list[PyTree] = []

    def draw(*args: Any, **options: Any) -> Draw:
        drawn = draws(*args, **options)
        statistics.append(jax.tree.map(lambda leaf: leaf.mean(0), drawn.updates))
        return drawn

    objective, terms = stage.objective(draw, batch, None if train is None else train.step)
    added = {} if stage.auxiliary is None else stage.auxiliary(encoding, batch)
    if clash := {"loss", *terms} & set(added):
        raise ValueError(f"auxiliary losses need names of their own, not {', '.join(sorted(clash))}")
    holds, total = jnp.sign(batch.num_targets), jnp.maximum(batch.num_targets.sum(), 1)
    terms = {"loss": -objective, **terms, **added}
    means = {name: (holds * term).sum() / total if term.ndim else term for name, term in terms.items()}
    minimised = sum((means[name] for name in added), means["loss"])
    return minimised, (means, dict(statistics[0]))  # of the first draws: later ones see the same batch


def train_step(
    run: Run, state: State, earlier: Variables, bucket: Bucket, rows: Array
) -> tuple[State, dict[str, Array]]:
    """Takes one gradient step.

    Args:
      run: what is trained.
      state: before the step.
      earlier: best variables of earlier stages by name.
      bucket: of training examples, on the device.
      rows: int32 [batch], of the bucket.

    Returns:
      The state after the step, and the terms of the loss.
    """
    stage, settings = run.stage, run.stage.settings
    key = jax.random.fold_in(keys.stream(state.seed, f"train/{stage.name}"), state.step)
    data_key, draw_key, train_key = jax.random.split(key, 3)
    batch = make_batch(run, bucket, rows, jnp.ones(settings.batch_size), data_key, state.step)
    draw_keys = keys.per_example(draw_key, batch.ids)
    train = Train(keys.per_example(train_key, batch.ids), state.step)

    def minimised(params: PyTree) -> tuple[Array, tuple[dict[str, Array], Variables]]:
        return loss_fn(stage, {**state.variables, "params": params, "frozen": earlier}, batch, draw_keys, train)

    grads, (terms, updated) = jax.grad(minimised, has_aux=True)(state.variables["params"])
    updates, opt_state = run.optimizer.update(grads, state.opt_state, state.variables["params"])
    params = optax.apply_updates(state.variables["params"], updates)
    variables = {**state.variables, **updated, "params": params}
    # Young averages forget faster, so that they are not biased towards the initial weights.
    decay = jnp.minimum(settings.averaging, (1 + state.step) / (10 + state.step))
    averaged = optax.incremental_update(variables, state.averaged, 1 - decay)
    after = state._replace(step=state.step + 1, variables=variables, opt_state=opt_state, averaged=averaged)
    return after, terms


class Sums(NamedTuple):
    """Sums over validation examples."""

    terms: dict[str, Array]  # of the loss, per y
    metrics: dict[str, Array]  # of the task, where they are not NaN
    counts: dict[str, Array]  # how many examples these are


def validate(run: Run, variables: Variables, bucket: Bucket, data_key: Array, draw_key: Array) -> Sums:
    """Sums the terms of the loss and the task's validation metrics over a bucket.

    Args:
      run: what is trained.
      variables: of the model, those of earlier stages under "frozen".
      bucket: of validation examples, on the device.
      data_key: of what is drawn in batches.
      draw_key: of z.
    """
    batch_size, count = run.stage.settings.batch_size, len(bucket.ids)
    num_batches = -(-count // batch_size)
    all_rows = jnp.arange(num_batches * batch_size, dtype=jnp.int32).reshape(num_batches, batch_size)

    def validate_batch(rows: Array) -> Sums:
        live = (rows < count).astype(jnp.float32)
        batch = make_batch(run, bucket, jnp.minimum(rows, count - 1), live, data_key, None)
        draw_keys = keys.per_example(draw_key, batch.ids)
        _, (means, _) = loss_fn(run.stage, variables, batch, draw_keys, None)
        fitted = objectives.fitted(run.stage, variables, batch)
        metrics = run.task.validation_metrics(fitted, batch, draw_keys)
        there = {name: jnp.where(jnp.isnan(values), 0.0, live) for name, values in metrics.items()}
        sums = {name: jnp.where(there[name] > 0, values, 0.0).sum() for name, values in metrics.items()}
        counts = {name: values.sum() for name, values in there.items()}
        return Sums(jax.tree.map(lambda mean: mean * live.sum(), means), sums, counts)

    return jax.tree.map(lambda sums: sums.sum(), jax.lax.map(validate_batch, all_rows))


def score(settings: ConfigDict, terms: dict[str, Array]) -> Array:
    """Returns the number that is to be small: the loss, or a validation metric that `select` names with its sign.

    "+PSNR" keeps the weights with the largest PSNR, "-error" those with the smallest error.
    """
    if settings.select == "loss":
        return terms["loss"]
    value = terms[settings.select[1:]]
    return -value if settings.select[0] == "+" else value


def close_epoch(
    run: Run, state: State, earlier: Variables, buckets: Sequence[Bucket]
) -> tuple[State, dict[str, Array]]:
    """Validates the averaged weights, keeps them when they are the best so far, and counts patience.

    Args:
      run: what is trained.
      state: after the epoch's steps.
      earlier: best variables of earlier stages by name.
      buckets: of validation examples, on the device.

    Returns:
      The state, and the means of loss, terms and validation metrics.
    """
    settings = run.stage.settings
    data_key, draw_key = jax.random.split(keys.stream(state.seed, "valid"))  # the same noise each epoch
    variables = {**state.averaged, "frozen": earlier}
    by_bucket = [validate(run, variables, bucket, data_key, draw_key) for bucket in buckets]
    num_valid = sum(len(bucket.ids) for bucket in buckets)
    sums = jax.tree.map(lambda *leaves: sum(leaves), *by_bucket)
    terms = jax.tree.map(lambda total: total / num_valid, sums.terms)
    if clash := set(terms) & set(sums.metrics):
        raise ValueError(f"validation metrics need names of their own, not {', '.join(sorted(clash))}")
    terms |= {name: total / sums.counts[name] for name, total in sums.metrics.items()}  # NaN where no example has one
    improving = still_improving(settings, state.bad_epochs)
    now = score(settings, terms)
    better = improving & (now < state.best_score)
    best = jax.tree.map(lambda new, old: jnp.where(better, new, old), state.averaged, state.best)
    # Patience begins when the KL's full weight is on: until then validation, which has it, may well get worse.
    counts = improving & (state.step >= settings.objective.beta_steps)
    bad_epochs = jnp.where(better, 0, jnp.where(counts, state.bad_epochs + 1, state.bad_epochs))
    best_score = jnp.where(better, now, state.best_score)
    return state._replace(best=best, best_score=best_score, bad_epochs=bad_epochs), terms


def still_improving(settings: ConfigDict, bad_epochs: Any) -> Any:
    """Returns whether a seed may still find better weights: it has improved within `patience` epochs (0: always)."""
    return (settings.patience == 0) | (bad_epochs < max(settings.patience, 1))


def compiled(run: Run) -> Functions:
    """Returns a stage's functions of many seeds, jitted over the mesh; what is written out above is of one."""

    def init(own: tuple[Array, Variables], shared: tuple[()]) -> State:
        seed, earlier = own
        return init_state(run.stage, run.task, run.optimizer, seed, earlier)

    def train_steps(own: tuple[State, Variables, Array], bucket: Bucket) -> tuple[State, dict[str, Array]]:
        state, earlier, rows = own
        return jax.lax.scan(lambda state, rows: train_step(run, state, earlier, bucket, rows), state, rows)

    def close(own: tuple[State, Variables], buckets: Sequence[Bucket]) -> tuple[State, dict[str, Array]]:
        return close_epoch(run, *own, buckets)

    all_init = parallel.over_seeds(init, run.seeds_by)
    all_steps = parallel.over_seeds(train_steps, run.seeds_by)
    all_close = parallel.over_seeds(close, run.seeds_by)
    return Functions(
        parallel.jit(lambda seeds, earlier: all_init((seeds, earlier), ()), run.mesh),
        parallel.jit(
            lambda state, earlier, rows, bucket: all_steps((state, earlier, rows), bucket), run.mesh, donate_argnums=0
        ),
        parallel.jit(lambda state, earlier, buckets: all_close((state, earlier), buckets), run.mesh, donate_argnums=0),
    )
