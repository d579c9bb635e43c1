"""MNIST quadrants: cvae_jax, plain PyTorch, and Pyro as in its tutorial."""
