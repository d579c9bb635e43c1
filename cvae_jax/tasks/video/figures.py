"""Figures of predicted videos: GIFs of the truth beside predictions, and strips with a frame a column."""

import functools
import pathlib
import tempfile

import jax.numpy as jnp
import numpy as np
from jax import Array

from cvae_jax import figures, inference
from cvae_jax.task import Batch, Fitted, Grid, Plot
from cvae_jax.tasks.video import metrics

KNOWN, PREDICTED = (0.1, 0.6, 0.2), (0.85, 0.1, 0.1)  # colours of the border
VIDEOS = 4  # in a strip
WIDEST = 15  # frames in a strip
SAMPLES = 2  # of each video, beside the best one
MILLISECONDS = 250  # that a GIF shows each frame


def of_videos(fitted: Fitted, batch: Batch, key: Array, num_samples: int) -> dict[str, Grid | Plot]:
    """Returns a GIF of the videos, whose still picture shows its last frame, and strips of the first few.

    Each shows the truth, the sample with the highest PSNR, and the first few samples.

    Args:
      fitted: a model with its variables.
      batch: of videos, with their future.
      key: of all random numbers.
      num_samples: from which the best is chosen.
    """
    # All are measured, and those that are shown drawn once more: of large frames, not all can be kept.
    psnr = metrics.quality_of_samples(fitted, batch, key, num_samples)["PSNR"].mean(2)
    best, count = psnr.argmax(0), len(psnr)
    all_keys = inference.keys_of(batch, key, count)
    names, chosen = ["prediction"], all_keys
    if count > 1:
        names = [f"best of {count}", *(f"sample {number + 1}" for number in range(min(SAMPLES, count)))]
        chosen = jnp.concatenate([all_keys[best, jnp.arange(len(best))][None], all_keys[:SAMPLES]])
    samples = np.asarray(inference.draw_samples(fitted, batch, chosen, noise=False))
    shown = dict(zip(names, samples, strict=True))
    past, future = np.asarray(batch.x["frames"]), np.asarray(metrics.truth(batch))
    whole = {name: np.concatenate([past, frames], 1) for name, frames in {"truth": future, **shown}.items()}
    num_past = past.shape[1]
    return {
        "videos": functools.partial(gif, videos=whole, num_past=num_past),
        "frames": functools.partial(strip, videos=whole, num_past=num_past),
    }


def bordered(image: np.ndarray, known: bool) -> np.ndarray:
    """Returns a frame [height, width, channels] in [0, 1] with a border that tells whether it is known: [..., 3]."""
    height, width = image.shape[:2]
    edge = max(1, height // 16)
    framed = np.empty((height + 2 * edge, width + 2 * edge, 3))
    framed[...] = KNOWN if known else PREDICTED
    framed[edge:-edge, edge:-edge] = figures.colours(image)
    return framed


def gif(path: pathlib.Path, title: str, videos: dict[str, np.ndarray], num_past: int) -> None:
    """Saves an animation beside `path` with the suffix .gif, and its last picture as `path`.

    Args:
      path: of the PNG.
      title: a line above it.
      videos: heading -> frames [videos, frames, height, width, channels] in [0, 1], a column each.
      num_past: how many of the frames are known.
    """
    num_frames = len(next(iter(videos.values()))[0])
    with tempfile.TemporaryDirectory() as folder:
        pages = [pathlib.Path(folder) / f"{number:04d}.png" for number in range(num_frames)]
        for number, page in enumerate(pages):
            known = number < num_past
            columns = {
                name: np.stack([bordered(video[number], known) for video in frames]) for name, frames in videos.items()
            }
            phase = "known (green)" if known else "predicted (red)"
            figures.image_grid(columns, page, f"{title}: frame {number + 1} of {num_frames}, {phase}")
        path.parent.mkdir(parents=True, exist_ok=True)
        figures.animate(pages, path.with_suffix(".gif"), MILLISECONDS)
        path.write_bytes(pages[-1].read_bytes())


def strip(path: pathlib.Path, title: str, videos: dict[str, np.ndarray], num_past: int) -> None:
    """Saves the first few videos with a frame a column, and a row for each of `videos`.

    Args:
      path: of the PNG.
      title: a line above it.
      videos: as in `gif`.
      num_past: how many of the frames are known.
    """
    frames = next(iter(videos.values()))
    num_videos, num_frames = min(VIDEOS, len(frames)), frames.shape[1]
    # All of the frames, or so many of them evenly.
    numbers = np.unique(np.linspace(0, num_frames - 1, min(num_frames, WIDEST)).round().astype(int))
    columns = {
        str(number + 1): np.stack(
            [
                bordered(version[video, number], number < num_past)
                for video in range(num_videos)
                for version in videos.values()
            ]
        )
        for number in numbers.tolist()
    }
    rows = tuple(f"{video + 1}: {name}" for video in range(num_videos) for name in videos)
    figures.image_grid(columns, path, f"{title}: frames, known green, predicted red", rows)
