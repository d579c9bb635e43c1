"""How good predicted frames are: PSNR and SSIM of every frame, of the best of several samples and on average.

Whatever a model's likelihood is given, here it runs freely: of the future it is told the conditions alone.
"""

import functools

import dm_pix
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from cvae_jax import keys, parallel
from cvae_jax.inference import draws as inference
from cvae_jax.inference.estimators import ratio_of_sums
from cvae_jax.model import Batch, How, Measures, Model, Proposal, Variables

BYTES_PER_CALL = 2**28  # of frames that are held at once
WINDOW = 11  # pixels, height and width, that SSIM compares at a time
AFTER = 3  # frames after a turn, whose PSNR is measured apart

BEST = "best {} of {} samples{}"
MEAN = "mean {} of {} samples{}"
UNITS = {"PSNR": ", dB", "SSIM": ""}
AFTER_TURN = f"mean PSNR up to {AFTER} frames after a digit turns, dB"
OTHERS = "mean PSNR of the other frames, dB"
SHUFFLED = "mean PSNR given another video's conditions, dB"  # the one before in the split
ZERO = "mean PSNR given conditions of zero, dB"


def psnr(frames: Array, truth: Array) -> Array:
    """Peak signal-to-noise ratio in dB, of frames [..., height, width, channels] in [0, 1]; at most 100."""
    error = ((frames - truth) ** 2).mean((-3, -2, -1))
    return -10 * jnp.log10(jnp.maximum(error, 1e-10))


def ssim(frames: Array, truth: Array) -> Array:
    """Structural similarity (Wang et al. 2004) of frames [..., height, width, channels] in [0, 1], at most 1.

    As published: in Gaussian windows of WINDOW pixels with a deviation of 1.5; the mean over channels.
    """
    one = functools.partial(dm_pix.ssim, filter_size=WINDOW)
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        found = one(frames.reshape(-1, *frames.shape[-3:]), truth.reshape(-1, *truth.shape[-3:]))
    return found.reshape(frames.shape[:-3])


def quality(frames: Array, truth: Array) -> dict[str, Array]:
    """Both of every frame: [..., height, width, channels] -> [...] each."""
    return {"PSNR": psnr(frames, truth), "SSIM": ssim(frames, truth)}


@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def _of_samples(
    model: Model, variables: Variables, batch: Batch, sample_keys: Array, proposal: Proposal, samples_per_call: int
) -> dict[str, Array]:
    """The quality of every sample, [samples, batch, steps] each."""
    return inference.sample(
        model,
        variables,
        batch,
        sample_keys,
        noise=False,
        proposal=proposal,
        keep=lambda frames: quality(frames, batch.y),
        samples_per_call=samples_per_call,
    )


def sample_keys(batch: Batch, key: Array, num_samples: int) -> Array:
    """Keys [num_samples, batch]."""
    return keys.per_sample(keys.per_example(key, batch.index), jnp.arange(num_samples))


def of_samples(
    model: Model, variables: Variables, batch: Batch, how: How, key: Array, num_samples: int
) -> dict[str, np.ndarray]:
    """PSNR and SSIM of every sample of the future, float32 [samples, batch, steps]; of an exact model the one there is.

    A sample is E[y|x,z] for one z, as it is in the literature: pixels do not get the likelihood's noise.
    """
    mesh = parallel.make_mesh()
    variables = jax.device_put(variables, parallel.replicated(mesh))
    count = 1 if how.exact else num_samples
    of_batch = sample_keys(batch, key, count)
    batch = parallel.place_batch(mesh, batch)
    at_once = max(1, min(count, BYTES_PER_CALL // max(1, 4 * batch.y.size)))
    with jax.default_matmul_precision("highest"):
        found = _of_samples(model, variables, batch, of_batch, how.predicts_from, at_once)
    return jax.device_get(found)


def after_turns(turned: np.ndarray, num_past: int) -> np.ndarray:
    """Whether each future frame is one of the AFTER that follow a turn, bool [batch, future].

    Args:
      turned: where a new velocity begins, bool [batch, past + future]. It shows from the next frame on.
      num_past: how many frames are known.
    """
    ahead = np.zeros_like(turned)
    for frames in range(1, AFTER + 1):
        ahead[:, frames:] |= turned[:, :-frames]
    return ahead[:, num_past:]


def _of_turns(batch: Batch, mean: np.ndarray) -> dict[str, np.ndarray]:
    """The sums of PSNR and their counts, [batch, 2], after turns and elsewhere; {} where nothing turns."""
    if "turned" not in batch.x:
        return {}
    after = after_turns(np.asarray(batch.x["turned"]), batch.x["frames"].shape[1])
    return {
        name: np.stack([(mean * chosen).sum(1), chosen.sum(1)], 1)
        for name, chosen in ((AFTER_TURN, after), (OTHERS, ~after))
    }


def of_batch(
    model: Model, variables: Variables, batch: Batch, how: How, key: Array, num_samples: int
) -> dict[str, np.ndarray]:
    """Every measure of a model, from `num_samples` samples of the future."""
    key = keys.substream(key, "futures")
    samples = of_samples(model, variables, batch, how, key, num_samples)
    found = {}
    for name, values in samples.items():
        best = values.mean(2).argmax(0)  # by the mean over the frames of a sample
        found[BEST.format(name, num_samples, UNITS[name])] = values[best, np.arange(len(best))]
        found[MEAN.format(name, num_samples, UNITS[name])] = values.mean(0)
    found |= _of_turns(batch, samples["PSNR"].mean(0))
    condition = batch.x["condition"]
    if condition.shape[2]:
        for name, other in ((SHUFFLED, batch.x["other_condition"]), (ZERO, jnp.zeros_like(condition))):
            changed = batch._replace(x={**batch.x, "condition": other})
            found[name] = of_samples(model, variables, changed, how, key, num_samples)["PSNR"].mean((0, 2))
    return found


def baselines(batch: Batch, num_samples: int) -> dict[str, dict[str, np.ndarray]]:
    """The measures of the last known frame, held."""
    still = jnp.broadcast_to(batch.x["frames"][:, -1:], batch.y.shape)
    of_frames = jax.device_get(jax.jit(quality)(still, batch.y))
    found = {
        kind.format(name, num_samples, UNITS[name]): values
        for name, values in of_frames.items()
        for kind in (BEST, MEAN)
    }
    return {"the last known frame": found | _of_turns(batch, of_frames["PSNR"])}


def followed(
    model: Model, variables: Variables, batch: Batch, draw_keys: Array, proposal: Proposal
) -> dict[str, Array]:
    """The PSNR of one sample of the future, the mean over its frames, [batch]: what training curves show."""
    drawn = inference.sample(model, variables, batch, draw_keys[None], noise=False, proposal=proposal)
    return {"PSNR": psnr(drawn[0], batch.y).mean(1)}


def measures(num_samples: int) -> Measures:
    """What the task measures, with `num_samples` samples of every future."""
    names = [kind.format(name, num_samples, unit) for name, unit in UNITS.items() for kind in (BEST, MEAN)]
    return Measures(
        functools.partial(of_batch, num_samples=num_samples),
        known={},
        pooled={AFTER_TURN: ratio_of_sums, OTHERS: ratio_of_sums},
        profiles=dict.fromkeys(names, "predicted frame"),
        baselines=functools.partial(baselines, num_samples=num_samples),
    )
