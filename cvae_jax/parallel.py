"""Every device at work: batches of training are spread over a mesh, evaluation gives each device items of its own."""

import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any, TypeVar

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from cvae_jax.errors import UserError, reason

LOGGER = logging.getLogger(__name__)

Tree = TypeVar("Tree")  # nested containers of arrays
Own = TypeVar("Own")  # of one seed
Shared = TypeVar("Shared")  # by all seeds
Item = TypeVar("Item")
Result = TypeVar("Result")


def check_platform() -> None:
    """Raises a UserError where JAX is told to use a platform, such as "cuda", that it does not find."""
    platforms = jax.config.values["jax_platforms"]
    if not platforms or platforms == "cpu":
        return
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        extra = "tpu" if "tpu" in platforms else "cuda"
        raise UserError(
            f"JAX_PLATFORMS={platforms} asks for a device that JAX does not find ({reason(error)}); install the extra "
            f"{extra} (pip install '.[{extra}]'), or unset JAX_PLATFORMS"
        ) from None


def use_every_core() -> None:
    """Makes each CPU core a device, where JAX has not started: XLA does element-wise work on one core a device.

    For evaluation, whose numbers do not depend on the number of devices; training keeps the devices it finds, so
    that a run can go on elsewhere bit for bit. Leaves a count alone that the user has set.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    by_flag = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if cores == 1 or by_flag or jax.config.values["jax_num_cpu_devices"] != -1:
        return
    try:
        jax.config.update("jax_num_cpu_devices", cores)
    except RuntimeError:  # JAX has started
        if jax.default_backend() == "cpu":
            line = f'jax.config.update("jax_num_cpu_devices", {cores})'
            LOGGER.info("JAX has started with 1 device for %d CPU cores; to use them all, begin with %s", cores, line)
    else:
        LOGGER.info("each of %d CPU cores is a device of JAX now", cores)


def on_devices(function: Callable[[jax.Device, Item], Result], items: Sequence[Item]) -> list[Result]:
    """Returns `function(device, item)` of every item, on the host; each device takes the next item when it is free.

    An item is computed on that device alone. Programs and numbers then do not depend on how many devices there are.
    Products are of the highest precision. Each device has a thread, so that they compile at the same time too.
    """
    free: SimpleQueue[jax.Device] = SimpleQueue()
    for device in jax.local_devices()[: len(items)]:
        free.put(device)

    def run(item: Item) -> Result:
        device = free.get()
        try:
            with jax.default_matmul_precision("highest"):
                return jax.device_get(function(device, item))
        finally:
            free.put(device)

    with ThreadPoolExecutor(free.qsize()) as pool:
        return list(pool.map(run, items))


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
