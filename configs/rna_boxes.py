"""Secondary structure of RNA as bounding boxes: p(stems, internal loops and hairpins at every pixel | sequence).

python -m cvae_jax rna_boxes make --min_len=10 --max_len=60 --num_seq=11000 --num_sample=10 \
  --valid_share=0.05 --test_share=0.05 --out=FOLDER
python train.py --config=configs/rna_boxes.py --workdir=runs/rna --config.data.dir=FOLDER
python eval.py --workdir=runs/rna --num_examples=200
python -m cvae_jax rna_boxes fold --workdir=runs/rna GGGGAAAACCCCUUUGGGGAAACCCC

Without `data.dir` the sequences are made anew at each start. Keys to compare: `--config.cvae.z=global`, `pixel` (with
`--config.cvae.objective.beta=1`) or `none`, `--config.cvae.prior=learned` or `fixed`. 44 minutes on one busy CPU core;
the correlation with the exact pair probabilities is then about 0.76, see the README for all that was measured.
Variants: `:debug`, `:run_1` and `:run_2` are the networks and runs of the seed: z of each pixel, sequences up to 100,
heads as means, weight 0.1 for pixels that are not near boxes (run_2: 1); these take a GPU but for `:debug`. `:smoke` is
the experiment in seconds.
"""

from ml_collections import ConfigDict

from cvae_jax.config import experiment, parse_options, stage


def get_config(variant: str = "") -> ConfigDict:
    """Returns the experiment for a variant such as "" or "run_1"."""
    runs = ["debug", "run_1", "run_2"]
    options = parse_options(variant, [*runs, "smoke"], "configs/rna_boxes.py:debug", exclusive=runs)
    config = experiment("rna_boxes", "rna_boxes")
    config.structures = 2  # of each sequence in a training step, drawn anew from those it has
    config.measure_num_samples = 100  # a structure has thousands of outputs
    config.measure_samples = 100  # draws of z, for the structures of an example
    config.mask = 1.0  # weight in training of pixels that are not near a box; log p has 1
    config.normalise = False  # in training every head's mean instead of its sum, which is no log p
    config.scalar_sizes = False  # a head of sizes as numbers beside that of classes, in training alone
    config.buckets = (24, 36, 48, 60, 80)  # lengths; a sequence is padded to the next of them, or to data.max_length
    config.data = ConfigDict(
        {
            "source": "rna",
            "dir": "",  # of `python -m cvae_jax rna_boxes make`; "": sequences are made anew, of these numbers
            "num_seq": 10_000,
            "min_len": 10,
            "max_len": 60,
            "seed": 0,
            "num_sample": 10,  # structures kept of each sequence
            "max_length": 100,  # of any sequence, those of other data too that the model is measured on
        }
    )
    config.cvae = stage(
        network="axial",  # or "conv", the seed's
        filters=(32,) * 3,  # channels, layer by layer
        width=3,  # of the kernels
        z="global",  # one for the structure; or "pixel", or "none"
        prior="learned",  # p(z|x); or "fixed", N(0, I)
        latent=20,
        hidden=64,  # of the recognition and the prior network
        decoder=32,  # of each head
        batch_size=8,
        epochs=8,
        averaging=0.999,
        steps_per_call=1,  # each call's length is compiled for each bucket; take more on accelerators
        optimizer={
            "learning_rate": 3e-3, "schedule": "cosine", "warmup_steps": 200, "weight_decay": 0.01, "clip_norm": 100.0
        },
    )  # fmt: skip
    # Dense targets repeat a box at each of its pixels, so z would tell far more than which structure it is (with a
    # weight of 4, 7.7 nats and not 2.7 after five epochs), and samples from the prior would lie where the generation
    # network was not trained: their structures differ by more than the ensemble's.
    config.cvae.objective.beta = 10.0
    if options & {"debug", "run_1", "run_2"}:  # those of the seed
        config.cvae.objective.beta = 1.0
        config.structures = 1
        config.mask = 1.0 if "run_2" in options else 0.1
        config.normalise = config.scalar_sizes = True
        config.buckets = (50, 76, 100)
        config.data.update(num_seq=1000, max_len=100)
        config.cvae.update(
            network="conv", filters=(32, 32, 64, 64, 64, 128, 128), width=9, z="pixel", hidden=50, decoder=20,
            batch_size=20, epochs=50, averaging=0.0,
            optimizer={"learning_rate": 1e-4, "schedule": "constant", "warmup_steps": 0, "weight_decay": 0.0,
                       "clip_norm": 0.0},
        )  # fmt: skip
    if "debug" in options:
        config.cvae.update(filters=(16, 16), epochs=2)
    if "smoke" in options:
        config.data.update(num_seq=200, max_len=30, max_length=30, num_sample=4)
        config.buckets = ()
        config.measure_samples = 10
        config.cvae.update(epochs=2, batch_size=10, filters=(16,), figure_every=1, optimizer={"warmup_steps": 5})
    return config
