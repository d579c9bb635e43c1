"""A conditional model whose every quantity is known in closed form, on the contract of `cvae_jax.model`.

z ~ N(A x, diag s_p²) and y | z, x ~ N(B z + C x, s_y² I). The columns of B are orthogonal, so the posterior of z
is a diagonal Gaussian, which a diagonal q can equal, be wider or narrower than, or miss by a shift.
Everything but the model itself is NumPy in float64.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy import stats

from cvae_jax.distributions import Normal, draw_latent, sum_per_example
from cvae_jax.model import Batch, Draw, Model

X, Z, Y = 3, 4, 6  # dimensions
S_Y = 0.8

_rng = np.random.default_rng(0)
A = _rng.normal(size=(Z, X))
B = np.linalg.qr(_rng.normal(size=(Y, Z)))[0] * np.array([0.5, 0.8, 1.0, 1.2])
C = _rng.normal(size=(Y, X))
S_P = np.array([0.7, 1.0, 1.3, 0.9])
GAIN = (B**2).sum(0) / S_Y**2  # what y adds to the posterior's precision
POSTERIOR_SCALE = 1 / np.sqrt(1 / S_P**2 + GAIN)


class Gaussian(NamedTuple):
    """A diagonal Gaussian, float64: mean [batch, Z], scale [Z]."""

    mean: np.ndarray
    scale: np.ndarray


def data(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """x [count, X] and y [count, Y], drawn from the model; float64 of float32 numbers."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, X))
    z = x @ A.T + S_P * rng.normal(size=(count, Z))
    y = z @ B.T + x @ C.T + S_Y * rng.normal(size=(count, Y))
    return x.astype(np.float32).astype(np.float64), y.astype(np.float32).astype(np.float64)


def batch_of(x: np.ndarray, y: np.ndarray | None) -> Batch:
    count = len(x)
    outputs = None if y is None else jnp.asarray(y, jnp.float32)
    return Batch(jnp.asarray(x, jnp.float32), outputs, None, jnp.arange(count, dtype=jnp.int32), jnp.ones(count))


def posterior(x: np.ndarray, y: np.ndarray) -> Gaussian:
    """p(z|x,y)."""
    information = x @ A.T / S_P**2 + (y - x @ C.T) @ B / S_Y**2
    return Gaussian(information * POSTERIOR_SCALE**2, POSTERIOR_SCALE)


def proposal(x: np.ndarray, y: np.ndarray, scale: float = 1.0, shift: float = 0.0) -> Gaussian:
    """q(z|x,y): the posterior, `scale` times as wide and shifted by `shift` of its standard deviations."""
    exact = posterior(x, y)
    return Gaussian(exact.mean + shift * exact.scale, exact.scale * scale)


def log_p_y(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """log p(y|x), nats [batch]."""
    covariance = (B * S_P**2) @ B.T + S_Y**2 * np.eye(Y)
    return stats.multivariate_normal(np.zeros(Y), covariance).logpdf(y - x @ (B @ A + C).T)


def kl(x: np.ndarray, q: Gaussian) -> np.ndarray:
    """KL(q || p(z|x)), nats [batch]."""
    return 0.5 * (q.scale**2 / S_P**2 + (q.mean - x @ A.T) ** 2 / S_P**2 - 1 - 2 * np.log(q.scale / S_P)).sum(-1)


def elbo(x: np.ndarray, y: np.ndarray, q: Gaussian, beta: float = 1.0) -> np.ndarray:
    """E_q[log p(y|x,z)] - beta KL(q || p(z|x)), nats [batch]."""
    at_mean = stats.norm.logpdf(y, q.mean @ B.T + x @ C.T, S_Y).sum(-1)
    return at_mean - 0.5 * (GAIN * q.scale**2).sum() - beta * kl(x, q)


def elbo_gradients(x: np.ndarray, y: np.ndarray, q: Gaussian, beta: float = 1.0) -> dict[str, np.ndarray]:
    """Gradients of the ELBO's mean over the batch by C and by the bias of q's mean."""
    residual = (y - q.mean @ B.T - x @ C.T) / S_Y**2
    by_mean = residual @ B - beta * (q.mean - x @ A.T) / S_P**2
    return {"C": residual.T @ x / len(x), "bias": by_mean.mean(0)}


def relative_ess(scale: float, shift: float = 0.0) -> float:
    """Limit of ESS / S of importance sampling from `proposal`: 1 / E_q[(posterior / q)²], for scale > √½."""
    second_moment = scale**2 / np.sqrt(2 * scale**2 - 1) * np.exp(shift**2 / (2 * scale**2 - 1))
    return float(second_moment**-Z)


def variables(scale: float = 1.0, shift: float = 0.0) -> dict[str, dict[str, Array]]:
    """Variables of `MODEL`, whose q is `proposal(x, y, scale, shift)`."""
    by_y = (B / S_Y**2 * POSTERIOR_SCALE**2).T
    by_x = (A.T / S_P**2 * POSTERIOR_SCALE**2).T - by_y @ C
    bias = shift * POSTERIOR_SCALE
    params = {"A": A, "B": B, "C": C, "by_x": by_x, "by_y": by_y, "bias": bias, "q_scale": scale * POSTERIOR_SCALE}
    return {"params": {name: jnp.asarray(value, jnp.float32) for name, value in params.items()}}


def _init(key: Array, batch: Batch) -> dict[str, dict[str, Array]]:
    return variables()


def _encode(variables, batch, train=None):
    params = variables["params"]
    location = batch.x @ params["A"].T
    prior = Normal(location, jnp.broadcast_to(jnp.asarray(S_P, jnp.float32), location.shape))
    q = None
    if batch.y is not None:
        mean = batch.x @ params["by_x"].T + batch.y @ params["by_y"].T
        q = Normal(mean + params["bias"][None], jnp.broadcast_to(params["q_scale"], mean.shape))
    return {"prior": prior, "q": q, "offset": batch.x @ params["C"].T, "B": params["B"], "y": batch.y}


def _draw(variables, encoding, keys, proposal, z=None, train=None):
    latent = draw_latent(encoding["prior"], encoding["q"], keys, proposal, z)
    mean = latent.z @ encoding["B"].T + encoding["offset"]
    p_y = Normal(mean, jnp.full_like(mean, S_Y))
    scored = None if encoding["y"] is None else sum_per_example(p_y.log_prob(encoding["y"]))
    return Draw(latent.z, scored, latent.log_p_z, latent.log_q_z, latent.kl, p_y)


MODEL = Model(_init, _encode, _draw)


def draw_many(variables, batch: Batch, proposal: str, keys: Array) -> Draw:
    """Draws with a leading axis of samples, as objectives are given them; `keys` is [samples, batch]."""
    encoding = MODEL.encode(variables, batch)
    return jax.vmap(lambda k: MODEL.draw(variables, encoding, k, proposal))(keys)
