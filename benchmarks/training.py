"""A config's training steps as the package runs them, and whether another network computes the same."""

import functools
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.rounds import num_threads
from cvae_jax import data, keys, parallel, tasks
from cvae_jax.model import Batch, PyTree, Train, Variables
from cvae_jax.training import epochs, loop, step

TOLERANCE = 1e-3  # relative, of the loss and of each parameter's gradient
BATCHES = 4  # that take turns
EPOCHS = 1000  # more than are run, so that the schedule has room for its warm-up


class Trainer:
    """The compiled training steps of a config on these raw arrays, by bucket, as `loop.run_stage` calls them."""

    def __init__(self, config: Any, arrays: dict[str, np.ndarray]):
        config.cvae.epochs = EPOCHS
        splits = {"train": arrays}
        self.task = tasks.make_task(config, data.spec(splits))
        splits = data.check(splits, self.task, config.data.source)
        (self.stage,) = self.task.stages
        buckets, seeds = loop.training_buckets(self.stage, self.task, splits), np.array([config.seed], np.int32)
        counts, batch_size = [len(bucket.ids) for bucket in buckets], self.stage.settings.batch_size
        loop.check_settings(self.stage, self.task, counts)
        mesh = parallel.make_mesh()
        optimizer = step.make_optimizer(self.stage, counts)
        run = step.Run(self.stage, self.task, optimizer, mesh, config.seeds_by)
        functions, self.make_batch = step.compiled(run), jax.jit(functools.partial(step.make_batch, run))
        self.place = parallel.replicated(mesh)
        self.buckets = jax.device_put(buckets, self.place)
        self.rows = [epochs.batches(seeds, 0, count, batch_size, place) for place, count in enumerate(counts)]
        self.state = functions.init(jax.device_put(seeds, self.place), {})
        self.compiled = [
            functions.train_steps.lower(self.state, {}, jax.device_put(rows[:, :1], self.place), bucket).compile()
            for rows, bucket in zip(self.rows, self.buckets, strict=True)
        ]

    def variables(self) -> Variables:
        """Returns those of the one seed; a copy, because training gives its state's memory away."""
        return jax.tree.map(lambda leaf: leaf[0], self.state.variables)

    def batch(self, number: int) -> Batch:
        """Returns a batch of the first bucket's rows, as a step makes it."""
        rows = self.rows[0][0, number]
        return self.make_batch(self.buckets[0], rows, jnp.ones(len(rows)), jax.random.key(number), jnp.int32(0))

    def run(self, bucket: int, steps: int) -> None:
        """Takes steps one after the other; the terms of each are fetched while the next runs."""
        waiting = None
        for number in range(steps):
            rows = self.rows[bucket][:, [number % self.rows[bucket].shape[1]]]
            rows = jax.device_put(rows, self.place)
            self.state, terms = self.compiled[bucket](self.state, {}, rows, self.buckets[bucket])
            jax.device_get(waiting)
            waiting = terms
        jax.block_until_ready((self.state, waiting))

    def at_mean(self, variables: Variables, batch: Batch) -> tuple[jax.Array, PyTree]:
        """Returns the loss of training, with z at the posterior's mean, and its gradient by the parameters."""
        model = self.stage.model

        def draw(variables: Variables, encoding: Any, noise: Any, proposal: Any, z: Any = None, train: Any = None):
            return model.draw(variables, encoding, noise, "recognition_mean", None, train)

        stage = self.stage._replace(model=model._replace(draw=draw))
        unused = keys.unused(batch.ids)
        train = Train(unused, jnp.zeros((), jnp.int32))

        def loss(params: PyTree) -> jax.Array:
            return step.loss_fn(stage, {**variables, "params": params, "frozen": {}}, batch, unused, train)[0]

        return jax.jit(jax.value_and_grad(loss))(variables["params"])


def machine(arguments: Any) -> str:
    """Returns a line of what the numbers were measured on."""
    return (
        f"Threads: {num_threads()}. JAX {jax.__version__}, devices: {jax.device_count()} {jax.default_backend()}; "
        f"median (least - greatest) of {arguments.rounds} rounds of {arguments.steps} steps."
    )


class Ours(NamedTuple):
    """What our network is and says of a batch, with z at the posterior's mean; names are those of PyTorch's."""

    weights: dict[str, np.ndarray]
    loss: float
    gradient: dict[str, np.ndarray]  # by each of the weights

    @property
    def num_parameters(self) -> int:
        """How many numbers are trained."""
        return sum(weight.size for weight in self.weights.values())

    def describe(self) -> str:
        """Returns a sentence, for where there is nothing to compare with."""
        norm = np.sqrt(sum(np.square(gradient, dtype=np.float64).sum() for gradient in self.gradient.values()))
        return (
            f"Parameters: cvae_jax {self.num_parameters:,}. Loss of the first batch, z at its mean: {self.loss:.6g}; "
            f"norm of its gradient: {norm:.6g}."
        )


def load_weights(torch: Any, network: Any, weights: dict[str, np.ndarray], absent: str = "nothing") -> None:
    """Gives PyTorch's network our weights; exits where the names do not fit.

    Args:
      torch: the module.
      network: PyTorch's.
      weights: ours by its names.
      absent: the end of names of its parameters that ours has not; they become 0.
    """
    tensors = {name: torch.from_numpy(array) for name, array in weights.items()}
    missing, unknown = network.load_state_dict(tensors, strict=False)
    if unknown or not all("running" in n or "num_batches" in n or n.endswith(absent) for n in missing):
        sys.exit(f"error: PyTorch's network lacks {unknown}, and ours {missing}")
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith(absent):
                parameter.zero_()


def agreement(ours: Ours, network: Any, loss: float, absent: str = "nothing", note: str = "") -> str:
    """Returns a sentence that says by how much two networks differ; exits where they do not compute the same.

    Args:
      ours: our loss and gradient.
      network: PyTorch's, once its gradient is computed.
      loss: PyTorch's.
      absent: as in `load_weights`.
      note: stands behind the number of PyTorch's parameters.
    """
    parameters = {name: value for name, value in network.named_parameters() if not name.endswith(absent)}
    number = sum(parameter.numel() for parameter in parameters.values())
    of_loss = abs(loss / ours.loss - 1)
    of_gradient = max(difference(ours.gradient[name], value.grad.numpy()) for name, value in parameters.items())
    sentence = (
        f"Parameters: cvae_jax {ours.num_parameters:,}, PyTorch {number:,}{note}. Loss of the first batch with the "
        f"same weights, z at its mean:\ncvae_jax {ours.loss:.6g}, PyTorch {loss:.6g}, {of_loss:.1e} apart; "
        f"gradients at most {of_gradient:.1e} apart."
    )
    if number != ours.num_parameters or not max(of_loss, of_gradient) < TOLERANCE:
        sys.exit(f"{sentence}\nerror: the two do not compute the same within {TOLERANCE:g}")
    return sentence


def difference(first: np.ndarray, second: np.ndarray) -> float:
    """Returns how far the second array is from the first, relative to its norm."""
    apart = np.linalg.norm(first - second)
    return float(apart / np.linalg.norm(first)) if apart else 0.0
