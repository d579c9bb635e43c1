"""Other people's tables of RNA structures, as CSV or Parquet. A pickle is never opened."""

import collections
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from cvae_jax.data import files
from cvae_jax.errors import UserError, reason, shortened
from cvae_jax.tasks.rna_boxes import boxes

ARCHIVE = ("id", "sequence", "structure")  # one row for each sequence, its structure in dot-bracket notation
PAIRS = ("seq", "one_idx")  # one row for each structure, its pairs as the bases i and the bases j, counted from 0

BASES = r"[\[(]([0-9,\s]*)[\])]"
ONE_IDX = re.compile(rf"\s*[\[(]\s*{BASES}\s*,\s*{BASES}\s*[\])]\s*")  # such as "[[0, 1], [8, 7]]"

ROWS_AT_ONCE = 32  # of a Parquet file: one value of its dictionary may stand in many rows


class Table(NamedTuple):
    """Sequences, all different, with their structures."""

    sequences: list[str]  # letters ACGUN
    structures: list[list[np.ndarray]]  # of each sequence, at least one, as boxes int16 [k, 5]
    left_out: dict[str, int]  # what -> how many of them


def read(path: pathlib.Path, max_len: int = 0, family: str = "") -> Table:
    """Reads the table in a .csv, .csv.gz or .parquet file.

    With the columns id, sequence and structure (dot-bracket), such as ArchiveII, the first of equal sequences is kept,
    and pseudoknots, which other brackets than round ones mark, are dropped. With the columns seq and one_idx, equal
    sequences have several structures; in a CSV file one_idx is text such as "[[0, 1], [8, 7]]".

    Args:
      path: of the file.
      max_len: in bases; longer sequences are left out; 0 for none.
      family: what precedes the first "_" in the id of those that are read; "" for all.

    Raises:
      UserError: for a file that is no such table; names the row.
    """
    refuse_pickle(path)
    if not re.search(r"\.(csv|csv\.gz|parquet)$", path.name):
        raise UserError(f"{path} is neither .csv, .csv.gz nor .parquet; save it as one of them")
    rows = _parquet(path) if path.suffix == ".parquet" else files.rows(path)
    header = next(rows, [])
    layout = next((names for names in (ARCHIVE, PAIRS) if set(names) <= set(header)), None)
    if layout is None:
        raise UserError(f"{path} has neither the columns {', '.join(ARCHIVE)} nor {', '.join(PAIRS)} in its first line")
    places = [header.index(name) for name in layout]
    columns = ([row[place] if place < len(row) else "" for place in places] for row in rows)
    gathered = _Gathered(max_len)
    if layout == ARCHIVE:
        _read_archive(path, columns, family, gathered)
    elif family:
        raise UserError(f"{path} does not tell families; leave out family={family}")
    else:
        _read_pairs(path, columns, gathered)
    return gathered.table(path)


def refuse_pickle(path: pathlib.Path) -> None:
    """Raises a UserError, which names the way, for a file whose name says that it is a pickle."""
    if re.search(r"\.(pkl|pickle)(\.[a-z0-9]+)?$", path.name):
        raise UserError(
            f"{path} is a pickle, which can run programs and is never opened; docs/results/rna_boxes.md has two lines "
            "of pandas that save it as .parquet, for python -m cvae_jax rna_boxes convert"
        )


def _parquet(path: pathlib.Path) -> Iterator[list[Any]]:
    """Yields the names of the columns that are read, then the rows, of a Parquet file.

    Raises:
      UserError: for a file that is missing, damaged or too large, and without pyarrow.
    """
    try:
        from pyarrow import parquet
    except ImportError:
        mend = "pip install -e '.[rna]', or save the table as .csv"
        raise UserError(f"{path}: reading Parquet needs pyarrow; {mend}") from None
    try:
        limits = {"thrift_string_size_limit": 2**24, "thrift_container_size_limit": 2**20}
        with parquet.ParquetFile(path, page_checksum_verification=True, **limits) as file:
            names = [name for name in file.schema_arrow.names if name in ARCHIVE + PAIRS]
            _check_parquet(path, file.metadata)
            yield names
            for batch in file.iter_batches(ROWS_AT_ONCE, columns=names, use_threads=False):
                yield from map(list, zip(*(column.to_pylist() for column in batch.columns), strict=True))
    except FileNotFoundError:
        raise UserError(f"{path} is missing; put the file there") from None
    except UserError:
        raise
    except Exception as error:  # damaged files raise what their reader happens to stumble on
        raise UserError(f"{path} is no readable Parquet file ({reason(error)}); write it again") from None


def _check_parquet(path: pathlib.Path, metadata: Any) -> None:
    """Raises a UserError where a Parquet file promises more than memory holds."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    promised = sum(group.total_byte_size for group in groups)
    files.check_size(f"{path}, unpacked,", max(promised, 100 * metadata.num_rows), "divide it")


def _read_archive(path: pathlib.Path, rows: Iterator[list[Any]], family: str, gathered: "_Gathered") -> None:
    """Reads rows of id, sequence and structure."""
    families = set()
    for n, row in enumerate(rows):
        name, sequence, structure = (value if isinstance(value, str) else "" for value in row)
        families.add(name.split("_")[0])
        if family and name.split("_")[0] != family:
            continue
        try:
            if len(sequence) != len(structure):
                raise UserError(f"{len(sequence)} bases but {len(structure)} marks of structure; make them equal")
            letters = _letters(sequence)
            if gathered.takes(letters, distinct=True):
                gathered.add(letters, *boxes.parse(structure))
        except UserError as error:
            raise UserError(f"{path}, row {n + 1} ({shortened(repr(name), 40)}): {error}") from None
    if family and family not in families:
        known = shortened(", ".join(sorted(families)))
        raise UserError(f"{path} has no family {family!r}; choose from {known}")


def _read_pairs(path: pathlib.Path, rows: Iterator[list[Any]], gathered: "_Gathered") -> None:
    """Reads rows of seq and one_idx."""
    for n, (sequence, one_idx) in enumerate(rows):
        try:
            if not isinstance(sequence, str):
                raise UserError(f"seq is {type(sequence).__name__}, no letters; leave the row out")
            letters = _letters(sequence)
            if gathered.takes(letters, distinct=False):
                gathered.add(letters, _pairs(one_idx, len(letters)))
        except UserError as error:
            raise UserError(f"{path}, row {n + 1}: {error}") from None


def _letters(sequence: str) -> str:
    """Returns a sequence in upper case, as RNA."""
    return sequence.upper().replace("T", "U")


def _pairs(one_idx: Any, length: int) -> np.ndarray:
    """Returns the pairs, int [n, 2], of a one_idx of lists, or of text."""
    try:
        bases = _of_text(one_idx) if isinstance(one_idx, str) else one_idx
        first, last = (np.asarray(part).reshape(-1) for part in bases)
        if len(first) != len(last) or {first.dtype.kind, last.dtype.kind} - set("iu" if len(first) else "iuf"):
            raise ValueError("not whole numbers, or not as many")
    except (TypeError, ValueError) as error:
        message = f"one_idx is no pair of lists of bases, such as [[0, 1], [8, 7]] ({reason(error)}); leave the row out"
        raise UserError(message) from None
    if not ((first >= 0) & (first < last) & (last < length)).all():
        raise UserError(f"one_idx has pairs outside 0 <= i < j < {length}; leave the row out")
    return np.stack([first, last], 1)


def _of_text(text: str) -> Sequence[list[int]]:
    """Returns the lists in a text such as "[[0, 1], [8, 7]]"; none for another text."""
    match = ONE_IDX.fullmatch(text)
    return [[int(base) for base in re.findall("[0-9]+", part)] for part in match.groups()] if match else []


class _Gathered:
    """Rows on their way to a `Table`."""

    def __init__(self, max_len: int) -> None:
        self.max_len = max_len
        self.structures: dict[str, list[np.ndarray]] = {}
        self.left_out: collections.Counter[str] = collections.Counter()

    def takes(self, sequence: str, distinct: bool) -> bool:
        """Returns whether a sequence is to be read, or counts why not.

        Args:
          sequence: of letters, upper case, RNA.
          distinct: whether a sequence that comes again is a duplicate, and not one with another structure.

        Raises:
          UserError: for one that is longer than any box can be.
        """
        if not sequence or set(sequence) - set("ACGUN"):
            self.left_out["sequences with letters other than ACGUTN"] += 1
        elif self.max_len and len(sequence) > self.max_len:
            self.left_out[f"sequences of more than {self.max_len} bases"] += 1
        elif len(sequence) > boxes.MAX_LEN:
            raise UserError(f"{len(sequence)} bases, more than {boxes.MAX_LEN}; leave it out with --max_len")
        elif distinct and sequence in self.structures:
            self.left_out["duplicates of sequences"] += 1
        else:
            return True
        return False

    def add(self, sequence: str, pairs: np.ndarray, num_dropped: int = 0) -> None:
        """Adds a structure of a sequence that is taken, or counts why not.

        Args:
          sequence: of letters.
          pairs: of the structure, int [n, 2].
          num_dropped: how many of its pairs were in pseudoknots, and are left out.
        """
        try:
            self.structures.setdefault(sequence, []).append(boxes.boxes_of(pairs))
            self.left_out["pairs in pseudoknots"] += num_dropped
        except UserError:
            self.left_out["structures with pairs that cross"] += 1

    def table(self, path: pathlib.Path) -> Table:
        """Returns the table; raises a UserError where no sequence is left, with the path of its file."""
        usable = {sequence: structures for sequence, structures in self.structures.items() if structures}
        if not usable:
            reasons = ", ".join(f"{number} {what}" for what, number in self.left_out.items()) or "no rows"
            raise UserError(f"{path} has no sequence that can be used ({reasons}); take another file")
        return Table(list(usable), list(usable.values()), dict(self.left_out))
