"""Images given their label on the digits inside scikit-learn: offline, in a minute on 2 cores.

python train.py --config=configs/digits_class.py --workdir=runs/digits_class
python eval.py --workdir=runs/digits_class

Variant: `:strong`, as in configs/mnist_class.py.
"""

from ml_collections import ConfigDict

from configs import common, mnist_class


def get_config(variant: str = "") -> ConfigDict:
    """The experiment for the variant "" or "strong"."""
    options = common.parse_options(variant, ["strong"], "configs/digits_class.py:strong")
    config = mnist_class.get_config(",".join(options))
    config.name = config.name.replace("mnist", "digits")
    common.on_digits(config)
    config.cvae.update(epochs=200, averaging=0.99, figure_every=50, checkpoint_every=50, log_every=0)
    return config
