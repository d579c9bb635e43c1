"""MNIST quadrants with the networks of Sohn, Lee and Yan (2015) as in Pyro's tutorial: a baseline, then the CVAE.

    python train.py --config=configs/mnist_quadrants.py:1 --workdir=runs/q1 --config.data.dir=FOLDER_OF_IDX_FILES
    python eval.py --workdir=runs/q1 --estimator=elbo,is --num_samples=100,1000

The number is that of observed quadrants: 1, 2 or 3. Without data.dir MNIST comes from TensorFlow Datasets.
Variants: `:1,strong` has residual networks with two layers of z and the 5-sample importance-weighted bound;
`:1,smoke` (or `:1,strong,smoke`) is the same experiment in seconds, on the digits inside scikit-learn.
"""

from ml_collections import ConfigDict

from cvae_jax.config import experiment, mnist, on_digits, parse_variant, stage


def get_config(variant: str = "1") -> ConfigDict:
    """The experiment for a variant such as "1" or "2,smoke"."""
    example = "configs/mnist_quadrants.py:1,strong"  # the first number is that of observed quadrants
    quadrants, options = parse_variant(variant, ["1", "2", "3"], ["strong", "smoke"], example)
    config = experiment("mnist_quadrants", "quadrants")
    config.quadrants = int(quadrants)
    config.targets = "grey"  # or "threshold" (at 0.5), or "dynamic" (Bernoulli, drawn anew each time)
    config.control = False  # True: the CVAE's network without z is trained too, with the settings of `cvae`
    config.image_shape = (28, 28)
    config.data = mnist()
    cosine = {"schedule": "cosine", "learning_rate": 1e-3}
    config.baseline = stage(hidden=(500, 500), epochs=20, patience=3, averaging=0.999, optimizer=cosine)
    config.cvae = stage(
        network="plain",
        hidden=(500, 500),
        latent=200,
        epochs=50,
        patience=3,
        averaging=0.999,
        figure_every=5,
        optimizer=cosine,
    )
    if "strong" in options:
        config.name = "mnist_quadrants_strong"
        config.cvae.update(network="residual", hidden=(512,), latent=64, epochs=30, patience=5, figure_every=10)
        config.cvae.objective.update(name="iwae", num_samples=5)
        config.cvae.optimizer.update(warmup_steps=500, clip_norm=5.0, weight_decay=0.1)
        if config.quadrants == 3:  # where little is left to tell, q(z|x,y) would collapse onto p(z|x) from the start
            config.cvae.objective.update(beta_schedule="linear", beta_steps=2000)
    if "smoke" in options:
        config.measure_num_samples = 100
        on_digits(config)
        config.baseline.update(epochs=3, hidden=(32, 32))
        config.cvae.update(epochs=4, hidden=(32,), latent=8, figure_every=2)
        config.cvae.optimizer.warmup_steps = 0
        config.cvae.objective.beta_steps = min(config.cvae.objective.beta_steps, 10)
    return config
