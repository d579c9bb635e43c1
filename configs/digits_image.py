"""Conditioned on an image, on the digits inside scikit-learn: offline, in a minute on 2 cores.

python train.py --config=configs/digits_image.py --workdir=runs/digits_image
python eval.py --workdir=runs/digits_image

Variants: `:denoise` and `:superres`, as in configs/mnist_image.py (super-resolution is given four pixels here);
`:smoke` (or `:denoise,smoke`) is the same in fewer epochs.
"""

from ml_collections import ConfigDict

from cvae_jax.config import load, on_digits, parse_options


def get_config(variant: str = "") -> ConfigDict:
    """The experiment for a variant such as "" or "denoise"."""
    options = parse_options(variant, ["denoise", "superres", "smoke"], "configs/digits_image.py:denoise")
    config = load("mnist_image.py:" + ",".join(options - {"smoke"}))
    config.name = config.name.replace("mnist", "digits")
    on_digits(config)
    config.cvae.update(epochs=100, batch_size=32, patience=20, averaging=0.99, figure_every=25, checkpoint_every=25)
    if "smoke" in options:
        config.measure_num_samples = 100
        config.cvae.update(epochs=4, figure_every=2, checkpoint_every=1)
    return config
