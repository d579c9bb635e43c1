"""Video prediction: see task.py."""

from cvae_jax.tasks.video.task import Video as TASK

__all__ = ["TASK"]
