"""What a model of RNA boxes gives, measured against the Boltzmann ensemble: boxes, structures, pair probabilities."""

import functools
import pathlib
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from cvae_jax import keys, parallel
from cvae_jax.inference import draws as inference
from cvae_jax.inference.estimators import ratio_of_sums
from cvae_jax.model import Batch, How, Measures, Model, Proposal, Variables
from cvae_jax.tasks.rna_boxes import boxes, figures, folding, prediction, scores
from cvae_jax.tasks.rna_boxes.ensemble import Ensemble, ensemble, sample
from cvae_jax.tasks.rna_boxes.pairs import unfold

STRUCTURES = 1000  # of the ensemble, for the frequency of boxes
SAMPLES_PER_CALL = 10  # of every pixel's classes: a gigabyte if all were held at once
COMPARED = 100  # of them and of the model's, for the energy distance

CORRELATION = "correlation with the exact pair probabilities"
ERROR = "mean absolute error of pair probabilities"
F1, MCC = "pair F1 of the assembled structure", "MCC of the assembled structure"
WAYS = ("mean y", "sampled y")  # what a structure is made of, given z
GED, DIVERSITY = "GED² to the ensemble of structures of {}", "diversity of structures of {}"
BOXES = "boxes of {}: {}"
KINDS = ("all types", *boxes.TYPES)
LONGEST = ", the longest of the first few sequences"
PAIRS_AND_BOXES = LONGEST + ": pair probabilities, and boxes of probability 0.1 and more"
STRUCTURES_OF_BOTH = LONGEST + ": structures drawn from the ensemble, and the model's most accurate ones given each z"
SCORES = ("sensitivity", "precision", "precision at matched count")


@functools.partial(jax.jit, static_argnums=(0, 4))
def sampled(model: Model, variables: Variables, batch: Batch, sample_keys: Array, proposal: Proposal) -> Any:
    """The boxes that pixels name in samples of y, codes and votes [samples, batch, length, length, 3]."""

    def named(y: dict[str, Array]) -> tuple[Array, Array]:
        on, location, size = (unfold(y[name][:, 0], 1) for name in ("on", "location", "size"))
        return prediction.named_boxes(on, location, size), on

    return inference.sample(model, variables, batch, sample_keys, True, proposal, named, SAMPLES_PER_CALL)


class Truth(NamedTuple):
    """What ViennaRNA says of a sequence."""

    ensemble: Ensemble
    structures: list[np.ndarray]  # COMPARED samples of it
    frequencies: dict[tuple[int, ...], float]  # of boxes in STRUCTURES samples


@functools.lru_cache(maxsize=4096)  # several models are measured on the same sequences
def truth_of(sequence: str) -> Truth:
    """The exact pair probabilities and samples of the ensemble, the same at each call."""
    drawn = sample(sequence, STRUCTURES, zlib.crc32(sequence.encode()))
    parsed = {structure: boxes.parse(structure)[0] for structure in set(drawn)}
    structures = [parsed[structure] for structure in drawn]
    return Truth(ensemble(sequence), structures[:COMPARED], scores.box_frequencies(structures))


def of_pairs(probabilities: np.ndarray, exact: np.ndarray) -> dict[str, Any]:
    """The measures of pair probabilities [length, length] against the exact ones."""
    rows, columns = np.triu_indices(len(exact), 1)
    error = np.abs(probabilities - exact)[rows, columns]
    return {
        CORRELATION: scores.correlation_sums(probabilities, exact, len(exact)),
        ERROR: np.array([error.sum(), len(error)]),
    }


def of_structure(pairs: np.ndarray, wanted: np.ndarray, length: int) -> dict[str, Any]:
    """The measures of one structure against the one that is wanted."""
    return {F1: scores.pair_f1(pairs, wanted), MCC: scores.mcc(pairs, wanted, length)}


def of_distribution(structures: list[np.ndarray], truth: Truth, way: str) -> dict[str, Any]:
    """The measures of sampled structures against those of the ensemble."""
    return {
        GED.format(way): scores.ged_squared(structures, truth.structures),
        DIVERSITY.format(way): scores.diversity(structures),
    }


def of_boxes(predicted: folding.Boxes, truth: Truth) -> dict[str, Any]:
    """The counts of boxes, [4] each, see `scores.box_counts`."""
    counts = scores.box_counts(predicted, truth.frequencies)
    by_kind = dict(zip(KINDS, [counts.sum(0), *counts], strict=True))
    return {BOXES.format(kind, score): numbers for kind, numbers in by_kind.items() for score in SCORES}


def _stacked(examples: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    return {name: np.stack([np.asarray(one[name], np.float64) for one in examples]) for name in examples[0]}


def _structure(batch: Batch, row: int) -> np.ndarray:
    """The pairs of an example's first structure."""
    y = {name: np.asarray(unfold(values[row, 0], 0)) for name, values in batch.y.items()}
    return boxes.pairs_of(boxes.boxes_from_targets(y))


def of_batch(
    model: Model, variables: Variables, batch: Batch, how: How, key: Array, num_samples: int
) -> dict[str, np.ndarray]:
    """Every measure of a model for every valid example, from `num_samples` draws of z."""
    noisy = _noisy(model, variables, batch, how, keys.substream(key, "boxes"), num_samples)
    of_means = prediction.predictions(model, variables, batch, how, key, num_samples)
    examples = []
    for row, (one, of_samples) in enumerate(zip(of_means, noisy, strict=True)):
        truth, length = truth_of(one.sequence), len(one.sequence)
        examples.append(
            of_pairs(one.probabilities, truth.ensemble.probabilities)
            | of_structure(one.pairs, _structure(batch, row), length)
            | of_distribution(one.structures, truth, WAYS[0])
            | of_distribution(of_samples, truth, WAYS[1])
            | of_boxes(one.boxes, truth)
        )
    return _stacked(examples)


def _noisy(
    model: Model, variables: Variables, batch: Batch, how: How, key: Array, num_samples: int
) -> Iterator[list[np.ndarray]]:
    """The structures of samples of y of every example."""
    mesh = parallel.make_mesh()
    variables = jax.device_put(variables, parallel.replicated(mesh))
    for part, count in prediction.in_parts(batch):
        part = parallel.place_batch(mesh, part)
        sample_keys = keys.per_sample(keys.per_example(key, part.index), jnp.arange(num_samples))
        with jax.default_matmul_precision("highest"):
            codes, votes = jax.device_get(sampled(model, variables, part, sample_keys, how.predicts_from))
        side = part.x["sequence"].shape[1]
        for row in range(count):
            sequence = prediction.sequence_of(part, row)
            of_samples = folding.of_samples(codes[:, row], votes[:, row], side)
            yield [folding.assemble(*one, len(sequence), sequence) for one in of_samples]


def pictures(
    model: Model, variables: Variables, batch: Batch, how: How, key: Array, num_samples: int
) -> dict[str, Callable[[pathlib.Path, str], None]]:
    """Of the longest sequence: its matrix with boxes and pair probabilities, and its structures as arcs."""
    longest = int(np.argmax(batch.x["length"]))
    (one,) = prediction.predictions(
        model, variables, jax.tree.map(lambda leaf: leaf[longest : longest + 1], batch), how, key, num_samples
    )
    truth = truth_of(one.sequence)
    probable = {box: share for box, share in truth.frequencies.items() if share >= scores.PROBABLE}
    exact = folding.Boxes(np.array(list(probable), np.int16).reshape(-1, 5), np.array(list(probable.values())))
    likely = one.boxes.probability >= scores.PROBABLE
    panels = {"ensemble": truth.ensemble.probabilities, "model": one.probabilities}
    outlined = {"ensemble": exact, "model": folding.Boxes(one.boxes.boxes[likely], one.boxes.probability[likely])}
    sampled_structures = {"ensemble": truth.structures, "model": one.structures}
    return {
        "matrix": lambda path, title: figures.matrices(path, one.sequence, panels, outlined, title + PAIRS_AND_BOXES),
        "arcs": lambda path, title: figures.arcs(path, one.sequence, sampled_structures, title + STRUCTURES_OF_BOTH),
    }


def baselines(batch: Batch) -> dict[str, dict[str, np.ndarray]]:
    """The measures of what ViennaRNA predicts, and of samples of the ensemble itself."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in np.flatnonzero(np.asarray(batch.valid)).tolist():
        sequence = prediction.sequence_of(batch, row)
        truth, length, wanted = truth_of(sequence), len(sequence), _structure(batch, row)
        for name, pairs in (("MFE", truth.ensemble.mfe), ("MEA", truth.ensemble.mea)):
            matrix = np.zeros((length, length))
            matrix[pairs[:, 0], pairs[:, 1]] = 1
            only = boxes.boxes_of(pairs)
            found.setdefault(f"{name} of ViennaRNA", []).append(
                of_pairs(matrix, truth.ensemble.probabilities)
                | of_structure(pairs, wanted, length)
                | of_distribution([pairs], truth, WAYS[0])
                | of_boxes(folding.Boxes(only, np.ones(len(only))), truth)
            )
        # Other samples than those of the truth.
        drawn = [boxes.parse(one)[0] for one in sample(sequence, COMPARED, 1 + zlib.crc32(sequence.encode()))]
        matrix = np.zeros((length, length))
        for pairs in drawn[:10]:
            matrix[pairs[:, 0], pairs[:, 1]] += 0.1
        found.setdefault("samples of the ensemble (10; 100 for GED² and diversity)", []).append(
            of_pairs(matrix, truth.ensemble.probabilities) | of_distribution(drawn, truth, WAYS[0])
        )
    return {name: _stacked(examples) for name, examples in found.items()}


def _score(number: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda sums: scores.box_scores(sums)[number]


def measures(num_samples: int) -> Measures:
    """What the task measures, with `num_samples` draws of z for every example."""
    pooled = {BOXES.format(kind, score): _score(n) for kind in KINDS for n, score in enumerate(SCORES)}
    return Measures(
        functools.partial(of_batch, num_samples=num_samples),
        known={CORRELATION: 1.0, ERROR: 0.0},
        pooled={CORRELATION: scores.correlation, ERROR: ratio_of_sums, **pooled},
        baselines=baselines,
    )
