"""Stochastic video prediction: 2 frames and the robot's actions in, 10 frames out (SVG-LP, SVG-FP).

    python train.py --config=configs/video.py --workdir=runs/video --config.data.dir=FOLDER
    python eval.py --workdir=runs/video [--change=measure_future=28 --change=measure_samples=100]

FOLDER holds train/, test/ and perhaps validate/, with a folder of 0.png, 1.png, ..., actions.csv and
endeffector_positions.csv for each video: see cvae_jax/tasks/video/folders.py. If it is not given, videos are those of
BAIR's robot from TensorFlow Datasets; `--config.data.num_train=5000` takes the first of them (all are 16 GB at 64x64,
which stay in memory).

Keys to compare: `--config.cvae.prior=fixed` is SVG-FP, `--config.cvae.latent=0` a deterministic network,
`--config.cvae.last_frame_skip=True` takes skips from the frame before each, `--config.cvae.network=vgg` has the larger
frame networks. `--config.cvae.objective.beta_schedule=cyclical` (or monotonic) anneals the KL's weight over
`beta_steps` (and `beta_cycles`). `--config.teacher_forcing.last=0.0`, `begin` and `steps` have training run
freely more and more, `--config.teacher_forcing.first=0.0` with last from the start on. (`--config.seeds_by=vmap` would
compute both ways each step.) `--config.dequantise=True` turns log p(y|x) into a bound for bytes.

Variants: `:digits` makes clips of a moving digit out of MNIST on the device, 5 frames in and 10 out; `:paper` (or
`:digits,paper`) has the sizes of the papers, for a GPU; `:smoke` is moving digits in a minute, of the digits inside
scikit-learn.
"""

from ml_collections import ConfigDict

from cvae_jax.config import experiment, parse_options, stage


def get_config(variant: str = "") -> ConfigDict:
    """Returns the experiment for a variant such as "" or "digits,paper"."""
    options = parse_options(variant, ["digits", "paper", "smoke"], "configs/video.py:digits")
    digits, paper = bool(options & {"digits", "smoke"}), "paper" in options
    config = experiment("video_digits" if digits else "video", "video")
    config.num_past = 5 if digits else 2
    config.num_future = 10  # frames to predict
    # Whether a byte v of y becomes (v + u) / 256, u uniform in [0, 1) and new each step; else it is v / 255. The mean
    # of log p(y|x) over u, less log 256 a value, is then a lower bound of the log probability of the bytes.
    config.dequantise = False
    config.measure_future = 10  # the same when validating and measuring; more for a longer horizon
    config.measure_num_samples = 100  # each is a video
    config.measure_samples = 20  # futures of each video, of which the best and the average are measured
    config.measure_given = "true_frames"  # before each, log p(y|x) is that of a frame; or "predictions"
    # The share of batches whose predictor is given true frames: constant at first, then down to the last on a line.
    config.teacher_forcing = {"first": 1.0, "last": 1.0, "begin": 0, "steps": 0}
    if digits:
        config.data = {
            "source": "moving_digits", "of": "mnist", "dir": "", "verify_checksums": True, "num_digits": 1,
            "digit_size": 14, "size": 32, "max_speed": 2,
        }  # fmt: skip
    else:
        config.data = {
            "source": "videos", "dir": "", "num_frames": 30, "size": 32, "num_train": 0, "num_valid": 10,
            "conditions": ("actions.csv", "endeffector_positions.csv"), "num_columns": 7,
        }  # fmt: skip
    config.cvae = stage(
        network="dcgan",  # of frames; or "vgg"
        width=16,  # channels of its first level, twice as many at half the size
        features=64,  # of an encoded frame
        latent=10,  # of z at each step; 0 for a deterministic network
        prior="learned",  # p(z_t | frames before t), SVG-LP; or "fixed", N(0, I), SVG-FP
        hidden=128,  # of the LSTM cells
        predictor_layers=2,
        last_frame_skip=False,  # skips from the frame before each; else from the last frame of the past
        precision="float32",  # in which frames are encoded and decoded; "bfloat16" is for accelerators
        remat=False,  # True halves the memory of training without teacher forcing
        batch_size=32 if digits else 16,
        epochs=4 if digits else 300,
        checkpoint_every=1 if digits else 10,
        averaging=0.999,
        optimizer={"learning_rate": 1e-3},
    )
    # The papers' 1e-4 beside mean squared errors is about 50 for 32x32 colour frames at 25 dB, and 200 for 64x64.
    config.cvae.objective.beta = 10.0
    if paper:
        config.data.update({"size": 64, **({"digit_size": 32, "num_digits": 2, "max_speed": 4} if digits else {})})
        config.cvae.update(
            network="dcgan" if digits else "vgg", width=64, features=128, latent=10 if digits else 64, hidden=256,
            batch_size=100 if digits else 16, epochs=300 if digits else 31, checkpoint_every=1,
        )  # fmt: skip
    if "smoke" in options:
        config.data.update(of="digits", digit_size=8, size=16)
        config.update(num_past=2, num_future=3, measure_future=3, measure_samples=3)
        config.cvae.update(width=4, features=16, latent=2, hidden=16, batch_size=50, epochs=2, figure_every=1)
    return config
