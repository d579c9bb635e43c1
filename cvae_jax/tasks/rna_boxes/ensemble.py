"""The Boltzmann ensemble of a sequence, by ViennaRNA: samples, structures of low energy, exact pair probabilities."""

import functools
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from cvae_jax.errors import UserError
from cvae_jax.tasks.rna_boxes import boxes, folding
from cvae_jax.tasks.rna_boxes.sequences import decode, encode


def vienna() -> ModuleType:
    """Imports ViennaRNA, only where structures are computed, and returns the module.

    Raises:
      UserError: where it is not installed.
    """
    try:
        import RNA
    except ImportError:
        raise UserError("computing RNA structures needs ViennaRNA; pip install -e '.[rna]'") from None
    return RNA


def _compound(sequence: str) -> Any:
    """Returns ViennaRNA's handle of a sequence, from which structures can be drawn."""
    settings = vienna().md()
    settings.uniq_ML = 1  # each structure is found in one way
    settings.compute_bpp = 0  # pair probabilities cost as much as the rest, and samples do not need them
    return vienna().fold_compound(decode(encode(sequence)), settings)


def sample(sequence: str, count: int, seed: int) -> list[str]:
    """Draws `count` structures from the Boltzmann ensemble at 37 degrees, in dot-bracket notation, the same for a seed.

    Raises:
      UserError: for what is no sequence, or without ViennaRNA.
    """
    compound = _compound(sequence)
    compound.exp_params_rescale(compound.mfe()[1])  # keeps the sums of long sequences in range
    compound.pf()
    vienna().init_rand(seed % 2**32)
    return list(compound.pbacktrack(count))


def within(sequence: str, gap: float, count: int) -> list[str]:
    """Returns the structures within `gap` kcal/mol of the lowest energy, lowest first, at most `count`.

    All of them are made before they are cut, and their number grows exponentially in the gap and the length.

    Raises:
      UserError: for what is no sequence, or without ViennaRNA.
    """
    by_energy = 1
    suboptimal = _compound(sequence).subopt(round(100 * gap), by_energy)
    return [solution.structure for solution in suboptimal[:count]]


class Ensemble(NamedTuple):
    """The thermodynamic truth of one sequence of `length` bases. Read-only: it is shared between callers."""

    probabilities: np.ndarray  # float64 [length, length]: of each pair i < j in the Boltzmann ensemble, 0 below
    mfe: np.ndarray  # pairs of the structure of minimum free energy
    mea: np.ndarray  # pairs of the structure of maximum expected accuracy, see `folding.assemble_pairs`


@functools.lru_cache(maxsize=4096)  # several models are measured on the same sequences
def ensemble(sequence: str) -> Ensemble:
    """Computes exact pair probabilities, MFE and MEA structure of a sequence by ViennaRNA, at 37 °C.

    No random numbers are drawn.

    Raises:
      UserError: for what is no sequence, or without ViennaRNA.
    """
    fold = vienna().fold_compound(decode(encode(sequence)))
    structure, energy = fold.mfe()
    fold.exp_params_rescale(energy)  # else the partition function of a long sequence overflows
    fold.pf()
    probabilities = np.triu(np.array(fold.bpp(), np.float64)[1:, 1:], 1)
    # Not fold.MEA(): see `folding.assemble_pairs`.
    exact = Ensemble(probabilities, boxes.parse(structure)[0], folding.assemble_pairs(probabilities))
    for array in exact:
        array.flags.writeable = False
    return exact
