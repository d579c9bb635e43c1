"""Estimates of log p(y|x) of the linear-Gaussian models."""

import jax
import linear_gaussian as lg

from cvae_jax import inference

SIGMAS = 4.5
X_, Y_ = lg.data(6)
FACTORED = lg.LinearGaussian(x_size=3, z_size=6, y_size=6, factored=True)


def estimate(name, num_samples, scale=1.0, shift=0.0, x=X_, y=Y_, of=lg.DEFAULT):
    return inference.log_prob(of.fitted(scale, shift), of.batch_of(x, y), name, num_samples, jax.random.key(0))
