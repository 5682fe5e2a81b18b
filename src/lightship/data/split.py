"""Rows in four parts by a hash of the decoded input.

A part is a function of (seed, decoded input) alone. So rows that are added, removed or reordered move no other row,
and equal inputs always land together, however their files were stored: no copy of a training row is in the gate part.
Sort by hash instead of by fractions of a shuffled list, and none of this holds.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction

from lightship.data.rows import BadRow, Dataset, RawInput, refuse_mostly_bad
from lightship.errors import InvalidData, InvalidInput

__all__ = ["PARTS", "Split", "part_of", "split_rows"]

PARTS = ("train", "validation", "selection", "gate")
"""train: weights. validation: early stopping. selection: choices. gate: one look, at the end."""

_HASH_RANGE = 1 << 64
_SHOWN_CLASSES = 5


@dataclass(frozen=True)
class Split:
    """Which row lies in which part. The parts hold indices into the dataset's rows, ascending.

    Attributes:
        duplicates: how many rows repeat the input of an earlier row.
        conflicts: for each input that carries unequal labels, the ids of its rows. They are kept: who labels
            should look at them.
        class_counts: part -> label -> number of rows.
        fingerprints: part -> SHA-256 over its sorted (identity digest, label) pairs.
        fingerprint: the same over all parts together; it does not depend on the seed.
    """

    train: tuple[int, ...]
    validation: tuple[int, ...]
    selection: tuple[int, ...]
    gate: tuple[int, ...]
    duplicates: int
    conflicts: tuple[tuple[str, ...], ...]
    class_counts: dict[str, dict[str, int]]
    fingerprints: dict[str, str]
    fingerprint: str

    def part(self, name: str) -> tuple[int, ...]:
        """Return the indices of the part called ``name``, one of ``PARTS``."""
        return {"train": self.train, "validation": self.validation, "selection": self.selection, "gate": self.gate}[
            name
        ]


def split_rows(
    dataset: Dataset,
    *,
    identity: Callable[[RawInput], bytes],
    seed: int,
    fractions: Mapping[str, float],
) -> tuple[Split, tuple[BadRow, ...]]:
    """Put every row into one part.

    Args:
        dataset: the rows; each is read once.
        identity: equal bytes for equal decoded inputs; a task's ``identity``. It is called once a row.
        seed: another seed gives another split.
        fractions: part -> share in (0, 1), all four of ``PARTS``, adding up to 1.

    Returns:
        The split, and the rows that ``identity`` found undecodable or that could no longer be read (those of
        ``dataset.bad`` are not repeated).

    Raises:
        InvalidData: too many bad rows, or a class has no row in some part.
        InvalidInput: ``fractions`` are not shares of one whole.
    """
    bounds = _upper_bounds(fractions)
    digests, bad = _identity_digests(dataset, identity)
    refuse_mostly_bad(good=len(digests), bad=(*dataset.bad, *bad), source=dataset.source)

    parts: dict[str, list[int]] = {name: [] for name in PARTS}
    for index, digest in digests.items():
        parts[_part_of_digest(digest, seed=seed, bounds=bounds)].append(index)
    labels = dataset.row_labels
    counts = {name: dict(sorted(Counter(labels[i] for i in rows).items())) for name, rows in parts.items()}
    _refuse_missing_classes(counts)
    return (
        Split(
            **{name: tuple(rows) for name, rows in parts.items()},
            duplicates=len(digests) - len(set(digests.values())),
            conflicts=_conflicts(dataset, digests),
            class_counts=counts,
            fingerprints={name: _fingerprint((digests[i], labels[i]) for i in rows) for name, rows in parts.items()},
            fingerprint=_fingerprint((digest, labels[i]) for i, digest in digests.items()),
        ),
        bad,
    )


def part_of(identity: bytes, *, seed: int, fractions: Mapping[str, float]) -> str:
    """Return the part of an input with these identity bytes."""
    return _part_of_digest(hashlib.sha256(identity).digest(), seed=seed, bounds=_upper_bounds(fractions))


def _upper_bounds(fractions: Mapping[str, float]) -> tuple[tuple[str, int], ...]:
    """Return for each part the first hash above it; the last one takes all that is left by rounding."""
    if set(fractions) != set(PARTS):
        raise InvalidInput(f"Split fractions need exactly the parts {', '.join(PARTS)}. Got {', '.join(fractions)}.")
    wrong = {name: share for name, share in fractions.items() if not 0 < share < 1}
    total = sum((Fraction(repr(float(fractions[name]))) for name in PARTS if name not in wrong), Fraction(0))
    if wrong or abs(total - 1) > Fraction(1, 10**9):
        raise InvalidInput(f"Split fractions must each be between 0 and 1 and add up to 1. Got {dict(fractions)}.")
    bounds, reached = [], Fraction(0)
    for name in PARTS:
        reached += Fraction(repr(float(fractions[name])))
        bounds.append((name, int(reached * _HASH_RANGE)))
    return (*bounds[:-1], (PARTS[-1], _HASH_RANGE))


def _part_of_digest(digest: bytes, *, seed: int, bounds: tuple[tuple[str, int], ...]) -> str:
    hashed = hashlib.sha256(b"lightship split 1\n" + str(seed).encode() + b"\n" + digest).digest()
    value = int.from_bytes(hashed[:8], "big")
    return next(name for name, bound in bounds if value < bound)


def _identity_digests(
    dataset: Dataset, identity: Callable[[RawInput], bytes]
) -> tuple[dict[int, bytes], tuple[BadRow, ...]]:
    """Return index -> SHA-256 of the identity of each usable row, and the rows that turn out bad."""
    digests: dict[int, bytes] = {}
    bad: list[BadRow] = []
    for index in range(len(dataset.rows)):
        try:
            digests[index] = hashlib.sha256(identity(dataset.rows[index].raw)).digest()
        except InvalidInput as exc:
            bad.append(BadRow(dataset.ids[index], str(exc)))
    return digests, tuple(bad)


def _conflicts(dataset: Dataset, digests: Mapping[int, bytes]) -> tuple[tuple[str, ...], ...]:
    groups: defaultdict[bytes, list[int]] = defaultdict(list)
    for index, digest in digests.items():
        groups[digest].append(index)
    return tuple(
        tuple(dataset.ids[i] for i in rows)
        for rows in groups.values()
        if len({dataset.row_labels[i] for i in rows}) > 1
    )


def _refuse_missing_classes(counts: Mapping[str, Mapping[str, int]]) -> None:
    totals = Counter[str]()
    for of_part in counts.values():
        totals.update(of_part)
    missing = [(label, name) for label in sorted(totals) for name in PARTS if label not in counts[name]]
    if not missing:
        return
    shown = "; ".join(f"class {label!r} ({totals[label]} rows in all) in part {name!r}" for label, name in missing[:5])
    more = f" and {len(missing) - _SHOWN_CLASSES} more" if len(missing) > _SHOWN_CLASSES else ""
    raise InvalidData(
        f"Every class needs a row in every part of the split. None for: {shown}{more}. "
        "Add rows of the class, enlarge the part's fraction, or take another split seed."
    )


def _fingerprint(pairs: Iterable[tuple[bytes, str]]) -> str:
    digest = hashlib.sha256(b"lightship rows 1\n")
    for identity, label in sorted(pairs):
        encoded = label.encode()
        digest.update(identity + len(encoded).to_bytes(4, "big") + encoded)  # the length keeps pairs apart
    return digest.hexdigest()
