"""All that a release says: its signed record, its manifest, and every piece of evidence with its figures.

For reading about a release, not for running it: nothing is loaded, and the graphs are only looked at for their digests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lightship.bundle.envelope import MAX_ENVELOPE_BYTES
from lightship.bundle.manifest import Manifest, Variant
from lightship.bundle.release import Release, open_release
from lightship.bundle.signing import Signer, TrustStore
from lightship.bundle.statement import SignedEvidence, read_evidence
from lightship.bundle.store import BlobStore, BundleReader
from lightship.data.home import Home
from lightship.errors import BundleRefused
from lightship.registry.releases import read_release
from lightship.types import Json

__all__ = ["Statements", "read_statements"]


@dataclass(frozen=True, slots=True)
class Statements:
    """What a verified release says.

    Attributes:
        reference: what was asked for, e.g. ``digits@staging``.
        digest: of the signed record, ``sha256:<hex>``.
        record: the signed record.
        signer: of the record.
        bundle: reads the files.
        evidence: in the order of the record.
    """

    reference: str
    digest: str
    record: Release
    signer: Signer
    bundle: BundleReader
    evidence: tuple[SignedEvidence, ...]

    @property
    def manifest(self) -> Manifest:
        """What the bundle holds."""
        return self.bundle.manifest

    @property
    def default(self) -> Variant:
        """The variant that runs."""
        found = self.manifest.variant(self.manifest.default)
        if found is None:
            raise BundleRefused(f"The bundle {self.bundle.digest} has no variant {self.manifest.default!r}.")
        return found

    @property
    def title(self) -> str:
        """Name and version, as people type them."""
        return f"{self.record.name}:{self.record.version}"

    @property
    def signed_by(self) -> str:
        """Who signed, as a person should read it."""
        return f"{self.signer.name}  {self.signer.key_id}" + ("  (a key of this home)" if self.signer.local else "")

    @property
    def machine(self) -> Mapping[str, Json]:
        """The machine that the figures hold for: that of the search or the timing, else of any evidence."""
        timed = self.of("search") or self.of("latency") or next(iter(self.evidence), None)
        return timed.machine if timed else {}

    def size_bytes(self, name: str) -> int:
        """Return the bytes that a variant needs to run."""
        variant = self.manifest.variant(name)
        paths = {variant.graph, *variant.files} if variant else set()
        return sum(entry.size for entry in self.manifest.files if entry.path in paths)

    def graph_digest(self, name: str) -> str:
        """Return the digest of a variant's graph, ``sha256:<hex>``; empty if there is no such variant."""
        variant = self.manifest.variant(name)
        entry = self.manifest.file(variant.graph) if variant else None
        return f"sha256:{entry.sha256}" if entry else ""

    def of(self, check: str) -> SignedEvidence | None:
        """Return the evidence of a check, or None."""
        return next((each for each in self.evidence if each.evidence.check == check), None)


def read_statements(home: Home, reference: str) -> Statements:
    """Resolve ``reference``, verify its release, and return what it says.

    Raises:
        InvalidInput: the reference has another form.
        NotFound: no such registry, name, alias or version, or the store lacks the release.
        BundleRefused: bytes, digests or signatures do not agree.
    """
    release = read_release(home, reference)
    store, trust = BlobStore(home.store), TrustStore(home.trust)
    envelope = store.get(release.resolved.release, max_bytes=MAX_ENVELOPE_BYTES)
    record, signer = open_release(envelope, trust=trust)
    evidence = tuple(
        read_evidence(store.get(digest, max_bytes=MAX_ENVELOPE_BYTES), trust=trust, what=f"evidence of {check!r}")
        for check, digest in record.evidence
    )
    return Statements(reference, str(release.verification.release), record, signer, release.bundle, evidence)
