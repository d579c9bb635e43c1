"""Video: cvae_jax, the same a frame at a time, and PyTorch."""
