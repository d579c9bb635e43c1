"""Conditional models whose every quantity is known in closed form, on the contract of `cvae_jax.model`.

z ~ N(A x, diag s_p²) and y | z, x ~ N(B z + C x, s_y² I). The columns of B are orthogonal, so the posterior of z
is a diagonal Gaussian, which a diagonal q can equal, be wider or narrower than, or miss by a shift.
Everything but the model itself is NumPy in float64.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy import stats

from cvae_jax.distributions import Normal, draw_latent, sum_per_example
from cvae_jax.model import Batch, Draw, Fitted, Model

S_Y = 0.8


class Gaussian(NamedTuple):
    """A diagonal Gaussian, float64: mean [batch, z_size], scale [z_size]."""

    mean: np.ndarray
    scale: np.ndarray


@dataclass(frozen=True)
class LinearGaussian:
    """One such model, its numbers drawn by `seed`; y_size >= z_size.

    With `factored` y has as many elements as z and each depends on its own element of z alone: densities keep that
    axis, [batch, z_size], and z is [batch, z_size, 1].
    """

    x_size: int
    z_size: int
    y_size: int
    seed: int = 0
    factored: bool = False

    @cached_property
    def _numbers(self) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(self.seed)
        a = rng.normal(size=(self.z_size, self.x_size))
        directions = np.linalg.qr(rng.normal(size=(self.y_size, self.z_size)))[0]
        if self.factored:
            directions = np.eye(self.y_size, self.z_size)
        b = directions * np.resize([0.5, 0.8, 1.0, 1.2], self.z_size)
        c = rng.normal(size=(self.y_size, self.x_size))
        s_p = np.resize([0.7, 1.0, 1.3, 0.9], self.z_size)
        gain = (b**2).sum(0) / S_Y**2  # what y adds to the posterior's precision
        return {"A": a, "B": b, "C": c, "s_p": s_p, "gain": gain, "posterior_scale": 1 / np.sqrt(1 / s_p**2 + gain)}

    def data(self, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """x [count, x_size] and y [count, y_size], drawn from the model; float64 of float32 numbers."""
        n, rng = self._numbers, np.random.default_rng(seed)
        x = rng.normal(size=(count, self.x_size))
        z = x @ n["A"].T + n["s_p"] * rng.normal(size=(count, self.z_size))
        y = z @ n["B"].T + x @ n["C"].T + S_Y * rng.normal(size=(count, self.y_size))
        return x.astype(np.float32).astype(np.float64), y.astype(np.float32).astype(np.float64)

    def batch_of(self, x: np.ndarray, y: np.ndarray | None) -> Batch:
        count = len(x)
        outputs = None if y is None else jnp.asarray(y, jnp.float32)
        return Batch(jnp.asarray(x, jnp.float32), outputs, None, jnp.arange(count, dtype=jnp.int32), jnp.ones(count))

    def posterior(self, x: np.ndarray, y: np.ndarray) -> Gaussian:
        """p(z|x,y)."""
        n = self._numbers
        information = x @ n["A"].T / n["s_p"] ** 2 + (y - x @ n["C"].T) @ n["B"] / S_Y**2
        return Gaussian(information * n["posterior_scale"] ** 2, n["posterior_scale"])

    def proposal(self, x: np.ndarray, y: np.ndarray, scale: float = 1.0, shift: float = 0.0) -> Gaussian:
        """q(z|x,y): the posterior, `scale` times as wide and shifted by `shift` of its standard deviations."""
        exact = self.posterior(x, y)
        return Gaussian(exact.mean + shift * exact.scale, exact.scale * scale)

    def log_p_y(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """log p(y|x), nats [batch]."""
        n = self._numbers
        covariance = (n["B"] * n["s_p"] ** 2) @ n["B"].T + S_Y**2 * np.eye(self.y_size)
        residual = y - x @ (n["B"] @ n["A"] + n["C"]).T
        return np.atleast_1d(stats.multivariate_normal(np.zeros(self.y_size), covariance).logpdf(residual))

    def kl(self, x: np.ndarray, q: Gaussian) -> np.ndarray:
        """KL(q || p(z|x)), nats [batch]."""
        ratio, distance = q.scale / self._numbers["s_p"], (q.mean - x @ self._numbers["A"].T) / self._numbers["s_p"]
        return 0.5 * (ratio**2 + distance**2 - 1 - 2 * np.log(ratio)).sum(-1)

    def elbo(self, x: np.ndarray, y: np.ndarray, q: Gaussian, beta: float = 1.0) -> np.ndarray:
        """E_q[log p(y|x,z)] - beta KL(q || p(z|x)), nats [batch]."""
        n = self._numbers
        at_mean = stats.norm.logpdf(y, q.mean @ n["B"].T + x @ n["C"].T, S_Y).sum(-1)
        return at_mean - 0.5 * (n["gain"] * q.scale**2).sum() - beta * self.kl(x, q)

    def elbo_gradients(self, x: np.ndarray, y: np.ndarray, q: Gaussian, beta: float = 1.0) -> dict[str, np.ndarray]:
        """Gradients of the ELBO's mean over the batch by C and by the bias of q's mean."""
        n = self._numbers
        residual = (y - q.mean @ n["B"].T - x @ n["C"].T) / S_Y**2
        by_mean = residual @ n["B"] - beta * (q.mean - x @ n["A"].T) / n["s_p"] ** 2
        return {"C": residual.T @ x / len(x), "bias": by_mean.mean(0)}

    def relative_ess(self, scale: float, shift: float = 0.0) -> float:
        """Limit of ESS / S of importance sampling from `proposal`: 1 / E_q[(posterior / q)²], for scale > √½."""
        second_moment = scale**2 / np.sqrt(2 * scale**2 - 1) * np.exp(shift**2 / (2 * scale**2 - 1))
        return float(1 / second_moment ** (1 if self.factored else self.z_size))

    def variables(self, scale: float = 1.0, shift: float = 0.0) -> dict[str, dict[str, Array]]:
        """Variables of `model`, whose q is `proposal(x, y, scale, shift)`."""
        n = self._numbers
        by_y = (n["B"] / S_Y**2 * n["posterior_scale"] ** 2).T
        by_x = (n["A"].T / n["s_p"] ** 2 * n["posterior_scale"] ** 2).T - by_y @ n["C"]
        params = {
            **{name: n[name] for name in ("A", "B", "C", "s_p")},
            **{"by_x": by_x, "by_y": by_y},
            **{"bias": shift * n["posterior_scale"], "q_scale": scale * n["posterior_scale"]},
        }
        return {"params": {name: jnp.asarray(value, jnp.float32) for name, value in params.items()}}

    @property
    def model(self) -> Model:
        return self._model

    @cached_property
    def _model(self) -> Model:  # one object, so that what is compiled for it serves again
        return Model(self._init, self._encode, self._draw, num_factors=int(self.factored))

    def fitted(self, scale: float = 1.0, shift: float = 0.0) -> Fitted:
        """`model` with `variables(scale, shift)`."""
        return Fitted(self.model, self.variables(scale, shift))

    def _init(self, key, batch, earlier):
        return self.variables()

    def _encode(self, variables, batch, train=None):
        params = variables["params"]
        location = batch.x @ params["A"].T
        prior = Normal(location, jnp.broadcast_to(params["s_p"], location.shape))
        q = None
        if batch.y is not None:
            mean = batch.x @ params["by_x"].T + batch.y @ params["by_y"].T
            q = Normal(mean + params["bias"][None], jnp.broadcast_to(params["q_scale"], mean.shape))
        return {"prior": prior, "q": q, "offset": batch.x @ params["C"].T, "B": params["B"], "y": batch.y}

    def _draw(self, variables, encoding, keys, proposal, z=None, train=None):
        prior, q = encoding["prior"], encoding["q"]
        if self.factored and z is not None:
            z = z[..., 0]
        latent = draw_latent(prior, q, keys, proposal, z)
        mean = latent.z @ encoding["B"].T + encoding["offset"]
        p_y = Normal(mean, jnp.full_like(mean, S_Y))
        scored = None if encoding["y"] is None else p_y.log_prob(encoding["y"])
        if not self.factored:
            scored = None if scored is None else sum_per_example(scored)
            return Draw(latent.z, scored, latent.log_p_z, latent.log_q_z, latent.kl, p_y)
        log_q_z = jnp.full_like(latent.z, jnp.nan) if q is None else q.log_prob(latent.z)
        return Draw(latent.z[..., None], scored, prior.log_prob(latent.z), log_q_z, latent.kl, p_y)

    def draw_many(self, variables, batch: Batch, proposal: str, keys: Array) -> Draw:
        """Draws with a leading axis of samples, as objectives are given them; `keys` is [samples, batch]."""
        encoding = self.model.encode(variables, batch)
        return jax.vmap(lambda k: self.model.draw(variables, encoding, k, proposal))(keys)


# The one that most tests are about, under names of this module.
DEFAULT = LinearGaussian(x_size=3, z_size=4, y_size=6)
MODEL = DEFAULT.model
data, batch_of, variables, draw_many = DEFAULT.data, DEFAULT.batch_of, DEFAULT.variables, DEFAULT.draw_many
fitted = DEFAULT.fitted
posterior, proposal, relative_ess = DEFAULT.posterior, DEFAULT.proposal, DEFAULT.relative_ess
log_p_y, kl, elbo, elbo_gradients = DEFAULT.log_p_y, DEFAULT.kl, DEFAULT.elbo, DEFAULT.elbo_gradients
