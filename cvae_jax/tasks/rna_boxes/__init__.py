"""RNA secondary structures as boxes: see task.py."""

from cvae_jax.tasks.rna_boxes.task import make_task

__all__ = ["make_task"]
