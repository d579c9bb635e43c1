import csv
import gzip
import io
import sys

import numpy as np
import pytest
from rna_sets import command, settings, structures_of

import cvae_jax
from cvae_jax.data import files
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
    table = rna_tables.read(write_csv(tmp_path / name, ROWS))
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
    table = rna_tables.read(path, max_len=9, family="5s")
    assert table.sequences == ["GGUAAACCC", "NNNNN"] and table.left_out["sequences of more than 9 bases"] == 1
    with pytest.raises(UserError, match="no family 'srp'; choose from 5s, tRNA"):
        rna_tables.read(path, family="srp")
    with pytest.raises(UserError, match=r"no sequence that can be used \(.*5 sequences of more than 4 bases"):
        rna_tables.read(path, max_len=4)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("a_1", "ACGU", "...")], r"row 1 \('a_1'\): 4 bases but 3 marks"),
        ([("a_1", "ACGU", "...."), ("a_2", "ACGG", "...)")], r"row 2 \('a_2'\): structure: '\)' at position 4"),
        ([("a_1", "ACGU")], r"row 1 \('a_1'\): 4 bases but 0 marks"),
        ([], r"no sequence that can be used \(no rows\)"),
        ([("a\nb" * 99, "ACGU", "...")], r"row 1 \('a\\nba\\n.{20,40}\.\.\.\): 4 bases"),
        ([("a_1", "A" * 32_768, "." * 32_768)], r"32768 bases, more than 32767; leave it out with --max_len"),
    ],
)
def test_damaged_archives(tmp_path, rows, message):
    with pytest.raises(UserError, match=message):
        rna_tables.read(write_csv(tmp_path / "table.csv", rows))


def test_archives_that_are_none(tmp_path):
    with pytest.raises(UserError, match="neither the columns id, sequence, structure nor seq, one_idx"):
        rna_tables.read(write_csv(tmp_path / "table.csv", [(1, 2)], ("id", "sequence")))
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\0")
    with pytest.raises(UserError, match="no readable CSV file"):
        rna_tables.read(tmp_path / "binary.csv")
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(b"id,sequence,structure\n" + b"a,ACGU,....\n" * 99)[:-9])
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


# Rows of a table of structures: three sequences, the first with two, the last with none paired and one crossing.
STRUCTURES = [
    ("GGGAAACCC", "(((...)))"),
    ("GGGAAACCC", ".((...))."),
    ("GGGGAAAACCCC", "((((....))))"),
    ("AAAAAA", "......"),
]


def table_of_structures():
    """The frame that pandas had pickled."""
    import pandas

    rows = []
    for n, (sequence, structure) in enumerate(STRUCTURES):
        i, j = boxes.parse(structure)[0].T.astype(np.int64)
        rows.append({"seq_id": n, "seq": sequence, "one_idx": (i, j), "bounding_boxes": "[((0, 6), (3, 3), 'stem')]"})
    crossing = (np.array([0, 2]), np.array([4, 5]))
    return pandas.DataFrame([*rows, {"seq_id": 4, "seq": "AAAAAA", "one_idx": crossing, "bounding_boxes": "[]"}])


def save(frame, path):
    """As docs/results/rna_boxes.md says; text has lists, as brackets of either kind."""
    if path.suffix == ".parquet":
        frame[["seq", "one_idx"]].to_parquet(path)
    else:
        lists = [[part.tolist() for part in pair] for pair in frame.one_idx]
        frame.assign(one_idx=lists if "2" not in path.name else [f"({pair[0]},{pair[1]})" for pair in lists]).to_csv(
            path
        )
    return path


NAMES = ("table.parquet", "table.csv", "table2.csv", "table.csv.gz")


@pytest.mark.parametrize("name", NAMES)
def test_tables_of_structures(tmp_path, name):
    table = rna_tables.read(save(table_of_structures(), tmp_path / name))
    assert table.sequences == ["GGGAAACCC", "GGGGAAAACCCC", "AAAAAA"]
    structures = [
        (sequence, boxes.dot_bracket(boxes.pairs_of(rows), len(sequence)))
        for sequence, known in zip(table.sequences, table.structures, strict=True)
        for rows in known
    ]
    assert structures == STRUCTURES
    assert table.left_out["structures with pairs that cross"] == 1
    short = rna_tables.read(tmp_path / name, max_len=6)
    assert short.sequences == ["AAAAAA"] and short.left_out["sequences of more than 6 bases"] == 3


@pytest.mark.parametrize("name", NAMES[:2])
def test_table_to_data_set(tmp_path, capsys, name):
    path = save(table_of_structures(), tmp_path / name)
    shares = ["--valid_share=0", "--test_share=0.3"]
    commands.main(["convert", str(path), "--out", str(tmp_path / "data"), *shares], cvae_jax.load)
    assert "left out: 1 structures with pairs that cross" in capsys.readouterr().out
    splits = rna.load(settings(tmp_path / "data", num_sample=2))
    assert {split: len(arrays["length"]) for split, arrays in splits.items()} == {"train": 2, "test": 1}
    known = [structures_of(arrays, n) for arrays in splits.values() for n in range(len(arrays["length"]))]
    assert sorted((sequence, marks) for sequence, structures in known for marks in structures) == sorted(STRUCTURES)
    line = command("convert", path, "--family=tRNA", "--out", tmp_path / "other")
    assert "does not tell families" in line


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"one_idx": (np.array([0]), np.array([9]))}, "row 1: one_idx has pairs outside 0 <= i < j < 9"),
        ({"one_idx": (np.array([3]), np.array([1]))}, "row 1: one_idx has pairs outside"),
        ({"one_idx": (np.array([-1]), np.array([1]))}, "row 1: one_idx "),
        ({"one_idx": (np.array([0, 1]), np.array([5]))}, "row 1: one_idx is no pair of lists of bases"),
        ({"one_idx": (np.array([0]),)}, "row 1: one_idx is no pair of lists of bases"),
        ({"one_idx": (np.array([0.5]), np.array([1.5]))}, "row 1: one_idx is no pair of lists of bases"),
    ],
)
@pytest.mark.parametrize("name", NAMES[:2])
def test_damaged_tables(tmp_path, change, message, name):
    frame = table_of_structures()
    frame = frame.assign(one_idx=[change["one_idx"], *frame.one_idx[1:]])
    with pytest.raises(UserError, match=message):
        rna_tables.read(save(frame.iloc[:1], tmp_path / name))


@pytest.mark.parametrize("text", ["__import__('os')", "[" * 99_999, "[[0], [9" + "9" * 9_999 + "]]", "[[0, 1]", ""])
def test_text_is_never_evaluated(tmp_path, text):
    path = write_csv(tmp_path / "table.csv", [("GGGAAACCC", text)], ("seq", "one_idx"))
    with pytest.raises(UserError, match="row 1: one_idx is no pair of lists of bases, such as") as caught:
        rna_tables.read(path)
    assert "\n" not in str(caught.value)


def test_what_is_no_letters(tmp_path):
    path = save(table_of_structures().assign(seq=range(5)), tmp_path / "table.parquet")
    with pytest.raises(UserError, match="row 1: seq is int, no letters"):
        rna_tables.read(path)


def test_parquet_that_is_damaged_or_too_large(tmp_path, monkeypatch):
    path = save(table_of_structures(), tmp_path / "table.parquet")
    whole = path.read_bytes()
    for content in (b"", whole[:-1], whole[:99] + whole[100:], b"PAR1" * 5):
        path.write_bytes(content)
        with pytest.raises(UserError, match="is no readable Parquet file") as caught:
            rna_tables.read(path)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    path.write_bytes(whole)
    monkeypatch.setattr(files, "MOST_BYTES", 100)
    with pytest.raises(UserError, match=r"table.parquet, unpacked, would take 0\.0 GiB, more than half of this"):
        rna_tables.read(path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"reading Parquet needs pyarrow; pip install -e '\.\[rna\]', or save"):
        rna_tables.read(path)


@pytest.mark.parametrize("name", ["table.pkl", "table.pkl.gz", "table.pickle", "table.pkl.xz"])
def test_a_pickle_is_named_and_not_opened(tmp_path, name):
    with pytest.raises(
        UserError, match=r"is never opened; docs/results/rna_boxes.md has two lines of pandas"
    ) as caught:
        rna_tables.read(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_one_long_sequence(tmp_path, capsys, monkeypatch):
    """Its matrix of pairs would be 8 GiB. Beside many short ones it is padding that takes the room."""
    half = 10_921
    long = ("a", "G" * half + "A" * 10_924 + "C" * half, "(" * half + "." * 10_924 + ")" * half)
    path = write_csv(tmp_path / "long.csv.gz", [long])
    commands.main(
        ["convert", str(path), "--valid_share=0", "--test_share=0", "--out", str(tmp_path / "a")], cvae_jax.load
    )
    assert "and 0 pixels in more than one box" in capsys.readouterr().out
    letters = np.random.default_rng(0).choice(list("ACGU"), (2_000, 12))
    path = write_csv(tmp_path / "mixed.csv", [long, *(("b", "".join(row), "." * 12) for row in letters)])
    monkeypatch.setattr(files, "MOST_BYTES", 2**29)
    line = command("convert", path, "--out", tmp_path / "b")
    assert "room for 1 structures of 32766 bases each would take 0.9 GiB" in line and "lower max_len" in line
    assert not (tmp_path / "b").exists()
