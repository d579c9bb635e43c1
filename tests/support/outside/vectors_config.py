"""Vectors y given vectors x: train.npz, valid.npz and test.npz in the folder `data`."""

from ml_collections import ConfigDict

from cvae_jax.config import experiment, stage


def get_config():
    """The experiment."""
    config = experiment("vectors", "vectors")
    config.data = ConfigDict({"source": "npz", "dir": "data"})
    config.cvae = stage(hidden=(32,), latent=2, activation="gelu", epochs=3, batch_size=20, figure_every=3)
    return config
