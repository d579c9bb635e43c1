"""Experiments, one a file; `cvae_jax.config` holds what they share. Installed as `cvae_jax.configs`."""
