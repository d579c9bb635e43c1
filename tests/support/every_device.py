"""Likelihoods and samples of two models, for processes with different numbers of devices."""

import sys

import jax
import linear_gaussian as lg
import numpy as np
from contract import moved
from small_runs import small_config
from specs import load

from cvae_jax import inference
from cvae_jax.data import batches
from cvae_jax.trained import TrainedModel

COUNT, NUM_SAMPLES = 23, 200  # examples that divide by no number of devices; three chunks of samples


def results() -> dict[str, np.ndarray]:
    """What does not depend on the number of devices, by name."""
    return {**of_linear_gaussian(), **of_flax()}


def of_linear_gaussian() -> dict[str, np.ndarray]:
    fitted, batch, key = lg.fitted(1.2, 0.5), lg.batch_of(*lg.data(COUNT)), jax.random.key(0)
    sample_keys = inference.keys_of(batch, key, NUM_SAMPLES)
    return {
        "defensive": inference.log_prob(fitted, batch, "defensive", NUM_SAMPLES, key).value,
        "means": inference.draw_samples(fitted, batch, sample_keys, noise=False, samples_per_call=60),
    }


def of_flax() -> dict[str, np.ndarray]:
    """Of a CVAE that is not trained, wide enough for matrix products of several threads."""
    config = small_config(**{"cvae.hidden": (256, 256), "cvae.latent": 16})
    task, splits = load(config)
    best = {}
    for stage in task.stages:
        variables = jax.jit(stage.model.init)(jax.random.key(1), batches.example(task), dict(best))
        best[stage.name] = moved({name: variables[name] for name in variables if name != "frozen"})
    trained, key = TrainedModel(config, task, 0, best), jax.random.key(2)
    images = np.float32(splits["test"]["image"][:COUNT] / 255)
    return {
        "is of Flax": trained.log_prob(images, images, NUM_SAMPLES, key).value,
        "exact of Flax": trained.log_prob(images, images, 1, key, stage="baseline").value,
        "samples of Flax": trained.sample(images, NUM_SAMPLES, key),
    }


if __name__ == "__main__":
    np.savez(sys.argv[1], **results())
