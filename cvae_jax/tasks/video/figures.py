"""Pictures of predicted videos: GIFs of the truth beside predictions, and strips with a frame a column."""

import functools
import pathlib
import tempfile
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from cvae_jax import figures
from cvae_jax.inference import draws as inference
from cvae_jax.model import Batch, How, Model, Variables
from cvae_jax.tasks.video import metrics as measures

KNOWN, PREDICTED = (0.1, 0.6, 0.2), (0.85, 0.1, 0.1)  # colours of the border
VIDEOS = 4  # in a strip
WIDEST = 15  # frames in a strip
SAMPLES = 2  # of each video, beside the best one
MILLISECONDS = 250  # that a GIF shows each frame

_sample = jax.jit(inference.sample, static_argnums=(0, 4, 5))


def pictures(
    model: Model, variables: Variables, batch: Batch, how: How, key: jax.Array, num_samples: int
) -> dict[str, Callable[[pathlib.Path, str], None]]:
    """Of the first videos: a GIF, whose still picture shows its last frame, and strips.

    Each shows the truth, the sample with the highest PSNR out of `num_samples`, and the first few.
    """
    # All are measured, and those that are shown drawn once more: of large frames, not all can be kept.
    psnr = measures.of_samples(model, variables, batch, how, key, num_samples)["PSNR"].mean(2)
    best, count = psnr.argmax(0), len(psnr)
    all_keys = measures.sample_keys(batch, key, count)
    names, chosen = ["prediction"], all_keys
    if count > 1:
        names = [f"best of {count}", *(f"sample {number + 1}" for number in range(min(SAMPLES, count)))]
        chosen = jnp.concatenate([all_keys[best, jnp.arange(len(best))][None], all_keys[:SAMPLES]])
    drawn = np.asarray(_sample(model, variables, batch, chosen, False, how.predicts_from))
    shown = dict(zip(names, drawn, strict=True))
    past, future = np.asarray(batch.x["frames"]), np.asarray(batch.y)
    whole = {name: np.concatenate([past, frames], 1) for name, frames in {"truth": future, **shown}.items()}
    num_past = past.shape[1]
    return {
        "videos": functools.partial(gif, videos=whole, num_past=num_past),
        "frames": functools.partial(strip, videos=whole, num_past=num_past),
    }


def bordered(image: np.ndarray, known: bool) -> np.ndarray:
    """A frame [height, width, channels] in [0, 1] with a border that tells whether it is known: [..., 3]."""
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
    """Saves the first few videos with a frame a column, and a row for each of `videos`; arguments as of `gif`."""
    frames = next(iter(videos.values()))
    num_videos, num_frames = min(VIDEOS, len(frames)), frames.shape[1]
    # All of the frames, or so many of them evenly.
    numbers = np.unique(np.linspace(0, num_frames - 1, min(num_frames, WIDEST)).round().astype(int))
    columns = {
        str(number + 1): np.stack(
            [
                bordered(each[video, number], number < num_past)
                for video in range(num_videos)
                for each in videos.values()
            ]
        )
        for number in numbers.tolist()
    }
    rows = tuple(f"{video + 1}: {name}" for video in range(num_videos) for name in videos)
    figures.image_grid(columns, path, f"{title}: frames, known green, predicted red", rows)
