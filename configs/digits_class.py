"""Images given their label on the digits inside scikit-learn: offline, in a minute on 2 cores.

python train.py --config=configs/digits_class.py --workdir=runs/digits_class
python eval.py --workdir=runs/digits_class
"""

from ml_collections import ConfigDict

from configs import common, mnist_class


def get_config(variant: str = "") -> ConfigDict:
    """The experiment, which has no variants."""
    common.parse_options(variant, [], "configs/digits_class.py")
    config = mnist_class.get_config()
    config.name = "digits_class"
    common.on_digits(config)
    config.cvae.update(epochs=200, averaging=0.99, figure_every=50, checkpoint_every=50, log_every=0)
    return config
