"""RNA sequences as codes, an integer for every base."""

import numpy as np

from cvae_jax.errors import UserError

LETTERS = "NACGU"  # N is any base, and what stands beyond a sequence

ASCII = np.frombuffer(LETTERS.encode(), np.uint8)
CODES = np.full(256, -1, np.int8)
for code, letter in enumerate(LETTERS):
    CODES[[ord(letter), ord(letter.lower())]] = code
CODES[[ord("T"), ord("t")]] = LETTERS.index("U")


def encode(sequence: str) -> np.ndarray:
    """Returns a sequence as codes, int8 [length]: positions in LETTERS; T is U, lower case is as good as upper.

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
    """Returns the sequence of codes 0 to 4, int [length]."""
    return ASCII[np.asarray(codes)].tobytes().decode()
