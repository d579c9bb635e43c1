"""Trains the models of a config. The same command again goes on where it stopped.

python train.py --config=configs/mnist_quadrants.py:1 --workdir=runs/q1 [--config.KEY=VALUE ...]

The data are loaded, the task is made for what they say of themselves, and its stages are trained one after the other:
see `cvae_jax.experiment.train`.
"""

from cvae_jax import __main__ as commands

if __name__ == "__main__":
    commands.train()
