"""Other people's tables of RNA structures, read without trust: no pickle is ever executed."""

import collections
import csv
import io
import itertools
import pathlib
import pickle
import re
from typing import Any, NamedTuple

import numpy as np

from cvae_jax.data import files
from cvae_jax.errors import UserError
from cvae_jax.tasks.rna_boxes import boxes

csv.field_size_limit(2**24)  # lists of pairs are long

Pickled = Any  # what a pickle holds: plain values, and notes of all else


class Table(NamedTuple):
    """Sequences, all different, with their structures."""

    sequences: list[str]  # letters ACGUN
    structures: list[list[np.ndarray]]  # of each sequence, at least one, as boxes int16 [k, 5]
    left_out: dict[str, int]  # what -> how many of them


def read(path: pathlib.Path, max_len: int = 0, family: str = "") -> Table:
    """Reads the table in a file, by its name: .csv and .csv.gz by `read_archive`, .pkl and .pkl.gz by `read_table`.

    Raises:
      UserError: for another name, or a file that cannot be read.
    """
    if is_pickle(path):
        if family:
            raise UserError(f"{path} does not tell families; leave out family={family}")
        return read_table(path, max_len)
    if re.search(r"\.csv(\.gz)?$", path.name):
        return read_archive(path, max_len, family)
    raise UserError(f"{path} is neither a .csv (id, sequence, structure) nor a .pkl file, gzipped or not; take one")


def is_pickle(path: pathlib.Path) -> bool:
    """Returns whether a file's name says that it is a pickle."""
    return re.search(r"\.(pkl|pickle)(\.gz)?$", path.name) is not None


def refuse_pickle(path: pathlib.Path) -> None:
    """Raises a UserError, which names the converter, for a pickle where arrays are wanted."""
    if is_pickle(path):
        raise UserError(
            f"{path} is a pickle, which is never loaded; python -m cvae_jax rna_boxes convert {path} --out=FOLDER "
            "reads it without executing it"
        )


def read_archive(path: pathlib.Path, max_len: int = 0, family: str = "") -> Table:
    """Reads a CSV file, gzipped or not, with the columns id, sequence and structure (dot-bracket), such as ArchiveII.

    The first of equal sequences is kept. Pseudoknots, which other brackets than round ones mark, are dropped.

    Args:
      path: of the file.
      max_len: in bases; longer sequences are left out; 0 for none.
      family: what precedes the first "_" in the id of those that are read; "" for all.

    Raises:
      UserError: for a file that is no such table.
    """
    refuse_pickle(path)
    try:
        rows = list(csv.DictReader(io.StringIO(files.content(path).decode(), newline="")))
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no CSV file ({error}); get it again") from None
    missing = {"id", "sequence", "structure"} - set(rows[0] if rows else ())
    if missing:
        raise UserError(f"{path} has no column {', '.join(sorted(missing))}, or no rows; name them in its first line")
    gathered = _Gathered(max_len)
    families = set()
    for n, row in enumerate(rows):
        name, sequence, structure = (row[column] or "" for column in ("id", "sequence", "structure"))
        families.add(name.split("_")[0])
        if family and name.split("_")[0] != family:
            continue
        try:
            if len(sequence) != len(structure):
                raise UserError(f"{len(sequence)} bases but {len(structure)} marks of structure; make them equal")
            pairs, num_dropped = boxes.parse(structure)
        except UserError as error:
            raise UserError(f"{path}, row {n + 1} ({name}): {error}") from None
        gathered.add(sequence, pairs, num_dropped, distinct=True)
    if family and family not in families:
        raise UserError(f"{path} has no family {family!r}; choose from {', '.join(sorted(families))}")
    return gathered.table(path)


def read_table(path: pathlib.Path, max_len: int = 0) -> Table:
    """Reads a pickled pandas table, gzipped or not, with the columns seq and one_idx, one row for each structure.

    `one_idx` holds the bases i and those j of the pairs, counted from 0. The pickle is not executed: whatever it
    would import or call is only noted down, and arrays are put together here from these notes.

    Args:
      path: of the file.
      max_len: in bases; longer sequences are left out; 0 for none.

    Raises:
      UserError: for a file that is no such table, or is pickled in a way that is not known.
    """
    content = files.content(path)
    try:
        columns = _columns(_Unpickler(io.BytesIO(content)).load())
        rows = list(zip(columns["seq"], columns["one_idx"], strict=True))
    except Exception as error:  # a pickle can break in any way
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{path} is no pickled pandas table with columns seq and one_idx ({reason}); "
            "save it as .csv with id, sequence and structure"
        ) from None
    gathered = _Gathered(max_len)
    for n, (sequence, one_idx) in enumerate(rows):
        try:
            gathered.add(*_row(sequence, one_idx))
        except UserError as error:
            raise UserError(f"{path}, row {n + 1}: {error}") from None
    return gathered.table(path)


def _row(sequence: Pickled, one_idx: Pickled) -> tuple[str, np.ndarray]:
    """Returns the sequence and the pairs, int [n, 2], of a row of a pickled table."""
    try:
        first, last = (np.asarray(_values(bases)).reshape(-1) for bases in _values(one_idx))
        if len(first) != len(last) or {first.dtype.kind, last.dtype.kind} - set("iu" if len(first) else "iuf"):
            raise UserError("not whole numbers, or not as many")
    except Exception as error:  # these may still be notes of the pickle
        raise UserError(f"one_idx is no pair of lists of bases ({error}); leave the row out") from None
    if not isinstance(sequence, str):
        raise UserError(f"seq is {type(sequence).__name__}, no letters; leave the row out")
    if not ((first >= 0) & (first < last) & (last < len(sequence))).all():
        raise UserError(f"one_idx has pairs outside 0 <= i < j < {len(sequence)}; leave the row out")
    return sequence, np.stack([first, last], 1)


class _Gathered:
    """Rows on their way to a `Table`."""

    def __init__(self, max_len: int) -> None:
        self.max_len = max_len
        self.structures: dict[str, list[np.ndarray]] = {}
        self.left_out: collections.Counter[str] = collections.Counter()

    def add(self, sequence: str, pairs: np.ndarray, num_dropped: int = 0, distinct: bool = False) -> None:
        """Adds a structure, or counts why not.

        Args:
          sequence: of letters.
          pairs: of the structure, int [n, 2].
          num_dropped: how many of its pairs were in pseudoknots, and are left out.
          distinct: whether a sequence that comes again is a duplicate, and not one with another structure.
        """
        sequence = sequence.upper().replace("T", "U")
        if not sequence or set(sequence) - set("ACGUN"):
            self.left_out["sequences with letters other than ACGUTN"] += 1
        elif self.max_len and len(sequence) > self.max_len:
            self.left_out[f"sequences of more than {self.max_len} bases"] += 1
        elif distinct and sequence in self.structures:
            self.left_out["duplicates of sequences"] += 1
        else:
            try:
                self.structures.setdefault(sequence, []).append(boxes.boxes_of(pairs))
                self.left_out["pairs in pseudoknots"] += num_dropped
            except UserError:
                self.left_out["structures with pairs that cross"] += 1

    def table(self, path: pathlib.Path) -> Table:
        """Returns the table; raises a UserError where no sequence is left, with the path of its file."""
        usable = {sequence: structures for sequence, structures in self.structures.items() if structures}
        if not usable:
            reasons = ", ".join(f"{number} {what}" for what, number in self.left_out.items())
            raise UserError(f"{path} has no sequence that can be used ({reasons}); take another file")
        return Table(list(usable), list(usable.values()), dict(self.left_out))


class _Note:
    """Stands for an object that a pickle would have made: by what, from which arguments and which state."""

    path = ""  # what would have been called

    def __new__(cls, *args: Pickled, **kwargs: Pickled) -> "_Note":
        """Notes any arguments."""
        note = super().__new__(cls)
        note.args = args
        note.state = None
        return note

    args: tuple[Pickled, ...]
    state: Pickled

    def __init__(self, *args: Pickled, **kwargs: Pickled) -> None: ...

    def __setstate__(self, state: Pickled) -> None:
        """Notes what the unpickler would have stored in the object."""
        self.state = state


class _Unpickler(pickle.Unpickler):
    """Imports and calls nothing: every global is a class of notes."""

    def find_class(self, module: str, name: str) -> Pickled:
        """Returns the notes of what the pickle calls `module.name`."""
        return type("_Note", (_Note,), {"path": f"{module}.{name}"})

    def persistent_load(self, pid: Pickled) -> Pickled:
        """Refuses: pickles of tables refer to nothing outside."""
        raise pickle.UnpicklingError("it refers to objects outside the file")


def _is(value: Pickled, name: str) -> bool:
    """Returns whether a value is a note of what has this name; modules differ between versions."""
    return isinstance(value, _Note) and value.path.rsplit(".", 1)[-1] == name


def _unknown(value: Pickled) -> UserError:
    """Returns the error for a value that is not understood."""
    return UserError(f"{value.path if isinstance(value, _Note) else type(value).__name__} is not understood")


def _columns(frame: Pickled) -> dict[str, list[Pickled]]:
    """Returns the columns of a note of a DataFrame, by name."""
    if not _is(frame, "DataFrame"):
        raise _unknown(frame)
    manager = frame.state.get("_mgr", frame.state.get("_data"))  # before pandas 1.1
    if not _is(manager, "BlockManager"):
        raise _unknown(manager)
    if manager.state is None:
        blocks, axes = manager.args
        placed = [_block(block) for block in blocks]
    else:  # before pandas 1.3
        state = manager.state[3]["0.14.1"]
        axes = state["axes"]
        placed = [(block["values"], block["mgr_locs"]) for block in state["blocks"]]
    names = _values(_index(axes[0]))
    columns: dict[str, list[Pickled]] = {}
    for values, where in placed:
        positions = range(len(names))[slice(*where.args)] if _is(where, "slice") else _values(where)
        rows = _values(values)
        if not _is_matrix(values):
            rows = [rows]
        for position, row in zip(positions, rows, strict=True):
            columns[names[position]] = list(row)
    return columns


def _block(block: Pickled) -> tuple[Pickled, Pickled]:
    """Returns the values of a note of a block of columns, and its columns' positions."""
    if not _is(block, "_unpickle_block"):
        raise _unknown(block)
    values, where, _ = block.args
    return values, where


def _index(index: Pickled) -> Pickled:
    """Returns the names in a note of an index."""
    if not _is(index, "_new_Index"):
        raise _unknown(index)
    return index.args[1]["data"]


def _is_matrix(value: Pickled) -> bool:
    """Returns whether a value is a note of an array of two axes."""
    return isinstance(value, _Note) and _is_array(value) and _array(value).ndim == 2


def _is_array(value: Pickled) -> bool:
    """Returns whether a value is a note of an array of NumPy."""
    return _is(value, "_reconstruct") or _is(value, "_frombuffer")


def _values(value: Pickled) -> Pickled:
    """Returns something like a list of a list, or of notes of an array of NumPy, pandas or Arrow."""
    if isinstance(value, list | tuple):
        return value
    if _is_array(value):
        return _array(value)
    if _is(value, "ArrowStringArray"):
        return _arrow_strings(value.state.get("_pa_array", value.state.get("_data")))
    if _is(value, "__pyx_unpickle_NDArrayBacked"):  # strings without Arrow
        return _array(next(part for part in value.state if _is_array(part)))
    raise _unknown(value)


def _array(note: Pickled) -> np.ndarray:
    """Returns the NumPy array that a note tells of, of numbers or of objects."""
    if _is(note, "_frombuffer"):
        raw, dtype, shape, order = note.args
        return np.frombuffer(_bytes(raw), _dtype(dtype)).reshape(shape, order=order)
    _, shape, dtype, is_fortran, raw = note.state
    if isinstance(raw, list):
        objects = np.empty(len(raw), object)
        objects[:] = raw
        return objects.reshape(shape)  # in this order even for Fortran's
    return np.frombuffer(_bytes(raw), _dtype(dtype)).reshape(shape, order="F" if is_fortran else "C")


def _dtype(note: Pickled) -> np.dtype:
    """Returns the dtype of numbers that a note tells of."""
    if not _is(note, "dtype") or not re.fullmatch("[iufb][1248]", note.args[0]):
        raise _unknown(note)
    return np.dtype(note.args[0]).newbyteorder(note.state[1])


def _bytes(raw: Pickled) -> bytes:
    """Returns bytes, which pickles of old protocols have as text."""
    if _is(raw, "encode"):
        return raw.args[0].encode("latin-1")
    if _is(raw, "bytearray") or _is(raw, "py_buffer"):
        return _bytes(raw.args[0])
    return bytes(raw) if isinstance(raw, bytes | bytearray) else b""


def _arrow_strings(note: Pickled) -> list[str]:
    """Returns the strings of an array of Arrow, in one or several pieces."""
    if _is(note, "chunked_array"):
        return [string for piece in note.args[0] for string in _arrow_strings(piece)]
    if not _is(note, "_restore_array"):
        raise _unknown(note)
    kind, length, _, offset, (_, ends, letters), *_ = note.args[0]
    wide = {"large_string": "<i8", "string": "<i4"}[kind.args[0]]
    bounds = np.frombuffer(_bytes(ends), wide)[offset : offset + length + 1].tolist()
    text = _bytes(letters)
    return [text[start:end].decode() for start, end in itertools.pairwise(bounds)]
