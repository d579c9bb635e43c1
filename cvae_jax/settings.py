"""What a config's settings may be: kinds and limits, compared in one place."""

import abc
import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from cvae_jax.errors import UserError, shortened

COUNT = 2**31 - 1  # what int32 holds
WIDTH = 2**16  # of a layer: two such layers have 17 GB of weights between them
SMALLEST = float(np.finfo(np.float32).tiny)  # what is smaller is 0 where float32 is computed with


class Kind(abc.ABC):
    """What a setting may be."""

    @abc.abstractmethod
    def refuse(self, value: Any) -> str:
        """Returns what a value "must be", or "" where it is that already."""


@dataclasses.dataclass(frozen=True)
class Whole(Kind):
    """A whole number."""

    least: int = 0
    most: int = COUNT

    def refuse(self, value: Any) -> str:
        """As `Kind.refuse`."""
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            return f"a whole number of at least {self.least}"
        if value < self.least:
            return f"at least {self.least}"
        return f"at most {self.most:,}" if value > self.most else ""


@dataclasses.dataclass(frozen=True)
class Wholes(Kind):
    """Some whole numbers, one at least."""

    least: int = 1
    most: int = WIDTH

    def refuse(self, value: Any) -> str:
        """As `Kind.refuse`."""
        must = f"whole numbers of at least {self.least}"
        if not isinstance(value, tuple | list) or not value:
            return must
        refused = [Whole(self.least, self.most).refuse(number) for number in value]
        return next((must if text.endswith(f"at least {self.least}") else text for text in refused if text), "")


@dataclasses.dataclass(frozen=True)
class Real(Kind):
    """A number, as float32: what is 0 there is compared as 0."""

    least: float = 0.0
    most: float = 1e6
    above: bool = False  # `least` itself is not allowed
    below: bool = False  # `most` itself is not allowed

    def refuse(self, value: Any) -> str:
        """As `Kind.refuse`."""
        if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
            return "a number"
        value = float(value)
        if 0 < abs(value) < SMALLEST:
            return f"{'' if self.above else '0, or '}at least {SMALLEST:.2g}: float32 takes it for 0"
        low = not (self.least < value if self.above else self.least <= value)  # NaN is
        if not low and (value < self.most if self.below else value <= self.most):
            return ""
        least, most = f"{'above' if self.above else 'at least'} {self.least:g}", f"at most {self.most:g}"
        if self.below:
            return f"{least} and below {self.most:g}"
        if self.most <= 1 and not self.above:
            return f"between {self.least:g} and {self.most:g}"
        return least if low else most


@dataclasses.dataclass(frozen=True)
class Choice(Kind):
    """A name of those there are."""

    names: Iterable[str]

    def refuse(self, value: Any) -> str:
        """As `Kind.refuse`."""
        return "" if isinstance(value, str) and value in self.names else f"one of {', '.join(self.names)}"


def check(config: ConfigDict, kinds: Mapping[str, Kind], section: str = "") -> None:
    """Raises a UserError for the first setting that cannot be; names it and what it must be.

    Args:
      config: a config, or a section of one.
      kinds: of the settings to check; a key such as "data.size" is one of a section.
      section: name of the section, with which messages begin.
    """
    for key, kind in kinds.items():
        value = functools.reduce(getattr, key.split("."), config)
        name = f"{section}.{key}" if section else key
        must, shown = kind.refuse(value), shortened(repr(value))
        if must and isinstance(kind, Choice):
            raise UserError(f"{name}={shown} is not known; choose from {must.removeprefix('one of ')}")
        if must:
            raise UserError(f"{name}={shown} must be {must}")
