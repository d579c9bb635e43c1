"""Weights of annealed chains, for this process and for others."""

import jax
import linear_gaussian as lg

from cvae_jax.inference import ais as annealing
from cvae_jax.inference.ais import Annealing

FROM_Q = Annealing("recognition", 50)
KEY = jax.random.key(0)


def log_weights(batch, num_chains=16, key=KEY):
    return annealing.ais(lg.MODEL, lg.variables(1.2, 0.5), batch, num_chains, key, FROM_Q).log_weights
