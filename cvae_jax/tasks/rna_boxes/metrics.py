"""Metrics of a model of RNA boxes against the Boltzmann ensemble: boxes, structures, pair probabilities."""

import functools
import pathlib
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax import Array

from cvae_jax import inference, keys
from cvae_jax.metrics.means import ratio_of_sums
from cvae_jax.task import Batch, Fitted, Metric, Plot
from cvae_jax.tasks.rna_boxes import boxes, figures, folding, prediction, scores
from cvae_jax.tasks.rna_boxes.ensemble import Ensemble, ensemble, sample
from cvae_jax.tasks.rna_boxes.pairs import unfold, unfold_first

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
SCORES = ("sensitivity", "precision", "precision at matched count")  # as in `scores.BoxScores`
LONGEST = ", the longest of the first few sequences"
PAIRS_AND_BOXES = LONGEST + ": pair probabilities, and boxes of probability 0.1 and more"
STRUCTURES_OF_BOTH = LONGEST + ": structures drawn from the ensemble, and the model's most accurate ones given each z"

Numbers = Mapping[str, float | np.ndarray]  # metric -> its value for one example, or the numbers that are pooled


def _box_score(number: int) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the function of `Metric.pool` for a score of boxes."""
    return lambda sums: scores.box_scores(sums)[number]


PERFECT = {CORRELATION: 1.0, ERROR: 0.0}
POOL = {
    CORRELATION: scores.correlation,
    ERROR: ratio_of_sums,
    **{BOXES.format(kind, score): _box_score(number) for kind in KINDS for number, score in enumerate(SCORES)},
}


class Truth(NamedTuple):
    """The ensemble of a sequence as ViennaRNA computes and samples it."""

    ensemble: Ensemble
    structures: list[np.ndarray]  # COMPARED samples of it
    frequencies: dict[tuple[int, ...], float]  # of boxes in STRUCTURES samples


@functools.lru_cache(maxsize=4096)  # several models are measured on the same sequences
def truth_of(sequence: str) -> Truth:
    """Returns the exact pair probabilities and samples of the ensemble, the same at each call."""
    drawn = sample(sequence, STRUCTURES, zlib.crc32(sequence.encode()))
    parsed = {structure: boxes.parse(structure)[0] for structure in set(drawn)}
    structures = [parsed[structure] for structure in drawn]
    return Truth(ensemble(sequence), structures[:COMPARED], scores.box_frequencies(structures))


def of_pairs(probabilities: np.ndarray, exact: np.ndarray) -> Numbers:
    """Returns how pair probabilities [length, length] compare with the exact ones."""
    rows, columns = np.triu_indices(len(exact), 1)
    error = np.abs(probabilities - exact)[rows, columns]
    return {
        CORRELATION: scores.correlation_sums(probabilities, exact, len(exact)),
        ERROR: np.array([error.sum(), len(error)]),
    }


def of_structure(pairs: np.ndarray, real: np.ndarray, length: int) -> Numbers:
    """Returns how a structure of `length` bases compares with the real one."""
    return {F1: scores.pair_f1(pairs, real), MCC: scores.mcc(pairs, real, length)}


def of_distribution(structures: list[np.ndarray], truth: Truth, way: str) -> Numbers:
    """Returns how sampled structures, made in one of WAYS, compare with those of the ensemble."""
    return {
        GED.format(way): scores.ged_squared(structures, truth.structures),
        DIVERSITY.format(way): scores.diversity(structures),
    }


def of_boxes(predicted: folding.Boxes, truth: Truth) -> Numbers:
    """Returns the counts of boxes, of all types and of each: [4], see `scores.box_counts`."""
    counts = scores.box_counts(predicted, truth.frequencies)
    by_kind = dict(zip(KINDS, [counts.sum(0), *counts], strict=True))
    return {BOXES.format(kind, score): numbers for kind, numbers in by_kind.items() for score in SCORES}


def _metrics(examples: Sequence[Numbers]) -> dict[str, Metric]:
    """Returns the metrics of all examples, which have the same ones."""
    values = {name: np.stack([np.asarray(numbers[name], np.float64) for numbers in examples]) for name in examples[0]}
    return {name: Metric(array, perfect=PERFECT.get(name), pool=POOL.get(name)) for name, array in values.items()}


def _real_structures(batch: Batch) -> list[np.ndarray]:
    """Returns the pairs of the first structure of every example that is no padding."""
    y = jax.device_get(unfold_first(batch.y))
    rows = np.flatnonzero(np.asarray(batch.num_targets)).tolist()
    targets = [{name: values[row] for name, values in y.items()} for row in rows]
    return [boxes.pairs_of(boxes.boxes_from_targets(squares)) for squares in targets]


def measure(fitted: Fitted, batch: Batch, key: Array, num_samples: int) -> dict[str, Metric]:
    """Returns the metrics of a model on every example that is no padding.

    Args:
      fitted: a model with its variables.
      batch: of sequences with a structure each.
      key: of all random numbers.
      num_samples: draws of z for each example.
    """
    of_means = prediction.predictions(fitted, batch, key, num_samples)
    of_samples = _sampled_structures(fitted, batch, keys.substream(key, "boxes"), num_samples)
    examples = []
    for predicted, sampled, real in zip(of_means, of_samples, _real_structures(batch), strict=True):
        truth, length = truth_of(predicted.sequence), len(predicted.sequence)
        examples.append(
            {
                **of_pairs(predicted.probabilities, truth.ensemble.probabilities),
                **of_structure(predicted.pairs, real, length),
                **of_distribution(predicted.structures, truth, WAYS[0]),
                **of_distribution(sampled, truth, WAYS[1]),
                **of_boxes(predicted.boxes, truth),
            }
        )
    return _metrics(examples)


def _sampled_structures(fitted: Fitted, batch: Batch, key: Array, num_samples: int) -> Iterator[list[np.ndarray]]:
    """Yields the structures of samples of y of every example that is no padding."""
    for part, count in prediction.in_parts(batch):
        sample_keys = inference.keys_of(part, key, num_samples)
        drawn = inference.draw_samples(fitted, part, sample_keys, True, named_in, SAMPLES_PER_CALL)
        codes, votes = jax.device_get(drawn)
        side = part.x["sequence"].shape[1]
        for row in range(count):
            sequence = prediction.sequence_of(part, row)
            by_sample = folding.of_samples(codes[:, row], votes[:, row], side)
            yield [folding.assemble(*predicted, len(sequence), sequence) for predicted in by_sample]


def named_in(y: dict[str, Array], batch: Batch) -> tuple[Array, Array]:
    """Returns the boxes that the pixels of a y name: codes and votes [batch, length, length, 3]."""
    on, location, size = (unfold(y[name][:, 0], 1) for name in ("on", "location", "size"))
    return prediction.named_boxes(on, location, size), on


def plots(fitted: Fitted, batch: Batch, key: Array, num_samples: int) -> dict[str, Plot]:
    """Returns figures of the longest sequence: its matrix with boxes and pair probabilities, its structures as arcs.

    Args:
      fitted: a model with its variables.
      batch: of sequences.
      key: of all random numbers.
      num_samples: draws of z.
    """
    longest = int(np.argmax(batch.x["length"]))
    row = jax.tree.map(lambda leaf: leaf[longest : longest + 1], batch)
    (predicted,) = prediction.predictions(fitted, row, key, num_samples)
    sequence, truth = predicted.sequence, truth_of(predicted.sequence)
    probable = {box: share for box, share in truth.frequencies.items() if share >= scores.PROBABLE}
    exact = folding.Boxes(np.array(list(probable), np.int16).reshape(-1, 5), np.array(list(probable.values())))
    likely = predicted.boxes.probability >= scores.PROBABLE
    panels = {"ensemble": truth.ensemble.probabilities, "model": predicted.probabilities}
    outlined = {
        "ensemble": exact,
        "model": folding.Boxes(predicted.boxes.boxes[likely], predicted.boxes.probability[likely]),
    }
    structures = {"ensemble": truth.structures, "model": predicted.structures}

    def matrix(path: pathlib.Path, title: str) -> None:
        figures.matrices(path, sequence, panels, outlined, title + PAIRS_AND_BOXES)

    def arcs(path: pathlib.Path, title: str) -> None:
        figures.arcs(path, sequence, structures, title + STRUCTURES_OF_BOTH)

    return {"matrix": matrix, "arcs": arcs}


def baselines(batch: Batch) -> dict[str, dict[str, Metric]]:
    """Returns the metrics of what ViennaRNA predicts, and of samples of the ensemble itself."""
    by_name: dict[str, list[Numbers]] = {}
    for row, real in enumerate(_real_structures(batch)):
        sequence = prediction.sequence_of(batch, row)
        truth, length = truth_of(sequence), len(sequence)
        for name, pairs in (("MFE", truth.ensemble.mfe), ("MEA", truth.ensemble.mea)):
            matrix = np.zeros((length, length))
            matrix[pairs[:, 0], pairs[:, 1]] = 1
            predicted = boxes.boxes_of(pairs)
            by_name.setdefault(f"{name} of ViennaRNA", []).append(
                {
                    **of_pairs(matrix, truth.ensemble.probabilities),
                    **of_structure(pairs, real, length),
                    **of_distribution([pairs], truth, WAYS[0]),
                    **of_boxes(folding.Boxes(predicted, np.ones(len(predicted))), truth),
                }
            )
        # Other samples than those of the truth.
        dot_brackets = sample(sequence, COMPARED, 1 + zlib.crc32(sequence.encode()))
        drawn = [boxes.parse(structure)[0] for structure in dot_brackets]
        matrix = np.zeros((length, length))
        for pairs in drawn[:10]:
            matrix[pairs[:, 0], pairs[:, 1]] += 0.1
        by_name.setdefault("samples of the ensemble (10; 100 for GED² and diversity)", []).append(
            {**of_pairs(matrix, truth.ensemble.probabilities), **of_distribution(drawn, truth, WAYS[0])}
        )
    return {name: _metrics(examples) for name, examples in by_name.items()}
