"""The quadrants of digits that are drawn from the fonts inside matplotlib: offline, what `make demo` trains.

    python train.py --config=configs/glyphs_quadrants.py:1 --workdir=runs/glyphs_1
    python eval.py --workdir=runs/glyphs_1

The number is that of observed quadrants: 1, 2 or 3. The baseline comes first, then the control, which is the CVAE's
network without z, then the CVAE. A run takes a minute of one core. Expect -log p(y|x) of 63 / 39 / 15.5 nats by
importance sampling, and gains of 34 / 12.6 / 1.4 nats over the baseline and of 36 / 11.5 / 0.8 over the control:
docs/results/glyphs.md. Variant: `:1,smoke` is the same on fewer images in fewer epochs.
"""

from ml_collections import ConfigDict

from cvae_jax.config import load, parse_variant


def get_config(variant: str = "1") -> ConfigDict:
    """The experiment for a variant such as "1" or "2,smoke"."""
    example = "configs/glyphs_quadrants.py:1,smoke"  # the first number is that of observed quadrants
    quadrants, options = parse_variant(variant, ["1", "2", "3"], ["smoke"], example)
    config = load(f"mnist_quadrants.py:{quadrants}")
    config.name = "glyphs_quadrants"
    config.control = True
    # Fonts that are held out, such as ("cmr10", "STIXGeneral"), are those of the test split: see data/glyphs.py.
    config.data = ConfigDict({"source": "glyphs", "seed": 0, "num_train": 12_000, "held_out_fonts": ()})
    for stage in (config.baseline, config.cvae):
        stage.update(patience=0, averaging=0.99, checkpoint_every=15)
        stage.optimizer.update(learning_rate=5e-3, warmup_steps=100, weight_decay=0.3, clip_norm=5.0)
    config.baseline.update(hidden=(256, 256), epochs=30)
    config.cvae.update(network="residual", hidden=(160,), latent=16, epochs=15, figure_every=15)
    config.cvae.objective.update(name="iwae", num_samples=5, beta_schedule="linear", beta_steps=300)
    if "smoke" in options:
        config.measure_num_samples = 100
        config.data.num_train = 1_000
        config.cvae.objective.beta_steps = 10
        for stage in (config.baseline, config.cvae):
            stage.update(epochs=4, checkpoint_every=1)
            stage.optimizer.warmup_steps = 0
    return config
