"""The model card of a release: made of its signed statements alone, and signed with it.

The release holds the card's digest, so a card that was changed later, or made of other evidence, is refused like any
other file of the bundle. It cannot name the release's own digest, which it decides; it names the bundle's.
"""

from __future__ import annotations

from dataclasses import replace

from lightship.bundle.envelope import MAX_ENVELOPE_BYTES
from lightship.bundle.release import Release
from lightship.bundle.signing import Signer, TrustStore
from lightship.bundle.statement import read_evidence
from lightship.bundle.store import BlobStore, StoredBundle
from lightship.bundle.verify import MAX_CARD_BYTES
from lightship.data.home import Home
from lightship.pipeline.release_report import facts_of_release
from lightship.registry.statements import Statements, read_statements
from lightship.validate.report.card import render_card

__all__ = ["card_of", "with_card"]


def with_card(record: Release, *, store: BlobStore, trust: TrustStore, signer: Signer) -> Release:
    """Return a record that is about to be signed with the digest of its card, which is put into the store."""
    evidence = tuple(
        read_evidence(store.get(digest, max_bytes=MAX_ENVELOPE_BYTES), trust=trust) for _, digest in record.evidence
    )
    said = Statements(
        reference=f"{record.name}:{record.version}",
        digest="",
        record=record,
        signer=signer,
        bundle=StoredBundle(store, record.bundle),
        evidence=evidence,
    )
    card = render_card(facts_of_release(said)).encode()
    if len(card) > MAX_CARD_BYTES:  # no reader takes it; the evidence says the same
        return record
    return replace(record, card=store.put(card))


def card_of(home: Home, reference: str) -> str:
    """Return the card of a release: the signed one, or, of a release without, what its signed evidence makes.

    Raises:
        NotFound, BundleRefused, InvalidInput: as ``registry.statements.read_statements``.
    """
    said = read_statements(home, reference)
    if said.record.card is None:
        return render_card(facts_of_release(said))
    return BlobStore(home.store).get(said.record.card, max_bytes=MAX_CARD_BYTES).decode()
