"""The quadrants of MNIST on the 8x8 digits inside scikit-learn: offline, in half a minute on 2 cores.

python train.py --config=configs/digits_quadrants.py:1 --workdir=runs/digits_1
python eval.py --workdir=runs/digits_1

The number is that of observed quadrants: 1, 2 or 3. Expect -log p(y|x) of 15.9 / 10.3 / 5.0 nats by importance
sampling, and gains of 1.0 / 0.5 / 0.1 nats over the baseline. Of these 0.4 / 0.3 / 0.1 are due to the network and not
to z, as --config.control=True shows: docs/results/glyphs.md. Variant: `:1,smoke` is the same in fewer epochs.
"""

from ml_collections import ConfigDict

from cvae_jax.config import load, on_digits, parse_variant


def get_config(variant: str = "1") -> ConfigDict:
    """The experiment for a variant such as "1" or "2,smoke"."""
    example = "configs/digits_quadrants.py:1,smoke"  # the first number is that of observed quadrants
    quadrants, options = parse_variant(variant, ["1", "2", "3"], ["smoke"], example)
    config = load(f"mnist_quadrants.py:{quadrants}")
    config.name = "digits_quadrants"
    on_digits(config)
    for stage in (config.baseline, config.cvae):
        stage.update(batch_size=32, averaging=0.99, checkpoint_every=20)
    config.baseline.update(hidden=(128, 128), epochs=100, patience=10)
    config.cvae.update(network="residual", hidden=(64,), latent=16, epochs=60, patience=0, figure_every=20)
    config.cvae.objective.update(name="iwae", num_samples=5, beta_schedule="linear", beta_steps=800)
    config.cvae.optimizer.update(learning_rate=2e-3, weight_decay=1.0)
    if "smoke" in options:
        config.measure_num_samples = 100
        config.cvae.objective.beta_steps = 40
        for stage in (config.baseline, config.cvae):
            stage.update(epochs=4, checkpoint_every=1)
    return config
