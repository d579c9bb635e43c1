"""The one training loop: a stage from its newest checkpoint, or from the start, until it is finished.

Keys and data order are functions of (seed, step) and (seed, epoch), so a run that was killed and started again is the
run that was never interrupted, bit for bit. One step is written out in `step.py`.
"""

import contextlib
import logging
import math
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from ml_collections import ConfigDict
from tqdm import tqdm

from cvae_jax import objectives, parallel, schedules
from cvae_jax.data import batches, buckets
from cvae_jax.data.buckets import Bucket
from cvae_jax.errors import Interrupted, UserError
from cvae_jax.settings import COUNT, Choice, Real, Whole, check
from cvae_jax.task import Splits, Stage, Task, Variables
from cvae_jax.training import epochs, monitor, signals, step
from cvae_jax.training.checkpoints import Checkpoints
from cvae_jax.training.log import Log
from cvae_jax.training.step import Functions, Run, State, still_improving

LOGGER = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 2.0  # of progress: short epochs do not tell each of theirs


class Seeds(NamedTuple):
    """Independent models that are trained side by side."""

    numbers: np.ndarray  # int32 [seeds], each that of every random number of one model
    by: str  # "map" or "vmap", see parallel.over_seeds


def check_seeds(config: ConfigDict) -> None:
    """Raises a UserError for a run's `num_seeds`, `seed` or `seeds_by` that cannot be."""
    check(config, {"num_seeds": Whole(1, 10_000), "seeds_by": Choice(("map", "vmap"))})
    check(config, {"seed": Whole(0, COUNT - config.num_seeds)})


def fit_batch_size(stage: Stage, num_train: int) -> None:
    """Lowers a batch size beyond the number of training examples, in the stage's settings, and warns of it."""
    settings, most = stage.settings, num_train - num_train % jax.device_count()
    if settings.batch_size > num_train and most:
        message = "%s.batch_size=%d is more than the %d training examples: it is lowered to %d"
        LOGGER.warning(message, stage.section, settings.batch_size, num_train, most)
        settings.batch_size = most


def training_buckets(stage: Stage, task: Task, splits: Splits) -> list[Bucket]:
    """Groups a stage's training examples: every bucket has a batch of them, if there are as many at all."""
    return buckets.of_split(task, splits["train"], stage.settings.batch_size)


def check_stage(stage: Stage) -> None:
    """Raises a UserError for the first of a stage's settings that cannot be, whatever the data."""
    settings = stage.settings
    counted = {key: Whole(1) for key in ("epochs", "steps_per_call", "checkpoint_every", "batch_size")}
    free = {key: Whole() for key in ("patience", "log_every", "figure_every")}
    check(settings, {**counted, **free, "averaging": Real(0, 1, below=True)}, stage.section)
    schedules.check_optimizer(settings.optimizer, f"{stage.section}.optimizer")


def check_settings(stage: Stage, task: Task, counts: Sequence[int]) -> None:
    """Checks the values of a stage's settings before anything is written.

    Args:
      stage: whose settings.
      task: of the stage.
      counts: training examples in every bucket.

    Raises:
      UserError: for the first that cannot be; names it and what it must be.
    """
    check_stage(stage)
    settings, objective = stage.settings, stage.settings.objective
    count, num_train = jax.device_count(), sum(counts)
    if settings.batch_size > num_train:
        raise UserError(
            f"{stage.section}.batch_size={settings.batch_size} must be at most {num_train}, the training examples"
        )
    if settings.batch_size % count:
        raise UserError(f"{stage.section}.batch_size={settings.batch_size} must be a multiple of the {count} devices")
    num_steps = settings.epochs * epochs.num_steps(settings.batch_size, counts)
    if objective.beta_steps > num_steps:
        raise UserError(
            f"{stage.section}.objective.beta_steps={objective.beta_steps} is longer than the run of {num_steps} steps"
        )
    try:
        step.make_optimizer(stage, counts)
    except UserError as error:  # begins with "optimizer."
        raise UserError(f"{stage.section}.{error}") from None
    _check_select(stage, task)


def _check_select(stage: Stage, task: Task) -> None:
    """Raises a UserError where `select` is neither "loss" nor a validation metric of the task with its sign."""
    select = stage.settings.select
    if select == "loss":
        return

    def metrics(key: Array) -> dict[str, Array]:
        batch, earlier = batches.example(task), Variables()
        for trained in task.stages[: task.stages.index(stage)]:
            earlier[trained.name] = trained.model.init(key, batch, dict(earlier))
        variables = {**stage.model.init(key, batch, earlier), "frozen": earlier}
        return task.validation_metrics(objectives.fitted(stage, variables, batch), batch, key[None])

    known = list(jax.eval_shape(metrics, jax.random.key(0)))
    if select[:1] not in ("+", "-") or select[1:] not in known:
        choices = ", ".join(["loss", *(f"{sign}{name}" for name in known for sign in "+-")])
        raise UserError(f"{stage.section}.select={select!r} is not known; choose from {choices}")


def finished(settings: ConfigDict, num_epochs: int, bad_epochs: Any) -> bool:
    """Returns whether all epochs are done, or no seed has improved for `patience` epochs (0: never stop)."""
    return num_epochs >= settings.epochs or not np.any(still_improving(settings, np.asarray(bad_epochs)))


def best_of(settings: ConfigDict, best_score: np.ndarray) -> tuple[str, np.ndarray]:
    """Returns the name under which the best value is logged, such as "best_loss", and that value."""
    if settings.select == "loss":
        return "best_loss", best_score
    return f"best_{settings.select[1:]}", -best_score if settings.select[0] == "+" else best_score


def _early(settings: ConfigDict, epoch: int) -> str:
    """Returns why training stopped before its last epoch, or ""."""
    if epoch >= settings.epochs:
        return ""
    return f": stopped early, after epoch {epoch} of {settings.epochs}: no better for {settings.patience} (patience)"


class Compiled(NamedTuple):
    """A stage's programs, compiled ahead of time so that compiling is not hidden in the first epoch's speed."""

    train_steps: Callable[..., Any]  # (state, earlier, number of the bucket, rows) -> state, terms [seeds, steps]
    close_epoch: Callable[..., Any]  # (state, earlier, buckets) -> state, terms [seeds]


def compile_stage(
    run: Run,
    functions: Functions,
    state: State,
    earlier: Variables,
    train: list[Bucket],
    valid: list[Bucket],
) -> Compiled:
    """Compiles a stage's functions for the lengths of an epoch's calls.

    Args:
      run: what is trained.
      functions: of `step.compiled`.
      state: of many seeds.
      earlier: best variables of earlier stages by name.
      train: buckets of training examples, on the device.
      valid: the same for validation.
    """
    settings, place, num_seeds = run.stage.settings, state.step.sharding, len(state.step)
    num_params = sum(leaf.size for leaf in jax.tree.leaves(state.variables["params"])) // num_seeds
    devices = f"{jax.device_count()} {jax.default_backend()} device{'s' * (jax.device_count() > 1)}"
    LOGGER.info(
        "%s (%d of %d): %s%s parameters on %s, compiling ...",
        run.stage.name,
        run.task.stages.index(run.stage) + 1,
        len(run.task.stages),
        f"{num_seeds} x " * (num_seeds > 1),
        f"{num_params:,}",
        devices,
    )
    began = time.perf_counter()
    calls = epochs.calls(settings, [len(bucket.ids) for bucket in train], 0)
    programs = {}
    for bucket, length in sorted({(bucket, len(call)) for bucket, call in calls}):
        shape = (num_seeds, length, settings.batch_size)
        rows = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=place)
        programs[bucket, length] = functions.train_steps.lower(state, earlier, rows, train[bucket]).compile()
    close_epoch = functions.close_epoch.lower(state, earlier, valid).compile()
    LOGGER.info("%s: compiled in %.1f s", run.stage.name, time.perf_counter() - began)
    return Compiled(
        lambda state, earlier, bucket, rows: programs[bucket, rows.shape[1]](state, earlier, rows, train[bucket]),
        close_epoch,
    )


def run_stage(
    stage: Stage,
    task: Task,
    splits: Splits,
    earlier: Variables,
    seeds: Seeds,
    workdir: pathlib.Path,
    run_of: Mapping[str, Any],
    after_epoch: Callable[[int, State], None],
    start: Variables | None = None,
) -> State:
    """Trains a stage from its newest checkpoint, or from the start, until it is finished.

    Args:
      stage: the model, its objective and its settings.
      task: makes batches of the raw arrays.
      splits: raw arrays; "train" and "valid" are read.
      earlier: best variables of earlier stages by name, leaves [seeds, ...].
      seeds: of the independent models.
      workdir: receives checkpoints/<stage>/, metrics.jsonl and tensorboard/<stage>/.
      run_of: whose checkpoints these are, see `workdir.run_of`.
      after_epoch: called with the number of epochs done and the state, once its checkpoint is under way.
      start: the variables to start from, leaves [seeds, ...]; None: random ones.

    Raises:
      DivergenceError: when a term of the loss is not finite; names it, the step and the last checkpoint.
      Interrupted: when a signal asked to stop; the epoch under way is finished and saved.
    """
    settings, batch_size, numbers = stage.settings, stage.settings.batch_size, seeds.numbers
    mesh = parallel.make_mesh()
    place = parallel.replicated(mesh)
    train, valid = training_buckets(stage, task, splits), buckets.of_split(task, splits["valid"])
    counts = [len(bucket.ids) for bucket in train]
    per_epoch = epochs.num_steps(batch_size, counts)
    run = Run(stage, task, step.make_optimizer(stage, counts), mesh, seeds.by)
    functions = step.compiled(run)

    # The state: restored, or new.
    checkpoints = Checkpoints(workdir / "checkpoints" / stage.name, run_of)
    earlier = jax.device_put(earlier, place)
    state = checkpoints.restore_newest(step.abstract_state(stage, task, len(numbers), earlier))
    if state is None:
        state = functions.init(jax.device_put(numbers, place), earlier)
        if start is not None:
            state = step.started_from(state, jax.device_put(start, place))
    taken = int(state.step[0])
    if finished(settings, taken // per_epoch, state.bad_epochs):
        LOGGER.info("%s: already finished, at step %d%s", stage.name, taken, _early(settings, taken // per_epoch))
        return state
    if taken:
        LOGGER.info("%s: going on from step %d", stage.name, taken)

    # The data live on the device; an epoch is a few compiled calls of many steps each.
    train, valid = jax.device_put((train, valid), place)
    programs = compile_stage(run, functions, state, earlier, train, valid)

    log = Log(workdir, stage.name, taken, by_seed=len(numbers) > 1)
    total = settings.epochs * per_epoch * batch_size * len(numbers)
    done = taken * batch_size * len(numbers)
    # disable=None: shown on a terminal only.
    bar = tqdm(total=total, initial=done, unit="ex", unit_scale=True, desc=stage.name, disable=None)
    last_line = -math.inf
    collapsed = 0

    def receive(terms: dict[str, Array], first_step: int, improving: np.ndarray) -> dict[str, np.ndarray]:
        """Fetches a call's terms of the seeds that still learn, [seeds, steps], and checks them."""
        values = {name: np.asarray(value)[improving] for name, value in jax.device_get(terms).items()}
        monitor.check_finite(stage, first_step, values, numbers[improving], checkpoints)
        first_seed = int(numbers[improving][0]) if len(numbers) > 1 else None
        for line in monitor.describe_batches(stage, first_step, per_epoch, values, first_seed):
            bar.write(line)
        bar.set_postfix({name: f"{value[:, -1].mean():.2f}" for name, value in values.items()})
        return values

    with contextlib.ExitStack() as context:
        stop = context.enter_context(signals.deferred())
        for part in (checkpoints, log, bar):  # closed the other way round, each whatever the others raise
            context.callback(part.close)
        while not finished(settings, taken // per_epoch, state.bad_epochs):
            began = time.perf_counter()
            improving = np.broadcast_to(still_improving(settings, np.asarray(state.bad_epochs)), numbers.shape)
            epoch = taken // per_epoch
            rows = [epochs.batches(numbers, epoch, count, batch_size, number) for number, count in enumerate(counts)]
            received: list[dict[str, np.ndarray]] = []
            running: list[tuple[dict[str, Array], int]] = []
            for bucket, call in epochs.calls(settings, counts, epoch):
                call_rows = jax.device_put(rows[bucket][:, call], place)
                state, terms = programs.train_steps(state, earlier, bucket, call_rows)
                running.append((terms, taken))
                if len(running) > 1:
                    received.append(receive(*running.pop(0), improving))  # the call before, while this one runs
                taken += len(call)
                bar.update(len(call) * batch_size * len(numbers))
            received.append(receive(*running.pop(), improving))
            rate = per_epoch * batch_size * len(numbers) / (time.perf_counter() - began)

            state, terms = programs.close_epoch(state, earlier, valid)
            values = {f"valid/{name}": np.asarray(value)[improving] for name, value in jax.device_get(terms).items()}
            as_steps = {name: value[:, None] for name, value in values.items()}
            monitor.check_finite(stage, taken, as_steps, numbers[improving], checkpoints)
            best_name, best = best_of(settings, np.asarray(state.best_score))
            values[best_name] = best[improving]
            for name in received[0]:
                values[f"train/{name}"] = np.concatenate([part[name] for part in received], 1).mean(1)
            epoch += 1
            for number, seed in enumerate(numbers[improving]):
                row = {name: float(value[number]) for name, value in sorted(values.items())}
                log.write(taken, {"seed": int(seed), "epoch": epoch, **row}, {"examples_per_second": rate})

            last = finished(settings, epoch, state.bad_epochs)
            if last or time.perf_counter() - last_line > SECONDS_BETWEEN_LINES:
                last_line = time.perf_counter()
                minutes = (settings.epochs - epoch) * (last_line - began) / 60
                line = monitor.describe(stage, epoch, values, best_name)
                bar.write(f"{line}; {rate:,.0f} examples/s, at most {minutes:.1f} min left")
            collapsed = monitor.warn_of_collapse(stage, taken, values, numbers[improving], collapsed, last)
            if last and epoch < settings.epochs:
                LOGGER.info("%s: finished%s", stage.name, _early(settings, epoch))
            stopping = stop.signal
            if last or stopping or epoch % settings.checkpoint_every == 0:
                checkpoints.save(taken, state)
            after_epoch(epoch, state)  # while the checkpoint is written
            if stopping and not last:
                break
    if stop.signal:
        raise Interrupted(
            f"{stage.name}: stopped by {stop.signal.name} after epoch {taken // per_epoch}, which is saved; the same "
            "command goes on from there",
            128 + stop.signal,
        )
    return state
