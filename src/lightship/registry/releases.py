"""From a reference to a release whose signature and bytes were checked: for servers, in process, and for promotion.

The registry is a file that many may write; the signed release is what a person vouched for. Both must say the same
name, version and bundle, or somebody who can write the registry could have another bundle run under a good release.
Standard library and ``bundle`` only: servers import this.
"""

from __future__ import annotations

from dataclasses import dataclass

from lightship.bundle.signing import Signer, TrustStore
from lightship.bundle.store import BlobStore, BundleReader, StoredBundle
from lightship.bundle.verify import Verification, verify_statements, verify_stored
from lightship.data.home import Home
from lightship.errors import BundleRefused
from lightship.registry.records import EvidenceRow, VersionRecord
from lightship.registry.resolve import Resolved, resolve

__all__ = ["SignedVersion", "VerifiedRelease", "contradiction", "read_release", "signed_version"]


@dataclass(frozen=True, slots=True)
class VerifiedRelease:
    """A release that may be run.

    Attributes:
        resolved: what the registry says.
        verification: what was checked: signer, evidence, which variants are whole.
        bundle: reads files, each checked against the manifest on the bytes that it returns.
    """

    resolved: Resolved
    verification: Verification
    bundle: BundleReader


def read_release(home: Home, reference: str) -> VerifiedRelease:
    """Resolve ``reference`` and verify its release, as far as the variant that it runs by default.

    Raises:
        InvalidInput: the reference has another form.
        NotFound: no such registry, name, alias or version, or the store lacks the release.
        BundleRefused: bytes, digests or signatures do not agree, or the registry names another bundle than the release.
    """
    resolved = resolve(home, reference)
    store = BlobStore(home.store)
    found = verify_stored(store, resolved.release, trust=TrustStore(home.trust), complete=False)
    _require_same(found, resolved.name, resolved.version, resolved.bundle)
    bundle = StoredBundle(store, resolved.bundle)
    if bundle.manifest.default not in found.variants:
        raise BundleRefused(
            f"Files of {bundle.manifest.default!r}, the variant that {resolved.name}:{resolved.version} runs, are "
            f"missing in {home.store}. Fetch the release again."
        )
    return VerifiedRelease(resolved, found, bundle)


@dataclass(frozen=True, slots=True)
class SignedVersion:
    """What somebody who is trusted has signed about a version: this holds, whatever the registry's own columns say.

    Attributes:
        status: ``passed``: the gate let it through; ``structural``: quality was not judged.
        evidence: all that the release lists, each piece signed too.
        unproven: it lacks evidence that it is right; so does a release that lists none.
    """

    status: str
    evidence: tuple[EvidenceRow, ...]
    signer: Signer
    unproven: bool


def signed_version(home: Home, name: str, version: int, *, bundle: str, release: str) -> SignedVersion | None:
    """Read what was signed about a version of the registry, or ``None`` if the store has no such release.

    Signatures and evidence are verified; the model's files are not read.

    Raises:
        BundleRefused: a signature or a digest is wrong, or the release is of another name, version or bundle.
    """
    store = BlobStore(home.store)
    if not store.has(release):
        return None
    found = verify_statements(store, release, trust=TrustStore(home.trust))
    _require_same(found, name, version, bundle)
    rows = tuple(EvidenceRow(each.check, str(each.verdict), each.summary, str(each.digest)) for each in found.evidence)
    return SignedVersion(found.status, rows, found.signer, found.unproven)


def contradiction(record: VersionRecord, signed: SignedVersion) -> str:
    """Return where the registry's columns say more for a version, or something else, than was signed; else nothing.

    A version that the registry calls unproven may have a release that passed: whoever registered it was more careful.
    """
    if signed.unproven and not record.unproven:
        said = f"is proven; its signed release is {signed.status}" + (
            "" if signed.evidence else " and lists no evidence"
        )
    elif record.evidence != signed.evidence:
        said = f"rests on {_told(record.evidence)}; its signed release on {_told(signed.evidence)}"
    else:
        return ""
    return (
        f"The registry says that {record.name}:{record.version} {said}. Somebody changed the registry, or registered "
        "it wrongly. Believe the release; see `lightship history --verify`, and release the model anew."
    )


def _told(rows: tuple[EvidenceRow, ...]) -> str:
    return ", ".join(f"{row.check} {row.verdict} ({row.digest[:19]})" for row in rows) or "no evidence"


def _require_same(found: Verification, name: str, version: int, bundle: str) -> None:
    if (name, version, bundle) != (found.name, found.version, str(found.bundle)):
        raise BundleRefused(
            f"The registry says that {name}:{version} is the bundle {bundle}; its signed release {found.release} is of "
            f"{found.name}:{found.version}, bundle {found.bundle}. "
            "One of them was changed: see `lightship history --verify`."
        )
