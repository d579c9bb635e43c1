"""RNA secondary structures as boxes: see task.py."""

from cvae_jax.tasks.rna_boxes.task import RnaBoxes as TASK

__all__ = ["TASK"]
