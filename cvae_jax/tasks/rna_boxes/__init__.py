"""RNA secondary structures as boxes.

task.py is the system, boxes.py makes boxes of a structure and targets of boxes, data.py makes and loads data sets,
prediction.py goes back from a model to structures.
"""

from cvae_jax.tasks.rna_boxes.task import RnaBoxes as TASK

__all__ = ["TASK"]
