"""Weights of annealed chains, for this process and for others."""

import jax
import linear_gaussian as lg

from cvae_jax.inference.ais import Ais, ais

FROM_Q = Ais("recognition", 50)
KEY = jax.random.key(0)


def log_weights(batch, num_chains=16, key=KEY):
    return ais(lg.fitted(1.2, 0.5), batch, num_chains, key, FROM_Q).log_weights
