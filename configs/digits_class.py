"""Images given their label on the digits inside scikit-learn: offline, in a minute on 2 cores.

python train.py --config=configs/digits_class.py --workdir=runs/digits_class
python eval.py --workdir=runs/digits_class

Variant: `:smoke` is the same in fewer epochs.
"""

from ml_collections import ConfigDict

from cvae_jax.config import load, on_digits, parse_options


def get_config(variant: str = "") -> ConfigDict:
    """The experiment for the variant "" or "smoke"."""
    options = parse_options(variant, ["smoke"], "configs/digits_class.py:smoke")
    config = load("mnist_class.py")
    config.name = "digits_class"
    on_digits(config)
    config.cvae.update(epochs=200, averaging=0.99, figure_every=50, checkpoint_every=50, log_every=0)
    if "smoke" in options:
        config.measure_num_samples = 100
        config.cvae.update(epochs=4, figure_every=2, checkpoint_every=1)
    return config
