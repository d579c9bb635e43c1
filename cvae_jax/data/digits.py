"""The 1,797 handwritten 8x8 digits that ship inside scikit-learn: real images without a network."""

import numpy as np
from ml_collections import ConfigDict


def load(settings: ConfigDict | None = None) -> dict[str, dict[str, np.ndarray]]:
    """Images uint8 [n, 8, 8] and labels int32 [n], split 1,297 / 200 / 300 by a fixed permutation."""
    from sklearn.datasets import load_digits  # takes a second to import

    data = load_digits()
    order = np.random.Generator(np.random.Philox(0)).permutation(len(data.target))
    # The originals count 0..16 ink cells a pixel.
    images = np.round(data.images[order] * (255 / 16)).astype(np.uint8)
    labels = data.target[order].astype(np.int32)
    bounds = {"train": slice(0, 1297), "valid": slice(1297, 1497), "test": slice(1497, 1797)}
    return {split: {"image": images[part], "label": labels[part]} for split, part in bounds.items()}
