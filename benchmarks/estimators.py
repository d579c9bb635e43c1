"""How far the estimators of log p(y|x) are from the truth, where it is known in closed form: tables in Markdown.

python benchmarks/estimators.py [--only=accuracy,coverage,proposals,gradients] [--output=results.md]

The models are the linear-Gaussian ones of tests/linear_gaussian.py. A quarter of an hour on 2 cores.
"""

import argparse
import pathlib
import sys
import time
from collections.abc import Callable
from functools import partial

ROOT = pathlib.Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from linear_gaussian import LinearGaussian

from cvae_jax import keys, objectives, parallel
from cvae_jax.evaluation.tables import markdown
from cvae_jax.inference import ais as annealing
from cvae_jax.inference import draws as inference
from cvae_jax.inference.estimators import Estimate, unreliable

parallel.use_every_core()  # before the first number on a device
KEY = jax.random.key(0)
# Models with the number of samples that take the errors to 0.002 nats.
SIZES = {LinearGaussian(2, 2, 4): 2_000_000, LinearGaussian(3, 8, 16): 1_000_000, LinearGaussian(4, 32, 64): 400_000}
CHAINS = 64  # of ais and bdmc
WIDTH = 1.05  # of q, over the posterior's: an adequate proposal
NAMES = [name for name in inference.ESTIMATOR_NAMES if name != "elbo"]


def measured(model: LinearGaussian, wanted: list[tuple[str, int]], scale: float, x: np.ndarray, y: np.ndarray) -> dict:
    """Estimates with a q that is `scale` times as wide as the posterior: (estimator, samples) -> Estimate."""
    return inference.log_probs(model.model, model.variables(scale), model.batch_of(x, y), wanted, KEY)


HEAD = [
    "estimator",
    "samples or chains",
    "mean error",
    "mean |error|",
    "greatest |error|",
    "MC error",
    "ESS",
    "flagged",
]


def row(name: str, count: int, estimate: Estimate, truth: np.ndarray) -> list[str]:
    """What HEAD names: errors over examples, their mean Monte Carlo error, and the shares flagged: error, value."""
    missed = estimate.value - truth
    numbers = (missed.mean(), np.abs(missed).mean(), np.abs(missed).max(), estimate.error.mean())
    flagged = ", ".join(f"{share.mean():.0%}" for share in unreliable(estimate, count))
    return [name, f"{count:,}", *(f"{number:.5f}" for number in numbers), f"{np.median(estimate.ess):,.0f}", flagged]


def accuracy() -> str:
    """Errors of every estimator on models of several sizes, q a little wider than the posterior."""
    lines = [["z, y", *HEAD]]
    for model, num_samples in SIZES.items():
        x, y = model.data(20)
        truth = model.log_p_y(x, y)
        wanted = [(name, CHAINS if name == "ais" else num_samples) for name in NAMES]
        rows = [row(*one, found, truth) for one, found in measured(model, wanted, WIDTH, x, y).items()]
        bidirectional = annealing.bdmc(model.model, model.variables(WIDTH), model.batch_of(x, None), CHAINS, KEY)
        truth = model.log_p_y(x, np.asarray(bidirectional.batch.y, np.float64))
        bounds = zip(("bdmc, lower bound", "bdmc, upper bound"), annealing.bounds(bidirectional), strict=True)
        rows += [row(name, CHAINS, bound, truth) for name, bound in bounds]
        lines += [[f"{model.z_size}, {model.y_size}", *one] for one in rows]
    title = "### Accuracy: 20 examples, q 1.05 times as wide as the posterior, errors in nats"
    return title + "\n\n" + "\n".join(markdown(lines))


def coverage(replicates: int = 1000) -> str:
    """How often 95% intervals hold the truth, over independent replicates of one example's estimate."""
    model = LinearGaussian(3, 4, 6)
    x, y = (np.repeat(one, replicates, 0) for one in model.data(1))  # other indices: other random numbers
    truth = model.log_p_y(x[:1], y[:1])
    lines = [["estimator", "samples or chains", "95% intervals that hold the truth", "mean error", "sd of the error"]]
    wanted = [(name, 64 if name == "ais" else 1000) for name in NAMES]
    for (name, count), estimate in measured(model, wanted, 1.2, x, y).items():
        missed = estimate.value - truth
        held = (np.abs(missed) < 1.96 * estimate.error).mean()
        lines.append([name, f"{count:,}", f"{held:.1%}", f"{missed.mean():+.5f}", f"{missed.std():.5f}"])
    return f"### Coverage: {replicates:,} replicates, q 1.2 times as wide\n\n" + "\n".join(markdown(lines))


def proposals() -> str:
    """Errors of every estimator with proposals too narrow and too wide, and which are flagged."""
    model, lines = LinearGaussian(3, 8, 16), [["width of q", *HEAD]]
    x, y = model.data(200)
    truth = model.log_p_y(x, y)
    for scale in (0.5, 0.7, 1.2, 2.0):
        wanted = [(name, 16 if name == "ais" else 5000) for name in NAMES]
        found = measured(model, wanted, scale, x, y)
        lines += [[f"x{scale}", *row(*one, estimate, truth)] for one, estimate in found.items()]
    title = "### Proposals: 200 examples, 8 latent units, width of q over the posterior's"
    return title + "\n\n" + "\n".join(markdown(lines))


def gradients(repeats: int = 20_000) -> str:
    """Bias and variance of the estimates of IWAE's gradient, over the plain reparameterised one's."""
    model = LinearGaussian(3, 4, 6)
    lines = [["q", "k", "gradient", "parameters", "variance / plain's", "greatest |bias| in standard errors"]]
    groups = {"q": ("bias", "q_scale", "by_x", "by_y"), "p(z|x)": ("A", "s_p"), "p(y|x,z)": ("B", "C")}
    batch = model.batch_of(*model.data(2))
    for label, scale, shift in (("x1.2, shifted by 0.3 sd", 1.2, 0.3), ("x0.7, shifted by 1 sd", 0.7, 1.0)):
        variables = model.variables(scale, shift)
        for k in (1, 8, 64):

            @partial(jax.jit, static_argnums=0)
            def of_repeats(gradient: str, number: Array, k: int = k, variables=variables) -> dict[str, Array]:
                def of_repeat(repeat: Array) -> dict[str, Array]:
                    def objective(variables):
                        example_keys = keys.per_example(jax.random.fold_in(KEY, repeat), batch.index)
                        sample_keys = keys.per_sample(example_keys, jnp.arange(k))
                        encoding = model.model.encode(variables, batch)
                        draw = objectives.draws_of(model.model, variables, encoding, sample_keys)
                        return objectives.iwae(draw, gradient=gradient)[0].mean()

                    return jax.grad(objective)(variables)["params"]

                return jax.lax.map(of_repeat, number, batch_size=500)

            numbers = jnp.arange(repeats)
            plain = jax.device_get(of_repeats("reparameterised", numbers))
            for gradient in ("doubly_reparameterised", "generalised"):
                found = jax.device_get(of_repeats(gradient, numbers))
                for group, names in groups.items():
                    sigmas, variance, of_plain = [], 0.0, 0.0
                    for name in names:
                        difference = (found[name] - plain[name]).astype(np.float64)
                        error = difference.std(0) / np.sqrt(repeats)
                        sigmas.append((np.abs(difference.mean(0)) / np.where(error > 1e-8, error, np.inf)).max())
                        variance += found[name].astype(np.float64).var(0).sum()
                        of_plain += plain[name].astype(np.float64).var(0).sum()
                    lines.append([label, str(k), gradient, group, f"{variance / of_plain:.3f}", f"{max(sigmas):.1f}"])
    text = "### Gradients of IWAE's bound: 2 examples, 20,000 repeats, both estimates under the same noise\n\n"
    return text + "\n".join(markdown(lines))


PARTS: dict[str, Callable[[], str]] = {
    "accuracy": accuracy,
    "coverage": coverage,
    "proposals": proposals,
    "gradients": gradients,
}


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas")
    parser.add_argument("--output", help="file that receives the tables, beside stdout")
    arguments = parser.parse_args()
    texts = []
    for name in arguments.only.split(","):
        began = time.perf_counter()
        texts.append(f"{PARTS[name]()}\n\n{time.perf_counter() - began:.0f} s.\n")
        print(texts[-1], flush=True)
    if arguments.output:
        pathlib.Path(arguments.output).write_text("\n".join(texts))


if __name__ == "__main__":
    main()
