"""Future frames of a video given its first ones, and actions where there are any: SVG-FP and SVG-LP.

x is the past frames and the conditions of all frames, y the future frames, each pixel a Gaussian of one learned scale.
In training all frames but the first are y. See networks/svg.py for the model, and for its two ways through time.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from cvae_jax import objectives, schedules
from cvae_jax.data import images
from cvae_jax.distributions import Normal, bounded_normal
from cvae_jax.errors import UserError
from cvae_jax.model import Batch, PyTree, Stage, Task, Train, Variables
from cvae_jax.networks.cvae import make_model
from cvae_jax.tasks.video import figures, moving_digits
from cvae_jax.tasks.video import metrics as measures
from cvae_jax.tasks.video.frames import NETWORKS, SMALLEST, widths
from cvae_jax.tasks.video.networks import VideoNetworks

SOURCES = ("videos", "moving_digits")
GIVEN = ("true_frames", "predictions")


def make_task(config: Any) -> Task:
    """The task that configs/video.py describes."""
    _check(config)
    settings, data = config.cvae, config.data
    size, moving = data.size, data.source == "moving_digits"
    channels, columns = (1, 0) if moving else (3, data.num_columns)

    def batch(raw: dict[str, Array], index: Array, valid: Array, example_keys: Array, train: bool) -> Batch:
        """The first frames; in training from anywhere in the video, and of them the first alone is x."""
        num_past = 1 if train else config.num_past
        num_frames = config.num_past + (config.num_future if train else config.measure_future)
        # `measured` is what measures read of x, and networks do not: where a digit turns, another video's conditions.
        if moving:
            frames, turned = moving_digits.clips(raw["digits"], example_keys, num_frames, size, data.max_speed)
            frames, condition = frames[..., None], jnp.zeros((len(index), num_frames, 0))
            measured = {"turned": turned}
        else:
            last = data.num_frames - num_frames if train else 0
            starts = jax.vmap(lambda key: jax.random.randint(key, (), 0, last + 1))(example_keys)
            frames, condition = jax.vmap(
                lambda video, start: jax.tree.map(
                    lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, start, num_frames), video
                )
            )((raw["frames"], raw["condition"]), starts)
            measured = {} if train else {"other_condition": raw["other_condition"][:, :num_frames]}
        frames = frames.astype(jnp.float32) / 255
        x = {"frames": frames[:, :num_past], "condition": condition, "coin": None, **measured}
        return Batch(x, frames[:, num_past:], None, index, valid)

    def check(arrays: dict[str, np.ndarray]) -> None:
        if not moving:  # and not when the task is made: a user's own videos may be longer than these
            _check_length(config, "measure_future")

    def observe(x: Any, y: Any = None) -> Batch:
        """Batch of a user's own videos.

        Args:
          x: `frames`, the past [batch, num_past or more, size, size, channels] in [0, 1], and `condition` of all
            frames, past and future [batch, frames, columns]; where there are no conditions the frames alone.
          y: the future frames, or None.
        """
        given = x if isinstance(x, dict) else {"frames": x}
        wanted = ["frames", "condition"] if columns else ["frames"]
        if not set(wanted) <= set(given) <= {"frames", "condition"}:
            raise UserError(f"x holds {', '.join(map(str, given)) or 'nothing'}; give it {' and '.join(wanted)}")
        past = images.own_frames("x", given.get("frames"), size, channels)
        count, num_past = past.shape[:2]
        if num_past < config.num_past:
            raise UserError(f"x has {num_past} frames of each video; prediction needs {config.num_past}")
        future = None if y is None else images.own_frames("y", y, size, channels)
        if future is not None and len(future) != count:
            raise UserError(f"x has {count} videos but y has {len(future)}")
        num_frames = num_past + (config.measure_future if future is None else future.shape[1])
        condition = images.numbers("condition", given.get("condition", np.zeros((count, num_frames, 0))))
        if condition.ndim != 3 or len(condition) != count or condition.shape[2] != columns:
            raise UserError(f"condition has shape {condition.shape}, expected [{count}, frames, {columns}]")
        rows = condition.shape[1]
        if rows <= num_past:
            raise UserError(
                f"condition has {rows} rows a video, of {num_past} known frames; give one for each to come too"
            )
        if future is not None and rows != num_frames:
            raise UserError(
                f"condition has {rows} rows a video, x and y together {num_frames} frames; give one for each"
            )
        known = {"frames": past, "condition": condition, "coin": None}
        return Batch(known, future, None, jnp.arange(count), jnp.ones(count))

    forced = config.measure_given == "true_frames"
    networks = VideoNetworks(
        network=settings.network,
        widths=widths(settings.width, size),
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
    )
    model = make_model(networks, _look, _likelihood, autoregressive=forced)
    stage = objectives.stage("cvae", model, settings)
    forcing = schedules.teacher_forcing(config.teacher_forcing)
    if moving:
        raw = {"digits": jax.ShapeDtypeStruct((data.num_digits, data.digit_size, data.digit_size), np.uint8)}
    else:
        of_rows = jax.ShapeDtypeStruct((data.num_frames, columns), np.float32)
        raw = {
            "frames": jax.ShapeDtypeStruct((data.num_frames, size, size, 3), np.uint8),
            "condition": of_rows,
            "other_condition": of_rows,
        }
    way = "true frames before each" if forced else "predicted frames before each"
    speed = f", digits of up to {data.max_speed} pixels a frame" if moving else ""
    return Task(
        column=f"{config.num_past} -> {config.measure_future} frames",
        protocol=f"{size}x{size} frames{speed}, Gaussian pixels of one learned scale, given the {way}",
        raw=raw,
        batch=batch,
        observe=observe,
        stages=(_with_teacher_forcing(stage, forcing),),
        panels=_panels,
        measures=measures.measures(config.measure_samples),
        pictures=functools.partial(figures.pictures, num_samples=config.measure_samples),
        check=check,
        followed=functools.partial(measures.followed, proposal=objectives.predicts_from(settings.objective)),
    )


def _look(batch: Batch, frozen: Variables | None) -> tuple[PyTree, PyTree]:
    return batch.x, batch.y


def _likelihood(outputs: tuple[Array, Array]) -> Normal:
    mean, log_scale = outputs
    return bounded_normal(mean, jnp.broadcast_to(log_scale, mean.shape))


def _with_teacher_forcing(stage: Stage, share: Any) -> Stage:
    """The stage with one coin for each batch: whether its predictor is given true frames; the share is logged."""
    if share is None:
        return stage

    def encode(variables: Variables, batch: Batch, train: Train | None = None) -> PyTree:
        if train is not None:
            coin = jax.random.bernoulli(jax.random.fold_in(train.keys[0], 0), share(train.step))
            batch = batch._replace(x={**batch.x, "coin": coin})
        return stage.model.encode(variables, batch, train)

    def objective(draw: Any, step: Array | None) -> tuple[Array, dict[str, Array]]:
        value, terms = stage.objective(draw, step)
        return value, terms if step is None else {**terms, "teacher_forcing": share(step)}

    return stage._replace(model=stage.model._replace(encode=encode), objective=objective)


def _check(config: Any) -> None:
    """Raises a UserError for a setting that cannot be."""
    settings, data = config.cvae, config.data
    if data.source not in SOURCES:
        raise UserError(f"data.source={data.source!r} is no source of videos; choose from {', '.join(SOURCES)}")
    for key, value, known in (
        ("cvae.network", settings.network, tuple(NETWORKS)),
        ("cvae.prior", settings.prior, ("fixed", "learned")),
        ("cvae.precision", settings.precision, ("float32", "bfloat16")),
        ("measure_given", config.measure_given, GIVEN),
    ):
        if value not in known:
            raise UserError(f"{key}={value!r} is not known; choose from {', '.join(known)}")
    for key, value, least in (
        ("num_past", config.num_past, 1),
        ("num_future", config.num_future, 1),
        ("measure_future", config.measure_future, 1),
        ("measure_samples", config.measure_samples, 1),
        ("cvae.width", settings.width, 1),
        ("cvae.features", settings.features, 1),
        ("cvae.latent", settings.latent, 0),
        ("cvae.hidden", settings.hidden, 1),
        ("cvae.predictor_layers", settings.predictor_layers, 1),
    ):
        if value < least:
            raise UserError(f"{key}={value} must be at least {least}")
    if settings.latent and config.num_past > 1 and not objectives.trains_recognition(settings.objective):
        raise UserError(
            f"cvae.objective.name={settings.objective.name!r} does not train the recognition network, which past "
            "frames' z come from; set num_past=1, cvae.latent=0, or another objective"
        )
    if data.size < 4 * SMALLEST or data.size & (data.size - 1):
        raise UserError(f"data.size={data.size} must be a power of 2, of at least {4 * SMALLEST}")
    if data.source == "videos":
        for key in ("num_train", "num_columns"):
            if data[key] < 0:
                raise UserError(f"data.{key}={data[key]} must be at least 0")
        _check_length(config, "num_future")
    elif not 0 < data.digit_size < data.size:
        raise UserError(f"data.digit_size={data.digit_size} must be between 1 and {data.size - 1}, below data.size")
    elif data.max_speed < 1:
        raise UserError(f"data.max_speed={data.max_speed} must be at least 1")


def _check_length(config: Any, future: str) -> None:
    """Raises a UserError where the past and this future are longer than the videos."""
    frames = config.num_past + config[future]
    if config.data.num_frames < frames:
        raise UserError(
            f"num_past={config.num_past} and {future}={config[future]} take {frames} frames, more than "
            f"data.num_frames={config.data.num_frames}; lower num_past or {future}"
        )


def _panels(batch: Batch, samples: dict[str, Array]) -> dict[str, np.ndarray]:
    """The last known frame, and the last of the future: the truth and samples."""
    last = batch.x["condition"].shape[1]
    columns = {f"frame {batch.x['frames'].shape[1]}": np.asarray(batch.x["frames"][:, -1])}
    if batch.y is not None:
        columns[f"frame {last}, truth"] = np.asarray(batch.y[:, -1])
    for drawn in samples.values():
        for number, frames in enumerate(np.asarray(drawn), 1):
            columns[f"sample {number}" if len(drawn) > 1 else "prediction"] = frames[:, -1]
    return columns
