"""Conditional VAEs made of Flax networks, and the one place where such networks become the contract's Model."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from cvae_jax.distributions import Latent, bounded_normal, draw_latent, log_likelihood, standard_normal
from cvae_jax.errors import UserError
from cvae_jax.keys import unused
from cvae_jax.model import Batch, Draw, Model, Proposal, PyTree, Train, Variables
from cvae_jax.networks.mlp import ConditionedMLP, GaussianMLP
from cvae_jax.networks.residual import SMALL_INIT, ResidualBlock, ResidualMLP

ACTIVATIONS = ("relu", "tanh", "gelu")
PRIORS = ("fixed", "learned")


def make_model(
    networks: nn.Module,
    look: Callable[[Batch, Variables | None], tuple[PyTree, PyTree]],
    likelihood: Callable[[Any], Any],
    num_factors: int = 0,
    autoregressive: bool = False,
) -> Model:
    """A conditional VAE as pure functions; one without stochastic units is a deterministic network.

    Batch statistics are updated in training alone, which networks know by `self.is_mutable_collection("batch_stats")`.
    Those of what does not depend on z belong into `encode`, where an example meets them once however many z follow.

    Args:
      networks: with two methods. `encode(x, y)` gives all that does not depend on z; `decode(encoding, keys, proposal,
        z)` gives the stochastic units, a tuple of Latent, and outputs [batch, *factors, ...]. Keys are [batch], z is a
        tuple of the units' values or None.
      look: what the networks see of a batch, and of the earlier stages' variables (None when initialising): x, and y
        or None.
      likelihood: p(y|x,z) given the outputs.
      num_factors: axes of parts of y and z that are independent given x, behind the batch axis.
      autoregressive: see Model.
    """

    def touch_all(module: Any, x: PyTree, y: PyTree, keys: Array) -> Any:
        return module.decode(module.encode(x, y), keys, "prior", None)

    def init(key: Array, batch: Batch) -> Variables:
        return dict(networks.init(key, *look(batch, None), unused(batch.index), method=touch_all))

    def own(variables: Variables) -> Variables:
        return {name: tree for name, tree in variables.items() if name != "frozen"}

    def encode(variables: Variables, batch: Batch, train: Train | None = None) -> dict[str, Any]:
        x, y = look(batch, variables.get("frozen", {}))
        mutable = [] if train is None else [name for name in own(variables) if name != "params"]
        encoding: Any = networks.apply(own(variables), x, y, method="encode", mutable=mutable)
        return {"networks": encoding[0], "updates": encoding[1], "y": batch.y, "weight": batch.weight}

    def draw(
        variables: Variables,
        encoding: dict[str, Any],
        keys: Array,
        proposal: Proposal,
        z: Any = None,
        train: Train | None = None,
    ) -> Draw:
        # Statistics are those that `encode` has updated, so that what `decode` returns of them is all that is new.
        held, mutable = {**own(variables), **encoding["updates"]}, list(encoding["updates"])
        result: Any = networks.apply(held, encoding["networks"], keys, proposal, z, method="decode", mutable=mutable)
        (units, outputs), updates = result
        p_y = likelihood(outputs)
        log_p_y = log_likelihood(p_y, encoding["y"], encoding["weight"], num_factors)
        nothing = jnp.zeros(keys.shape)  # the densities of no z
        log_p_z = sum((unit.log_p_z for unit in units[1:]), units[0].log_p_z) if units else nothing
        log_q_z = sum((unit.log_q_z for unit in units[1:]), units[0].log_q_z) if units else nothing
        z, kl = tuple(unit.z for unit in units), tuple(unit.kl for unit in units)
        return Draw(z, log_p_y, log_p_z, log_q_z, kl, p_y, updates)

    return Model(init, encode, draw, autoregressive)


class OneUnitCVAE(nn.Module):
    """A CVAE with one stochastic unit: q(z|x,y), p(z|x) or N(0, I), p(y|x,z). Without features in x it is the VAE.

    Attributes:
      hidden: widths of the layers of each network, at least one.
      latent: size of z.
      outputs: size of what the generation network gives.
      activation: of the hidden layers, its name in flax.linen.
      prior: "fixed", N(0, I), or "learned", p(z|x) by a network.
      read_x: makes the network that reads x before it meets y or z; None where x is features already.
      tie_weights: one `read_x` for all three networks, not one each.
    """

    hidden: Sequence[int]
    latent: int
    outputs: int
    activation: str = "relu"
    prior: str = "fixed"
    read_x: Callable[[], nn.Module] | None = None
    tie_weights: bool = False

    def setup(self) -> None:
        self.recognition_net = GaussianMLP(self.hidden, self.latent, self.activation)
        self.generation_net = ConditionedMLP(self.hidden, self.outputs, self.activation)
        if self.prior == "learned":
            self.prior_net = GaussianMLP(self.hidden, self.latent, self.activation)
        read_x: Callable[[], Any] = self.read_x or (lambda: lambda x: x)
        self.generation_reader = read_x()
        self.recognition_reader = self.generation_reader if self.tie_weights else read_x()
        self.prior_reader = self.generation_reader if self.tie_weights else read_x()

    def encode(self, x: Array, y: Array | None) -> dict[str, Any]:
        """p(z|x), q(z|x,y), and what the generation network makes of x; y is [batch, features]."""
        if self.prior == "learned":
            prior = self.prior_net(self.prior_reader(x))
        else:
            prior = standard_normal((len(x), self.latent))
        posterior = None
        if y is not None:
            posterior = self.recognition_net(jnp.concatenate([y, self.recognition_reader(x)], -1))
        return {"prior": prior, "posterior": posterior, "x": self.generation_net.of_x(self.generation_reader(x))}

    def decode(
        self, encoding: dict[str, Any], keys: Array, proposal: Proposal, z: tuple[Array] | None
    ) -> tuple[tuple[Latent], Array]:
        """The stochastic unit, and the outputs [batch, outputs]."""
        given = None if z is None else z[0]
        unit = draw_latent(encoding["prior"], encoding["posterior"], keys, proposal, given)
        return (unit,), self.generation_net(encoding["x"], unit.z)


class TwoUnitCVAE(nn.Module):
    """A CVAE with two stochastic units, p(z1|x) p(z2|x,z1), and residual networks that all see x.

    Each q is given by what y changes about its p (means and log standard deviations are sums), so it begins at
    the prior.

    Attributes:
      width: of all layers.
      latent: size of z, half of it each unit's.
      outputs: size of what the generation network gives.
    """

    width: int
    latent: int
    outputs: int

    def setup(self) -> None:
        dense, parameters = nn.Dense, self.latent  # mean and log scale of latent/2 units
        self.x_net = ResidualMLP(self.width)
        self.y_net = ResidualMLP(self.width)
        self.prior_net = [dense(parameters, kernel_init=SMALL_INIT) for _ in range(2)]
        self.recognition_features = [dense(self.width) for _ in range(2)]
        self.recognition_state = dense(self.width, use_bias=False)
        self.recognition_net = [dense(parameters, kernel_init=SMALL_INIT) for _ in range(2)]
        self.generation_x = dense(self.width)
        self.generation_z = [dense(self.width, use_bias=False) for _ in range(2)]
        self.generation_norm = [nn.LayerNorm() for _ in range(2)]
        self.generation_block = ResidualBlock()
        self.generation_out = dense(self.outputs, kernel_init=SMALL_INIT)

    def encode(self, x: Array, y: Array | None) -> dict[str, Any]:
        """p(z1|x), what the generation network makes of x, and what the recognition networks make of y.

        x and y are [batch, features], about 0.
        """
        x = self.x_net(x)
        encoding = {"prior": self.prior_net[0](x), "x": self.generation_x(x), "change": None, "seen": None}
        if y is not None:
            y = self.y_net(y)
            both = nn.gelu(self.recognition_features[0](jnp.concatenate([y, x], -1)))
            encoding |= {"change": self.recognition_net[0](both), "seen": self.recognition_features[1](y)}
        return encoding

    def decode(
        self, encoding: dict[str, Any], keys: Array, proposal: Proposal, z: tuple[Array, Array] | None
    ) -> tuple[tuple[Latent, Latent], Array]:
        """Both stochastic units, and the outputs [batch, outputs]."""
        given = (None, None) if z is None else z
        first_keys, second_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
        first = self._unit(encoding["prior"], encoding["change"], first_keys, proposal, given[0])
        state = encoding["x"] + self.generation_z[0](first.z)
        features = nn.gelu(self.generation_norm[0](state))
        change = None
        if encoding["seen"] is not None:
            change = self.recognition_net[1](nn.gelu(encoding["seen"] + self.recognition_state(features)))
        second = self._unit(self.prior_net[1](features), change, second_keys, proposal, given[1])
        state = self.generation_block(state + self.generation_z[1](second.z))
        return (first, second), self.generation_out(nn.gelu(self.generation_norm[1](state)))

    def _unit(self, prior: Array, change: Array | None, keys: Array, proposal: Proposal, z: Array | None) -> Latent:
        """A stochastic unit whose posterior is the prior with its parameters changed."""
        posterior = None if change is None else bounded_normal(*jnp.split(prior + change, 2, -1))
        return draw_latent(bounded_normal(*jnp.split(prior, 2, -1)), posterior, keys, proposal, z)


def check_widths(section: str, settings: Any) -> None:
    """Raises a UserError where a stage's `hidden`, or its `latent` if it has one, is no size of a layer."""
    for name, widths in (("hidden", settings.hidden), ("latent", [settings.get("latent", 1)])):
        if not widths or not all(isinstance(width, int) and width > 0 for width in widths):
            raise UserError(f"{section}.{name}={settings[name]} must be whole numbers of at least 1")


def one_unit(
    settings: Any,
    outputs: int,
    prior: str = "fixed",
    read_x: Callable[[], nn.Module] | None = None,
    tie_weights: bool = False,
    section: str = "cvae",
) -> OneUnitCVAE:
    """The plain networks of a stage's `hidden`, `latent` and `activation`; the other arguments as in OneUnitCVAE.

    Raises:
      UserError: for a value that cannot be; names its key in `section`.
    """
    check_widths(section, settings)
    for key, value, known in (("activation", settings.activation, ACTIVATIONS), ("prior", prior, PRIORS)):
        if value not in known:
            raise UserError(f"{section}.{key}={value!r} is not known; choose from {', '.join(known)}")
    return OneUnitCVAE(settings.hidden, settings.latent, outputs, settings.activation, prior, read_x, tie_weights)


def two_units(settings: Any, outputs: int, section: str = "cvae") -> TwoUnitCVAE:
    """The residual networks of a stage's `hidden` and `latent`.

    Raises:
      UserError: where these cannot be; names the key in `section`.
    """
    check_widths(section, settings)
    if len(settings.hidden) != 1 or settings.latent % 2:
        raise UserError(f"{section}.network=residual takes one width in {section}.hidden and an even {section}.latent")
    return TwoUnitCVAE(settings.hidden[0], settings.latent, outputs)
