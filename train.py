"""Trains the models of a config. The same command again goes on where it stopped.

python train.py --config=configs/mnist_quadrants.py:1 --workdir=runs/q1 [--config.KEY=VALUE ...]
"""

from absl import flags
from ml_collections import config_flags

import cvae_jax
from cvae_jax import command_line

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file, with its variant after a colon.", lock_config=True
)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder that receives checkpoints, metrics and figures.", required=True)
flags.mark_flag_as_required("config")


def main() -> None:
    """Trains."""
    cvae_jax.train(CONFIG.value, WORKDIR.value)


if __name__ == "__main__":
    command_line.run(main)
