"""What benchmarks of training steps share: a config's compiled steps, contenders in turn, and how they are told."""

import itertools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from timing import seconds

from cvae_jax import keys, parallel, tasks
from cvae_jax.model import Batch, PyTree, Train, Variables
from cvae_jax.training import epochs
from cvae_jax.training import loop as training

TOLERANCE = 1e-3  # relative, of the loss and of each parameter's gradient
BATCHES = 4  # that take turns
PAUSE = 0.2  # seconds between contenders: threads that wait for work keep cores busy for a while
EPOCHS = 1000  # more than are run, so that the schedule has room for its warm-up


class Trainer:
    """The compiled training steps of a config on these raw arrays, by bucket, as `training.fit` calls them."""

    def __init__(self, config: Any, arrays: dict[str, np.ndarray]):
        config.cvae.epochs = EPOCHS
        self.task = tasks.make_task(config)
        (self.stage,) = self.task.stages
        found = training.training_buckets(self.stage, self.task, {"train": arrays})
        counts, seeds = [len(bucket.index) for bucket in found], np.array([config.seed], np.int32)
        batch_size, mesh = self.stage.settings.batch_size, parallel.make_mesh()
        training.check_settings(self.stage, counts)
        functions = training.make_functions(self.stage, self.task, mesh, counts)
        self.place = parallel.replicated(mesh)
        self.buckets = jax.device_put(found, self.place)
        self.rows = [epochs.batches(seeds, 0, count, batch_size, place) for place, count in enumerate(counts)]
        self.state = functions.init(jax.device_put(seeds, self.place))
        self.compiled = [
            functions.train_steps.lower(self.state, {}, jax.device_put(rows[:, :1], self.place), bucket).compile()
            for rows, bucket in zip(self.rows, self.buckets, strict=True)
        ]

    def variables(self) -> Variables:
        """Of the one seed; a copy, because training gives its state's memory away."""
        return jax.tree.map(lambda leaf: leaf[0], self.state.variables)

    def batch(self, number: int) -> Batch:
        """A batch of the first bucket's rows, as a step makes it."""
        index = self.rows[0][0, number]
        raw = {name: array[index] for name, array in self.buckets[0].arrays.items()}
        examples = keys.per_example(jax.random.key(number), jnp.asarray(index))
        return jax.jit(self.task.batch, static_argnums=4)(raw, index, jnp.ones(len(index)), examples, True)

    def run(self, bucket: int, steps: int) -> None:
        """Steps one after the other; each one's terms are fetched while the next runs."""
        waiting = None
        for number in range(steps):
            rows = self.rows[bucket][:, [number % self.rows[bucket].shape[1]]]
            rows = jax.device_put(rows, self.place)
            self.state, terms = self.compiled[bucket](self.state, {}, rows, self.buckets[bucket])
            jax.device_get(waiting)
            waiting = terms
        jax.block_until_ready((self.state, waiting))

    def at_mean(
        self, variables: Variables, batch: Batch, mean: Callable[[Any], PyTree]
    ) -> tuple[jax.Array, dict[str, Any]]:
        """The loss of training, with z at the posterior's `mean` of what `encode` gives, and its gradient."""
        model = self.stage.model

        def draw(variables: Variables, encoding: Any, noise: Any, proposal: Any, z: Any = None, train: Any = None):
            return model.draw(variables, encoding, noise, "given", mean(encoding["networks"]), train)

        stage = self.stage._replace(model=model._replace(draw=draw))
        unused = keys.unused(batch.index)
        train = Train(unused, jnp.zeros((), jnp.int32))

        def loss(params: Any) -> jax.Array:
            return training.loss_fn(stage, {**variables, "params": params, "frozen": {}}, batch, unused, train)[0]

        return jax.jit(jax.value_and_grad(loss))(variables["params"])


def difference(first: np.ndarray, second: np.ndarray) -> float:
    """Of the second array from the first, relative to its norm."""
    apart = np.linalg.norm(first - second)
    return float(apart / np.linalg.norm(first)) if apart else 0.0


def rounds_of(contenders: list[Callable[[int], None]], rounds: int, steps: int) -> np.ndarray:
    """Milliseconds of a step, [rounds, contenders], which take turns."""
    taken = np.zeros((rounds, len(contenders)))
    for one in contenders:
        one(2)
    for row, column in itertools.product(range(rounds), range(len(contenders))):
        time.sleep(PAUSE)
        taken[row, column] = seconds(lambda one=contenders[column]: one(steps)) / steps * 1e3
    return taken


def spread(values: np.ndarray, form: str) -> str:
    """The median, with the least and the greatest."""
    return f"{np.median(values):{form}} ({values.min():{form}} - {values.max():{form}})"
