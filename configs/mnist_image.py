"""A CVAE conditioned on an MNIST image: y is its label made ambiguous, d or (d + 1) mod 10 by a coin.

    python train.py --config=configs/mnist_image.py --workdir=runs/image --config.data.dir=FOLDER_OF_IDX_FILES
    python eval.py --workdir=runs/image --estimator=elbo,is --num_samples=1000

The best negative log p(y|x) is ln 2 = 0.693 nats, and so is the entropy of the labels that a perfect model samples;
ten epochs, minutes on two cores, leave them at 0.76 and 0.77.
Two keys to compare: `--config.cvae.prior=learned` for p(z|x) by a network instead of N(0, I), and
`--config.cvae.tie_weights=True` for one convolutional layer that all networks share.
Variants: `:denoise` is given the image under Gaussian noise, `:superres` one of a quarter of the resolution in each
direction, and y is the clean image; `:smoke` (or `:denoise,smoke`) is the same in seconds, on the digits inside
scikit-learn.
"""

from ml_collections import ConfigDict

from cvae_jax.config import experiment, mnist, on_digits, parse_options, stage


def get_config(variant: str = "") -> ConfigDict:
    """The experiment for a variant such as "" or "superres"."""
    known, exclusive = ["denoise", "superres", "smoke"], ["denoise", "superres"]
    options = parse_options(variant, known, "configs/mnist_image.py:denoise", exclusive)
    config = experiment("mnist_image", "from_image")
    config.output = "label"  # the variants have "denoise" and "superres", and other keys with it
    config.num_classes = 10
    config.measure_samples = 1000  # draws of z, for the distribution of an example's label
    config.targets = "grey"  # images: or "threshold" (at 0.5), or "dynamic" (Bernoulli, drawn anew each time)
    config.image_shape = (28, 28)
    config.data = mnist()
    config.cvae = stage(
        channels=16,  # of the convolutional layer
        hidden=(200,),
        latent=2,
        activation="relu",  # or "tanh", "gelu"
        prior="fixed",  # N(0, I); or "learned", p(z|x) by a network of its own
        tie_weights=False,  # whether all networks share the convolutional layer, or have one each
        epochs=10,
        averaging=0.999,
        figure_every=5,
        optimizer={"schedule": "cosine", "learning_rate": 1e-3, "weight_decay": 0.05},
    )
    for output in options & {"denoise", "superres"}:
        config.name = f"mnist_{output}"
        config.output = output
        config.targets = "dynamic"
        config.cvae.update(hidden=(400, 400), latent=32, channels=8)
        del config.num_classes, config.measure_samples
    if "denoise" in options:
        config.noise = 0.5  # standard deviation, of images in [0, 1]
    if "smoke" in options:
        config.measure_num_samples = 100
        on_digits(config)
        config.cvae.update(epochs=4, batch_size=20, figure_every=2, hidden=(64,))
    return config
