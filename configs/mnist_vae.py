"""The variational autoencoder p(image) on MNIST with the networks of Burda, Grosse and Salakhutdinov (2016).

    python train.py --config=configs/mnist_vae.py --workdir=runs/vae --config.data.dir=FOLDER_OF_IDX_FILES
    python eval.py --workdir=runs/vae --estimator=elbo,is --num_samples=5000

200 epochs take ten minutes of one CPU core and leave -log p(image) at 89.1 nats (5,000 samples).
Variants, joined by commas: `:iwae` maximises their bound of 50 samples (an hour and a half of one core, 88.6 nats);
`:paper` is their whole schedule, 3,280 epochs of batches of 20; `:2d` has a z of two dimensions, whose manifold eval.py
draws; `:smoke` is the same in seconds, on the digits inside scikit-learn.
"""

from ml_collections import ConfigDict

from cvae_jax.config import experiment, mnist, on_digits, parse_options, stage


def get_config(variant: str = "") -> ConfigDict:
    """The experiment for a variant such as "" or "iwae,paper"."""
    options = parse_options(variant, ["iwae", "paper", "2d", "smoke"], "configs/mnist_vae.py:iwae,paper")
    config = experiment("mnist_vae", "from_label")
    config.targets = "dynamic"  # Bernoulli, drawn anew each time; or "grey", "threshold" (at 0.5)
    config.image_shape = (28, 28)
    config.data = mnist()
    config.cvae = stage(
        hidden=(200, 200),
        latent=50,
        activation="tanh",  # or "relu", "gelu"
        batch_size=100,
        epochs=200,
        averaging=0.999,
        figure_every=20,
        checkpoint_every=5,
        optimizer={"schedule": "cosine", "learning_rate": 2e-3},
    )
    if "2d" in options:
        config.name += "_2d"
        config.cvae.update(latent=2, epochs=30)
    if "iwae" in options:
        config.name += "_iwae"
        config.cvae.update(epochs=60)
        config.cvae.objective.update(name="iwae", num_samples=50)
    if "paper" in options:
        config.name += "_paper"
        config.cvae.update(epochs=3280, batch_size=20, averaging=0.0, figure_every=200, checkpoint_every=20)
        config.cvae.optimizer.update(schedule="stages", learning_rate=1e-3, epsilon=1e-4)
    if "smoke" in options:
        config.measure_num_samples = 100
        on_digits(config)
        config.cvae.update(epochs=4, batch_size=20, figure_every=2)
    return config
