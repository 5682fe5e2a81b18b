"""Rows in three parts by a hash of what the graph sees: calibration, selection and gate.

For a model that is trained already: nothing is left to train on, so rows fix ranges (calibration), choose among
variants (selection) and judge once (gate). As in ``split`` the part is a function of (seed, row) alone: rows that are
added, removed or reordered move no other row. An input counts once, however often it is there: copies are no further
rows, and intervals from them would be too narrow.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lightship.types import Json

__all__ = ["MOST_ROWS", "PARTS", "SHARES", "Parts", "row_digest", "share_rows"]

PARTS = ("calibration", "selection", "gate")
SHARES: Mapping[str, float] = {"calibration": 0.2, "selection": 0.3, "gate": 0.5}
MOST_ROWS: Mapping[str, int] = {"calibration": 512, "selection": 1024, "gate": 10_000}
"""Of more rows the first in the order of their hashes are taken, so which ones does not depend on their place."""

SEED = 0
_HASH_RANGE = 1 << 64
_UNLABELED = b""


@dataclass(frozen=True, slots=True)
class Parts:
    """Which rows lie in which part, by index, in the order of their hashes.

    Attributes:
        given: rows that can be used.
        duplicates: how many of them repeat an earlier one, label and all; they are in no part.
        conflicts: how many inputs are there with unequal labels; those stay, once for each label.
        left_over: rows beyond ``MOST_ROWS``, by part.
        fingerprints: SHA-256 over the rows of each part and their labels.
        gate_inputs: the same over the inputs of the gate rows alone: who sees rows again has seen them, whatever their
            labels are now.
    """

    calibration: tuple[int, ...]
    selection: tuple[int, ...]
    gate: tuple[int, ...]
    given: int
    duplicates: int
    conflicts: int
    left_over: Mapping[str, int]
    fingerprints: Mapping[str, str]
    gate_inputs: str

    @property
    def fingerprint(self) -> str:
        """SHA-256 over all parts together."""
        return hashlib.sha256(" ".join(self.fingerprints[name] for name in PARTS).encode()).hexdigest()

    def part(self, name: str) -> tuple[int, ...]:
        """Return the indices of the part called ``name``, one of ``PARTS``."""
        return {"calibration": self.calibration, "selection": self.selection, "gate": self.gate}[name]

    def to_json(self) -> dict[str, Json]:
        """Return the counts and fingerprints, for the evidence."""
        return {
            "given": self.given,
            "duplicates": self.duplicates,
            "conflicts": self.conflicts,
            "parts": {name: len(self.part(name)) for name in PARTS},
            "left_over": dict(self.left_over),
            "fingerprints": dict(self.fingerprints),
            "fingerprint": self.fingerprint,
            "gate_inputs": self.gate_inputs,
            "shares": dict(SHARES),
            "seed": SEED,
        }


def row_digest(row: Mapping[str, np.ndarray]) -> bytes:
    """Return the SHA-256 of names, dtypes, shapes and values of a row: equal for what a graph cannot tell apart."""
    digest = hashlib.sha256(b"lightship tensors 1\n")
    for name in sorted(row):
        array = row[name]
        digest.update(f"{name!r} {array.dtype.str} {array.shape}\n".encode())
        if array.dtype == object:
            for text in array.ravel().tolist():
                data = text if isinstance(text, bytes) else str(text).encode()
                digest.update(len(data).to_bytes(8, "big") + data)
        else:
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.digest()


def share_rows(digests: Sequence[bytes | None], labels: Sequence[bytes] | None, *, seed: int = SEED) -> Parts:
    """Put every distinct row into one part.

    Args:
        digests: of each row, by index; None for a row that cannot be used.
        labels: of each row, as bytes that are equal for equal ones; or None.
        seed: another seed gives other parts.
    """
    seen: dict[tuple[bytes, bytes], int] = {}
    given = 0
    for index, digest in enumerate(digests):
        if digest is None:
            continue
        given += 1
        seen.setdefault((digest, _UNLABELED if labels is None else labels[index]), index)
    placed: dict[str, list[tuple[int, bytes, bytes, int]]] = {name: [] for name in PARTS}
    for (digest, label), index in seen.items():
        value = _hash(digest, seed)
        placed[_part(value)].append((value, digest, label, index))
    for rows in placed.values():
        rows.sort()
    kept = {name: rows[: MOST_ROWS[name]] for name, rows in placed.items()}
    return Parts(
        **{name: tuple(index for *_, index in rows) for name, rows in kept.items()},
        given=given,
        duplicates=given - len(seen),
        conflicts=len(seen) - len({digest for digest, _ in seen}),
        left_over={name: len(placed[name]) - len(kept[name]) for name in PARTS if len(placed[name]) > len(kept[name])},
        fingerprints={name: _fingerprint((digest, label) for _, digest, label, _ in kept[name]) for name in PARTS},
        gate_inputs=_fingerprint((digest, _UNLABELED) for digest in {digest for _, digest, _, _ in kept["gate"]}),
    )


def _hash(digest: bytes, seed: int) -> int:
    """Return a number for a row; of the input alone, so that one input with two labels is not in two parts."""
    return int.from_bytes(
        hashlib.sha256(b"lightship parts 1\n" + str(seed).encode() + b"\n" + digest).digest()[:8], "big"
    )


def _part(value: int) -> str:
    reached = 0.0
    for name in PARTS[:-1]:
        reached += SHARES[name]
        if value < reached * _HASH_RANGE:
            return name
    return PARTS[-1]


def _fingerprint(rows: Iterable[tuple[bytes, bytes]]) -> str:
    digest = hashlib.sha256(b"lightship part rows 1\n")
    for identity, label in sorted(rows):
        digest.update(identity + len(label).to_bytes(8, "big") + label)  # the length keeps rows apart
    return digest.hexdigest()
