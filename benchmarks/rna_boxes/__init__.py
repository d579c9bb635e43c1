"""RNA boxes: cvae_jax and PyTorch; buckets and padding; ViennaRNA's library and its program."""
