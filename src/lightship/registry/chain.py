"""The history as a chain: each line carries the hash of the line before it, so no line can be changed unseen.

``hash`` = SHA-256 over the RFC 8785 JSON of all other fields of the line, ``prev_hash`` among them. An edited, removed,
added or moved line breaks the chain; a line cut from the end disagrees with the head, which is kept apart. Who can
rewrite the whole file can make a new chain: keep the head that ``verify_history`` gives somewhere else to see that too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace

from lightship.data.files import canonical_json, sha256_hex
from lightship.registry.records import HistoryEntry, Live

__all__ = ["GENESIS", "breaks", "live_aliases", "previous_versions", "sealed"]

GENESIS = "sha256:" + "0" * 64
"""``prev_hash`` of the first line."""


def _hash(entry: HistoryEntry) -> str:
    fields = asdict(entry)
    del fields["hash"]
    fields["evidence"] = list(entry.evidence)
    return f"sha256:{sha256_hex(canonical_json(fields))}"


def sealed(entry: HistoryEntry) -> HistoryEntry:
    """Return ``entry`` with its hash filled in."""
    return replace(entry, hash=_hash(entry))


def breaks(entries: Iterable[HistoryEntry], *, head_count: int, head_hash: str) -> Iterator[str]:
    """Yield one sentence for each place where the chain does not hold, in the order of the lines.

    Args:
        entries: the lines in the order of ``seq``.
        head_count: the number of lines, as kept apart from them.
        head_hash: the hash of the last line, as kept apart from it.
    """
    previous, seq, at = GENESIS, 0, ""
    for entry in entries:
        if entry.seq != seq + 1:
            yield f"Between line {seq} and line {entry.seq} of the history, lines are missing."
        if entry.prev_hash != previous:
            yield f"Line {entry.seq} of the history does not follow the line before it."
        if entry.hash != _hash(entry):
            yield f"Line {entry.seq} of the history was changed after it was written."
        if entry.at < at:
            yield f"Line {entry.seq} of the history has an earlier time than the line before it."
        previous, seq, at = entry.hash, entry.seq, entry.at
    if seq != head_count:
        yield f"The history ends at line {seq}; its head says {head_count}."
    elif previous != head_hash:
        yield "The last line of the history is not the one that its head names."


def live_aliases(entries: Iterable[HistoryEntry]) -> tuple[Live, ...]:
    """Return where every alias points after these lines, sorted by name and alias."""
    live: dict[tuple[str, str], Live] = {}
    for entry in entries:
        if entry.alias is not None and entry.to_version is not None:
            live[entry.name, entry.alias] = Live(
                entry.name, entry.alias, entry.to_version, entry.bundle, entry.release, since=entry.at
            )
    return tuple(live[key] for key in sorted(live))


def previous_versions(moves: Iterable[HistoryEntry]) -> Sequence[int]:
    """Return the versions that an alias went through, oldest first; the last is where it points.

    A rollback takes the last one off, so that a second rollback goes one further back and never forth again.

    Args:
        moves: the lines of one alias of one name, in order.
    """
    versions: list[int] = []
    for move in moves:
        if move.action == "rollback" and len(versions) > 1:
            versions.pop()
        elif move.to_version is not None:
            versions.append(move.to_version)
    return versions
