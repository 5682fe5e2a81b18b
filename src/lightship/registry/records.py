"""What the registry answers with: frozen values, no rows, no sessions. Times are UTC text as in ``moments``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = [
    "AliasMove",
    "EvidenceRow",
    "History",
    "HistoryCheck",
    "HistoryEntry",
    "Live",
    "ModelRecord",
    "Registered",
    "VersionRecord",
]


@dataclass(frozen=True, slots=True)
class EvidenceRow:
    """One line about one piece of evidence of a version.

    Attributes:
        check: the check that made it, e.g. ``accuracy``.
        verdict: a value of ``lightship.types.Verdict``.
        summary: one line for people.
        digest: ``sha256:<hex>`` of the signed statement in the store.
    """

    check: str
    verdict: str
    summary: str
    digest: str


@dataclass(frozen=True, slots=True)
class VersionRecord:
    """One version of a model. All but ``aliases`` never changes.

    Attributes:
        bundle: digest of the bundle's manifest, ``sha256:<hex>``.
        release: digest of the signed release record, ``sha256:<hex>``.
        unproven: released without the evidence that would show that it is right; ``promote`` asks for consent.
        aliases: the aliases that point here now, sorted.
    """

    name: str
    version: int
    bundle: str
    release: str
    created: str
    created_by: str
    note: str
    evidence: tuple[EvidenceRow, ...]
    unproven: bool
    aliases: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """A name, how many versions it has, the newest of them, where its aliases point, which versions are unproven."""

    name: str
    created: str
    versions: int
    latest: int
    aliases: Mapping[str, int]
    unproven: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Registered:
    """The answer of ``add_version``.

    Attributes:
        is_new: False when the same bundle was already a version of this name. Then nothing was written, and
            ``version`` and ``release`` are those that it has.
        alias: the alias that this call gave to the version (the first of a name becomes ``production``), else None.
    """

    name: str
    version: int
    bundle: str
    release: str
    is_new: bool
    alias: str | None


@dataclass(frozen=True, slots=True)
class AliasMove:
    """An alias went from one version to another. ``changed`` is False when it was there already."""

    name: str
    alias: str
    from_version: int | None
    to_version: int
    changed: bool


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """One line of the history. ``hash`` covers all other fields and, by ``prev_hash``, all lines before.

    Attributes:
        action: ``register``, ``promote`` or ``rollback``.
        version: the version that the line is about.
        alias, from_version, to_version: the move of an alias; None for ``register``.
        bundle, release: digests of that version.
        evidence: digests of the evidence that stood behind that version.
    """

    seq: int
    at: str
    who: str
    action: str
    name: str
    version: int
    alias: str | None
    from_version: int | None
    to_version: int | None
    bundle: str
    release: str
    why: str
    evidence: tuple[str, ...]
    prev_hash: str
    hash: str


@dataclass(frozen=True, slots=True)
class Live:
    """Where an alias pointed at some moment, and since when."""

    name: str
    alias: str
    version: int
    bundle: str
    release: str
    since: str


@dataclass(frozen=True, slots=True)
class History:
    """What happened up to a moment, and what was live then.

    Attributes:
        at: the moment asked for; None: now.
        entries: all lines up to it, oldest first.
        live: every alias that existed then, sorted by name and alias.
    """

    at: str | None
    entries: tuple[HistoryEntry, ...]
    live: tuple[Live, ...]


@dataclass(frozen=True, slots=True)
class HistoryCheck:
    """What ``verify_history`` found.

    Attributes:
        count: lines in the history.
        head: hash of the last line. Kept elsewhere, it also proves that the whole was not rewritten.
        problems: one sentence each; empty when all agrees.
    """

    count: int
    head: str
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not self.problems
