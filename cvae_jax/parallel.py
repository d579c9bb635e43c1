"""One mesh over every device there is: batches are spread over it, everything else is on all of it."""

import os
from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

Tree = TypeVar("Tree")  # nested containers of arrays
Own = TypeVar("Own")  # of one seed
Shared = TypeVar("Shared")  # by all seeds
Result = TypeVar("Result")


def use_every_core() -> None:
    """Makes each CPU core a device, before JAX starts: XLA does element-wise work on one core a device.

    For evaluation, whose numbers do not depend on the number of devices; training keeps the devices it finds, so
    that a run can go on elsewhere bit for bit. Leaves a count alone that XLA_FLAGS sets.
    """
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)


def make_mesh() -> Mesh:
    """All devices in one axis, "data"."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def spread(mesh: Mesh, tree: Tree, axis: int = 0) -> Tree:
    """Inside jit: asks that the given axis of every leaf lie in equal parts on the devices."""
    sharding = NamedSharding(mesh, PartitionSpec(*(None,) * axis, "data"))
    return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, sharding), tree)


def place_batch(mesh: Mesh, tree: Tree) -> Tree:
    """Outside jit: leaves [batch, ...] in equal parts on the devices, or whole on each where they do not divide."""
    size = len(jax.tree.leaves(tree)[0])
    spec = PartitionSpec("data") if size % mesh.size == 0 else PartitionSpec()
    return jax.device_put(tree, NamedSharding(mesh, spec))


def jit(function: Callable[..., Any], mesh: Mesh, **options: Any) -> Any:
    """`jax.jit` whose results lie whole on every device."""
    return jax.jit(function, out_shardings=replicated(mesh), **options)


def over_seeds(function: Callable[[Own, Shared], Result], how: str) -> Callable[[Own, Shared], Result]:
    """`function(own, shared)` of one seed -> of many, whose leaves of `own` and of the result begin with their axis.

    "map" takes them in turn: the bits of each are those of a run of its own. "vmap" takes them at once, which fills
    an accelerator; the numbers then follow those of single runs within rounding.
    """
    if how == "vmap":
        return jax.vmap(function, (0, None))

    def mapped(own: Own, shared: Shared) -> Result:
        # XLA inlines a loop of one trip and rounds otherwise then: the barriers keep the body as it is for many.
        def of_seed(own: Own) -> Result:
            return jax.lax.optimization_barrier(function(*jax.lax.optimization_barrier((own, shared))))

        return jax.lax.map(of_seed, own)

    return mapped
