"""The one training loop: one step is written out, the rest are maps around it.

All that the next step depends on is in `State`, and all of `State` is in the checkpoint. Keys and data order
are functions of (seed, step) and (seed, epoch), so a run that was killed and started again is the run that
was never interrupted, bit for bit.
"""

import logging
import math
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import Mesh
from tqdm import tqdm

from cvae_jax import keys, objectives, parallel, schedules
from cvae_jax.data import Splits, buckets
from cvae_jax.data.buckets import Bucket
from cvae_jax.errors import UserError
from cvae_jax.model import Batch, Draw, PyTree, Stage, Task, Train, Variables
from cvae_jax.training import epochs, monitor
from cvae_jax.training.checkpoints import Checkpoints
from cvae_jax.training.log import Log

LOGGER = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 2.0  # of progress: short epochs do not tell each of theirs


class State(NamedTuple):
    """All that the next step depends on. In a checkpoint, and outside the functions of one seed, every leaf begins
    with the axis of the seeds.
    """

    seed: Array  # int32
    step: Array  # int32, steps taken
    variables: Variables
    opt_state: PyTree
    averaged: Variables  # exponential moving average of the variables
    best: Variables  # `averaged` at the epoch with the lowest validation loss: what the stage hands on
    best_loss: Array
    bad_epochs: Array  # int32, epochs since then; once that is `patience`, `best` stays as it is


class Functions(NamedTuple):
    """A stage's parts, jitted over the same mesh; all but buckets begin with the axis of the seeds."""

    init: Any  # (seeds [seeds]) -> state
    train_steps: Any  # (state, frozen, rows [seeds, steps, batch], bucket) -> state, terms [seeds, steps]
    close_epoch: Any  # (state, frozen, buckets) -> state, terms [seeds]


def training_buckets(stage: Stage, task: Task, splits: Splits) -> list[Bucket]:
    """The examples that a stage is trained on: every bucket has a batch of them, if there are as many at all."""
    return buckets.of_split(task, splits["train"], stage.settings.batch_size)


def check_settings(stage: Stage, counts: Sequence[int]) -> None:
    """Checks the values of a stage's settings before anything is written.

    Args:
      stage: whose settings.
      counts: training examples in every bucket.

    Raises:
      UserError: for the first that cannot be; names it and what it must be.
    """
    settings, optimizer, objective = stage.settings, stage.settings.optimizer, stage.settings.objective
    count, num_train = jax.device_count(), sum(counts)
    for key, value, fits, must in (
        ("epochs", settings.epochs, settings.epochs >= 1, "at least 1"),
        ("steps_per_call", settings.steps_per_call, settings.steps_per_call >= 1, "at least 1"),
        ("checkpoint_every", settings.checkpoint_every, settings.checkpoint_every >= 1, "at least 1"),
        ("patience", settings.patience, settings.patience >= 0, "at least 0"),
        ("log_every", settings.log_every, settings.log_every >= 0, "at least 0"),
        ("figure_every", settings.figure_every, settings.figure_every >= 0, "at least 0"),
        ("averaging", settings.averaging, 0 <= settings.averaging < 1, "at least 0 and below 1"),
        ("batch_size", settings.batch_size, 0 < settings.batch_size <= num_train, f"between 1 and {num_train}"),
        ("batch_size", settings.batch_size, settings.batch_size % count == 0, f"a multiple of the {count} devices"),
        ("optimizer.learning_rate", optimizer.learning_rate, 0 < optimizer.learning_rate < math.inf, "above 0"),
        ("optimizer.epsilon", optimizer.epsilon, 0 < optimizer.epsilon < math.inf, "above 0"),
        ("optimizer.warmup_steps", optimizer.warmup_steps, optimizer.warmup_steps >= 0, "at least 0"),
        ("optimizer.weight_decay", optimizer.weight_decay, 0 <= optimizer.weight_decay < math.inf, "at least 0"),
        ("optimizer.clip_norm", optimizer.clip_norm, optimizer.clip_norm >= 0, "at least 0"),
    ):
        if not fits:
            raise UserError(f"{stage.name}.{key}={value} must be {must}")
    num_steps = settings.epochs * epochs.num_steps(settings.batch_size, counts)
    if objective.annealing_steps > num_steps:
        raise UserError(
            f"{stage.name}.objective.annealing_steps={objective.annealing_steps} is longer than the run of "
            f"{num_steps} steps"
        )
    make_optimizer(stage, counts)


def make_optimizer(stage: Stage, counts: Sequence[int]) -> optax.GradientTransformation:
    """The stage's optimiser for a run over buckets of so many examples."""
    settings = stage.settings
    return schedules.optimizer(settings.optimizer, settings.epochs * epochs.num_steps(settings.batch_size, counts))


def init_state(stage: Stage, task: Task, optimizer: optax.GradientTransformation, seed: Array) -> State:
    """The state before the first step."""
    raw = {name: jnp.zeros((1, *one.shape), one.dtype) for name, one in task.raw.items()}
    index = jnp.zeros(1, jnp.int32)
    example = task.batch(raw, index, jnp.ones(1), keys.per_example(keys.stream(seed, "init"), index), True)
    variables = stage.model.init(keys.stream(seed, f"init/{stage.name}"), example)
    zero = jnp.zeros((), jnp.int32)
    opt_state = optimizer.init(variables["params"])
    return State(seed, zero, variables, opt_state, variables, variables, jnp.array(jnp.inf), zero)


def abstract_state(stage: Stage, task: Task, mesh: Mesh, num_seeds: int) -> State:
    """Shapes, dtypes and placement of a stage's State for so many seeds, for restoring one."""
    optimizer = schedules.optimizer(stage.settings.optimizer, stage.settings.optimizer.warmup_steps + 1)
    seeds = jax.ShapeDtypeStruct((num_seeds,), jnp.int32)
    shapes = jax.eval_shape(jax.vmap(lambda seed: init_state(stage, task, optimizer, seed)), seeds)
    place = parallel.replicated(mesh)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), shapes)


def loss_fn(
    stage: Stage, variables: Variables, batch: Batch, draw_keys: Array, train: Train | None
) -> tuple[Array, tuple[dict[str, Array], Variables]]:
    """The loss, nats, the objective's terms and the updates of variables.

    Loss and terms are sums over the valid examples of the batch, divided by the number of y that these hold; a term
    that is one number for all, such as the KL's weight, stays as it is.
    """
    encoding = stage.model.encode(variables, batch, train)
    samples = keys.per_sample(draw_keys, jnp.arange(stage.settings.objective.num_samples))
    draws = objectives.draws_of(stage.model, variables, encoding, samples, train)
    updates: list[PyTree] = []

    def draw(*args: Any, **options: Any) -> Draw:
        drawn = draws(*args, **options)
        updates.append(jax.tree.map(lambda leaf: leaf.mean(0), drawn.updates))
        return drawn

    objective, terms = stage.objective(draw, None if train is None else train.step)
    holds, total = jnp.sign(batch.valid), jnp.maximum(batch.valid.sum(), 1)
    terms = {"loss": -objective, **terms}
    means = {name: (holds * term).sum() / total if term.ndim else term for name, term in terms.items()}
    return means["loss"], (means, dict(updates[0]))


def make_functions(stage: Stage, task: Task, mesh: Mesh, counts: Sequence[int], seeds_by: str = "map") -> Functions:
    """The stage's functions of State, jitted over the mesh. Written out is one seed; see parallel.over_seeds.

    Args:
      stage: what is trained.
      task: makes batches of the raw arrays.
      mesh: over which batches are spread.
      counts: training examples in every bucket.
      seeds_by: "map" or "vmap".
    """
    settings = stage.settings
    batch_size = settings.batch_size
    optimizer = make_optimizer(stage, counts)

    def take(bucket: Bucket, rows: Array, valid: Array, key: Array, train: bool) -> Batch:
        raw = parallel.spread(mesh, {name: array[rows] for name, array in bucket.arrays.items()})
        index = bucket.index[rows]
        return task.batch(raw, index, valid, keys.per_example(key, index), train)

    def step(state: State, frozen: Variables, bucket: Bucket, rows: Array) -> tuple[State, dict[str, Array]]:
        key = jax.random.fold_in(keys.stream(state.seed, f"train/{stage.name}"), state.step)
        data_key, draw_key, train_key = jax.random.split(key, 3)
        batch = take(bucket, rows, jnp.ones(batch_size), data_key, True)
        draw_keys = keys.per_example(draw_key, batch.index)
        train = Train(keys.per_example(train_key, batch.index), state.step)

        def loss(params: PyTree) -> tuple[Array, tuple[dict[str, Array], Variables]]:
            return loss_fn(stage, {**state.variables, "params": params, "frozen": frozen}, batch, draw_keys, train)

        grads, (terms, updated) = jax.grad(loss, has_aux=True)(state.variables["params"])
        updates, opt_state = optimizer.update(grads, state.opt_state, state.variables["params"])
        params = optax.apply_updates(state.variables["params"], updates)
        variables = {**state.variables, **updated, "params": params}
        # Young averages forget faster, so that they are not biased towards the initial weights.
        decay = jnp.minimum(settings.averaging, (1 + state.step) / (10 + state.step))
        averaged = optax.incremental_update(variables, state.averaged, 1 - decay)
        after = state._replace(step=state.step + 1, variables=variables, opt_state=opt_state, averaged=averaged)
        return after, terms

    def train_steps(own, bucket):
        state, frozen, batches = own
        return jax.lax.scan(lambda state, rows: step(state, frozen, bucket, rows), state, batches)

    def validate(variables: Variables, bucket: Bucket, data_key: Array, draw_key: Array) -> dict[str, Array]:
        """Sums of the terms over a bucket."""
        count = len(bucket.index)
        num_batches = -(-count // batch_size)
        batches = jnp.arange(num_batches * batch_size, dtype=jnp.int32).reshape(num_batches, batch_size)

        def one(rows):
            valid = (rows < count).astype(jnp.float32)
            batch = take(bucket, jnp.minimum(rows, count - 1), valid, data_key, False)
            draw_keys = keys.per_example(draw_key, batch.index)
            _, (means, _) = loss_fn(stage, variables, batch, draw_keys, None)
            followed = task.followed(stage.model, variables, batch, draw_keys)
            sums = {name: (valid * values).sum() for name, values in followed.items()}
            return sums | jax.tree.map(lambda mean: mean * valid.sum(), means)

        return jax.tree.map(lambda sums: sums.sum(), jax.lax.map(one, batches))

    def close_epoch(own, buckets):
        """Validates the averaged weights, keeps them when they are the best so far, and counts patience."""
        state, frozen = own
        data_key, draw_key = jax.random.split(keys.stream(state.seed, "valid"))  # the same noise each epoch
        variables = {**state.averaged, "frozen": frozen}

        sums = [validate(variables, bucket, data_key, draw_key) for bucket in buckets]
        num_valid = sum(len(bucket.index) for bucket in buckets)
        terms = jax.tree.map(lambda *of_buckets: sum(of_buckets) / num_valid, *sums)
        open_ = _open(settings, state.bad_epochs)
        better = open_ & (terms["loss"] < state.best_loss)
        best = jax.tree.map(lambda new, old: jnp.where(better, new, old), state.averaged, state.best)
        # Patience begins when the KL's full weight is on: until then validation, which has it, may well get worse.
        counts = open_ & (state.step >= settings.objective.annealing_steps)
        bad_epochs = jnp.where(better, 0, jnp.where(counts, state.bad_epochs + 1, state.bad_epochs))
        best_loss = jnp.where(better, terms["loss"], state.best_loss)
        return state._replace(best=best, best_loss=best_loss, bad_epochs=bad_epochs), terms

    of_init = parallel.over_seeds(lambda seed, nothing: init_state(stage, task, optimizer, seed), seeds_by)
    of_steps, of_epoch = (parallel.over_seeds(function, seeds_by) for function in (train_steps, close_epoch))
    return Functions(
        parallel.jit(lambda seeds: of_init(seeds, ()), mesh),
        parallel.jit(
            lambda state, frozen, rows, bucket: of_steps((state, frozen, rows), bucket), mesh, donate_argnums=0
        ),
        parallel.jit(lambda state, frozen, buckets: of_epoch((state, frozen), buckets), mesh, donate_argnums=0),
    )


def _open(settings: Any, bad_epochs: Any) -> Any:
    """Whether a seed may still find better weights: the loss has improved within `patience` epochs (0: always)."""
    return (settings.patience == 0) | (bad_epochs < max(settings.patience, 1))


def finished(settings: Any, num_epochs: int, bad_epochs: Any) -> bool:
    """Whether all epochs are done, or no seed's validation loss has improved for `patience` epochs (0: never stop)."""
    return num_epochs >= settings.epochs or not np.any(_open(settings, np.asarray(bad_epochs)))


def compile_stage(
    stage: Stage,
    functions: Functions,
    state: State,
    frozen: Variables,
    train: list[Bucket],
    valid: list[Bucket],
    calls: list[tuple[int, np.ndarray]],
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Compiles ahead of time, so that it is told and not hidden in the first epoch's speed.

    Returns:
      (state, frozen, number of the bucket, rows) -> what train_steps returns, for the lengths of `calls`; close_epoch.
    """
    began = time.perf_counter()
    place, num_seeds = state.step.sharding, len(state.step)
    compiled = {}
    for bucket, length in sorted({(bucket, len(call)) for bucket, call in calls}):
        shape = (num_seeds, length, stage.settings.batch_size)
        rows = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=place)
        compiled[bucket, length] = functions.train_steps.lower(state, frozen, rows, train[bucket]).compile()
    close_epoch = functions.close_epoch.lower(state, frozen, valid).compile()
    num_params = sum(leaf.size for leaf in jax.tree.leaves(state.variables["params"])) // num_seeds
    devices = f"{jax.device_count()} {jax.default_backend()} device{'s' * (jax.device_count() > 1)}"
    times = f"{num_seeds} x " * (num_seeds > 1)
    seconds = time.perf_counter() - began
    LOGGER.info("%s: %s%s parameters on %s, compiled in %.1f s", stage.name, times, f"{num_params:,}", devices, seconds)
    return (
        lambda state, frozen, bucket, rows: compiled[bucket, rows.shape[1]](state, frozen, rows, train[bucket]),
        close_epoch,
    )


def fit(
    stage: Stage,
    frozen: Variables,
    task: Task,
    splits: Splits,
    seeds: np.ndarray,
    seeds_by: str,
    workdir: pathlib.Path,
    after_epoch: Callable[[int, State], None],
) -> State:
    """Trains a stage from its newest checkpoint, or from the start, until it is finished.

    Args:
      stage: the model, its objective and its settings.
      frozen: best variables of earlier stages by name, leaves [seeds, ...].
      task: makes batches of the raw arrays.
      splits: raw arrays; "train" and "valid" are read.
      seeds: int32 [seeds], each that of every random number of one independent model.
      seeds_by: "map" or "vmap", see parallel.over_seeds.
      workdir: receives checkpoints/<stage>/, metrics.jsonl and tensorboard/<stage>/.
      after_epoch: called with the number of epochs done and the state, before the checkpoint.

    Raises:
      DivergenceError: when a term of the loss is not finite; names it, the step and the last checkpoint.
    """
    settings, batch_size = stage.settings, stage.settings.batch_size
    mesh = parallel.make_mesh()
    place = parallel.replicated(mesh)
    train, valid = training_buckets(stage, task, splits), buckets.of_split(task, splits["valid"])
    counts = [len(bucket.index) for bucket in train]
    per_epoch = epochs.num_steps(batch_size, counts)
    functions = make_functions(stage, task, mesh, counts, seeds_by)

    # The state: restored, or new.
    checkpoints = Checkpoints(workdir / "checkpoints" / stage.name)
    state = checkpoints.restore_newest(abstract_state(stage, task, mesh, len(seeds)))
    if state is None:
        state = functions.init(jax.device_put(seeds, place))
    step = int(state.step[0])
    if step:
        LOGGER.info("%s: going on from step %d", stage.name, step)
    if finished(settings, step // per_epoch, state.bad_epochs):
        return state

    # The data live on the device; an epoch is a few compiled calls of many steps each.
    train, valid, frozen = jax.device_put((train, valid, frozen), place)
    calls = epochs.calls(settings, counts, 0)
    train_steps, close_epoch = compile_stage(stage, functions, state, frozen, train, valid, calls)

    log = Log(workdir, stage.name, step, by_seed=len(seeds) > 1)
    total = settings.epochs * per_epoch * batch_size * len(seeds)
    done = step * batch_size * len(seeds)
    # disable=None: shown on a terminal only.
    bar = tqdm(total=total, initial=done, unit="ex", unit_scale=True, desc=stage.name, disable=None)
    told = -math.inf
    collapsed = 0

    def receive(terms: dict[str, Array], first_step: int, open_: np.ndarray) -> dict[str, np.ndarray]:
        """Fetches a call's terms of the seeds that still learn, [open seeds, steps], and checks them."""
        values = {name: np.asarray(value)[open_] for name, value in jax.device_get(terms).items()}
        monitor.check_finite(stage, first_step, values, seeds[open_], checkpoints)
        first_seed = int(seeds[open_][0]) if len(seeds) > 1 else None
        for line in monitor.describe_batches(stage, first_step, per_epoch, values, first_seed):
            bar.write(line)
        bar.set_postfix({name: f"{value[:, -1].mean():.2f}" for name, value in values.items()})
        return values

    try:
        while not finished(settings, step // per_epoch, state.bad_epochs):
            began = time.perf_counter()
            open_ = np.broadcast_to(_open(settings, np.asarray(state.bad_epochs)), seeds.shape)
            epoch = step // per_epoch
            rows = [epochs.batches(seeds, epoch, count, batch_size, number) for number, count in enumerate(counts)]
            received: list[dict[str, np.ndarray]] = []
            running: list[tuple[dict[str, Array], int]] = []
            for bucket, call in epochs.calls(settings, counts, epoch):
                state, terms = train_steps(state, frozen, bucket, jax.device_put(rows[bucket][:, call], place))
                running.append((terms, step))
                if len(running) > 1:
                    received.append(receive(*running.pop(0), open_))  # the call before, while this one runs
                step += len(call)
                bar.update(len(call) * batch_size * len(seeds))
            received.append(receive(*running.pop(), open_))
            rate = per_epoch * batch_size * len(seeds) / (time.perf_counter() - began)

            state, terms = close_epoch(state, frozen, valid)
            values = {f"valid/{name}": np.asarray(value)[open_] for name, value in jax.device_get(terms).items()}
            of_one_step = {name: value[:, None] for name, value in values.items()}
            monitor.check_finite(stage, step, of_one_step, seeds[open_], checkpoints)
            values["best_loss"] = np.asarray(state.best_loss)[open_]
            for name in received[0]:
                values[f"train/{name}"] = np.concatenate([part[name] for part in received], 1).mean(1)
            epoch += 1
            for number, seed in enumerate(seeds[open_]):
                of_seed = {name: float(value[number]) for name, value in sorted(values.items())}
                log.write(step, {"seed": int(seed), "epoch": epoch, **of_seed}, {"examples_per_second": rate})

            last = finished(settings, epoch, state.bad_epochs)
            if last or time.perf_counter() - told > SECONDS_BETWEEN_LINES:
                told = time.perf_counter()
                minutes = (settings.epochs - epoch) * (told - began) / 60
                line = monitor.describe(stage, epoch, values)
                bar.write(f"{line}; {rate:,.0f} examples/s, at most {minutes:.1f} min left")
            collapsed = monitor.warn_of_collapse(stage, step, values, seeds[open_], collapsed, last)
            after_epoch(epoch, state)
            if last or epoch % settings.checkpoint_every == 0:
                checkpoints.save(step, state)
    finally:
        bar.close()
        log.close()
        checkpoints.close()
    return state
