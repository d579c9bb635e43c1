"""The quadrants of digits drawn from the fonts inside matplotlib: offline.

python train.py --config=configs/glyphs_quadrants.py:1 --workdir=runs/glyphs_1
python eval.py --workdir=runs/glyphs_1

The number is that of observed quadrants: 1, 2 or 3. Variant: `:1,smoke` is the same on fewer images in fewer epochs.
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
    # Names of fonts may be held out, of which the test split then is: see cvae_jax/data/glyphs.py.
    config.data = ConfigDict({"source": "glyphs", "seed": 0, "num_train": 12_000, "held_out_fonts": ()})
    for stage in (config.baseline, config.cvae):
        stage.update(hidden=(256, 256), epochs=25, patience=0, averaging=0.99, checkpoint_every=25)
        stage.optimizer.weight_decay = 0.1
    config.cvae.update(latent=32, figure_every=0)
    if "smoke" in options:
        config.measure_num_samples = 100
        config.data.num_train = 1_000
        for stage in (config.baseline, config.cvae):
            stage.update(epochs=4, checkpoint_every=1)
    return config
