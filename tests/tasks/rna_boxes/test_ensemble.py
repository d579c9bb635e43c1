"""Sequences as codes, and the ensemble of a sequence against ViennaRNA."""

import sys

import numpy as np
import pytest
from structures import SEQUENCE, drawn

from cvae_jax.errors import UserError
from cvae_jax.tasks.rna_boxes import boxes, ensemble
from cvae_jax.tasks.rna_boxes.sequences import decode, encode


def test_letters():
    codes = encode("NACGUacgtTn")
    assert codes.tolist() == [0, 1, 2, 3, 4, 1, 2, 3, 4, 4, 0] and codes.dtype == np.int8
    assert decode(codes) == "NACGUACGUUN"


@pytest.mark.parametrize(
    ("sequence", "message"),
    [
        ("", "empty"),
        ("ACXG", "'X' at position 3"),
        ("AC\u03b1", "'\u03b1' at position 3"),
        ("A CG", "' ' at position 2"),
    ],
)
def test_what_is_no_sequence(vienna, sequence, message):
    for function in (
        encode,
        lambda letters: ensemble.sample(letters, 1, 0),
        lambda letters: ensemble.within(letters, 1, 1),
    ):
        with pytest.raises(UserError, match=message):
            function(sequence)


def test_samples_are_of_the_ensemble(vienna):
    sequence = "GACGGUAUCCGAAUGCCUGAGGAUUC"
    compound = vienna.fold_compound(sequence)
    compound.pf()
    truth = np.array(compound.bpp())[1:, 1:]
    number = 4000
    structures = ensemble.sample(sequence, number, 3)
    seen = np.zeros_like(truth)
    for structure in structures:
        seen[tuple(boxes.parse(structure)[0].T)] += 1 / number
    error = np.sqrt(truth * (1 - truth) / number)
    assert (abs(seen - truth) < 5 * error + 1e-3).all()
    assert ((truth > 0.1) & (truth < 0.9)).sum() > 3
    assert structures == ensemble.sample(sequence, number, 3)
    assert structures != ensemble.sample(sequence, number, 4)
    assert len(ensemble.sample(sequence, 1, 2**40)) == 1


def test_structures_within_a_gap(vienna):
    sequence = "GGGAAACUUCCAAAGGAGUACC"
    structures = ensemble.within(sequence, 3.0, 1000)
    compound = vienna.fold_compound(sequence)
    lowest = compound.mfe()[1]
    energies = [compound.eval_structure(structure) for structure in structures]
    assert len(set(structures)) == len(structures) > 5
    assert energies == sorted(energies) and energies[0] == pytest.approx(lowest) and energies[-1] <= lowest + 3.001
    assert ensemble.within(sequence, 3.0, 4) == structures[:4]
    # Every structure of the ensemble with such an energy is among them.
    drawn = set(ensemble.sample(sequence, 2000, 0))
    assert {structure for structure in drawn if compound.eval_structure(structure) < lowest + 2.99} <= set(structures)


def test_ensemble_is_that_of_viennarna(vienna):
    exact = ensemble.ensemble(SEQUENCE)
    fold = vienna.fold_compound(SEQUENCE)
    fold.pf()
    wanted = np.array(fold.bpp())[1:, 1:]
    np.testing.assert_allclose(exact.probabilities, wanted, atol=1e-9)
    assert exact.probabilities.dtype == np.float64 and exact.probabilities.shape == (45, 45)
    assert boxes.dot_bracket(exact.mfe, 45) == fold.mfe()[0]
    assert boxes.dot_bracket(exact.mea, 45) == fold.MEA()[0]
    # Pair frequencies of samples approach the probabilities: five standard errors.
    samples = drawn(1000)
    share = np.zeros((45, 45))
    for pairs in samples:
        share[tuple(pairs.T)] += 1 / len(samples)
    assert (abs(share - wanted) <= 5 * np.sqrt(wanted * (1 - wanted) / 1000) + 1e-3).all()


def test_ensemble_is_kept_and_read_only(vienna):
    exact = ensemble.ensemble(SEQUENCE)
    assert ensemble.ensemble(SEQUENCE) is exact
    with pytest.raises(ValueError, match="read-only"):
        exact.probabilities[0, 1] = 1


def test_ensemble_leaves_random_numbers_alone(vienna):
    wanted = ensemble.sample(SEQUENCE, 5, 3) + ensemble.sample(SEQUENCE, 5, 4)
    first = ensemble.sample(SEQUENCE, 5, 3)
    ensemble.ensemble.cache_clear()
    ensemble.ensemble(SEQUENCE)
    assert first + ensemble.sample(SEQUENCE, 5, 4) == wanted
    vienna.init_rand(5)
    number = vienna.urn()
    vienna.init_rand(5)
    ensemble.ensemble.cache_clear()
    ensemble.ensemble(SEQUENCE)
    assert vienna.urn() == number


@pytest.mark.parametrize("sequence", ["", "ACGX", "ACGU\n"])
def test_ensemble_of_no_sequence(vienna, sequence):
    with pytest.raises(UserError, match="letters"):
        ensemble.ensemble(sequence)


@pytest.mark.parametrize("sequence", ["A", "ACGU", "GGNNNNCC"])
def test_ensemble_of_short_sequences(vienna, sequence):
    exact = ensemble.ensemble(sequence)
    assert exact.probabilities.shape == (len(sequence),) * 2 and exact.mfe.shape[1] == exact.mea.shape[1] == 2


def test_ensemble_of_a_long_stable_sequence(vienna):
    """Whose partition function overflows unless it is scaled by the minimum free energy."""
    exact = ensemble.ensemble("G" * 200 + "AAAA" + "C" * 200)
    assert len(exact.mfe) >= 199
    assert exact.probabilities.sum() == pytest.approx(200, abs=2)


def test_without_viennarna(monkeypatch):
    monkeypatch.setitem(sys.modules, "RNA", None)
    with pytest.raises(UserError, match=r"needs ViennaRNA; pip install -e '\.\[rna\]'"):
        ensemble.ensemble(SEQUENCE + "CC")
