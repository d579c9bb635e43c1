"""The task's own figures of a trained model: samples of every stage, and what the task draws beside."""

import pathlib

from cvae_jax import figures, inference, keys
from cvae_jax.data import batches
from cvae_jax.task import Arrays, Grid
from cvae_jax.trained import TrainedModel

NUM_SHOWN = 8  # examples in a figure of samples
SAMPLES_SHOWN = 10


def draw_samples(trained: TrainedModel, arrays: Arrays, path: pathlib.Path, title: str) -> None:
    """Saves the task's grid: the first examples of a split with every stage's prediction or samples.

    Args:
      trained: the models of one seed.
      arrays: raw, of one split.
      path: of the PNG.
      title: a line above the figure.
    """
    batch = batches.first(trained.task, arrays, NUM_SHOWN)
    samples = {}
    for stage in trained.stages:
        fitted = trained.fitted(stage.name)
        count = 1 if fitted.exact else SAMPLES_SHOWN
        sample_keys = inference.keys_of(batch, keys.stream(0, "figure"), count)
        samples[stage.name] = inference.draw_samples(fitted, batch, sample_keys, noise=False)
    grid = trained.task.sample_grid(batch, samples)
    figures.image_grid(grid.columns, path, title, grid.rows)


def draw_figures(trained: TrainedModel, arrays: Arrays, folder: pathlib.Path, base: str, title: str) -> None:
    """Saves the task's other figures of the last stage, each as <its name>_<base>.png.

    Args:
      trained: the models of one seed.
      arrays: raw, of one split.
      folder: where figures go.
      base: end of their names.
      title: a line above each.
    """
    batch, key = batches.first(trained.task, arrays, NUM_SHOWN), keys.stream(0, "pictures")
    for name, figure in trained.task.figures(trained.fitted(), batch, key).items():
        path = folder / f"{name}_{base}.png"
        if isinstance(figure, Grid):
            figures.image_grid(figure.columns, path, f"{title}, {figure.title}", figure.rows)
        else:
            figure(path, title)


def animate_training(folder: pathlib.Path, stage: str) -> None:
    """Saves <stage>.gif, which joins the figures of a stage's epochs and of its best weights in <folder>/<stage>."""
    frames = sorted((folder / stage).glob("epoch_*.png"))
    figures.animate([*frames, folder / stage / "best.png"], folder / f"{stage}.gif")
