"""Plain words that all layers share. Standard library only.

A value that crosses a layer is one of these frozen classes; dictionaries are for JSON at the edges.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Protocol, TypeAlias

__all__ = [
    "DTYPES",
    "Dim",
    "Interface",
    "Interval",
    "Json",
    "Progress",
    "Silent",
    "TensorSpec",
    "ValueRange",
    "Verdict",
    "number_words",
]

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

Dim: TypeAlias = "int | str"
"""One dimension of a shape: a size, or the name of a free one such as ``"batch"``."""

DTYPES: Mapping[str, str] = MappingProxyType(
    {
        "BOOL": "bool",
        "UINT8": "uint8",
        "UINT16": "uint16",
        "UINT32": "uint32",
        "UINT64": "uint64",
        "INT8": "int8",
        "INT16": "int16",
        "INT32": "int32",
        "INT64": "int64",
        "FP16": "float16",
        "FP32": "float32",
        "FP64": "float64",
        "BYTES": "object",
    }
)
"""The dtype names of the V2 protocol, which are ours too, and numpy's name for each."""


class Verdict(StrEnum):
    """What a check found. Only ``PASSED`` lets a required check through the gate."""

    PASSED = "passed"
    FAILED = "failed"
    UNDECIDED = "undecided"
    """The rows do not suffice to tell; the evidence says how many would."""
    UNPROVEN = "unproven"
    """Not looked at, for want of data."""
    MEASURED = "measured"
    """A figure that nobody set a limit for: it neither speaks for a release nor against it."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A measured value with its confidence interval: ``low <= estimate <= high``.

    Attributes:
        confidence: coverage of [low, high], in (0, 1); for a one-sided bound the other side is its trivial limit.
        n: how many observations stand behind it.
    """

    estimate: float
    low: float
    high: float
    confidence: float
    n: int

    def to_json(self) -> dict[str, Json]:
        """Return the JSON form that evidence and reports carry."""
        return {
            "estimate": self.estimate,
            "low": self.low,
            "high": self.high,
            "confidence": self.confidence,
            "n": self.n,
        }


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, dtype (a key of ``DTYPES``) and symbolic shape of one input or output of a graph."""

    name: str
    dtype: str
    shape: tuple[Dim, ...]


@dataclass(frozen=True, slots=True)
class ValueRange:
    """The values of an input that were proven: numbers from ``low`` to ``high``, both included.

    Attributes:
        low, high: finite; whole numbers for an input of integers.
        nan: NaN is among them.
        infinite: both infinities are.
    """

    low: float
    high: float
    nan: bool = False
    infinite: bool = False

    def __str__(self) -> str:
        others = [word for word, among in (("NaN", self.nan), ("infinities", self.infinite)) if among]
        return " and ".join([f"{number_words(self.low)} to {number_words(self.high)}", *others])


def number_words(number: float) -> str:
    """Return a number as people read it: whole ones with all their digits, others with nine."""
    return str(int(number)) if abs(number) < 1e15 and number == int(number) else f"{number:.9g}"


@dataclass(frozen=True, slots=True)
class Interface:
    """What goes into a graph and what comes out.

    Attributes:
        proven: for each free dimension the inclusive range of sizes that was tried and found right, e.g.
            ``{"batch": (1, 33)}``. A server never runs a size outside of it.
        values: by input, the values that were proven; a server refuses others. Of an input that is not there nothing
            was proven, and nothing is refused.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    proven: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    values: Mapping[str, ValueRange] = field(default_factory=dict)


class Progress(Protocol):
    """Receives news of long work. The command line draws bars; a library caller may stay silent."""

    def start(self, what: str, total: int | None = None) -> None:
        """Begin a piece of work of ``total`` steps (``None``: unknown)."""

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Report finished steps and a short note such as ``loss 0.12``."""

    def done(self, note: str = "") -> None:
        """End the piece of work."""


class Silent:
    """A ``Progress`` that says nothing."""

    def start(self, what: str, total: int | None = None) -> None:
        """Say nothing."""

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Say nothing."""

    def done(self, note: str = "") -> None:
        """Say nothing."""
