"""Future frames of a video given its first ones, and actions where there are any: SVG-FP and SVG-LP.

x is the past frames and the conditions of all frames, y the future frames, each pixel a Gaussian of one learned scale.
In training all frames but the first are y. See networks.py for the model, and for its two ways through time.

log p(y|x) is a density per unit of [0, 1] pixels. Frames are bytes, those of moving digits too: digits move by whole
pixels. So y is v / 255 of each byte v, or with the key `dequantise` (v + u) / 256, see `dequantised`.
"""

from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from ml_collections import ConfigDict

from cvae_jax import objectives, schedules
from cvae_jax.data import images
from cvae_jax.distributions import Normal, bounded_normal
from cvae_jax.errors import UserError
from cvae_jax.keys import substream
from cvae_jax.networks.flax_model import flax_model
from cvae_jax.objectives import Draws
from cvae_jax.settings import WIDTH, Choice, Whole, check
from cvae_jax.task import Arrays, Batch, Fitted, Grid, Metric, Plot, PyTree, Spec, Stage, Task
from cvae_jax.tasks.video import figures, folders, metrics, moving_digits
from cvae_jax.tasks.video.frames import NETWORKS, SMALLEST, widths
from cvae_jax.tasks.video.networks import VideoNetworks

GIVEN = ("true_frames", "predictions")

# Of terms and validation metrics.
UNITS = {"teacher_forcing": "share of batches", "PSNR": "dB, a sample of the future"}


class Video(Task):
    """The task that configs/video.py describes."""

    sources = MappingProxyType({"videos": folders.load, "moving_digits": moving_digits.load})

    def __init__(self, config: ConfigDict, spec: Spec):
        _check(config)
        self.config, data = config, config.data
        self.dequantise: bool = config.get("dequantise", False)  # runs of before have no such key
        self.moving = data.source == "moving_digits"
        self.channels: int = 1 if self.moving else 3
        self.columns: int = 0 if self.moving else data.num_columns
        if self.moving:
            self.raw = {"digits": jax.ShapeDtypeStruct((data.num_digits, data.digit_size, data.digit_size), np.uint8)}
        else:
            rows = jax.ShapeDtypeStruct((data.num_frames, self.columns), np.float32)
            frames = jax.ShapeDtypeStruct((data.num_frames, data.size, data.size, self.channels), np.uint8)
            self.raw, self.measured = {"frames": frames, "condition": rows}, {"other_condition": rows}
        forced = config.measure_given == "true_frames"
        way = "true frames before each" if forced else "predicted frames before each"
        speed = f", digits of up to {data.max_speed} pixels a frame" if self.moving else ""
        self.title = f"{config.num_past} -> {config.measure_future} frames"
        bytes_are = "dequantised uniformly" if self.dequantise else "not dequantised"
        self.protocol = (
            f"{data.size}x{data.size} frames{speed}, Gaussian pixels of one learned scale, "
            f"density per unit of [0, 1] pixels, 8-bit values {bytes_are}, given the {way}"
        )
        share = schedules.teacher_forcing(config.teacher_forcing)
        networks = _networks(config, self.channels, forced, share)
        model = flax_model(networks, _likelihood, autoregressive=forced)
        self.stages = (_with_share(objectives.stage("cvae", model, config.cvae), share),)

    def check(self, arrays: Arrays) -> None:
        """Raises a UserError for videos that are too short to be measured."""
        if not self.moving:  # and not when the task is made: a user's own videos may be longer than these
            _check_length(self.config, "measure_future")

    def batch(self, raw: dict[str, Array], ids: Array, num_targets: Array, keys: Array, step: Array | None) -> Batch:
        """Returns the first frames; in training some from anywhere in the video, of which the first alone is x.

        Frames of x are never dequantised. Where y is, x holds the clean future too, which metrics and figures read.
        """
        config, training = self.config, step is not None
        num_past = 1 if training else config.num_past
        num_frames = config.num_past + (config.num_future if training else config.measure_future)
        if self.moving:
            data = config.data
            frames, turned = moving_digits.clips(raw["digits"], keys, num_frames, data.size, data.max_speed)
            frames, condition = frames[..., None], jnp.zeros((len(ids), num_frames, 0))
            measured = {"turned": turned}
        else:
            last = config.data.num_frames - num_frames if training else 0
            frames, condition = _excerpts((raw["frames"], raw["condition"]), keys, num_frames, last)
            measured = {name: raw[name][:, :num_frames] for name in self.measured if name in raw}
        clean = frames.astype(jnp.float32) / 255
        # Networks read the first two of x; metrics read the rest: where a digit turns, another video's conditions.
        x, y = {"frames": clean[:, :num_past], "condition": condition, **measured}, clean[:, num_past:]
        if self.dequantise:
            x |= {} if training else {metrics.CLEAN: y}
            y = dequantised(frames[:, num_past:], keys)
        return Batch(x, y, None, ids, num_targets)

    def from_user(self, x: Any, y: Any = None) -> Batch:
        """Returns a batch of a user's own videos.

        Args:
          x: `frames`, the past [batch, num_past or more, size, size, channels] in [0, 1], and `condition` of all
            frames, past and future [batch, frames, columns]; where there are no conditions the frames alone.
          y: the future frames in [0, 1], or None. They are taken as they are: nothing is dequantised here, and a model
            that was trained with `dequantise` expects (v + u) / 256 of bytes v.
        """
        config, arrays = self.config, x if isinstance(x, dict) else {"frames": x}
        needed = ["frames", "condition"] if self.columns else ["frames"]
        if not set(needed) <= set(arrays) <= {"frames", "condition"}:
            raise UserError(f"x holds {', '.join(map(str, arrays)) or 'nothing'}; give it {' and '.join(needed)}")
        past = as_frames("x", arrays.get("frames"), config.data.size, self.channels)
        count, num_past = past.shape[:2]
        if num_past < config.num_past:
            raise UserError(f"x has {num_past} frames of each video; prediction needs {config.num_past}")
        future = None if y is None else as_frames("y", y, config.data.size, self.channels)
        if future is not None and len(future) != count:
            raise UserError(f"x has {count} videos but y has {len(future)}")
        num_frames = num_past + (config.measure_future if future is None else future.shape[1])
        condition = images.numbers("condition", arrays.get("condition", np.zeros((count, num_frames, 0))))
        if condition.ndim != 3 or len(condition) != count or condition.shape[2] != self.columns:
            raise UserError(f"condition has shape {condition.shape}, expected [{count}, frames, {self.columns}]")
        rows = condition.shape[1]
        if rows <= num_past:
            raise UserError(
                f"condition has {rows} rows a video, of {num_past} known frames; give one for each to come too"
            )
        if future is not None and rows != num_frames:
            raise UserError(
                f"condition has {rows} rows a video, x and y together {num_frames} frames; give one for each"
            )
        return Batch({"frames": past, "condition": condition}, future, None, jnp.arange(count), jnp.ones(count))

    def metrics(self, fitted: Fitted, batch: Batch, key: Array) -> dict[str, Metric]:
        """Returns PSNR and SSIM of predicted frames."""
        return metrics.measure(fitted, batch, key, self.config.measure_samples)

    def baselines(self, batch: Batch) -> dict[str, dict[str, Metric]]:
        """Returns the metrics of the last known frame, held."""
        return metrics.baselines(batch, self.config.measure_samples)

    def validation_metrics(self, fitted: Fitted, batch: Batch, keys: Array) -> dict[str, Array]:
        """Returns the PSNR of one sample of the future."""
        return metrics.validation_metrics(fitted, batch, keys)

    def sample_grid(self, batch: Batch, samples: dict[str, PyTree]) -> Grid:
        """Returns the last known frame, and the last of the future: the truth and samples."""
        last = batch.x["condition"].shape[1]
        columns = {f"frame {batch.x['frames'].shape[1]}": np.asarray(batch.x["frames"][:, -1])}
        if batch.y is not None:
            columns[f"frame {last}, truth"] = np.asarray(metrics.truth(batch)[:, -1])
        for drawn in samples.values():
            for number, frames in enumerate(np.asarray(drawn), 1):
                columns[f"sample {number}" if len(drawn) > 1 else "prediction"] = frames[:, -1]
        return Grid(columns)

    def figures(self, fitted: Fitted, batch: Batch, key: Array) -> dict[str, Grid | Plot]:
        """Returns a GIF and strips of predicted videos."""
        return figures.of_videos(fitted, batch, key, self.config.measure_samples)


def as_frames(name: str, frames: Any, size: int, channels: int) -> Array:
    """Returns a user's videos, float32 [batch, frames, size, size, channels] in [0, 1].

    Args:
      name: of the argument, with which messages begin.
      frames: what the user gave.
      size: height and width.
      channels: of a frame.

    Raises:
      UserError: for what is no such array.
    """
    array = images.numbers(name, frames)
    if array.ndim != 5 or array.shape[2:] != (size, size, channels):
        raise UserError(f"{name} has shape {array.shape}, expected [batch, frames, {size}, {size}, {channels}]")
    if not array.size:
        raise UserError(f"{name} holds no video")
    if not bool(((array >= 0) & (array <= 1)).all()):
        raise UserError(f"{name} has values outside [0, 1]; scale them by 1/255")
    return array


def dequantised(frames: Array, keys: Array) -> Array:
    """Returns bytes v as (v + u) / 256, float32 [batch, ...], each u uniform in [0, 1).

    By Jensen's inequality the mean of log p of these over u, less log 256 a value, is a lower bound of the log
    probability of the bytes (Uria et al. 2013; Theis, van den Oord and Bethge 2016). So the mean is at most log 256 a
    value.

    Args:
      frames: uint8 [batch, ...].
      keys: [batch], of the batch; u has a stream of its own below each.
    """

    def noise(key: Array) -> Array:
        return jax.random.bits(substream(key, "dequantise"), frames.shape[1:], jnp.uint16)

    # Sixteen bits of u beside the eight of v are all that float32 holds: with more, v + u could be rounded to v + 1.
    bits = jax.vmap(noise)(keys).astype(jnp.float32)
    return (frames.astype(jnp.float32) * 2**16 + bits) / 2**24


def _excerpts(videos: tuple[Array, ...], keys: Array, num_frames: int, last: int) -> tuple[Array, ...]:
    """Returns so many frames of arrays [batch, frames, ...], each video's from one of the places 0 to `last`."""

    def excerpt(video: tuple[Array, ...], start: Array) -> tuple[Array, ...]:
        return tuple(jax.lax.dynamic_slice_in_dim(array, start, num_frames) for array in video)

    starts = jax.vmap(lambda key: jax.random.randint(key, (), 0, last + 1))(keys)
    return jax.vmap(excerpt)(videos, starts)


def _networks(config: ConfigDict, channels: int, forced: bool, share: Callable[[Array], Array] | None) -> VideoNetworks:
    """Makes the networks of a config; `forced` and `share` say what the predictor is given, see VideoNetworks."""
    settings = config.cvae
    return VideoNetworks(
        network=settings.network,
        widths=widths(settings.width, config.data.size),
        channels=channels,
        features=settings.features,
        latent=settings.latent,
        prior=settings.prior,
        hidden=settings.hidden,
        predictor_layers=settings.predictor_layers,
        num_past=config.num_past,
        last_frame_skip=settings.last_frame_skip,
        teacher_forcing=forced,
        precision=settings.precision,
        remat=settings.remat,
        teacher_forcing_share=share,
    )


def _likelihood(outputs: tuple[Array, Array]) -> Normal:
    mean, log_scale = outputs
    return bounded_normal(mean, jnp.broadcast_to(log_scale, mean.shape))


def _with_share(stage: Stage, share: Callable[[Array], Array] | None) -> Stage:
    """Returns the stage with the share of batches that are given true frames among its terms, unless it is all."""
    stage = stage._replace(units={**stage.units, **UNITS})
    if share is None:
        return stage

    def objective(draws: Draws, batch: Batch, step: Array | None) -> tuple[Array, dict[str, Array]]:
        value, terms = stage.objective(draws, batch, step)
        return value, terms if step is None else {**terms, "teacher_forcing": share(step)}

    return stage._replace(objective=objective)


def _check(config: ConfigDict) -> None:
    """Raises a UserError for a setting that cannot be."""
    settings, data = config.cvae, config.data
    if data.source not in Video.sources:
        raise UserError(f"data.source={data.source!r} is no source of videos; choose from {', '.join(Video.sources)}")
    check(
        config,
        {
            "cvae.network": Choice(NETWORKS),
            "cvae.prior": Choice(("fixed", "learned")),
            "cvae.precision": Choice(("float32", "bfloat16")),
            "cvae.width": Whole(1, WIDTH),
            "cvae.features": Whole(1, WIDTH),
            "cvae.latent": Whole(0, WIDTH),
            "cvae.hidden": Whole(1, WIDTH),
            "cvae.predictor_layers": Whole(1, 100),
            "num_past": Whole(1, folders.MOST_FRAMES),
            "num_future": Whole(1, folders.MOST_FRAMES),
            "measure_future": Whole(1, folders.MOST_FRAMES),
            "measure_samples": Whole(1),
            "measure_given": Choice(GIVEN),
        },
    )
    check(settings.objective, objectives.KINDS, "cvae.objective")
    if settings.latent and config.num_past > 1 and not objectives.trains_recognition(settings.objective):
        raise UserError(
            f"cvae.objective.name={settings.objective.name!r} does not train the recognition network, which past "
            "frames' z come from; set num_past=1, cvae.latent=0, or another objective"
        )
    check(data, {"size": Whole(most=folders.LARGEST_SIDE)}, "data")
    if data.size < 4 * SMALLEST or data.size & (data.size - 1):
        raise UserError(f"data.size={data.size} must be a power of 2, of at least {4 * SMALLEST}")
    if data.source == "videos":
        folders.check_settings(data)
        _check_length(config, "num_future")
    else:
        check(data, {"max_speed": Whole(1), "digit_size": Whole(1, data.size - 1)}, "data")


def _check_length(config: ConfigDict, future: str) -> None:
    """Raises a UserError where the past and this future are longer than the videos."""
    frames = config.num_past + config[future]
    if config.data.num_frames < frames:
        raise UserError(
            f"num_past={config.num_past} and {future}={config[future]} take {frames} frames, more than "
            f"data.num_frames={config.data.num_frames}; lower num_past or {future}"
        )
