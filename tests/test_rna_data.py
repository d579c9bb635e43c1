import csv
import gzip
import io
import itertools
import os
import pathlib
import pickle
import random
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import RNA

from cvae_jax.data import rna, rna_tables
from cvae_jax.errors import UserError
from cvae_jax.rna import boxes

ROOT = pathlib.Path(__file__).parents[1]
CANONICAL = {"AU", "UA", "GC", "CG", "GU", "UG"}


def settings(folder="", **changes):
    numbers = {"max_length": 20, "num_sample": 3, "num_seq": 12, "min_len": 8, "max_len": 20, "seed": 0}
    return SimpleNamespace(source="rna", dir=str(folder), **numbers | changes)


@pytest.fixture(scope="module")
def splits():
    return rna.make(40, 10, 30, 4, seed=1)


def equal(one, other):
    return list(one) == list(other) and all(
        list(one[split]) == list(other[split])
        and all(np.array_equal(one[split][name], other[split][name]) for name in one[split])
        for split in one
    )


def structures_of(arrays, n):
    """Sequence n and its structures in dot-bracket notation."""
    length = arrays["length"][n]
    found = arrays["boxes"][n, : arrays["count"][n]]
    return rna.decode(arrays["sequence"][n, :length]), [boxes.dot_bracket(boxes.pairs_of(one), length) for one in found]


def test_letters():
    codes = rna.encode("NACGUacgtTn")
    assert codes.tolist() == [0, 1, 2, 3, 4, 1, 2, 3, 4, 4, 0] and codes.dtype == np.int8
    assert rna.decode(codes) == "NACGUACGUUN"


@pytest.mark.parametrize(
    ("sequence", "message"),
    [
        ("", "empty"),
        ("ACXG", "'X' at position 3"),
        ("AC\u03b1", "'\u03b1' at position 3"),
        ("A CG", "' ' at position 2"),
    ],
)
def test_what_is_no_sequence(sequence, message):
    for function in (rna.encode, lambda one: rna.sample(one, 1, 0), lambda one: rna.within(one, 1, 1)):
        with pytest.raises(UserError, match=message):
            function(sequence)


def test_samples_are_of_the_ensemble():
    sequence = "GACGGUAUCCGAAUGCCUGAGGAUUC"
    compound = RNA.fold_compound(sequence)
    compound.pf()
    truth = np.array(compound.bpp())[1:, 1:]
    number = 4000
    found = rna.sample(sequence, number, 3)
    seen = np.zeros_like(truth)
    for structure in found:
        seen[tuple(boxes.parse(structure)[0].T)] += 1 / number
    error = np.sqrt(truth * (1 - truth) / number)
    assert (abs(seen - truth) < 5 * error + 1e-3).all()
    assert ((truth > 0.1) & (truth < 0.9)).sum() > 3
    assert found == rna.sample(sequence, number, 3)
    assert found != rna.sample(sequence, number, 4)
    assert len(rna.sample(sequence, 1, 2**40)) == 1


def test_structures_within_a_gap():
    sequence = "GGGAAACUUCCAAAGGAGUACC"
    found = rna.within(sequence, 3.0, 1000)
    compound = RNA.fold_compound(sequence)
    lowest = compound.mfe()[1]
    energies = [compound.eval_structure(structure) for structure in found]
    assert len(set(found)) == len(found) > 5
    assert energies == sorted(energies) and energies[0] == pytest.approx(lowest) and energies[-1] <= lowest + 3.001
    assert rna.within(sequence, 3.0, 4) == found[:4]
    # Every structure of the ensemble with such an energy is among them.
    drawn = set(rna.sample(sequence, 2000, 0))
    assert {one for one in drawn if compound.eval_structure(one) < lowest + 2.99} <= set(found)


def test_without_viennarna(monkeypatch):
    monkeypatch.setitem(sys.modules, "RNA", None)
    with pytest.raises(UserError, match=r"needs ViennaRNA; pip install -e '\.\[rna\]'"):
        rna.make(4, 10, 20, 1, 0)


def test_make(splits):
    assert {split: len(arrays["length"]) for split, arrays in splits.items()} == {"train": 32, "valid": 4, "test": 4}
    seen = []
    for arrays in splits.values():
        number = len(arrays["length"])
        shapes = {name: (array.shape, array.dtype) for name, array in arrays.items()}
        assert shapes == {
            "sequence": ((number, 30), np.int8),
            "length": ((number,), np.int32),
            "boxes": ((number, 4, boxes.max_boxes(30), 5), np.int16),
            "count": ((number,), np.int32),
        }
        assert (arrays["count"] == 4).all()
        for n in range(number):
            sequence, structures = structures_of(arrays, n)
            assert not arrays["sequence"][n, len(sequence) :].any() and "N" not in sequence
            for m, structure in enumerate(structures):
                pairs, _ = boxes.parse(structure)
                assert {sequence[i] + sequence[j] for i, j in pairs} <= CANONICAL
                wanted = boxes.boxes_of(pairs)
                np.testing.assert_array_equal(arrays["boxes"][n, m, : len(wanted)], wanted)
                assert not arrays["boxes"][n, m, len(wanted) :].any()
            seen.append(sequence)
    assert len(set(seen)) == 40
    lengths = sorted(map(len, seen))
    assert lengths[0] < 14 and lengths[-1] > 26


def test_make_follows_its_seed(splits):
    assert equal(splits, rna.make(40, 10, 30, 4, seed=1))
    assert not equal(splits, rna.make(40, 10, 30, 4, seed=2))


def test_make_within_a_gap():
    arrays = rna.make(6, 18, 18, 5, seed=0, energy_gap=1.0, valid_share=0, test_share=0)
    assert list(arrays) == ["train"]
    counts = []
    for n in range(6):
        sequence, structures = structures_of(arrays["train"], n)
        assert structures == rna.within(sequence, 1.0, 5)
        assert not arrays["train"]["boxes"][n, len(structures) :].any()
        counts.append(len(structures))
    assert min(counts) < 5 and min(counts) >= 1


def test_make_all_that_exist():
    arrays = rna.make(20, 1, 2, 1, seed=0, valid_share=0.2, test_share=0)
    sequences = {structures_of(one, n)[0] for one in arrays.values() for n in range(len(one["length"]))}
    assert sequences == {*"ACGU", *("".join(two) for two in itertools.product("ACGU", repeat=2))}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_seq": 21, "max_len": 2}, "only 20 sequences of 1 to 2 bases exist"),
        ({"num_seq": 0}, "num_seq=0"),
        ({"num_sample": 0}, "num_sample=0"),
        ({"seed": -1}, "seed=-1"),
        ({"min_len": 0}, "min_len=0"),
        ({"min_len": 9}, "min_len=9 and max_len=8"),
        ({"max_len": 40_000}, "max_len=40000"),
        ({"energy_gap": -1.0}, "energy_gap=-1.0"),
        ({"valid_share": -0.1}, "valid_share=-0.1"),
        ({"valid_share": 0.5, "test_share": 0.6}, "test_share=0.6"),
        ({"num_seq": 2}, "2 sequences leave none for training"),
    ],
)
def test_numbers_that_cannot_be(changes, message):
    with pytest.raises(UserError, match=message):
        rna.make(**{"num_seq": 10, "min_len": 1, "max_len": 8, "num_sample": 1, "seed": 0} | changes)


def test_fit(splits):
    arrays = splits["train"]
    larger = rna.fit(arrays, 40, 6)
    assert larger["sequence"].shape == (32, 40) and larger["boxes"].shape == (32, 6, boxes.max_boxes(40), 5)
    assert [structures_of(larger, n) for n in range(32)] == [structures_of(arrays, n) for n in range(32)]
    longest = int(arrays["length"].max())
    smaller = rna.fit(larger, longest, 2)
    assert smaller["sequence"].shape == (32, longest) and smaller["boxes"].shape[1:3] == (2, boxes.max_boxes(longest))
    for n in range(32):
        sequence, structures = structures_of(arrays, n)
        assert structures_of(smaller, n) == (sequence, structures[:2])
    with pytest.raises(
        UserError, match=f"has {longest} bases, .*set max_length={longest} or .*--max_len={longest - 1}"
    ):
        rna.fit(arrays, longest - 1, 4)


def test_load_made_anew():
    found = rna.load(settings(max_length=25))
    made = rna.make(12, 8, 20, 3, 0)
    assert found["train"]["sequence"].shape == (10, 25)
    assert equal(found, {split: rna.fit(arrays, 25, 3) for split, arrays in made.items()})
    with pytest.raises(UserError, match=r"max_length=15 is less than data\.max_len=20"):
        rna.load(settings(max_length=15))


def test_save_and_load(tmp_path, splits):
    rna.save(splits, tmp_path / "new" / "folder")
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == [
        "test.npz",
        "train.npz",
        "valid.npz",
    ]
    found = rna.load(settings(tmp_path / "new" / "folder", max_length=30, num_sample=4))
    assert equal(found, splits)
    with pytest.raises(UserError, match=r"train\.npz exists; choose another folder"):
        rna.save(splits, tmp_path / "new" / "folder")
    (tmp_path / "new" / "folder" / "train.npz").unlink()
    (tmp_path / "new" / "folder" / "valid.npz").unlink()
    assert list(rna.load(settings(tmp_path / "new" / "folder", max_length=30))) == ["test"]
    with pytest.raises(UserError, match=r"split test: a sequence has .* more than max_length=9"):
        rna.load(settings(tmp_path / "new" / "folder", max_length=9))


def test_save_where_nothing_can_be_written(tmp_path, splits):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        rna.save(splits, tmp_path / "file")


def test_a_save_that_fails_leaves_no_split(tmp_path, splits, monkeypatch):
    def fail(file, **arrays):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", fail)
    with pytest.raises(UserError, match="No space left on device"):
        rna.save(splits, tmp_path)
    assert not list(tmp_path.glob("*.npz"))


def test_folders_without_data(tmp_path):
    with pytest.raises(UserError, match=r"is no folder with train\.npz; python -m cvae_jax\.data\.rna make"):
        rna.load(settings(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"is no folder with train\.npz"):
        rna.load(settings(tmp_path))


@pytest.mark.parametrize("name", ["table.pkl", "table.pkl.gz", "table.pickle"])
def test_pickles_are_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    for function, path in (
        (rna.load, settings(tmp_path / name)),
        (rna.load, settings(tmp_path)),
        (rna_tables.read_archive, tmp_path / name),
    ):
        with pytest.raises(UserError, match=rf"{name} is a pickle, .* python -m cvae_jax\.data\.rna convert "):
            function(path)


def with_box(row):
    def change(arrays):
        arrays["boxes"][0, 0, 0] = row
        return arrays

    return change


def with_array(name, change):
    return lambda arrays: arrays | {name: change(arrays[name].copy())}


def with_value(name, value):
    def change(arrays):
        arrays[name].flat[0] = value
        return arrays

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda arrays: {"sequence": arrays["sequence"]}, "the arrays are sequence, expected sequence, length"),
        (with_array("length", lambda array: array[:-1]), "differ in length"),
        (with_array("length", lambda array: array.astype(float)), "length is float64"),
        (with_array("count", lambda array: array[:, None]), r"count is int32\[32, 1\]"),
        (with_array("boxes", lambda array: array[..., :4]), "boxes have 4 numbers"),
        (with_value("sequence", 5), "codes outside 0 to 4"),
        (with_value("sequence", -1), "codes outside 0 to 4"),
        (with_value("length", 31), "length is outside 1 to 30"),
        (with_value("length", 2), "not 0 beyond its length"),
        (with_value("count", 0), "count is outside 1 to 4"),
        (with_value("count", 5), "count is outside 1 to 4"),
        (lambda arrays: with_value("count", 1)(with_box((1, 0, 9, 1, 1))(arrays)), "beyond count"),
        (with_box((4, 0, 9, 1, 1)), "types outside 0 to 3"),
        (with_box((1, 0, 40, 1, 1)), "beyond their sequence"),
        (with_box((1, -1, 5, 2, 2)), "beyond their sequence"),
        (with_box((1, 0, 5, 0, 1)), "beyond their sequence"),
        (with_box((1, 5, 5, 1, 1)), "beyond their sequence or its upper triangle"),
    ],
)
def test_damaged_arrays(tmp_path, splits, damage, message):
    arrays = {name: array.copy() for name, array in splits["train"].items()}
    arrays["boxes"][0] = [[(3, 0, 0, 9, 9)] + [(0,) * 5] * 19] * 4
    np.savez(tmp_path / "train.npz", **damage(arrays))
    with pytest.raises(UserError, match=rf"train\.npz: .*{message}.*; write it with python -m") as caught:
        rna.load(settings(tmp_path, max_length=30))
    assert "\n" not in str(caught.value)


def test_arrays_of_any_width(tmp_path, splits):
    np.savez(tmp_path / "train.npz", **{name: array.astype(np.int64) for name, array in splits["train"].items()})
    found = rna.load(settings(tmp_path, max_length=30, num_sample=4))
    assert equal(found, {"train": splits["train"]})
    assert [array.dtype for array in found["train"].values()] == [np.int8, np.int32, np.int16, np.int32]


def command(*arguments):
    """The exit of a command that fails."""
    with pytest.raises(SystemExit) as caught:
        rna.main([*map(str, arguments)])
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_command_make(tmp_path):
    """In a process of its own, as users start it."""
    flags = ["--min_len=10", "--max_len", "30", "--num_seq", "40", "--num_sample=4", "--seed=1", "--out", "data"]
    ran = subprocess.run(
        [sys.executable, "-m", "cvae_jax.data.rna", "make", *flags],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0 and ran.stderr == ""
    assert "40 sequences (32 train, 4 valid, 4 test) of 10 to" in ran.stdout
    assert "160 structures" in ran.stdout and "multiloops" in ran.stdout and "sequences per second" in ran.stdout
    found = rna.load(settings(tmp_path / "data", max_length=30, num_sample=4))
    assert equal(found, rna.make(40, 10, 30, 4, seed=1))


def test_commands_that_fail(tmp_path, splits):
    rna.save(splits, tmp_path)
    assert command("make", "--out", tmp_path).startswith(f"error: {tmp_path}/train.npz exists")
    assert command("make", "--num_seq=0", "--out", tmp_path / "a").startswith("error: num_seq=0")
    assert command("make", "--num_seq=many", "--out", tmp_path / "a").startswith("error: argument --num_seq")
    assert command("make").startswith("error: the following arguments are required: --out")
    assert command().startswith("error: ")
    assert command("convert", tmp_path / "none.csv", "--out", tmp_path / "a") == (
        f"error: {tmp_path}/none.csv is missing; put the file there"
    )
    assert "neither a .csv" in command("convert", tmp_path / "none.txt", "--out", tmp_path / "a")
    assert not (tmp_path / "a").exists()


def write_csv(path, rows, columns=("id", "sequence", "structure")):
    text = io.StringIO()
    csv.writer(text).writerows([columns, *rows])
    path.write_bytes(gzip.compress(text.getvalue().encode()) if path.suffix == ".gz" else text.getvalue().encode())
    return path


ROWS = [
    ("tRNA_one", "GGGAAACCC", "(((...)))"),
    ("tRNA_two", "gggaaaccc", "(.......)"),  # the same sequence
    ("5s_one", "GGTAAACCC", "((<...>))"),  # one pair of a pseudoknot
    ("5s_two", "GGGAAAXCC", "........."),  # a letter that is none
    ("5s_three", "GGGAAACCCAAAAAA", "(((...)))......"),
    ("5s_four", "NNNNN", "....."),
]


@pytest.mark.parametrize("name", ["table.csv", "table.csv.gz"])
def test_archive(tmp_path, name):
    table = rna_tables.read_archive(write_csv(tmp_path / name, ROWS))
    assert table.sequences == ["GGGAAACCC", "GGUAAACCC", "GGGAAACCCAAAAAA", "NNNNN"]
    wanted = [["(((...)))"], ["((.....))"], ["(((...)))......"], ["....."]]
    for sequence, found, structures in zip(table.sequences, table.structures, wanted, strict=True):
        assert [boxes.dot_bracket(boxes.pairs_of(one), len(sequence)) for one in found] == structures
    assert table.left_out == {
        "pairs in pseudoknots": 1,
        "duplicates of sequences": 1,
        "sequences with letters other than ACGUTN": 1,
    }


def test_part_of_an_archive(tmp_path):
    path = write_csv(tmp_path / "table.csv", ROWS)
    table = rna_tables.read_archive(path, max_len=9, family="5s")
    assert table.sequences == ["GGUAAACCC", "NNNNN"] and table.left_out["sequences of more than 9 bases"] == 1
    with pytest.raises(UserError, match="no family 'srp'; choose from 5s, tRNA"):
        rna_tables.read_archive(path, family="srp")
    with pytest.raises(UserError, match=r"no sequence that can be used \(.*5 sequences of more than 4 bases"):
        rna_tables.read_archive(path, max_len=4)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("a_1", "ACGU", "...")], r"row 1 \(a_1\): 4 bases but 3 marks"),
        ([("a_1", "ACGU", "...."), ("a_2", "ACGU", "...)")], r"row 2 \(a_2\): structure: '\)' at position 4"),
        ([("a_1", "ACGU")], r"row 1 \(a_1\): 4 bases but 0 marks"),
        ([], "no column id, sequence, structure, or no rows"),
    ],
)
def test_damaged_archives(tmp_path, rows, message):
    with pytest.raises(UserError, match=message):
        rna_tables.read_archive(write_csv(tmp_path / "table.csv", rows))


def test_archives_that_are_none(tmp_path):
    with pytest.raises(UserError, match="no column structure"):
        rna_tables.read(write_csv(tmp_path / "table.csv", [(1, 2)], ("id", "sequence")))
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\0")
    with pytest.raises(UserError, match="no CSV file"):
        rna_tables.read(tmp_path / "binary.csv")
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(b"id,sequence,structure\n" * 99)[:-9])
    with pytest.raises(UserError, match="truncated or damaged"):
        rna_tables.read(tmp_path / "cut.csv.gz")


def test_real_archive(real_data, tmp_path, capsys):
    path = real_data / "rna" / "ArchiveII.csv.gz"
    rna.main(["convert", str(path), "--max_len=100", "--out", str(tmp_path)])
    told = capsys.readouterr().out
    found = rna.load(settings(tmp_path, max_length=100, num_sample=1))
    with gzip.open(path, "rt") as file:
        rows = [row for row in csv.DictReader(file) if len(row["sequence"]) <= 100]
    wanted = {}
    for row in rows:
        structure = "".join("." if mark in "<>{}" else mark for mark in row["structure"])
        wanted.setdefault(row["sequence"], [structure])
    sequences = [structures_of(arrays, n) for arrays in found.values() for n in range(len(arrays["length"]))]
    assert len(rows) == 836 and len(sequences) == len(wanted)
    assert dict(sequences) == wanted
    assert f"{len(wanted)} sequences" in told and "left out: 133 duplicates of sequences" in told


def test_whole_real_archive(real_data):
    table = rna_tables.read(real_data / "rna" / "ArchiveII.csv.gz")
    assert len(table.sequences) == 3353 and table.left_out["duplicates of sequences"] == 511
    assert set(table.left_out) == {"duplicates of sequences", "pairs in pseudoknots"}


# Rows of a pickled table: three sequences, the first with two structures, the last with none paired and one crossing.
STRUCTURES = [
    ("GGGAAACCC", "(((...)))"),
    ("GGGAAACCC", ".((...))."),
    ("GGGGAAAACCCC", "((((....))))"),
    ("AAAAAA", "......"),
]


def rows_of_table():
    rows = []
    for n, (sequence, structure) in enumerate(STRUCTURES):
        i, j = boxes.parse(structure)[0].T.astype(np.int64)
        rows.append({"seq_id": n, "seq": sequence, "one_idx": (i, j), "bounding_boxes": [((0, 6), (3, 3), "stem")]})
    crossing = (np.array([0, 2]), np.array([4, 5]))
    return [*rows, {"seq_id": 4, "seq": "AAAAAA", "one_idx": crossing, "bounding_boxes": []}]


def check_table(table):
    assert table.sequences == ["GGGAAACCC", "GGGGAAAACCCC", "AAAAAA"]
    found = [
        (sequence, boxes.dot_bracket(boxes.pairs_of(one), len(sequence)))
        for sequence, of_one in zip(table.sequences, table.structures, strict=True)
        for one in of_one
    ]
    assert found == STRUCTURES
    assert table.left_out["structures with pairs that cross"] == 1


@pytest.mark.parametrize("made", ["rows", "columns", "part"])
@pytest.mark.parametrize("strings", ["python", "pyarrow", "object"])
def test_tables_of_pandas(tmp_path, made, strings):
    import pandas

    rows = rows_of_table()
    if strings == "object":  # what pandas had before version 3
        columns = {name: np.array([row[name] for row in rows] + [None], object)[:-1] for name in rows[0]}
        frame = pandas.DataFrame({name: pandas.Series(column, dtype=object) for name, column in columns.items()})
    else:
        with pandas.option_context("mode.string_storage", strings):
            frame = pandas.DataFrame(
                rows if made == "rows" else {name: [row[name] for row in rows] for name in rows[0]}
            )
    if made == "part":
        frame = pandas.concat([frame, frame])[: len(rows)]
    frame.to_pickle(tmp_path / "table.pkl.gz")
    check_table(rna_tables.read(tmp_path / "table.pkl.gz"))
    for protocol in (2, 3, 4, 5):
        (tmp_path / "table.pkl").write_bytes(pickle.dumps(frame, protocol))
        check_table(rna_tables.read_table(tmp_path / "table.pkl"))


class Legacy(pickle._Pickler):
    """Pickles objects of classes that do not exist here."""

    def save_global(self, obj, name=None):
        self.write(f"c{obj.__module__}\n{obj.__name__}\n".encode())
        self.memoize(obj)


def stand_in(path):
    """A class by that name, and a function that makes what pickles as a call of it with arguments and a state."""
    module, name = path.rsplit(".", 1)
    cls = type(name, (), {"__module__": module, "__reduce_ex__": lambda self, protocol: self.reduced})

    def make(*arguments, state=None):
        one = cls()
        one.reduced = (cls, arguments, state)
        return one

    return cls, make


def legacy_table(rows):
    """The bytes of a table as pandas 1.1 and NumPy 1.19 pickled it."""
    _, frame = stand_in("pandas.core.frame.DataFrame")
    _, manager = stand_in("pandas.core.internals.managers.BlockManager")
    _, new_index = stand_in("pandas.core.indexes.base._new_Index")
    index_class, _ = stand_in("pandas.core.indexes.base.Index")
    range_class, _ = stand_in("pandas.core.indexes.range.RangeIndex")
    _, reconstruct = stand_in("numpy.core.multiarray._reconstruct")
    array_class, _ = stand_in("numpy.ndarray")
    _, dtype = stand_in("numpy.dtype")

    def array(values, kind="O8", order="|"):
        made = dtype(kind, 0, 1, state=(3, order, None, None, None, -1, -1, 63))
        raw = values.ravel().tolist() if kind == "O8" else values.tobytes()
        return reconstruct(array_class, (0,), b"b", state=(1, values.shape, made, False, raw))

    names = ["seq_id", "seq", "one_idx", "bounding_boxes"]
    objects = np.empty((3, len(rows)), object)
    for n, row in enumerate(rows):
        objects[0, n], objects[1, n], objects[2, n] = row["seq"], row["one_idx"], row["bounding_boxes"]
        if isinstance(row["one_idx"], tuple):
            parts = (array(one, "i8", "<") if isinstance(one, np.ndarray) else one for one in row["one_idx"])
            objects[1, n] = tuple(parts)
    axes = [
        new_index(index_class, {"data": array(np.array(names, object)), "name": None}),
        new_index(range_class, {"name": None, "start": 0, "stop": len(rows), "step": 1}),
    ]
    blocks = [
        {"values": array(np.array([[row["seq_id"] for row in rows]]), "i8", "<"), "mgr_locs": slice(0, 1, 1)},
        {"values": array(objects), "mgr_locs": slice(1, 4, 1)},
    ]
    state = (axes, [], [], {"0.14.1": {"axes": axes, "blocks": blocks}})
    whole = frame(state={"_mgr": manager(state=state), "_typ": "dataframe", "_metadata": [], "attrs": {}})
    file = io.BytesIO()
    Legacy(file, 4).dump(whole)
    return file.getvalue()


def test_legacy_table(tmp_path):
    (tmp_path / "table.pkl.gz").write_bytes(gzip.compress(legacy_table(rows_of_table())))
    check_table(rna_tables.read(tmp_path / "table.pkl.gz"))
    table = rna_tables.read(tmp_path / "table.pkl.gz", max_len=6)
    assert table.sequences == ["AAAAAA"] and table.left_out["sequences of more than 6 bases"] == 3


def test_table_to_data_set(tmp_path, capsys):
    (tmp_path / "table.pkl.gz").write_bytes(gzip.compress(legacy_table(rows_of_table())))
    shares = ["--valid_share=0", "--test_share=0.3"]
    rna.main(["convert", str(tmp_path / "table.pkl.gz"), "--out", str(tmp_path / "data"), *shares])
    assert "left out: 1 structures with pairs that cross" in capsys.readouterr().out
    found = rna.load(settings(tmp_path / "data", num_sample=2))
    assert {split: len(arrays["length"]) for split, arrays in found.items()} == {"train": 2, "test": 1}
    pairs = [structures_of(arrays, n) for arrays in found.values() for n in range(len(arrays["length"]))]
    assert sorted((sequence, one) for sequence, structures in pairs for one in structures) == sorted(STRUCTURES)
    told = command("convert", tmp_path / "table.pkl.gz", "--family=tRNA", "--out", tmp_path / "other")
    assert "does not tell families" in told


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seq": 3}, "row 1: seq is int, no letters"),
        ({"one_idx": (np.array([0]), np.array([9]))}, "row 1: one_idx has pairs outside 0 <= i < j < 9"),
        ({"one_idx": (np.array([3]), np.array([1]))}, "row 1: one_idx has pairs outside"),
        ({"one_idx": (np.array([-1]), np.array([1]))}, "row 1: one_idx has pairs outside"),
        ({"one_idx": (np.array([0, 1]), np.array([5]))}, "row 1: one_idx is no pair of lists of bases"),
        ({"one_idx": (np.array([0]),)}, "row 1: one_idx is no pair of lists of bases"),
    ],
)
def test_damaged_tables(tmp_path, change, message):
    (tmp_path / "table.pkl").write_bytes(legacy_table([rows_of_table()[0] | change]))
    with pytest.raises(UserError, match=message):
        rna_tables.read(tmp_path / "table.pkl")


class Malicious:
    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_are_never_executed(tmp_path, protocol):
    mark = tmp_path / "executed"
    for one in (
        Malicious(os.system, f"touch {mark}"),
        [Malicious(open, str(mark), "w")],
        {"seq": Malicious(eval, f"open({str(mark)!r}, 'w')")},
    ):
        (tmp_path / "table.pkl").write_bytes(pickle.dumps(one, protocol))
        with pytest.raises(UserError, match="no pickled pandas table") as caught:
            rna_tables.read(tmp_path / "table.pkl")
        assert "\n" not in str(caught.value)
        assert not mark.exists()


def test_malicious_rows(tmp_path):
    mark = tmp_path / "executed"
    call = Malicious(os.system, f"touch {mark}")
    rows = rows_of_table()
    (tmp_path / "table.pkl").write_bytes(legacy_table([rows[0] | {"bounding_boxes": call}, *rows[1:]]))
    check_table(rna_tables.read(tmp_path / "table.pkl"))  # what is not needed is not looked at
    assert not mark.exists()
    for change in ({"seq": call}, {"one_idx": call}, {"one_idx": (np.array([0]), call)}):
        (tmp_path / "table.pkl").write_bytes(legacy_table([rows[0] | change]))
        with pytest.raises(UserError, match=r"row 1: (seq|one_idx) is"):
            rna_tables.read(tmp_path / "table.pkl")
    assert not mark.exists()


def test_flipped_bytes_in_a_pickle(tmp_path):
    """A table or one line, whatever the bytes; some of them are lengths, of which nothing is allocated beforehand."""
    content = legacy_table(rows_of_table())
    draws = random.Random(0)
    for _ in range(300):
        damaged = bytearray(content)
        for _ in range(draws.randint(1, 4)):
            damaged[draws.randrange(len(damaged))] = draws.randrange(256)
        path = tmp_path / "table.pkl"
        path.write_bytes(damaged[: draws.randint(len(damaged) // 2, 2 * len(damaged))])
        try:
            rna_tables.read(path)
        except UserError as error:
            assert "\n" not in str(error)
