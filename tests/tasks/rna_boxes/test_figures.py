"""What the figures of structures show."""

import numpy as np
import pytest
from PIL import Image
from structures import NONE, SEQUENCE, drawn

from cvae_jax.tasks.rna_boxes import boxes as layout
from cvae_jax.tasks.rna_boxes import ensemble, folding, scores
from cvae_jax.tasks.rna_boxes import figures as rna_figures


@pytest.fixture
def figure(monkeypatch):
    """The last figure that was saved."""
    saved = []
    savefig = rna_figures.Figure.savefig

    def save(self, *args, **kwargs):
        saved[:] = [self]
        savefig(self, *args, **kwargs)

    monkeypatch.setattr(rna_figures.Figure, "savefig", save)
    return saved


def colour_of(patch):
    return tuple(np.round(patch.get_edgecolor(), 3))


def test_arcs(tmp_path, figure):
    both, outer = np.array([[0, 9], [1, 8]]), np.array([[0, 9]])
    path = tmp_path / "deep" / "arcs.png"
    rna_figures.arcs(
        path, "GGAAAAAACCA", {"truth": [both, outer, outer, outer], "none": [NONE], "mfe": [both]}, "a title"
    )
    with Image.open(path) as image:
        assert min(image.size) > 300
    truth, none, mfe = figure[0].axes[:3]
    assert [len(panel.patches) for panel in (truth, none, mfe)] == [2, 0, 2]
    assert [panel.get_title("left") for panel in (truth, mfe)] == ["truth: 4 structures", "mfe: 1 structure"]
    # From base to base; one of four structures has the inner pair, drawn below the other.
    assert [(arc.center[0], arc.width) for arc in truth.patches] == [(4.5, 7), (4.5, 9)]
    shades = [tuple(np.round(rna_figures.SHARES(share), 3)) for share in (0.25, 1.0)]
    assert [colour_of(arc) for arc in truth.patches] == shades
    assert "".join(label.get_text() for label in truth.get_xticklabels()) == "GGAAAAAACCA"


@pytest.mark.parametrize("length", [45, 30])
def test_matrices(vienna, tmp_path, figure, length):
    sequence = SEQUENCE[:length]
    truth = ensemble.ensemble(sequence)
    frequencies = scores.box_frequencies(drawn(20, 11, sequence))
    boxes = folding.Boxes(np.array(list(frequencies), np.int16), np.array(list(frequencies.values())))
    panels = {"exact": truth.probabilities, "padded": np.ones((50, 50)), "none": np.zeros((length, length))}
    rows = np.array([[2, 3, 20, 4, 5]])
    rna_figures.matrices(tmp_path / "matrices.png", sequence, panels, {"exact": boxes, "padded": rows}, "a title")
    assert (tmp_path / "matrices.png").stat().st_size > 10_000
    exact, padded, none = figure[0].axes[:3]
    assert [len(panel.patches) for panel in (exact, padded, none)] == [len(frequencies), 1, 0]
    box = padded.patches[0]
    assert (*box.get_xy(), box.get_width(), box.get_height()) == (19.5, 2.5, 5, 4)
    assert exact.images[0].get_array().shape == padded.images[0].get_array().shape == (length, length)
    np.testing.assert_array_equal(exact.images[0].get_array().filled(0), np.triu(truth.probabilities, 1))
    letters_shown = "".join(label.get_text() for label in exact.get_xticklabels(minor=True))
    assert letters_shown == (sequence if length <= 40 else "")
    assert [text.get_text() for text in figure[0].legends[0].get_texts()] == list(layout.TYPES)
