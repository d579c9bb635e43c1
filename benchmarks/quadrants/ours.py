"""cvae_jax, through the functions that its own training loop and evaluation call."""

import itertools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.process import serve, settings
from benchmarks.quadrants import problem
from benchmarks.rounds import seconds
from configs import mnist_quadrants
from cvae_jax import data, inference, keys, parallel, tasks
from cvae_jax.data import batches, buckets
from cvae_jax.distributions import Bernoulli, Normal, sum_per_example
from cvae_jax.inference.draws import DRAWS_PER_CALL as DRAWS
from cvae_jax.inference.estimators import ESTIMATORS
from cvae_jax.training import epochs, loop, step


class Contender:
    """The CVAE of configs/mnist_quadrants.py:1 behind an untrained, frozen baseline."""

    def __init__(self, settings: dict[str, Any]):
        self.steps, self.matmul_sizes = settings["train_steps"], settings["matmul_sizes"]
        images = problem.load_images(settings["data_dir"])
        config = mnist_quadrants.get_config("1")
        config.cvae.batch_size = settings["batch_size"]
        self.seed = config.seed
        splits = {"train": {"image": images[: problem.NUM_TRAIN]}, "valid": {"image": images[problem.NUM_TRAIN :]}}
        self.task = tasks.make_task(config, data.spec(splits))
        splits = data.check(splits, self.task, config.data.source)
        baseline, self.stage = self.task.stages
        mesh = parallel.make_mesh()
        self.place = parallel.replicated(mesh)
        seeds = jax.device_put(np.array([self.seed], np.int32), self.place)
        of_baseline, functions = (
            step.compiled(
                step.Run(stage, self.task, step.make_optimizer(stage, [problem.NUM_TRAIN]), mesh, config.seeds_by)
            )
            for stage in (baseline, self.stage)
        )
        self.earlier = {"baseline": of_baseline.init(seeds, {}).best}
        self.state = functions.init(seeds, self.earlier)
        # Of the one seed; a copy, because training gives its state's memory away.
        variables = jax.tree.map(lambda leaf: leaf[0], {**self.state.best, "frozen": self.earlier})
        self.fitted = step.fitted(self.stage, self.task, variables)
        groups = (loop.training_buckets(self.stage, self.task, splits), buckets.of_split(self.task, splits["valid"]))
        (self.data,), self.valid = jax.device_put(groups, self.place)
        self.calls = np.array_split(
            np.arange(self.steps), max(1, round(self.steps / self.stage.settings.steps_per_call))
        )
        began = time.perf_counter()
        self.train_steps = {}
        for length in {len(call) for call in self.calls}:
            rows = jax.ShapeDtypeStruct((1, length, settings["batch_size"]), jnp.int32, sharding=self.place)
            lowered = functions.train_steps.lower(self.state, self.earlier, rows, self.data)
            self.train_steps[length] = lowered.compile()
        self.compile_train = time.perf_counter() - began
        self.close_epoch = functions.close_epoch.lower(self.state, self.earlier, self.valid).compile()
        self.compile_valid = time.perf_counter() - began - self.compile_train
        self.epoch = 0

        self.batch = batches.first(self.task, splits["valid"], settings["num_examples"])
        self.num_samples = settings["num_samples"]
        self.first = seconds(self._scores)

    def prepare(self) -> dict[str, Any]:
        """Returns what had to be compiled, and runs the training once so that memory is touched."""
        self.train(min(self.steps, 10))
        return {
            "versions": {"jax": jax.__version__, "jaxlib": jax.lib.__version__},
            "once": {
                f"compile `train_steps` ({len(self.train_steps)} lengths)": self.compile_train,
                "compile `close_epoch`": self.compile_valid,
                "first `inference.scores`, compilation included": self.first,
            },
        }

    def train(self, steps: int | None = None) -> dict[str, Any]:
        """Trains for one epoch, or its first steps, as `loop.run_stage` does; validation apart."""
        if steps is None:
            steps = self.steps
        batch_size = self.stage.settings.batch_size
        began = time.perf_counter()
        order = epochs.order(self.seed, self.epoch, problem.NUM_TRAIN)[: self.steps * batch_size]
        order = order.reshape(self.steps, batch_size)
        waiting, losses, done = None, [], 0
        for call in self.calls:
            rows = jax.device_put(order[None, call], self.place)
            self.state, terms = self.train_steps[len(call)](self.state, self.earlier, rows, self.data)
            if waiting is not None:
                losses.append(jax.device_get(waiting))
            waiting = terms
            done += len(call)
            if done >= steps:
                break
        losses.append(jax.device_get(waiting))
        jax.block_until_ready(self.state)
        took = time.perf_counter() - began
        self.epoch += 1
        return {"seconds": took, "steps": done, "loss": float(losses[-1]["loss"][0, -1])}

    def validate(self) -> dict[str, Any]:
        """Validates as at the end of an epoch, 5,000 images."""
        began = time.perf_counter()
        self.state, _ = self.close_epoch(self.state, self.earlier, self.valid)
        jax.block_until_ready(self.state)
        return {"seconds": time.perf_counter() - began}

    def _scores(self, draws_per_call: int = DRAWS) -> np.ndarray:
        kind, key = ESTIMATORS["is"], jax.random.key(1)
        return inference.scores(
            self.fitted, self.batch, kind.proposal, kind.score, self.num_samples, key, draws_per_call
        )

    def importance(self, draws_per_call: int = DRAWS, warm: bool = False) -> dict[str, Any]:
        """Estimates log p(y|x) by importance sampling; `warm` compiles for this many draws a call first."""
        if warm:
            self._scores(draws_per_call)
        values = []
        took = seconds(lambda: values.append(self._scores(draws_per_call)))
        estimate = ESTIMATORS["is"].summarise(values[0])
        return {"seconds": took, "draws": values[0].size, "log_prob": float(estimate.value.mean())}

    def matmul(self) -> dict[str, Any]:
        """Measures float32 matmul FLOP/s: large squares, and the generation network's shapes at one call's draws."""
        with jax.default_matmul_precision("highest"):
            rates = {f"{n} square": matmul_rate([(n, n, n)], 2) for n in self.matmul_sizes}
            shapes = generation_shapes(DRAWS)
            rates |= {f"{m}x{k} by {k}x{n}": matmul_rate([(m, k, n)], 20) for m, k, n in shapes}
            rates[f"generation network's three, {DRAWS} draws"] = matmul_rate(shapes, 20)
        return {"rates": rates, "peak": max(rates[f"{n} square"] for n in self.matmul_sizes)}

    def profile(self) -> dict[str, Any]:
        """Measures the parts of importance sampling, alone, each as often as in one `importance`."""
        with jax.default_matmul_precision("highest"):
            return {"parts": profile(self)}


def generation_shapes(draws: int) -> list[tuple[int, int, int]]:
    """Returns (rows, inner, columns) of the generation network's matmuls."""
    widths = (problem.LATENT, problem.HIDDEN, problem.HIDDEN, problem.PIXELS)
    return [(draws, k, n) for k, n in itertools.pairwise(widths)]


_MATMUL = jax.jit(jnp.matmul)


def matmul_rate(shapes: list[tuple[int, int, int]], repeats: int) -> float:
    """Returns the FLOP/s of the matmuls one after the other, the best of three."""
    normal = np.random.default_rng(0).standard_normal
    pairs = [(jnp.asarray(normal((m, k), np.float32)), jnp.asarray(normal((k, n), np.float32))) for m, k, n in shapes]

    def work() -> None:
        for _ in range(repeats):
            results = [_MATMUL(a, b) for a, b in pairs]
        jax.block_until_ready(results)

    work()
    flops = repeats * sum(2 * m * k * n for m, k, n in shapes)
    return flops / min(seconds(work) for _ in range(3))


def profile(ours: Contender) -> dict[str, float]:
    """Returns the seconds of every part in a jitted loop over the same starts, with the shapes of `draws._scores`.

    Results are summed over their last axis, which no compiler can leave half undone, and which costs what
    "reading the logits only" does at most.
    """
    batch = ours.batch
    count = len(batch.ids)
    size = min(ours.num_samples, max(1, DRAWS // count))
    starts = jnp.arange(0, ours.num_samples, size)
    fitted = ours.fitted
    encoding = jax.jit(lambda fitted, batch: fitted.encode(batch))(fitted, batch)
    example_keys = keys.per_example(jax.random.key(1), batch.ids)
    # Of the right shapes, whatever the model calls its own.
    noise = np.random.default_rng(0).standard_normal
    layers = [
        (jnp.asarray(0.05 * noise((k, n)), jnp.float32), jnp.zeros(n)) for _, k, n in generation_shapes(size * count)
    ]
    prior, posterior = (
        Normal(jnp.asarray(noise((count, problem.LATENT)), jnp.float32), jnp.full((count, problem.LATENT), scale))
        for scale in (1.0, 0.9)
    )
    y = batch.y.reshape(count, -1)
    weight = batch.weight.reshape(count, -1)
    shape = (size, count, problem.LATENT)
    z = jax.random.normal(jax.random.key(2), shape)
    logits = jax.random.normal(jax.random.key(3), (size, count, problem.PIXELS))

    def fold(start):
        return keys.per_sample(example_keys, start + jnp.arange(size))

    def normals(start):
        return jax.vmap(posterior.sample)(fold(start)).sum(-1)

    def block(kind):
        key = jax.random.key(4, impl=kind)
        return lambda start: jax.random.normal(jax.random.fold_in(key, start), shape).sum(-1)

    def per_sample_block(start):
        sample_keys = jax.vmap(lambda i: jax.random.fold_in(example_keys[0], i))(start + jnp.arange(size))
        return jax.vmap(lambda k: jax.random.normal(k, shape[1:]))(sample_keys).sum(-1)

    def bits(start):
        return jax.vmap(jax.vmap(lambda k: jax.random.bits(k, shape[2:])))(fold(start)).sum(-1)

    def box_muller(start):
        def of_key(key):
            half = jax.random.uniform(key, shape[2:], minval=jnp.finfo(jnp.float32).tiny)
            first, second = jnp.split(half, 2)
            radius, angle = jnp.sqrt(-2 * jnp.log(first)), 2 * jnp.pi * second
            return jnp.concatenate([radius * jnp.cos(angle), radius * jnp.sin(angle)])

        return jax.vmap(jax.vmap(of_key))(fold(start)).sum(-1)

    def erf_inv(start):
        return jax.lax.erf_inv(z * 0.2 + 1e-9 * start).sum(-1)

    def densities(start):
        moved = z + 1e-9 * start
        return jax.vmap(lambda z: sum_per_example(prior.log_prob(z)) - sum_per_example(posterior.log_prob(z)))(moved)

    def generate(z):
        for kernel, bias in layers[:-1]:
            z = jax.nn.relu(z @ kernel + bias)
        return z @ layers[-1][0] + layers[-1][1]

    def generation_vmapped(start):
        return jax.vmap(generate)(z + 1e-9 * start).sum(-1)

    def generation_flat(start):
        return generate((z + 1e-9 * start).reshape(size * count, -1)).sum(-1)

    def kernels(start):
        out = (z + 1e-9 * start).reshape(size * count, -1)
        for kernel, _ in layers:
            out = out @ kernel
        return out.sum(-1)

    def generation_and_likelihood(start):
        return jax.vmap(lambda z: sum_per_example(weight * Bernoulli(generate(z)).log_prob(y)))(z + 1e-9 * start)

    def likelihood(log_prob):
        def part(start):
            return jax.vmap(lambda logits: log_prob(logits))(logits + 1e-9 * start)

        return part

    formulas = {
        "jax.nn.softplus": jax.nn.softplus,
        "max(a, 0) + log1p(exp(-abs(a)))": lambda a: jnp.maximum(a, 0) + jnp.log1p(jnp.exp(-jnp.abs(a))),
        "max(a, 0) + log(1 + exp(-abs(a)))": lambda a: jnp.maximum(a, 0) + jnp.log(1 + jnp.exp(-jnp.abs(a))),
    }

    def softplus(name):
        return likelihood(lambda a: (weight * (y * a - formulas[name](a))).sum(-1))

    def log_of_products(a):
        factors = 1 + weight * jnp.exp(-jnp.abs(a))
        products = factors.reshape(*a.shape[:-1], 49, 16).prod(-1)
        return (weight * (y * a - jnp.maximum(a, 0))).sum(-1) - jnp.log(products).sum(-1)

    def whole(start):
        return jax.vmap(lambda k: ESTIMATORS["is"].score(fitted.draw(encoding, k, "recognition")))(fold(start))

    parts = {
        "whole": whole,
        "keys": fold,
        "keys, bits": bits,
        "keys, normals": normals,
        "keys, Box-Muller instead": box_muller,
        "inverse erf alone": erf_inv,
        "normals, one key a sample": per_sample_block,
        "normals, one block, threefry2x32": block("threefry2x32"),
        "normals, one block, rbg": block("rbg"),
        "normals, one block, unsafe_rbg": block("unsafe_rbg"),
        "log p(z|x) - log q(z|x,y)": densities,
        "three matmuls": kernels,
        "generation network, vmapped": generation_vmapped,
        "generation network, flat": generation_flat,
        "generation network and likelihood": generation_and_likelihood,
        **{f"likelihood, {name}": softplus(name) for name in formulas},
        "likelihood, log of products of 16": likelihood(log_of_products),
        "reading the logits only": likelihood(lambda a: a.sum(-1)),
    }
    took = {}
    for name, part in parts.items():

        def loop(starts, part=part):
            def of_start(start):
                leaf = part(start)
                is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
                return jax.random.key_data(leaf) if is_key else leaf

            return jax.lax.map(of_start, starts)

        compiled = jax.jit(loop).lower(starts).compile()
        jax.block_until_ready(compiled(starts))
        took[name] = min(seconds(lambda c=compiled: jax.block_until_ready(c(starts))) for _ in range(3))
    return took


if __name__ == "__main__":
    made = Contender(settings())
    serve(
        {
            "prepare": made.prepare,
            "train": made.train,
            "validate": made.validate,
            "importance": made.importance,
            "matmul": made.matmul,
            "profile": made.profile,
        }
    )
