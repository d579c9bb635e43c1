"""Secondary structures of RNA given its sequence, as bounding boxes of stems, internal loops and hairpins.

y says at every pixel (i, j), i < j, of the matrix of base pairs which types of box it lies in, and for each where the
box begins and how large it is: the dense targets of `boxes.targets`, their upper triangle folded into a rectangle. z is
one vector for the whole structure, one for every pixel, or none.
"""

from collections.abc import Sequence
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from ml_collections import ConfigDict

from cvae_jax import objectives
from cvae_jax.data import batches
from cvae_jax.errors import UserError
from cvae_jax.networks.cvae import PRIORS
from cvae_jax.networks.flax_model import flax_model
from cvae_jax.settings import WIDTH, Choice, Real, Whole, Wholes, check
from cvae_jax.task import Arrays, Batch, Buckets, Fitted, Grid, Metric, Plot, Spec, Task
from cvae_jax.tasks.rna_boxes import boxes, data, folding, metrics
from cvae_jax.tasks.rna_boxes.networks import HEADS, LATENTS, BoxNetworks, likelihood
from cvae_jax.tasks.rna_boxes.pairs import TOWERS, AxialTower, fold, unfold_first, upper
from cvae_jax.tasks.rna_boxes.sequences import encode

NEAR = 10  # pixels around boxes that count in full under a soft mask
SHADES = (1.0, 0.4, 0.6)  # of stems, internal loops and hairpins in a figure


class RnaBoxes(Task):
    """Secondary structures of RNA as boxes, given the sequence; see configs/rna_boxes.py."""

    sources = MappingProxyType({"rna": data.load})
    title, protocol = "RNA boxes", "dense boxes, one structure a sequence"

    def __init__(self, config: ConfigDict, spec: Spec):
        """Makes the networks and the buckets of a config."""
        _check(config)
        settings, side = config.cvae, config.data.max_length
        self.config = config
        self.heads = [name for name in HEADS if name != "scalar" or config.scalar_sizes]
        self.raw = {
            "sequence": jax.ShapeDtypeStruct((side,), np.int8),
            "length": jax.ShapeDtypeStruct((), np.int32),
            "boxes": jax.ShapeDtypeStruct((config.data.num_sample, boxes.max_boxes(side), 5), np.int16),
            "count": jax.ShapeDtypeStruct((), np.int32),
        }
        limits = tuple(sorted({*(limit for limit in config.buckets if limit < side), side}))
        self.buckets = Buckets(limits, lambda arrays: arrays["length"], _cut)
        tower = TOWERS[settings.network]
        networks = BoxNetworks(
            lambda: tower(tuple(settings.filters), settings.width),
            tuple(self.heads),
            settings.z,
            settings.prior,
            settings.latent,
            settings.hidden,
            settings.decoder,
        )
        model = flax_model(networks, likelihood, num_factors=LATENTS[settings.z], weight=self._weight)
        self.stages = (objectives.stage("cvae", model, settings),)

    def batch(self, raw: dict[str, Array], ids: Array, num_targets: Array, keys: Array, step: Array | None) -> Batch:
        """Returns a batch of each sequence's first structure; in training of some at random, each time anew.

        Args:
          raw: name -> [batch, ...].
          ids: int32 [batch].
          num_targets: float32 [batch], 0 for padding rows, else 1.
          keys: [batch], of the structures that are chosen.
          step: None when measuring.
        """
        x = {"sequence": raw["sequence"], "length": raw["length"]}
        length = x["sequence"].shape[1]
        live = upper(jnp.arange(length)[None] < x["length"][:, None]).astype(jnp.float32)
        if step is None:
            y = _as_values(boxes.targets(raw["boxes"][:, :1], length))
            weight = weights(y, live)
        else:
            number = self.config.structures
            chosen = jax.vmap(lambda key, most: jax.random.randint(key, (number,), 0, most))(keys, raw["count"])
            y = _as_values(boxes.targets(jnp.take_along_axis(raw["boxes"], chosen[:, :, None, None], 1), length))
            weight = training_weights(y, live, self.config.mask, self.config.normalise)
            num_targets = num_targets * number
        y, weight = jax.tree.map(lambda leaf: fold(leaf, 2), (y, {name: weight[name] for name in self.heads}))
        return Batch(x, y, weight, ids, num_targets)

    def _weight(self, batch: Batch) -> dict[str, Array]:
        """Returns the weight of a batch's y when measuring: in a structure that was drawn boxes lie elsewhere."""
        assert batch.y is not None
        live = batch.weight["on"][:, 0, :, :, 0]
        by_head = weights({"on": batch.y["on"] * live[:, None, :, :, None]}, live)
        return {name: by_head[name] for name in self.heads}

    def from_user(self, x: Sequence[str], y: Sequence[str] | None = None) -> Batch:
        """Returns a batch of a user's sequences, and of a structure of each in dot-bracket notation, or None.

        Raises:
          UserError: for what is no sequence or structure, or a structure that boxes cannot tell.
        """
        codes = [encode(sequence) for sequence in _texts("x", x, "GGGAAAACCC")]
        longest, side = max(map(len, codes)), self.config.data.max_length
        if longest > side:
            raise UserError(
                f"a sequence has {longest} bases, more than the {side} of data.max_length, with which training set it"
            )
        assert self.buckets is not None
        length = self.buckets.limits[int(np.searchsorted(self.buckets.limits, longest))]
        letters = {
            "sequence": np.stack([np.pad(row, (0, length - len(row))) for row in codes]),
            "length": np.array([len(row) for row in codes], np.int32),
        }
        ids = np.arange(len(codes))
        if y is None:
            return Batch(jax.tree.map(jnp.asarray, letters), None, None, jnp.asarray(ids), jnp.ones(len(codes)))
        if len(_texts("y", y, "(((....)))")) != len(codes):
            raise UserError(f"x has {len(codes)} sequences and y {len(y)} structures; give as many of each")
        rows = np.zeros((len(codes), 1, boxes.max_boxes(length), 5), np.int16)
        for number, structure in enumerate(y):
            known = _boxes_of(structure, len(codes[number]))
            rows[number, 0, : len(known)] = known
        raw = {**letters, "boxes": rows, "count": np.ones(len(codes), np.int32)}
        return batches.measured(self, raw, ids, len(codes), seed=0)

    def metrics(self, fitted: Fitted, batch: Batch, key: Array) -> dict[str, Metric]:
        """Returns how boxes, structures and pair probabilities compare with those of the ensemble."""
        return metrics.measure(fitted, batch, key, self.config.measure_samples)

    def baselines(self, batch: Batch) -> dict[str, dict[str, Metric]]:
        """Returns the metrics of what ViennaRNA predicts, and of samples of the ensemble itself."""
        return metrics.baselines(batch)

    def figures(self, fitted: Fitted, batch: Batch, key: Array) -> dict[str, Grid | Plot]:
        """Returns figures of the longest sequence: its matrix with boxes, and its structures as arcs."""
        return {**metrics.plots(fitted, batch, key, self.config.measure_samples)}

    def sample_grid(self, batch: Batch, samples: dict[str, dict[str, Array]]) -> Grid:
        """Returns the truth, and the probability of boxes at every pixel for each z: stems white, loops grey."""
        lengths = np.asarray(batch.x["length"])
        # Each matrix as large as the longest's, so that its padding is not shown.
        nearest = [np.arange(lengths.max()) * length // lengths.max() for length in lengths]

        def image(on: Array) -> np.ndarray:
            shades = (np.asarray(unfold_first({"on": jnp.asarray(on)})["on"]) * np.array(SHADES)).max(-1)
            return np.stack([row[np.ix_(places, places)] for row, places in zip(shades, nearest, strict=True)])

        columns = {} if batch.y is None else {"truth": image(batch.y["on"])}
        for drawn in samples.values():
            for number, on in enumerate(drawn["on"], 1):
                columns[f"given z {number}" if len(drawn["on"]) > 1 else "prediction"] = image(on)
        return Grid(columns)


def _cut(arrays: Arrays, limit: int) -> Arrays:
    """Returns raw arrays padded to sequences of `limit` bases and their boxes."""
    shorter = {
        "sequence": arrays["sequence"][:, :limit],
        "boxes": arrays["boxes"][:, :, : boxes.max_boxes(limit)],
    }
    return {**arrays, **shorter}


def _as_values(targets: dict[str, Array]) -> dict[str, Array]:
    """Returns targets, which are bytes where they are made, as the likelihoods take them."""
    # a Bernoulli's values are floats, and indices of classes int32
    dtypes = {"on": jnp.float32, "location": jnp.int32, "size": jnp.int32, "scalar": jnp.float32}
    return {name: values.astype(dtypes[name]) for name, values in targets.items()}


def _near(on: Array) -> Array:
    """Returns whether a pixel lies within NEAR pixels of a box of each type, like `on`."""
    for axis in (2, 3):
        window = [1] * on.ndim
        window[axis] = 2 * NEAR + 1
        on = jax.lax.reduce_window(on, 0.0, jax.lax.max, window, [1] * on.ndim, "SAME")
    return on


def weights(y: dict[str, Array], live: Array) -> dict[str, Array]:
    """Returns what counts in log p(y|x,z).

    It is the valid pixels of the upper triangle, and in boxes alone where they begin and how large they are.

    Args:
      y: targets [batch, structures, length, length, outputs].
      live: float32 [batch, length, length], which pixels are valid.
    """
    inside = {name: y["on"][..., HEADS[name][2]] for name in ("location", "size")}
    # The sizes are in log p once, as classes.
    return {"on": live[:, None, :, :, None], **inside, "scalar": jnp.zeros_like(inside["size"])}


def training_weights(y: dict[str, Array], live: Array, mask: float, normalise: bool) -> dict[str, Array]:
    """Returns the weights of the seed's loss, which is no log p.

    Args:
      y: as in `weights`.
      live: as in `weights`.
      mask: weight of what the head "on" says of pixels that are not near a box: 1 for all alike, 0 for none.
      normalise: every head is the mean of its elements, times the number of valid pixels so that it stands beside a
        KL that is a sum over pixels.
    """
    by_head = weights(y, live)
    by_head["scalar"] = by_head["size"]
    if mask < 1:
        near = _near(y["on"])
        by_head["on"] = by_head["on"] * (mask + (1 - mask) * near)
    if normalise:
        valid = live.sum((1, 2))[:, None, None, None, None]
        for name, weight in by_head.items():
            outputs = weight.shape[-1] if weight.shape[-1] > 1 else HEADS[name][0]
            total = weight.sum((2, 3, 4), keepdims=True) * (outputs / weight.shape[-1])
            by_head[name] = weight * valid / jnp.maximum(total, 1)
    return by_head


def _texts(name: str, values: object, example: str) -> Sequence[str]:
    """Returns what was given as x or y; raises a UserError where that is not texts in a list."""
    if not isinstance(values, list | tuple) or not values or not all(isinstance(text, str) for text in values):
        raise UserError(f'{name} must be texts in a list, as in ["{example}"]')
    return values


def _boxes_of(structure: str, length: int) -> np.ndarray:
    """Returns the boxes of a user's structure, int16 [k, 5]; raises a UserError where they cannot tell it."""
    if len(structure) != length:
        raise UserError(f"{structure} has {len(structure)} marks for {length} bases; give one each")
    pairs, num_dropped = boxes.parse(structure)
    if num_dropped:
        raise UserError(f"{structure} has a pseudoknot, which boxes cannot tell; leave its pairs out")
    rows = boxes.boxes_of(pairs)
    if len(rows) > boxes.max_boxes(length):
        raise UserError(f"{structure} has hairpins of less than two bases; leave them out")
    return rows


def _check(config: ConfigDict) -> None:
    """Raises a UserError for the first key of the config that cannot be; names it."""
    settings, side = config.cvae, config.data.max_length
    check(
        config,
        {
            "structures": Whole(1, data.MOST_STRUCTURES),
            "measure_samples": Whole(1),
            "mask": Real(0, 1),
            "data.max_length": Whole(2, folding.LARGEST_SIDE - 1),
            "data.num_sample": Whole(1, data.MOST_STRUCTURES),
            "cvae.network": Choice(TOWERS),
            "cvae.z": Choice(LATENTS),
            "cvae.prior": Choice(PRIORS),
            "cvae.width": Whole(1, folding.LARGEST_SIDE),
            "cvae.filters": Wholes(),
            "cvae.latent": Whole(1, WIDTH),
            "cvae.hidden": Whole(1, WIDTH),
            "cvae.decoder": Whole(1, WIDTH),
        },
    )
    if config.buckets not in ((), []):  # a list once it has been in config.json
        check(config, {"buckets": Wholes(2, folding.LARGEST_SIDE)})
    if side % 2 or any(limit % 2 for limit in config.buckets):
        odd, value = ("data.max_length", side) if side % 2 else ("buckets", config.buckets)
        raise UserError(f"{odd}={value} must be even, so that the upper triangle can be folded")
    if settings.z == "pixel" and settings.objective.free_bits:
        raise UserError("cvae.objective.free_bits would count padding for z='pixel'; leave it at 0.0")
    heads = AxialTower.HEADS
    if settings.network == "axial" and (len(set(settings.filters)) > 1 or settings.filters[0] % heads):
        raise UserError(f"cvae.filters={settings.filters} must be one multiple of {heads} throughout for axial")
