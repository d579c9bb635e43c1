"""RNA sequences with secondary structures as boxes: drawn from the Boltzmann ensemble, or from tables, see rna_tables.

    python -m cvae_jax.tasks.rna_boxes.data make --min_len=10 --max_len=100 --num_seq=1000 --num_sample=10 --out=FOLDER
    python -m cvae_jax.tasks.rna_boxes.data convert ArchiveII.csv.gz --max_len=100 --out=FOLDER

The arrays of a split are those that rna_files lists.
"""

import pathlib
import sys
import time
from collections.abc import Iterable
from typing import Any

import numpy as np
from tqdm import tqdm

from cvae_jax.command_line import Parser
from cvae_jax.errors import UserError
from cvae_jax.tasks.rna_boxes import boxes, ensemble
from cvae_jax.tasks.rna_boxes import files as rna_files
from cvae_jax.tasks.rna_boxes import tables as rna_tables
from cvae_jax.tasks.rna_boxes.sequences import decode, encode

MAX_LEN = 2**15 - 1  # boxes are int16


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
      For each split the arrays that `rna_files` lists.

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
                found = ensemble.sample(sequence, num_sample, one)
            else:
                found = ensemble.within(sequence, energy_gap, num_sample)
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
    for split in rna_files.SPLITS:
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
            if len(structure) > boxes.max_boxes(len(codes)):
                raise UserError(
                    f"a structure of {decode(codes)} has {len(structure)} boxes, more than {len(codes)} bases have "
                    "room for; leave out hairpins of less than two bases"
                )
            packed[n, m, : len(structure)] = structure
    return {"sequence": sequence, "length": length, "boxes": packed, "count": count}


def load(settings: Any) -> dict[str, dict[str, np.ndarray]]:
    """The arrays of each split, made anew or from a folder of `rna_files.save`.

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
        splits = rna_files.read(pathlib.Path(settings.dir).expanduser())
    fitted = {}
    for split, arrays in splits.items():
        try:
            fitted[split] = rna_files.fit(arrays, settings.max_length, settings.num_sample)
        except UserError as error:
            raise UserError(f"split {split}: {error}") from None
    return fitted


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


def main(argv: list[str] | None = None) -> None:
    """The command line; what a user did wrong ends in one line and exit code 1."""
    program = "python -m cvae_jax.tasks.rna_boxes.data"
    parser = Parser(prog=program, description="RNA data sets as train, valid and test.npz.")
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
        rna_files.check_empty(pathlib.Path(flags.out).expanduser())
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
            if flags.max_len < 0 or flags.num_sample < 0:
                raise UserError(f"--max_len={flags.max_len} and --num_sample={flags.num_sample} must be at least 0")
            table = rna_tables.read(pathlib.Path(flags.file).expanduser(), flags.max_len, flags.family)
            left_out = table.left_out
            splits = convert(table, flags.max_len, flags.num_sample, **shares)
        seconds = time.perf_counter() - start
        rna_files.save(splits, flags.out)
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
