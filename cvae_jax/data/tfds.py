"""TensorFlow Datasets as a source: the rows of a split, or one line that says why not."""

import logging
import os
from collections.abc import Sequence
from typing import Any

from cvae_jax.errors import UserError, reason


def rows(name: str, split: str, instead: str) -> Sequence[dict[str, Any]]:
    """The examples of a split, prepared (and downloaded) if need be; TFDS_DATA_DIR says where.

    Args:
      name: of the data set.
      split: of it.
      instead: what a user may do without TensorFlow Datasets, for the error.

    Raises:
      UserError: when it cannot deliver.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # each of its retries is three lines
    import tensorflow_datasets

    try:
        return tensorflow_datasets.data_source(name, split=split)
    except Exception as error:  # whatever a download or a missing TensorFlow raises
        raise UserError(
            f"TensorFlow Datasets cannot deliver {name} ({reason(error)}); connect to the network with the extra tfds "
            f"installed to prepare it once, or {instead}"
        ) from None
