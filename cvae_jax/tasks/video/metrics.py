"""How good predicted frames are: PSNR and SSIM of every frame, of the best of several samples and on average.

Here a model runs freely, whatever its likelihood is given: of the future it sees the conditions alone. Frames are
compared with the clean ones, whether or not y is dequantised.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from cvae_jax import inference, keys
from cvae_jax.metrics.images import psnr, ssim
from cvae_jax.metrics.means import ratio_of_sums
from cvae_jax.task import Batch, Fitted, Metric

BYTES_PER_CALL = 2**28  # of frames that are held at once
AFTER = 3  # frames after a turn, whose PSNR is measured apart

CLEAN = "clean_future"  # name in x of the future as it was before y was dequantised

# Names of metrics.
BEST = "best {} of {} samples"
MEAN = "mean {} of {} samples"
AFTER_TURN = f"mean PSNR up to {AFTER} frames after a digit turns"
ELSEWHERE = "mean PSNR of the other frames"
SHUFFLED = "mean PSNR given another video's conditions"  # the one before in the split
ZERO = "mean PSNR given conditions of zero"

UNITS = {"PSNR": "dB", "SSIM": ""}
STEP = "predicted frame"


def truth(batch: Batch) -> Array:
    """Returns the future frames that predictions are compared with, [batch, steps, ...]; y, unless it is dequantised.

    A byte v is v / 255 here, and (v + 1/2) / 256 on average where it is dequantised: half a byte apart at most.
    """
    return batch.x.get(CLEAN, batch.y)


def quality(frames: Array, true_frames: Array) -> dict[str, Array]:
    """Returns PSNR and SSIM of every frame: [..., height, width, channels] -> [...] each."""
    return {"PSNR": psnr(frames, true_frames), "SSIM": ssim(frames, true_frames)}


def quality_of_samples(fitted: Fitted, batch: Batch, key: Array, num_samples: int) -> dict[str, np.ndarray]:
    """Returns PSNR and SSIM of every sample of the future, float32 [samples, batch, steps].

    A sample is E[y|x,z] for one z, as it is in the literature: pixels do not get the likelihood's noise.

    Args:
      fitted: a model with its variables.
      batch: of videos, with their future.
      key: of all random numbers.
      num_samples: for every video; an exact model gives the only one that it has.
    """
    sample_keys = inference.keys_of(batch, key, 1 if fitted.exact else num_samples)
    at_once = max(1, min(len(sample_keys), BYTES_PER_CALL // max(1, 4 * batch.y.size)))
    drawn = inference.draw_samples(fitted, batch, sample_keys, noise=False, keep=_quality_in, samples_per_call=at_once)
    return jax.device_get(drawn)


def _quality_in(frames: Array, batch: Batch) -> dict[str, Array]:
    return quality(frames, truth(batch))


def measure(fitted: Fitted, batch: Batch, key: Array, num_samples: int) -> dict[str, Metric]:
    """Returns every metric of a model.

    Args:
      fitted: a model with its variables.
      batch: of videos, with their future.
      key: of all random numbers.
      num_samples: of the future of every video.
    """
    key = keys.substream(key, "futures")
    samples = quality_of_samples(fitted, batch, key, num_samples)
    metrics = {}
    for name, values in samples.items():
        best = values.mean(2).argmax(0)  # by the mean over the frames of a sample
        metrics[BEST.format(name, num_samples)] = Metric(values[best, np.arange(len(best))], UNITS[name], step=STEP)
        metrics[MEAN.format(name, num_samples)] = Metric(values.mean(0), UNITS[name], step=STEP)
    metrics |= _beside_turns(batch, samples["PSNR"].mean(0))
    condition = batch.x["condition"]
    if condition.shape[2]:
        changes = {ZERO: jnp.zeros_like(condition)}
        if "other_condition" in batch.x:  # not of a user's own videos
            changes = {SHUFFLED: batch.x["other_condition"], **changes}
        for name, changed in changes.items():
            changed_batch = batch._replace(x={**batch.x, "condition": changed})
            values = quality_of_samples(fitted, changed_batch, key, num_samples)["PSNR"].mean((0, 2))
            metrics[name] = Metric(values, UNITS["PSNR"])
    return metrics


def baselines(batch: Batch, num_samples: int) -> dict[str, dict[str, Metric]]:
    """Returns the metrics of the last known frame, held, under the names that a model's have."""
    still = jnp.broadcast_to(batch.x["frames"][:, -1:], batch.y.shape)
    by_frame = jax.device_get(jax.jit(quality)(still, truth(batch)))
    metrics = {
        kind.format(name, num_samples): Metric(values, UNITS[name], step=STEP)
        for name, values in by_frame.items()
        for kind in (BEST, MEAN)
    }
    return {"the last known frame": metrics | _beside_turns(batch, by_frame["PSNR"])}


def validation_metrics(fitted: Fitted, batch: Batch, example_keys: Array) -> dict[str, Array]:
    """Returns the PSNR of one sample of the future, the mean over its frames, [batch]; training curves show it."""
    samples = inference.sample(fitted, batch, example_keys[None], noise=False)
    return {"PSNR": psnr(samples[0], truth(batch)).mean(1)}


def after_turns(turned: np.ndarray, num_past: int) -> np.ndarray:
    """Returns whether each future frame is one of the AFTER that follow a turn, bool [batch, future].

    Args:
      turned: where a new velocity begins, bool [batch, past + future]. It shows from the next frame on.
      num_past: how many frames are known.
    """
    ahead = np.zeros_like(turned)
    for frames in range(1, AFTER + 1):
        ahead[:, frames:] |= turned[:, :-frames]
    return ahead[:, num_past:]


def _beside_turns(batch: Batch, mean: np.ndarray) -> dict[str, Metric]:
    """Returns the mean PSNR [batch, steps] pooled over frames after turns, and over the others; {} if nothing turns."""
    if "turned" not in batch.x:
        return {}
    after = after_turns(np.asarray(batch.x["turned"]), batch.x["frames"].shape[1])
    return {
        name: Metric(np.stack([(mean * chosen).sum(1), chosen.sum(1)], 1), UNITS["PSNR"], pool=ratio_of_sums)
        for name, chosen in ((AFTER_TURN, after), (ELSEWHERE, ~after))
    }
