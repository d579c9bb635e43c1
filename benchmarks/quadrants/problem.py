"""What every contender of the quadrants shares: the images, which of their pixels are known, the networks' sizes."""

import gzip
import pathlib

import numpy as np

NUM_TRAIN = 55_000
HIDDEN = 500
LATENT = 200
PIXELS = 784
LEARNING_RATE = 1e-3
# Of one z through the generation network 200-500-500-784: its matmuls, nothing else.
FLOPS_PER_DRAW = 2 * (LATENT * HIDDEN + HIDDEN * HIDDEN + HIDDEN * PIXELS)


def load_images(data_dir: str | None) -> np.ndarray:
    """Returns the 60,000 training images of MNIST, uint8 [n, 28, 28], or as many of noise where there is no folder."""
    if not data_dir:
        return np.random.default_rng(0).integers(0, 256, (NUM_TRAIN + 5_000, 28, 28), np.uint8)
    path = pathlib.Path(data_dir) / "train-images-idx3-ubyte"
    packed = path.with_name(path.name + ".gz")
    content = gzip.decompress(packed.read_bytes()) if packed.exists() else path.read_bytes()
    return np.frombuffer(content, np.uint8, offset=16).reshape(-1, 28, 28)


def observed_pixels() -> np.ndarray:
    """Returns a float mask [28, 28] of the one quadrant that is the input: the bottom left."""
    mask = np.zeros((28, 28), np.float32)
    mask[14:, :14] = 1
    return mask
