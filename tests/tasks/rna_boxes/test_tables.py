import csv
import gzip
import io
import os
import pickle
import random

import numpy as np
import pytest
from rna_sets import command, settings, structures_of

import cvae_jax
from cvae_jax.errors import UserError
from cvae_jax.tasks.rna_boxes import boxes, commands
from cvae_jax.tasks.rna_boxes import data as rna
from cvae_jax.tasks.rna_boxes import tables as rna_tables


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
    for sequence, known, structures in zip(table.sequences, table.structures, wanted, strict=True):
        assert [boxes.dot_bracket(boxes.pairs_of(rows), len(sequence)) for rows in known] == structures
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
    commands.main(["convert", str(path), "--max_len=100", "--out", str(tmp_path)], cvae_jax.load)
    printed = capsys.readouterr().out
    splits = rna.load(settings(tmp_path, max_length=100, num_sample=1))
    with gzip.open(path, "rt") as file:
        rows = [row for row in csv.DictReader(file) if len(row["sequence"]) <= 100]
    wanted = {}
    for row in rows:
        structure = "".join("." if mark in "<>{}" else mark for mark in row["structure"])
        wanted.setdefault(row["sequence"], [structure])
    sequences = [structures_of(arrays, n) for arrays in splits.values() for n in range(len(arrays["length"]))]
    assert len(rows) == 836 and len(sequences) == len(wanted)
    assert dict(sequences) == wanted
    assert f"{len(wanted)} sequences" in printed and "left out: 133 duplicates of sequences" in printed


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
    structures = [
        (sequence, boxes.dot_bracket(boxes.pairs_of(rows), len(sequence)))
        for sequence, known in zip(table.sequences, table.structures, strict=True)
        for rows in known
    ]
    assert structures == STRUCTURES
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
        instance = cls()
        instance.reduced = (cls, arguments, state)
        return instance

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
            parts = (array(part, "i8", "<") if isinstance(part, np.ndarray) else part for part in row["one_idx"])
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
    arguments = ["convert", str(tmp_path / "table.pkl.gz"), "--out", str(tmp_path / "data"), *shares]
    commands.main(arguments, cvae_jax.load)
    assert "left out: 1 structures with pairs that cross" in capsys.readouterr().out
    splits = rna.load(settings(tmp_path / "data", num_sample=2))
    assert {split: len(arrays["length"]) for split, arrays in splits.items()} == {"train": 2, "test": 1}
    known = [structures_of(arrays, n) for arrays in splits.values() for n in range(len(arrays["length"]))]
    assert sorted((sequence, marks) for sequence, structures in known for marks in structures) == sorted(STRUCTURES)
    line = command("convert", tmp_path / "table.pkl.gz", "--family=tRNA", "--out", tmp_path / "other")
    assert "does not tell families" in line


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
    for trap in (
        Malicious(os.system, f"touch {mark}"),
        [Malicious(open, str(mark), "w")],
        {"seq": Malicious(eval, f"open({str(mark)!r}, 'w')")},
    ):
        (tmp_path / "table.pkl").write_bytes(pickle.dumps(trap, protocol))
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
