"""A CVAE of MNIST images given their label: one hidden layer of 200, ten latent dimensions, batches of 20.

    python train.py --config=configs/mnist_class.py --workdir=runs/class --config.data.dir=FOLDER_OF_IDX_FILES
    python eval.py --workdir=runs/class --estimator=elbo,is --num_samples=1000

Four epochs of grey images, half a minute of one CPU core, leave the negative ELBO at 107.9 nats. Training prints the
terms of a batch every 100 steps; eval.py draws ten samples of each digit, a few styles under all labels, and
classifies by Bayes' rule.
Variants: `:strong` has residual networks with two latent layers and the 5-sample importance-weighted bound, on
dynamically binarised images (14 minutes of one core, 85.6 nats with 5,000 samples, 98% classified); `:smoke` (or
`:strong,smoke`) is the same in seconds, on the digits inside scikit-learn.
"""

from ml_collections import ConfigDict

from cvae_jax.config import experiment, mnist, on_digits, parse_options, stage


def get_config(variant: str = "") -> ConfigDict:
    """The experiment for a variant such as "" or "strong"."""
    options = parse_options(variant, ["strong", "smoke"], "configs/mnist_class.py:strong")
    config = experiment("mnist_class", "from_label")
    config.num_classes = 10
    config.measure_samples = 100  # of every image under every label, when eval.py classifies
    config.targets = "grey"  # or "threshold" (at 0.5), or "dynamic" (Bernoulli, drawn anew each time)
    config.image_shape = (28, 28)
    config.data = mnist()
    config.cvae = stage(
        network="plain",  # or "residual": two latent layers; takes one width, prior="learned", activation="gelu"
        hidden=(200,),
        latent=10,
        activation="relu",  # or "tanh", "gelu"
        prior="fixed",  # N(0, I); or "learned", p(z|x) by a network of its own
        batch_size=20,
        epochs=4,
        averaging=0.999,
        steps_per_call=500,
        figure_every=1,
        log_every=100,
        optimizer={"schedule": "cosine", "learning_rate": 2e-3},
    )
    if "strong" in options:
        config.name = "mnist_class_strong"
        config.targets = "dynamic"
        config.cvae.update(network="residual", prior="learned", activation="gelu", hidden=(256,), latent=64)
        config.cvae.update(batch_size=64, epochs=40, steps_per_call=100, figure_every=10, log_every=0)
        config.cvae.objective.update(name="iwae", num_samples=5)
        config.cvae.optimizer.update(learning_rate=1e-3, warmup_steps=500, clip_norm=5.0)
    if "smoke" in options:
        config.measure_num_samples = 100
        on_digits(config)
        config.cvae.update(epochs=4, batch_size=20, figure_every=2, log_every=20)
        config.cvae.optimizer.warmup_steps = 0
    return config
