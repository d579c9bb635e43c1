import itertools
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import RNA

from cvae_jax.errors import UserError
from cvae_jax.tasks.rna_boxes import boxes

STEM, INTERNAL, HAIRPIN = 1, 2, 3

TARGETS = jax.jit(boxes.targets, static_argnums=1)

# By hand: structure, its boxes, its number of multiloops.
BY_HAND = [
    ("", [], 0),
    (".....", [], 0),
    ("((((...))))", [(STEM, 0, 7, 4, 4), (HAIRPIN, 3, 3, 5, 5)], 0),
    (".(...).", [(STEM, 1, 5, 1, 1), (HAIRPIN, 1, 1, 5, 5)], 0),
    # A bulge on the left, then one on the right.
    (
        "((.((...))))",
        [(STEM, 0, 10, 2, 2), (INTERNAL, 1, 9, 3, 2), (STEM, 3, 8, 2, 2), (HAIRPIN, 4, 4, 5, 5)],
        0,
    ),
    ("((...)..)", [(STEM, 0, 8, 1, 1), (INTERNAL, 0, 5, 2, 4), (STEM, 1, 5, 1, 1), (HAIRPIN, 1, 1, 5, 5)], 0),
    # An internal loop of 1 x 3, between stems of 2 and 1.
    ("((.(...)...))", [(STEM, 0, 11, 2, 2), (INTERNAL, 1, 7, 3, 5), (STEM, 3, 7, 1, 1), (HAIRPIN, 3, 3, 5, 5)], 0),
    # Two internal loops that share the pair between them.
    (
        "(.(.(...)).)",
        [
            (STEM, 0, 11, 1, 1),
            (INTERNAL, 0, 9, 3, 3),
            (STEM, 2, 9, 1, 1),
            (INTERNAL, 2, 8, 3, 2),
            (STEM, 4, 8, 1, 1),
            (HAIRPIN, 4, 4, 5, 5),
        ],
        0,
    ),
    # A multiloop of three stems, beside another hairpin.
    (
        "((...)(...)).(....)",
        [
            (STEM, 0, 11, 1, 1),
            (STEM, 1, 5, 1, 1),
            (HAIRPIN, 1, 1, 5, 5),
            (STEM, 6, 10, 1, 1),
            (HAIRPIN, 6, 6, 5, 5),
            (STEM, 13, 18, 1, 1),
            (HAIRPIN, 13, 13, 6, 6),
        ],
        1,
    ),
]


def folded(number, shortest=10, longest=60):
    """Structures in dot-bracket notation, one of the ensemble of each random sequence."""
    letters = random.Random(0)
    settings = RNA.md()
    settings.uniq_ML = 1
    settings.compute_bpp = 0
    RNA.init_rand(1)
    structures = []
    for _ in range(number):
        sequence = "".join(letters.choices("ACGU", k=letters.randint(shortest, longest)))
        compound = RNA.fold_compound(sequence, settings)
        compound.pf()
        structures += compound.pbacktrack(1)
    return structures


@pytest.fixture(scope="module")
def structures():
    return folded(300)


def padded(structures, room):
    """Their boxes, int16 [n, room, 5]."""
    packed = np.zeros((len(structures), room, 5), np.int16)
    for row, structure in zip(packed, structures, strict=True):
        rows = boxes.boxes_of(boxes.parse(structure)[0])
        row[: len(rows)] = rows
    return packed


def loops(structure):
    """Truth by definition: for each pair, the pairs directly inside it, found base by base in ViennaRNA's table."""
    partner = [position - 1 for position in RNA.ptable(structure)[1:]]
    inside = {}
    for i, j in enumerate(partner):
        if j > i:
            inside[i, j] = []
            base = i + 1
            while base < j:
                if partner[base] > base:
                    inside[i, j].append((base, partner[base]))
                    base = partner[base]
                base += 1
    return inside


def boxes_by_definition(structure):
    inside = loops(structure)
    rows = []
    for i, j in inside:
        if (i - 1, j + 1) not in inside:
            size = 1
            while (i + size, j - size) in inside:
                size += 1
            rows.append((STEM, i, j - size + 1, size, size))
        match inside[i, j]:
            case []:
                rows.append((HAIRPIN, i, i, j - i + 1, j - i + 1))
            case [(r, s)] if (r, s) != (i + 1, j - 1):
                rows.append((INTERNAL, i, s, r - i + 1, j - s + 1))
    return sorted(rows, key=lambda box: (box[1], -(box[2] + box[4]), box[0]))


def rasterised(rows, side):
    """Targets pixel by pixel."""
    on, location = np.zeros((side, side, 3)), np.zeros((side, side, 6))
    size, scalar = np.zeros((side, side, 4)), np.zeros((side, side, 4))
    for i, j in itertools.combinations(range(side), 2):
        for kind, x0, y0, wx, wy in rows:
            if kind and x0 <= i < x0 + wx and y0 <= j < y0 + wy and not on[i, j, kind - 1]:
                on[i, j, kind - 1] = 1
                location[i, j, 2 * kind - 2 : 2 * kind] = min(i - x0, 11), min(y0 + wy - 1 - j, 11)
                place, sizes = {STEM: (0, [wx]), INTERNAL: (1, [wx, wy]), HAIRPIN: (3, [wx])}[kind]
                scalar[i, j, place : place + len(sizes)] = sizes
                size[i, j, place : place + len(sizes)] = [min(bases, 11) - 1 for bases in sizes]
    return {"on": on, "location": location, "size": size, "scalar": scalar}


def test_parse():
    pairs, num_dropped = boxes.parse("((.[[..)).]]{<A.}>a")
    assert pairs.tolist() == [[0, 8], [1, 7]] and num_dropped == 5
    assert boxes.dot_bracket(pairs, 19) == "((.....)).........."
    pairs, num_dropped = boxes.parse("...")
    assert pairs.shape == (0, 2) and pairs.dtype == np.int32 and num_dropped == 0


@pytest.mark.parametrize(
    ("structure", "message"),
    [
        ("(.))", r"'\)' at position 4 closes nothing"),
        ("(()", r"'\(' at position 1 is never closed"),
        ("(.[)", r"'\[' at position 3 is never closed"),
        ("(a)", "'a' at position 2 closes nothing"),
        ("(.-.)", "'-' at position 3 is unknown"),
    ],
)
def test_structures_that_are_none(structure, message):
    with pytest.raises(UserError, match=message):
        boxes.parse(structure)


@pytest.mark.parametrize(("structure", "wanted", "num_multiloops"), BY_HAND)
def test_boxes_by_hand(structure, wanted, num_multiloops):
    pairs, _ = boxes.parse(structure)
    rows = boxes.boxes_of(pairs)
    assert rows.dtype == np.int16 and rows.shape == (len(wanted), 5)
    assert list(map(tuple, rows.tolist())) == wanted
    assert boxes.num_multiloops(pairs) == num_multiloops
    np.testing.assert_array_equal(boxes.pairs_of(rows), pairs)


def test_boxes_by_definition(structures):
    number = np.zeros(4, int)
    for structure in structures + folded(5, 200, 300):
        pairs, _ = boxes.parse(structure)
        rows = boxes.boxes_of(pairs[::-1])  # in any order
        assert list(map(tuple, rows.tolist())) == boxes_by_definition(structure)
        multiloops = sum(len(inside) > 1 for inside in loops(structure).values())
        assert boxes.num_multiloops(pairs) == multiloops
        # Every stem closes one loop.
        stems, internals, hairpins = np.bincount(rows[:, 0], minlength=4)[1:]
        assert stems == internals + hairpins + multiloops
        number += [stems, internals, hairpins, multiloops]
    assert number.min() > 5  # all of them were seen


@pytest.mark.parametrize(
    "pairs", [[(0, 5), (3, 8)], [(0, 5), (5, 9)], [(0, 5), (0, 9)], [(1, 5), (2, 5)], [(4, 4)], [(5, 1)]]
)
def test_pairs_that_are_no_structure(pairs):
    for order in (pairs, pairs[::-1]):
        with pytest.raises(UserError, match=r"pair \(\d, \d\) crosses"):
            boxes.boxes_of(np.array(order))
        with pytest.raises(UserError, match="crosses"):
            boxes.num_multiloops(np.array(order))


def all_structures(length, least=2):
    """Every structure whose hairpins leave at least so many bases unpaired."""
    if length <= 0:
        return [""]
    structures = ["." + rest for rest in all_structures(length - 1, least)]
    for inside in range(least, length - 1):
        structures += [
            f"({middle}){rest}"
            for middle in all_structures(inside, least)
            for rest in all_structures(length - inside - 2, least)
        ]
    return structures


@pytest.mark.parametrize("length", [1, 2, 3, 4, 8, 11, 12, 14])
def test_no_structure_has_more_boxes(length):
    most = max(len(boxes.boxes_of(boxes.parse(structure)[0])) for structure in all_structures(length))
    assert most <= boxes.max_boxes(length)


def test_max_boxes():
    assert [boxes.max_boxes(length) for length in (1, 2, 3, 60, 100)] == [1, 1, 2, 40, 66]
    bulges = "(." * 18 + "(....)" + ")" * 18
    assert len(bulges) == 60 and len(boxes.boxes_of(boxes.parse(bulges)[0])) == 38


def test_targets_of_structures(structures):
    structures = sorted(structures, key=len)[:: len(structures) // 12]
    packed = padded(structures, 40)
    dense = TARGETS(jnp.asarray(packed), 60)
    dtypes = {"on": np.int8, "location": np.int8, "size": np.int8, "scalar": np.float32}
    assert {name: array.dtype for name, array in dense.items()} == dtypes
    for n in range(len(structures)):
        for name, wanted in rasterised(packed[n].tolist(), 60).items():
            np.testing.assert_array_equal(dense[name][n], wanted)


def test_targets_of_any_boxes():
    """More boxes than bits in two words, large ones, in any order, over each other and over the diagonal."""
    rng = np.random.default_rng(0)
    packed = np.zeros((2, 1, 70, 5), np.int32)
    packed[..., 0] = rng.integers(0, 4, packed.shape[:-1])
    packed[..., 1:3] = rng.integers(0, 20, (*packed.shape[:-1], 2))
    packed[..., 3:] = rng.integers(1, 16, (*packed.shape[:-1], 2))
    dense = TARGETS(jnp.asarray(packed), 25)
    assert dense["on"].shape == (2, 1, 25, 25, 3)
    for n in range(2):
        for name, wanted in rasterised(packed[n, 0].tolist(), 25).items():
            np.testing.assert_array_equal(dense[name][n, 0], wanted)


def test_targets_of_one_structure_without_boxes():
    dense = TARGETS(jnp.zeros((1, 5), jnp.int16), 4)
    assert dense["scalar"].shape == (4, 4, 4)
    assert not any(array.any() for array in dense.values())


def test_there_and_back(structures):
    """Structures -> boxes -> targets -> boxes -> pairs."""
    packed = padded(structures, 40)
    there = {name: np.asarray(array) for name, array in TARGETS(jnp.asarray(packed), 60).items()}
    num_boxes = 0
    for n, structure in enumerate(structures):
        back = boxes.boxes_from_targets({name: array[n] for name, array in there.items()})
        assert back.dtype == np.int16
        np.testing.assert_array_equal(back, packed[n][packed[n, :, 0] > 0])
        assert boxes.dot_bracket(boxes.pairs_of(back), len(structure)) == structure
        num_boxes += len(back)
    assert num_boxes > 1000


def test_there_and_back_of_large_boxes():
    structure = "(" * 13 + "." * 12 + "(" * 2 + "." * 30 + ")" * 2 + "." * 14 + ")" * 13
    packed = padded([structure], 6)
    there = TARGETS(jnp.asarray(packed[0]), len(structure))
    assert there["location"].max() == 11 and there["size"].max() == 10 and there["scalar"].max() == 32
    back = boxes.boxes_from_targets({name: np.asarray(array) for name, array in there.items()})
    np.testing.assert_array_equal(back, packed[0, :4])


def test_pairs_of_no_stem():
    assert boxes.pairs_of(np.zeros((0, 5), int)).shape == (0, 2)
    assert boxes.pairs_of(np.array([(HAIRPIN, 1, 1, 5, 5), (0, 0, 0, 0, 0)])).shape == (0, 2)


def test_shared_pixels_of_any_boxes():
    """Counted pixel by pixel, in boxes that lie over each other as no structure's do."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        rows = np.concatenate([rng.integers(0, 4, (9, 1)), rng.integers(0, 8, (9, 2)), rng.integers(1, 9, (9, 2))], 1)
        cover = np.zeros((4, 16, 16), int)
        for kind, x0, y0, wx, wy in rows:
            cover[kind, x0 : x0 + wx, y0 : y0 + wy] += 1
        assert boxes.shared_pixels(rows) == (np.triu(cover[1:], 1) > 1).sum()


def test_shared_pixels(structures):
    def by_hand(structure):
        return boxes.shared_pixels(boxes.boxes_of(boxes.parse(structure)[0]))

    assert by_hand("(.(.(...)).)") == 1  # the pair between two internal loops
    assert by_hand("(.((.(...))).)") == 0
    assert boxes.shared_pixels(np.zeros((3, 5), np.int16)) == 0
    # Hairpins over each other share three rows and columns, of which three pixels lie above the diagonal.
    assert boxes.shared_pixels(np.array([(HAIRPIN, 0, 0, 5, 5), (HAIRPIN, 2, 2, 5, 5), (STEM, 1, 1, 5, 5)])) == 3
    # In structures it is single pairs between two internal loops, nothing else.
    for structure in structures:
        inside = loops(structure)
        internal = {
            pair: inner[0]
            for pair, inner in inside.items()
            if len(inner) == 1 and inner[0] != (pair[0] + 1, pair[1] - 1)
        }
        assert by_hand(structure) == sum(inner in internal for inner in internal.values())
