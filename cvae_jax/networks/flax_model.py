"""How Flax networks become a model of the contract."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from cvae_jax.distributions import Latent, log_likelihood
from cvae_jax.model import Batch, Draw, Model, Proposal, PyTree, Train, Variables


class Inputs(Protocol):
    """Takes from a batch, and earlier stages' variables by name, what networks see: x, and y or None."""

    def __call__(self, batch: Batch, earlier: Variables) -> tuple[PyTree, PyTree]: ...


class Networks(Protocol):
    """The methods of a Flax module of which `flax_model` makes a model.

    Batch statistics are updated in training alone, which layers know by `self.is_mutable_collection("batch_stats")`.
    Layers that have them belong into `encode`, where they meet an example once however many z follow.
    """

    def encode(self, x: PyTree, y: PyTree, train: Train | None) -> PyTree:
        """Returns all that does not depend on z; y is None when predicting.

        `train` has keys [batch], for noise that only training has, and the step; it is None otherwise.
        """

    def decode(
        self, encoding: PyTree, keys: Array, proposal: Proposal, z: tuple[Array, ...] | None, train: Train | None
    ) -> tuple[tuple[Latent, ...], PyTree]:
        """Returns the latent layers, and outputs [batch, *factors, ...].

        Args:
          encoding: what `encode` has returned.
          keys: [batch].
          proposal: where z comes from, see `distributions.draw_latent`.
          z: values of the latent layers, where they are handed in.
          train: as in `encode`.
        """

    def recognise(self, encoding: PyTree, y: PyTree) -> PyTree:
        """Returns the encoding with the posterior of another y; all else of it is kept."""


def _touch_all(networks: Any, x: PyTree, y: PyTree, keys: Array) -> PyTree:
    """Calls every layer once, so that all variables are made."""
    return networks.decode(networks.encode(x, y, None), keys, "prior", None, None)


def x_and_y(batch: Batch, earlier: Variables) -> tuple[PyTree, PyTree]:
    """Returns x and y of a batch as they are."""
    return batch.x, batch.y


def flax_model(
    networks: nn.Module,
    likelihood: Callable[[PyTree], Any],
    inputs: Inputs = x_and_y,
    num_factors: int = 0,
    autoregressive: bool = False,
    log_units: Callable[[Batch], Array] | None = None,
    weight: Callable[[Batch], PyTree] | None = None,
) -> Model:
    """Makes a conditional VAE of networks; one without latent layers is a deterministic network::

        networks = one_layer(config.cvae, outputs=2)
        model = flax_model(networks, lambda outputs: bounded_normal(outputs[:, :1], outputs[:, 1:]))

    Args:
      networks: a module with the methods of `Networks`, of which `recognise` may be missing.
      likelihood: outputs -> p(y|x,z), see distributions.py.
      inputs: what the networks see of a batch.
      num_factors: axes of parts of y and z that are independent given x, behind the batch axis.
      autoregressive: see Model.
      log_units: see Model.
      weight: see Model.
    """

    def init(key: Array, batch: Batch, earlier: Variables) -> Variables:
        keys = jax.random.split(key, len(batch.ids))  # of draws, of which only the shapes matter
        return dict(networks.init(key, *inputs(batch, earlier), keys, method=_touch_all))

    def own(variables: Variables) -> Variables:
        return {name: tree for name, tree in variables.items() if name != "frozen"}

    def encode(variables: Variables, batch: Batch, train: Train | None = None) -> dict[str, PyTree]:
        x, y = inputs(batch, variables.get("frozen", {}))
        mutable = [] if train is None else [name for name in own(variables) if name != "params"]
        encoding, updates = networks.apply(own(variables), x, y, train, method="encode", mutable=mutable)
        return {"networks": encoding, "updates": updates, "batch": batch}

    def draw(
        variables: Variables,
        encoding: dict[str, PyTree],
        keys: Array,
        proposal: Proposal,
        z: PyTree = None,
        train: Train | None = None,
    ) -> Draw:
        # Statistics are those that `encode` has updated, so that what `decode` returns of them is all that is new.
        held, mutable = {**own(variables), **encoding["updates"]}, list(encoding["updates"])
        arguments = encoding["networks"], keys, proposal, z, train
        (layers, outputs), updates = networks.apply(held, *arguments, method="decode", mutable=mutable)
        p_y, batch = likelihood(outputs), encoding["batch"]
        log_p_y = log_likelihood(p_y, batch.y, batch.weight, num_factors)
        return _joined(layers, log_p_y, p_y, keys)._replace(updates=updates)

    def recognise(variables: Variables, encoding: dict[str, PyTree], y: PyTree) -> dict[str, PyTree]:
        batch = encoding["batch"]._replace(y=y)
        features = inputs(batch, variables.get("frozen", {}))[1]
        held = {**own(variables), **encoding["updates"]}
        changed = networks.apply(held, encoding["networks"], features, method="recognise")
        return {**encoding, "networks": changed, "batch": batch}

    own_recognise = recognise if hasattr(networks, "recognise") else None
    return Model(init, encode, draw, num_factors, autoregressive, own_recognise, log_units, weight)


def _joined(layers: Sequence[Latent], log_p_y: Array | None, p_y: Any, keys: Array) -> Draw:
    """Returns the draw of all latent layers together."""
    nothing = jnp.zeros(keys.shape)  # the densities of no z
    log_p_z = sum((layer.log_p_z for layer in layers[1:]), layers[0].log_p_z) if layers else nothing
    log_q_z = sum((layer.log_q_z for layer in layers[1:]), layers[0].log_q_z) if layers else nothing
    z, kl = tuple(layer.z for layer in layers), tuple(layer.kl for layer in layers)
    return Draw(z, log_p_y, log_p_z, log_q_z, kl, p_y)


def given(z: tuple[Array, ...] | None, layer: int = 0) -> Array | None:
    """Returns the z handed in for one latent layer, or None."""
    return None if z is None else z[layer]
