"""Any x and y: vectors or classes, from one's own .npz files. A conditional VAE with fully connected networks.

    python train.py --config=configs/arrays.py --workdir=runs/mine --config.data.dir=FOLDER
    python eval.py --workdir=runs/mine --estimator=elbo,is --num_samples=1000

FOLDER holds train.npz, valid.npz and test.npz, as `np.savez("train.npz", x=x, y=y)` writes them: x and y are vectors
[n, features], numbers [n], or classes, whole numbers [n]. Both are standardised inside the model by the training split,
and log p(y|x) is a density in the data's own units.

Variant: `:smoke` is the same on the digits inside scikit-learn, whose label is told from the image, in seconds.
"""

from ml_collections import ConfigDict

from cvae_jax.config import experiment, parse_options, stage


def get_config(variant: str = "") -> ConfigDict:
    """The experiment for the variant "" or "smoke"."""
    options = parse_options(variant, ["smoke"], "configs/arrays.py:smoke")
    config = experiment("arrays", "arrays")
    config.x, config.y = "x", "y"  # names of the arrays
    config.likelihood = "auto"  # of y: floats gaussian, bools bernoulli, whole numbers categorical; or one of these
    config.data = ConfigDict({"source": "npz", "dir": ""})
    config.cvae = stage(
        hidden=(128, 128),
        latent=8,
        activation="gelu",  # or "relu", "tanh"
        prior="learned",  # p(z|x) by a network; or "fixed", N(0, I)
        epochs=60,
        patience=10,
        averaging=0.999,
        optimizer={"schedule": "cosine", "learning_rate": 2e-3, "warmup_steps": 200, "clip_norm": 10.0},
    )
    config.cvae.objective.update(name="iwae", num_samples=16)
    if "smoke" in options:
        config.measure_num_samples = 100
        config.x, config.y = "image", "label"
        config.data.source = "digits"
        config.cvae.update(epochs=3, hidden=(32,), optimizer={"warmup_steps": 0})
        config.cvae.objective.num_samples = 4
    return config
