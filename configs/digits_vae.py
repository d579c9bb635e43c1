"""The plain VAE on the digits inside scikit-learn: offline, in a minute on 2 cores.

python train.py --config=configs/digits_vae.py --workdir=runs/digits_vae
python eval.py --workdir=runs/digits_vae

Variants: `:2d` has a z of two dimensions, whose manifold eval.py draws; `:smoke` is the same in fewer epochs.
"""

from ml_collections import ConfigDict

from cvae_jax.config import load, on_digits, parse_options


def get_config(variant: str = "") -> ConfigDict:
    """The experiment for a variant such as "" or "2d,smoke"."""
    options = parse_options(variant, ["2d", "smoke"], "configs/digits_vae.py:2d")
    config = load("mnist_vae.py:" + ",".join(options - {"smoke"}))
    config.name = config.name.replace("mnist", "digits")
    on_digits(config)
    config.cvae.update(epochs=200, batch_size=32, averaging=0.99, figure_every=50, checkpoint_every=50)
    if "smoke" in options:
        config.measure_num_samples = 100
        config.cvae.update(epochs=4, figure_every=2, checkpoint_every=1)
    return config
