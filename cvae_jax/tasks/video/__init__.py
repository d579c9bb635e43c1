"""Video prediction: see task.py."""

from cvae_jax.tasks.video.task import make_task

__all__ = ["make_task"]
