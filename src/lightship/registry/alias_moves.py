"""Who moved an alias, signed: the line of the history that moved it, in an envelope of its own.

The registry is a file that many may write, and where ``production`` points decides what runs. So whoever moves an alias
signs the line that says so, with the key that signs releases, and nobody follows an alias whose last line is not signed
by somebody who is trusted. The line holds the hash of the line before it, so a signature vouches for all before it too.
Standard library and ``bundle`` only: servers import this.
"""

from __future__ import annotations

from dataclasses import asdict

from lightship.bundle.envelope import open_envelope, seal
from lightship.bundle.signing import PrivateKey, TrustStore
from lightship.data.files import canonical_json
from lightship.errors import BundleRefused
from lightship.registry.records import HistoryEntry

__all__ = ["PAYLOAD_TYPE", "require_signed", "signed_move"]

PAYLOAD_TYPE = "application/vnd.lightship.alias+json"


def signed_move(entry: HistoryEntry, *, key: PrivateKey) -> str:
    """Return the envelope of a line of the history that moved an alias."""
    return seal(_payload(entry), payload_type=PAYLOAD_TYPE, key=key).decode()


def require_signed(
    place: tuple[str, str, int], last: HistoryEntry | None, envelope: str | None, *, trust: TrustStore
) -> None:
    """Refuse an alias that points where nobody who is trusted has put it.

    Args:
        place: name, alias, and the version that the registry's table says it points to.
        last: the last line of the history that moved it.
        envelope: of that line.
        trust: who is trusted.

    Raises:
        BundleRefused: the table says something else than the line, or the line is not signed as it stands.
    """
    name, alias, version = place
    cure = (
        "Somebody changed the registry's file: see `lightship history --verify`. To say where it should point: "
        f"`lightship promote {name}:VERSION --alias {alias}`."
    )
    if last is None or envelope is None:
        raise BundleRefused(f"Nobody has signed that {name}@{alias} is version {version}. {cure}")
    if last.to_version != version:
        raise BundleRefused(
            f"The registry says that {name}@{alias} is version {version}; its last signed move made it version "
            f"{last.to_version}. {cure}"
        )
    try:
        payload, _ = open_envelope(
            envelope.encode(), payload_type=PAYLOAD_TYPE, trust=trust, what=f"The move of {name}@{alias} to {version}"
        )
    except BundleRefused as exc:
        raise BundleRefused(f"{exc} {cure}") from exc
    if payload != _payload(last):
        raise BundleRefused(
            f"The line {last.seq} of the history is not the one that was signed for {name}@{alias}. {cure}"
        )


def _payload(entry: HistoryEntry) -> bytes:
    return canonical_json({**asdict(entry), "evidence": list(entry.evidence)})
