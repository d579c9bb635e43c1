"""RNA sequences with secondary structures as boxes: drawn from the Boltzmann ensemble, or from tables, see tables.py.

The arrays of a split are those that files.py lists.
"""

import pathlib
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from cvae_jax.data.files import check_size
from cvae_jax.errors import UserError
from cvae_jax.task import Arrays, Splits
from cvae_jax.tasks.rna_boxes import boxes, ensemble, files, tables
from cvae_jax.tasks.rna_boxes.sequences import decode, encode

MOST_STRUCTURES = 10_000  # of a sequence


class Shares(NamedTuple):
    """Shares of all sequences that are kept from training; a split whose share is 0 is left out."""

    valid: float = 0.1
    test: float = 0.1


DEFAULT_SHARES = Shares()


def make(
    num_seq: int,
    min_len: int,
    max_len: int,
    num_sample: int,
    seed: int,
    energy_gap: float | None = None,
    shares: Shares = DEFAULT_SHARES,
) -> Splits:
    """Makes random sequences with structures, split by sequence; a terminal shows a bar.

    Args:
      num_seq: how many sequences, all of them different, of letters ACGU that are equally likely.
      min_len: the shortest, in bases; every length up to max_len is equally likely.
      max_len: the longest.
      num_sample: structures of each sequence.
      seed: of sequences, structures and split.
      energy_gap: in kcal/mol; if given, structures are those of the lowest energy within this gap, not drawn.
      shares: of the sequences, for validation and test.

    Returns:
      For each split the arrays that files.py lists.

    Raises:
      UserError: for numbers that cannot be, or without ViennaRNA.
    """
    _check_numbers(num_seq, min_len, max_len, num_sample, seed, energy_gap)
    sizes = _sizes(num_seq, shares)
    rng = np.random.Generator(np.random.Philox(seed))
    unique: dict[bytes, None] = {}
    while len(unique) < num_seq:
        unique[rng.integers(1, 5, rng.integers(min_len, max_len + 1), np.int8).tobytes()] = None
    sequences = [np.frombuffer(codes, np.int8) for codes in unique]
    seeds = rng.integers(0, 2**32, num_seq).tolist()

    def structures() -> Iterable[list[np.ndarray]]:
        bar = tqdm(sequences, desc="folding", unit="seq", disable=None)
        for codes, sequence_seed in zip(bar, seeds, strict=True):
            sequence = decode(codes)
            if energy_gap is None:
                drawn = ensemble.sample(sequence, num_sample, sequence_seed)
            else:
                drawn = ensemble.within(sequence, energy_gap, num_sample)
            known = {structure: boxes.boxes_of(boxes.parse(structure)[0]) for structure in set(drawn)}
            yield [known[structure] for structure in drawn]

    return _split(_pack(sequences, structures(), max_len, num_sample), sizes, rng)


def _check_numbers(
    num_seq: int, min_len: int, max_len: int, num_sample: int, seed: int, energy_gap: float | None = None
) -> None:
    """Raises a UserError for numbers of `make` that cannot be."""
    if num_seq < 1 or num_sample < 1 or seed < 0:
        raise UserError(f"num_seq={num_seq} and num_sample={num_sample} must be at least 1, seed={seed} at least 0")
    if not 1 <= min_len <= max_len <= boxes.MAX_LEN:
        raise UserError(f"min_len={min_len} and max_len={max_len} must be from 1 to {boxes.MAX_LEN}, in this order")
    if energy_gap is not None and not 0 <= energy_gap < float("inf"):
        raise UserError(f"energy_gap={energy_gap} must be at least 0, in kcal/mol")
    # 4**15 are more than any memory holds
    exist = sum(4**length for length in range(min_len, min(max_len, max(min_len, 15)) + 1))
    if num_seq > exist:
        raise UserError(f"only {exist} sequences of {min_len} to {max_len} bases exist; set num_seq or max_len")


def _sizes(number: int, shares: Shares) -> dict[str, int]:
    """Returns how many of a number of sequences are in each split; a share above 0 gets at least one of them."""
    valid_share, test_share = shares
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


def _split(arrays: Arrays, sizes: dict[str, int], rng: np.random.Generator) -> Splits:
    """Returns the arrays of each split that has a size, by a random permutation."""
    order = rng.permutation(len(arrays["length"]))
    splits: Splits = {}
    start = 0
    for split in files.SPLITS:
        part = order[start : start + sizes[split]]
        start += sizes[split]
        if len(part):
            splits[split] = {name: array[part] for name, array in arrays.items()}
    return splits


def _pack(sequences: list[np.ndarray], structures: Iterable[list[np.ndarray]], max_len: int, num_sample: int) -> Arrays:
    """Packs sequences, int8 [length] each, and the structures of each as boxes, int16 [k, 5] each, into arrays.

    Args:
      sequences: of codes.
      structures: of each sequence.
      max_len: room for a sequence.
      num_sample: room for its structures.

    Raises:
      UserError: where that takes too much memory, or a structure has too many boxes.
    """
    number, room = len(sequences), boxes.max_boxes(max_len)
    num_bytes = 2 * number * (max_len + 10 * num_sample * room)  # here, and once more in their splits
    mend = "lower max_len, which leaves longer ones out, or num_sample"
    check_size(f"{number} sequences with room for {num_sample} structures of {max_len} bases each", num_bytes, mend)
    sequence = np.zeros((number, max_len), np.int8)
    length = np.array([len(codes) for codes in sequences], np.int32)
    packed = np.zeros((number, num_sample, room, 5), np.int16)
    count = np.zeros(number, np.int32)
    for n, (codes, drawn) in enumerate(zip(sequences, structures, strict=True)):
        sequence[n, : len(codes)] = codes
        count[n] = len(drawn)
        for m, structure in enumerate(drawn):
            if len(structure) > boxes.max_boxes(len(codes)):
                raise UserError(
                    f"a structure of {decode(codes)} has {len(structure)} boxes, more than {len(codes)} bases have "
                    "room for; leave out hairpins of less than two bases"
                )
            packed[n, m, : len(structure)] = structure
    return {"sequence": sequence, "length": length, "boxes": packed, "count": count}


def load(settings: ConfigDict) -> Splits:
    """Loads the arrays of each split, made anew or from a folder of `files.save`.

    Args:
      settings: `dir`, the folder, or "" to make the data of `num_seq`, `min_len`, `max_len` and `seed`; `max_length`
        and `num_sample`, to which the arrays are padded or cut.

    Raises:
      UserError: for missing or damaged files, arrays that are no such data, sequences that are too long.
    """
    if not settings.dir:
        if settings.max_len > settings.max_length:
            raise UserError(f"max_length={settings.max_length} is less than data.max_len={settings.max_len}; raise it")
        splits = make(settings.num_seq, settings.min_len, settings.max_len, settings.num_sample, settings.seed)
    else:
        splits = files.read(pathlib.Path(settings.dir).expanduser())
    fitted = {}
    for split, arrays in splits.items():
        try:
            fitted[split] = files.fit(arrays, settings.max_length, settings.num_sample)
        except UserError as error:
            raise UserError(f"split {split}: {error}") from None
    return fitted


def convert(
    table: tables.Table, max_len: int = 0, num_sample: int = 0, seed: int = 0, shares: Shares = DEFAULT_SHARES
) -> Splits:
    """Returns the splits of a table, by sequence.

    Args:
      table: from tables.py.
      max_len: room for sequences, in bases; 0 for what the longest needs.
      num_sample: how many structures of each sequence are kept; 0 for all.
      seed: of the split.
      shares: of the sequences, for validation and test.

    Raises:
      UserError: for numbers that cannot be.
    """
    sequences = [encode(sequence) for sequence in table.sequences]
    longest = max_len or max(map(len, sequences))
    most = num_sample or max(map(len, table.structures))
    _check_numbers(1, 1, longest, most, seed)
    structures = [known[:most] for known in table.structures]
    sizes = _sizes(len(sequences), shares)
    return _split(_pack(sequences, structures, longest, most), sizes, np.random.Generator(np.random.Philox(seed)))


def summary(splits: Splits) -> str:
    """Returns two lines: what is in the splits, and which of it boxes and targets cannot tell."""
    sizes = ", ".join(f"{len(arrays['length'])} {split}" for split, arrays in splits.items())
    num_structures = sum(int(arrays["count"].sum()) for arrays in splits.values())
    number = [0] * (len(boxes.TYPES) + 1)
    shared = 0
    for arrays in splits.values():
        for kind in range(len(number)):
            number[kind] += int((arrays["boxes"][..., 0] == kind).sum())
        for structures in arrays["boxes"]:
            different, times = np.unique(structures, axis=0, return_counts=True)
            shared += sum(boxes.shared_pixels(rows) * int(time) for rows, time in zip(different, times, strict=True))
    # Every stem closes one loop, which is a multiloop if it is none of those with a box.
    num_multiloops = number[boxes.STEM] - number[boxes.INTERNAL] - number[boxes.HAIRPIN]
    shortest = min(int(arrays["length"].min()) for arrays in splits.values())
    longest = max(int(arrays["length"].max()) for arrays in splits.values())
    return (
        f"{sum(len(arrays['length']) for arrays in splits.values())} sequences ({sizes}) of {shortest} to {longest} "
        f"bases, {num_structures} structures, {sum(number[1:])} boxes\n"
        f"not represented: {num_multiloops} multiloops, and {shared} pixels in more than one box of a type"
    )
