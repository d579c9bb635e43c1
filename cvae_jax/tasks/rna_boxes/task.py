"""Secondary structures of RNA given its sequence, as bounding boxes of stems, internal loops and hairpins.

y says at every pixel (i, j), i < j, of the matrix of base pairs which types of box it lies in, and for each where the
box begins and how large it is: the dense targets of `boxes.targets`, their upper triangle folded into a rectangle. z is
one vector for the whole structure, one for every pixel, or none.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from cvae_jax import objectives
from cvae_jax.errors import UserError
from cvae_jax.model import Batch, Buckets, Task, Variables
from cvae_jax.networks.cvae import PRIORS, make_model
from cvae_jax.tasks.rna_boxes import boxes, folding
from cvae_jax.tasks.rna_boxes import metrics as measures
from cvae_jax.tasks.rna_boxes.networks import HEADS, LATENTS, BoxNetworks, likelihood
from cvae_jax.tasks.rna_boxes.pairs import TOWERS, AxialTower, fold, unfold, upper
from cvae_jax.tasks.rna_boxes.sequences import encode

NEAR = 10  # pixels around boxes that count in full under a soft mask


def _near(on: Array) -> Array:
    """Whether a pixel lies within NEAR pixels of a box of each type, like `on`."""
    for axis in (2, 3):
        window = [1] * on.ndim
        window[axis] = 2 * NEAR + 1
        on = jax.lax.reduce_window(on, 0.0, jax.lax.max, window, [1] * on.ndim, "SAME")
    return on


def weights(y: dict[str, Array], live: Array) -> dict[str, Array]:
    """What counts in log p(y|x,z): valid pixels of the upper triangle, and in boxes alone where and how large they are.

    Args:
      y: targets [batch, structures, length, length, outputs].
      live: float32 [batch, length, length], which pixels are valid.
    """
    inside = {name: y["on"][..., HEADS[name][2]] for name in ("location", "size")}
    # The sizes are in log p once, as classes.
    return {"on": live[:, None, :, :, None], **inside, "scalar": jnp.zeros_like(inside["size"])}


def training_weights(y: dict[str, Array], live: Array, mask: float, normalise: bool) -> dict[str, Array]:
    """The weights of the seed's loss, which is no log p.

    Args:
      y: as in `weights`.
      live: as in `weights`.
      mask: weight of what the head "on" says of pixels that are not near a box: 1 for all alike, 0 for none.
      normalise: every head is the mean of its elements, times the number of valid pixels so that it stands beside a
        KL that is a sum over pixels.
    """
    found = weights(y, live)
    found["scalar"] = found["size"]
    if mask < 1:
        near = _near(y["on"])
        found["on"] = found["on"] * (mask + (1 - mask) * near)
    if normalise:
        valid = live.sum((1, 2))[:, None, None, None, None]
        for name, weight in found.items():
            outputs = weight.shape[-1] if weight.shape[-1] > 1 else HEADS[name][0]
            total = weight.sum((2, 3, 4), keepdims=True) * (outputs / weight.shape[-1])
            found[name] = weight * valid / jnp.maximum(total, 1)
    return found


def make_task(config: Any) -> Task:
    """The task that configs/rna_boxes.py describes."""
    settings = config.cvae
    _check(config)
    heads = [name for name in HEADS if name != "scalar" or config.scalar_sizes]
    side, count = config.data.max_length, boxes.max_boxes(config.data.max_length)

    @functools.partial(jax.jit, static_argnums=4)  # op by op it would compile a hundred programs for every bucket
    def of_boxes(x: dict[str, Array], found: Array, index: Array, valid: Array, train: bool) -> Batch:
        """The batch of structures as boxes, int [batch, structures, boxes, 5]."""
        length = x["sequence"].shape[1]
        live = upper(jnp.arange(length)[None] < x["length"][:, None]).astype(jnp.float32)
        # bytes where they are made; a Bernoulli's values are floats, and indices of classes int32
        dtypes = {"on": jnp.float32, "location": jnp.int32, "size": jnp.int32, "scalar": jnp.float32}
        y = {name: values.astype(dtypes[name]) for name, values in boxes.targets(found, length).items()}
        weight = training_weights(y, live, config.mask, config.normalise) if train else weights(y, live)
        y, weight = jax.tree.map(lambda leaf: fold(leaf, 2), (y, {name: weight[name] for name in heads}))
        return Batch(x, y, weight, index, valid)

    def batch(raw: dict[str, Array], index: Array, valid: Array, keys: Array, train: bool) -> Batch:
        """Of each sequence its first structure; in training some at random, each time anew."""
        x = {"sequence": raw["sequence"], "length": raw["length"]}
        if not train:
            return of_boxes(x, raw["boxes"][:, :1], index, valid, train)
        chosen = jax.vmap(lambda key, most: jax.random.randint(key, (config.structures,), 0, most))(keys, raw["count"])
        found = jnp.take_along_axis(raw["boxes"], chosen[:, :, None, None], 1)
        return of_boxes(x, found, index, valid * config.structures, train)

    def observe(x: Sequence[str], y: Sequence[str] | None = None) -> Batch:
        """Batch of a user's sequences, and of a structure of each in dot-bracket notation, or None."""
        codes = [encode(sequence) for sequence in _texts("x", x, "GGGAAAACCC")]
        longest = max(len(one) for one in codes)
        if longest > side:
            raise UserError(
                f"a sequence has {longest} bases, more than the {side} of data.max_length, with which training set it"
            )
        length = limits[int(np.searchsorted(limits, longest))]
        letters = {
            "sequence": jnp.asarray(np.stack([np.pad(one, (0, length - len(one))) for one in codes])),
            "length": jnp.asarray([len(one) for one in codes], jnp.int32),
        }
        index, valid = jnp.arange(len(x)), jnp.ones(len(x))
        if y is None:
            return Batch(letters, None, None, index, valid)
        if len(_texts("y", y, "(((....)))")) != len(codes):
            raise UserError(f"x has {len(codes)} sequences and y {len(y)} structures; give as many of each")
        found = np.zeros((len(x), 1, boxes.max_boxes(length), 5), np.int16)
        for number, structure in enumerate(y):
            if len(structure) != len(codes[number]):
                raise UserError(f"{structure} has {len(structure)} marks for {len(codes[number])} bases; give one each")
            pairs, num_dropped = boxes.parse(structure)
            if num_dropped:
                raise UserError(f"{structure} has a pseudoknot, which boxes cannot tell; leave its pairs out")
            of_one = boxes.boxes_of(pairs)
            if len(of_one) > boxes.max_boxes(len(structure)):
                raise UserError(f"{structure} has hairpins of less than two bases; leave them out")
            found[number, 0, : len(of_one)] = of_one
        return of_boxes(letters, jnp.asarray(found), index, valid, False)

    def look(batch: Batch, frozen: Variables | None) -> tuple[Any, Any]:
        return batch.x, batch.y

    def panels(batch: Batch, samples: dict[str, Array]) -> dict[str, np.ndarray]:
        """The truth, and the probability of boxes at every pixel for each z: stems white, loops grey."""
        lengths = np.asarray(batch.x["length"])
        # Each matrix as large as the longest's, so that its padding is not shown.
        nearest = [np.arange(lengths.max()) * length // lengths.max() for length in lengths]

        def image(on: np.ndarray) -> np.ndarray:
            shown = (np.asarray(unfold(jnp.asarray(on)[:, 0], 1)) * np.array([1.0, 0.4, 0.6])).max(-1)
            return np.stack([one[np.ix_(places, places)] for one, places in zip(shown, nearest, strict=True)])

        columns = {} if batch.y is None else {"truth": image(batch.y["on"])}
        for drawn in samples.values():
            for number, on in enumerate(drawn["on"], 1):
                columns[f"given z {number}" if len(drawn["on"]) > 1 else "prediction"] = image(on)
        return columns

    limits = tuple(sorted({*(limit for limit in config.buckets if limit < side), side}))
    tower = TOWERS[settings.network]
    networks = BoxNetworks(
        lambda: tower(tuple(settings.filters), settings.width),
        tuple(heads),
        settings.z,
        settings.prior,
        settings.latent,
        settings.hidden,
        settings.decoder,
    )
    model = make_model(networks, look, likelihood, LATENTS[settings.z])

    def cut(arrays: dict[str, np.ndarray], limit: int) -> dict[str, np.ndarray]:
        return {
            **arrays,
            "sequence": arrays["sequence"][:, :limit],
            "boxes": arrays["boxes"][:, :, : boxes.max_boxes(limit)],
        }

    return Task(
        column="RNA boxes",
        protocol="dense boxes, one structure a sequence",
        raw={
            "sequence": jax.ShapeDtypeStruct((side,), np.int8),
            "length": jax.ShapeDtypeStruct((), np.int32),
            "boxes": jax.ShapeDtypeStruct((config.data.num_sample, count, 5), np.int16),
            "count": jax.ShapeDtypeStruct((), np.int32),
        },
        batch=batch,
        observe=observe,
        stages=(objectives.stage("cvae", model, settings),),
        panels=panels,
        measures=measures.measures(config.measure_samples),
        pictures=functools.partial(measures.pictures, num_samples=config.measure_samples),
        buckets=Buckets(limits, lambda arrays: arrays["length"], cut),
    )


def _texts(name: str, found: Any, example: str) -> Sequence[str]:
    """What was given as x or y, or a UserError where that is not texts in a list."""
    if not isinstance(found, list | tuple) or not found or not all(isinstance(one, str) for one in found):
        raise UserError(f'{name} must be texts in a list, as in ["{example}"]')
    return found


def _check(config: Any) -> None:
    """Raises a UserError for the first key of the config that cannot be; names it."""
    settings, side = config.cvae, config.data.max_length
    for key, value, known in (
        ("network", settings.network, tuple(TOWERS)),
        ("z", settings.z, tuple(LATENTS)),
        ("prior", settings.prior, PRIORS),
    ):
        if value not in known:
            raise UserError(f"cvae.{key}={value!r} is not known; choose from {', '.join(known)}")
    for key, value, fits, must in (
        ("structures", config.structures, config.structures >= 1, "at least 1"),
        ("measure_samples", config.measure_samples, config.measure_samples >= 1, "at least 1"),
        ("mask", config.mask, 0 <= config.mask <= 1, "between 0 and 1"),
        ("data.max_length", side, side >= 2 and side % 2 == 0, "even, so that the upper triangle can be folded"),
        ("data.max_length", side, side <= folding.LARGEST_SIDE, f"at most {folding.LARGEST_SIDE - 1}"),
        ("data.num_sample", config.data.num_sample, config.data.num_sample >= 1, "at least 1"),
        ("buckets", config.buckets, all(n > 0 and n % 2 == 0 for n in config.buckets), "even lengths above 0"),
        ("cvae.width", settings.width, settings.width >= 1, "at least 1"),
    ):
        if not fits:
            raise UserError(f"{key}={value} must be {must}")
    for name in ("filters", "latent", "hidden", "decoder"):
        widths = settings[name] if name == "filters" else (settings[name],)
        if not widths or not all(isinstance(width, int) and width > 0 for width in widths):
            raise UserError(f"cvae.{name}={settings[name]} must be whole numbers of at least 1")
    if settings.z == "pixel" and settings.objective.free_bits:
        raise UserError("cvae.objective.free_bits would count padding for z='pixel'; leave it at 0.0")
    heads = AxialTower.HEADS
    if settings.network == "axial" and (len(set(settings.filters)) > 1 or settings.filters[0] % heads):
        raise UserError(f"cvae.filters={settings.filters} must be one multiple of {heads} throughout for axial")
