"""RNA sequences with secondary structures as boxes: drawn from the Boltzmann ensemble, or from tables, see rna_tables.

    python -m cvae_jax.data.rna make --min_len=10 --max_len=100 --num_seq=1000 --num_sample=10 --out=FOLDER
    python -m cvae_jax.data.rna convert ArchiveII.csv.gz --max_len=100 --out=FOLDER

The arrays of a split are
  sequence: int8 [n, max_len], letters as in LETTERS, 0 beyond the sequence;
  length: int32 [n], in bases;
  boxes: int16 [n, num_sample, max_boxes(max_len), 5], see cvae_jax.rna.boxes, rows of 0 beyond the boxes;
  count: int32 [n], how many of the num_sample structures there are.
"""

import argparse
import os
import pathlib
import sys
import time
from collections.abc import Iterable
from typing import Any, NoReturn

import numpy as np
from tqdm import tqdm

from cvae_jax.data import npz, rna_tables
from cvae_jax.errors import UserError
from cvae_jax.rna import boxes

LETTERS = "NACGU"  # N is any base, and what stands beyond a sequence

SPLITS = ("train", "valid", "test")
MAX_LEN = 2**15 - 1  # boxes are int16

ASCII = np.frombuffer(LETTERS.encode(), np.uint8)
CODES = np.full(256, -1, np.int8)
for code, letter in enumerate(LETTERS):
    CODES[[ord(letter), ord(letter.lower())]] = code
CODES[[ord("T"), ord("t")]] = LETTERS.index("U")


def encode(sequence: str) -> np.ndarray:
    """A sequence as codes, int8 [length], positions in LETTERS; T is U, and lower case is as good as upper.

    Raises:
      UserError: for an empty sequence or another letter.
    """
    codes = CODES[np.frombuffer(sequence.encode("latin-1", "replace"), np.uint8)]
    if not len(codes):
        raise UserError(f"the sequence is empty; write it with the letters {LETTERS}")
    if codes.min() < 0:
        wrong = int(np.argmin(codes))
        raise UserError(
            f"sequence: {sequence[wrong]!r} at position {wrong + 1} is no base; write it with the letters {LETTERS}"
        )
    return codes


def decode(codes: np.ndarray) -> str:
    """The sequence of codes 0 to 4, int [length]."""
    return ASCII[np.asarray(codes)].tobytes().decode()


def vienna() -> Any:
    """The module of ViennaRNA, which is imported only where structures are computed.

    Raises:
      UserError: where it is not installed.
    """
    try:
        import RNA
    except ImportError:
        raise UserError("computing RNA structures needs ViennaRNA; pip install -e '.[rna]'") from None
    return RNA


def _compound(sequence: str) -> Any:
    """ViennaRNA's handle of a sequence, from which structures can be drawn."""
    settings = vienna().md()
    settings.uniq_ML = 1  # each structure is found in one way
    settings.compute_bpp = 0  # pair probabilities cost as much as the rest, and samples do not need them
    return vienna().fold_compound(decode(encode(sequence)), settings)


def sample(sequence: str, count: int, seed: int) -> list[str]:
    """`count` structures in dot-bracket notation from the Boltzmann ensemble at 37 degrees, the same for a seed.

    Raises:
      UserError: for what is no sequence, or without ViennaRNA.
    """
    compound = _compound(sequence)
    compound.exp_params_rescale(compound.mfe()[1])  # keeps the sums of long sequences in range
    compound.pf()
    vienna().init_rand(seed % 2**32)
    return list(compound.pbacktrack(count))


def within(sequence: str, gap: float, count: int) -> list[str]:
    """The structures within `gap` kcal/mol of the lowest energy, lowest first, at most `count`.

    All of them are made before they are cut: their number grows exponentially in the gap and the length.

    Raises:
      UserError: for what is no sequence, or without ViennaRNA.
    """
    by_energy = 1
    found = _compound(sequence).subopt(round(100 * gap), by_energy)
    return [one.structure for one in found[:count]]


def make(
    num_seq: int,
    min_len: int,
    max_len: int,
    num_sample: int,
    seed: int,
    energy_gap: float | None = None,
    valid_share: float = 0.1,
    test_share: float = 0.1,
    progress: bool = False,
) -> dict[str, dict[str, np.ndarray]]:
    """Random sequences with structures, split by sequence.

    Args:
      num_seq: how many sequences, all of them different, of letters ACGU that are equally likely.
      min_len: the shortest, in bases; every length up to max_len is equally likely.
      max_len: the longest.
      num_sample: structures of each sequence.
      seed: of sequences, structures and split.
      energy_gap: in kcal/mol; if given, structures are those of the lowest energy within this gap, not drawn.
      valid_share: of all sequences, in the split valid, which is left out for 0.
      test_share: likewise.
      progress: whether a terminal shows a bar.

    Returns:
      For each split the arrays that the module's docstring lists.

    Raises:
      UserError: for numbers that cannot be, or without ViennaRNA.
    """
    _check_numbers(num_seq, min_len, max_len, num_sample, seed, energy_gap)
    sizes = _sizes(num_seq, valid_share, test_share)
    rng = np.random.Generator(np.random.Philox(seed))
    unique: dict[bytes, None] = {}
    while len(unique) < num_seq:
        unique[rng.integers(1, 5, rng.integers(min_len, max_len + 1), np.int8).tobytes()] = None
    sequences = [np.frombuffer(one, np.int8) for one in unique]
    seeds = rng.integers(0, 2**32, num_seq).tolist()

    def structures() -> Iterable[list[np.ndarray]]:
        bar = tqdm(sequences, desc="folding", unit="seq", disable=None if progress else True)
        for codes, one in zip(bar, seeds, strict=True):
            sequence = decode(codes)
            if energy_gap is None:
                found = sample(sequence, num_sample, one)
            else:
                found = within(sequence, energy_gap, num_sample)
            known = {structure: boxes.boxes_of(boxes.parse(structure)[0]) for structure in set(found)}
            yield [known[structure] for structure in found]

    return _split(_pack(sequences, structures(), max_len, num_sample), sizes, rng)


def _check_numbers(
    num_seq: int, min_len: int, max_len: int, num_sample: int, seed: int, energy_gap: float | None = None
) -> None:
    if num_seq < 1 or num_sample < 1 or seed < 0:
        raise UserError(f"num_seq={num_seq} and num_sample={num_sample} must be at least 1, seed={seed} at least 0")
    if not 1 <= min_len <= max_len <= MAX_LEN:
        raise UserError(f"min_len={min_len} and max_len={max_len} must be from 1 to {MAX_LEN}, in this order")
    if energy_gap is not None and not 0 <= energy_gap < float("inf"):
        raise UserError(f"energy_gap={energy_gap} must be at least 0, in kcal/mol")
    # 4**15 are more than any memory holds
    exist = sum(4**length for length in range(min_len, min(max_len, max(min_len, 15)) + 1))
    if num_seq > exist:
        raise UserError(f"only {exist} sequences of {min_len} to {max_len} bases exist; set num_seq or max_len")


def _sizes(number: int, valid_share: float, test_share: float) -> dict[str, int]:
    """How many of a number of sequences are in each split; a share above 0 gets at least one of them."""
    if not (valid_share >= 0 and test_share >= 0 and valid_share + test_share <= 1):
        raise UserError(f"valid_share={valid_share} and test_share={test_share} must be at least 0, at most 1 together")
    sizes = {
        split: max(1, round(share * number)) if share else 0
        for split, share in (("valid", valid_share), ("test", test_share))
    }
    sizes["train"] = number - sum(sizes.values())
    if sizes["train"] < (valid_share + test_share < 1):
        raise UserError(f"{number} sequences leave none for training; take more, or set valid_share and test_share")
    return sizes


def _split(
    arrays: dict[str, np.ndarray], sizes: dict[str, int], rng: np.random.Generator
) -> dict[str, dict[str, np.ndarray]]:
    """The arrays of each split that has a size, by a random permutation."""
    order = rng.permutation(len(arrays["length"]))
    splits = {}
    start = 0
    for split in SPLITS:
        part = order[start : start + sizes[split]]
        start += sizes[split]
        if len(part):
            splits[split] = {name: array[part] for name, array in arrays.items()}
    return splits


def _pack(
    sequences: list[np.ndarray], structures: Iterable[list[np.ndarray]], max_len: int, num_sample: int
) -> dict[str, np.ndarray]:
    """The arrays of sequences, int8 [length] each, and of each one's structures as boxes, int16 [k, 5] each."""
    number, room = len(sequences), boxes.max_boxes(max_len)
    sequence = np.zeros((number, max_len), np.int8)
    length = np.array([len(codes) for codes in sequences], np.int32)
    packed = np.zeros((number, num_sample, room, 5), np.int16)
    count = np.zeros(number, np.int32)
    for n, (codes, of_one) in enumerate(zip(sequences, structures, strict=True)):
        sequence[n, : len(codes)] = codes
        count[n] = len(of_one)
        for m, structure in enumerate(of_one):
            if len(structure) > room:
                raise UserError(
                    f"a structure of {decode(codes)} has {len(structure)} boxes, more than max_len={max_len} has room "
                    "for; leave out hairpins of less than two bases, or set a larger max_len"
                )
            packed[n, m, : len(structure)] = structure
    return {"sequence": sequence, "length": length, "boxes": packed, "count": count}


def fit(arrays: dict[str, np.ndarray], max_length: int, num_sample: int) -> dict[str, np.ndarray]:
    """A split's arrays, padded or cut to sequences of max_length, num_sample structures and the boxes of that length.

    Raises:
      UserError: for a longer sequence.
    """
    longest = int(arrays["length"].max())
    if longest > max_length:
        raise UserError(
            f"a sequence has {longest} bases, more than max_length={max_length}; set max_length={longest} or make the "
            f"data with --max_len={max_length}"
        )
    shape = (num_sample, boxes.max_boxes(max_length), 5)
    if arrays["boxes"][:, :num_sample, shape[1] :, 0].any():
        raise UserError(f"a structure has more than the {shape[1]} boxes of max_length={max_length}; set a larger one")
    return {
        "sequence": _resize(arrays["sequence"], (max_length,)),
        "length": arrays["length"],
        "boxes": _resize(arrays["boxes"], shape),
        "count": np.minimum(arrays["count"], num_sample),
    }


def _resize(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Examples of this shape: what lies beyond it is cut, what lacks is 0."""
    resized = np.zeros((len(array), *shape), array.dtype)
    both = (slice(None), *(slice(min(sides)) for sides in zip(shape, array.shape[1:], strict=True)))
    resized[both] = array[both]
    return resized


def load(settings: Any) -> dict[str, dict[str, np.ndarray]]:
    """The arrays of each split, made anew or from a folder of `save`.

    Args:
      settings: `dir`, the folder, or "" to make the data of `num_seq`, `min_len`, `max_len` and `seed`; `max_length`
        and `num_sample`, to which the arrays are padded or cut.

    Raises:
      UserError: for missing or damaged files, arrays that are no such data, sequences that are too long.
    """
    if not settings.dir:
        if settings.max_len > settings.max_length:
            raise UserError(f"max_length={settings.max_length} is less than data.max_len={settings.max_len}; raise it")
        splits = make(
            settings.num_seq, settings.min_len, settings.max_len, settings.num_sample, settings.seed, progress=True
        )
    else:
        splits = _read(pathlib.Path(settings.dir).expanduser())
    fitted = {}
    for split, arrays in splits.items():
        try:
            fitted[split] = fit(arrays, settings.max_length, settings.num_sample)
        except UserError as error:
            raise UserError(f"split {split}: {error}") from None
    return fitted


def _read(folder: pathlib.Path) -> dict[str, dict[str, np.ndarray]]:
    """The checked arrays of the splits in a folder."""
    rna_tables.refuse_pickle(folder)
    paths = {split: folder / f"{split}.npz" for split in SPLITS if (folder / f"{split}.npz").exists()}
    if not paths:
        for path in sorted(folder.glob("*.*")) if folder.is_dir() else ():
            rna_tables.refuse_pickle(path)
        raise UserError(
            f"data.dir={str(folder)!r} is no folder with train.npz; python -m cvae_jax.data.rna make --out=FOLDER "
            "writes one"
        )
    splits = {}
    for split, path in paths.items():
        splits[split] = npz.read(path)
        try:
            splits[split] = _checked(splits[split])
        except UserError as error:
            raise UserError(f"{path}: {error}; write it with python -m cvae_jax.data.rna") from None
    return splits


def _checked(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays of a file, after a look at all that the rest of the program relies on."""
    axes = {"sequence": 2, "length": 1, "boxes": 4, "count": 1}
    if sorted(arrays) != sorted(axes):
        raise UserError(f"the arrays are {', '.join(arrays)}, expected {', '.join(axes)}")
    for name, number in axes.items():
        if arrays[name].ndim != number or arrays[name].dtype.kind not in "iu" or not arrays[name].size:
            raise UserError(
                f"{name} is {arrays[name].dtype}{list(arrays[name].shape)}, no whole numbers of {number} axes"
            )
    sequence, length, found, count = (arrays[name] for name in axes)
    if len({len(array) for array in arrays.values()}) != 1:
        raise UserError(f"the arrays differ in length: {[len(array) for array in arrays.values()]}")
    if found.shape[-1] != 5:
        raise UserError(f"boxes have {found.shape[-1]} numbers, expected 5")
    if sequence.min() < 0 or sequence.max() >= len(LETTERS):
        raise UserError(f"sequence has codes outside 0 to {len(LETTERS) - 1}")
    if length.min() < 1 or length.max() > sequence.shape[1]:
        raise UserError(f"length is outside 1 to {sequence.shape[1]}")
    if (sequence * (np.arange(sequence.shape[1]) >= length[:, None])).any():
        raise UserError("sequence is not 0 beyond its length")
    if count.min() < 1 or count.max() > found.shape[1]:
        raise UserError(f"count is outside 1 to {found.shape[1]}")
    kind = found[..., 0]
    if (kind[np.arange(found.shape[1]) >= count[:, None]] != 0).any():
        raise UserError("there are boxes in structures beyond count")
    real = found[kind != 0].astype(np.int64)
    ends = np.broadcast_to(length[:, None, None], kind.shape)[kind != 0]
    low, high = real[:, 1:3], real[:, 1:3] + real[:, 3:]
    if (real[:, 0] < 0).any() or (real[:, 0] > len(boxes.TYPES)).any():
        raise UserError(f"boxes have types outside 0 to {len(boxes.TYPES)}")
    if (low < 0).any() or (high <= low).any() or (high > ends[:, None]).any() or (low[:, 0] >= high[:, 1] - 1).any():
        raise UserError("boxes reach beyond their sequence or its upper triangle")
    wanted = {"sequence": np.int8, "length": np.int32, "boxes": np.int16, "count": np.int32}
    return {name: arrays[name].astype(dtype, copy=False) for name, dtype in wanted.items()}


def save(splits: dict[str, dict[str, Any]], folder: str | os.PathLike[str]) -> None:
    """Writes train.npz, valid.npz and test.npz of those splits, each as a whole or not at all.

    Raises:
      UserError: for a folder that has one of them already, or cannot be written.
    """
    path = pathlib.Path(folder).expanduser()
    _check_empty(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        for split, arrays in splits.items():
            unfinished = path / f".{split}.npz.unfinished"
            with open(unfinished, "wb") as file:
                np.savez_compressed(file, **arrays)
            unfinished.replace(path / f"{split}.npz")
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); choose another folder") from None


def _check_empty(folder: pathlib.Path) -> None:
    for split in SPLITS:
        if (folder / f"{split}.npz").exists():
            raise UserError(f"{folder / split}.npz exists; choose another folder, or remove the data set there")


def convert(
    table: rna_tables.Table,
    max_len: int = 0,
    num_sample: int = 0,
    valid_share: float = 0.1,
    test_share: float = 0.1,
    seed: int = 0,
) -> dict[str, dict[str, np.ndarray]]:
    """The splits of a table, by sequence.

    Args:
      table: from `rna_tables`.
      max_len: room for sequences, in bases; 0 for what the longest needs.
      num_sample: how many structures of each sequence are kept; 0 for all.
      valid_share: as in `make`.
      test_share: as in `make`.
      seed: of the split.

    Raises:
      UserError: for numbers that cannot be.
    """
    sequences = [encode(sequence) for sequence in table.sequences]
    longest = max_len or max(map(len, sequences))
    most = num_sample or max(map(len, table.structures))
    _check_numbers(1, 1, longest, most, seed)
    structures = [of_one[:most] for of_one in table.structures]
    sizes = _sizes(len(sequences), valid_share, test_share)
    return _split(_pack(sequences, structures, longest, most), sizes, np.random.Generator(np.random.Philox(seed)))


def summary(splits: dict[str, dict[str, np.ndarray]]) -> str:
    """What is in the splits, and which of it boxes and targets cannot tell, in two lines."""
    sizes = ", ".join(f"{len(arrays['length'])} {split}" for split, arrays in splits.items())
    num_structures = sum(int(arrays["count"].sum()) for arrays in splits.values())
    number = [0] * (len(boxes.TYPES) + 1)
    shared = 0
    for arrays in splits.values():
        for kind in range(len(number)):
            number[kind] += int((arrays["boxes"][..., 0] == kind).sum())
        for of_one in arrays["boxes"]:
            different, times = np.unique(of_one, axis=0, return_counts=True)
            shared += sum(boxes.shared_pixels(one) * int(time) for one, time in zip(different, times, strict=True))
    # Every stem closes one loop, which is a multiloop if it is none of those with a box.
    num_multiloops = number[boxes.STEM] - number[boxes.INTERNAL] - number[boxes.HAIRPIN]
    shortest = min(int(arrays["length"].min()) for arrays in splits.values())
    longest = max(int(arrays["length"].max()) for arrays in splits.values())
    return (
        f"{sum(len(arrays['length']) for arrays in splits.values())} sequences ({sizes}) of {shortest} to {longest} "
        f"bases, {num_structures} structures, {sum(number[1:])} boxes\n"
        f"not represented: {num_multiloops} multiloops, and {shared} pixels in more than one box of a type"
    )


class _Parser(argparse.ArgumentParser):
    """Wrong flags end in one line too."""

    def error(self, message: str) -> NoReturn:
        sys.exit(f"error: {message}; --help lists the flags")


def main(argv: list[str] | None = None) -> None:
    """The command line; what a user did wrong ends in one line and exit code 1."""
    parser = _Parser(prog="python -m cvae_jax.data.rna", description="RNA data sets as train, valid and test.npz.")
    commands = parser.add_subparsers(dest="command", required=True)
    make_it = commands.add_parser("make", help="random sequences, structures from ViennaRNA")
    make_it.add_argument("--num_seq", type=int, default=1000)
    make_it.add_argument("--min_len", type=int, default=10, help="bases of the shortest")
    make_it.add_argument("--max_len", type=int, default=100, help="bases of the longest")
    make_it.add_argument("--num_sample", type=int, default=10, help="structures of a sequence")
    make_it.add_argument("--energy_gap", type=float, help="kcal/mol: those within it, not samples of the ensemble")
    convert_it = commands.add_parser("convert", help="a .csv table like ArchiveII, or a pickled one (never executed)")
    convert_it.add_argument("file", metavar="FILE")
    convert_it.add_argument("--max_len", type=int, default=0, help="leave longer sequences out")
    convert_it.add_argument("--family", default="", help="keep these alone: what precedes the first _ of an id")
    convert_it.add_argument("--num_sample", type=int, default=0, help="keep so many structures of a sequence")
    for command in (make_it, convert_it):
        command.add_argument("--out", required=True, help="the folder to write")
        command.add_argument("--seed", type=int, default=0)
        command.add_argument("--valid_share", type=float, default=0.1)
        command.add_argument("--test_share", type=float, default=0.1)
    flags = parser.parse_args(argv)
    start = time.perf_counter()
    left_out: dict[str, int] = {}
    try:
        _check_empty(pathlib.Path(flags.out).expanduser())
        shares = {"valid_share": flags.valid_share, "test_share": flags.test_share, "seed": flags.seed}
        if flags.command == "make":
            splits = make(
                flags.num_seq,
                flags.min_len,
                flags.max_len,
                flags.num_sample,
                energy_gap=flags.energy_gap,
                progress=True,
                **shares,
            )
        else:
            table = rna_tables.read(pathlib.Path(flags.file).expanduser(), flags.max_len, flags.family)
            left_out = table.left_out
            splits = convert(table, flags.max_len, flags.num_sample, **shares)
        seconds = time.perf_counter() - start
        save(splits, flags.out)
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted")
    print(summary(splits))
    for what, number in left_out.items():
        print(f"left out: {number} {what}")
    number = sum(len(arrays["length"]) for arrays in splits.values())
    print(f"{number / seconds:.0f} sequences per second, in {flags.out}")


if __name__ == "__main__":
    main()
