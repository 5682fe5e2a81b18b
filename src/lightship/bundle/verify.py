"""Recompute everything a bundle claims: digests, sizes, signatures, and that its evidence is about these bytes.

Trust flows one way: a signer that a person added signs the release, the release names the manifest and the evidence by
digest, the manifest names every file by digest. Whatever is not reached on that way is refused, by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lightship.bundle.digest import Digest
from lightship.bundle.document import NAME_PATTERN
from lightship.bundle.envelope import MAX_ENVELOPE_BYTES
from lightship.bundle.folder import Folder, shown
from lightship.bundle.manifest import MAX_MANIFEST_BYTES, Manifest
from lightship.bundle.release import Release, open_release, require_passed
from lightship.bundle.signing import Signer, TrustStore
from lightship.bundle.statement import TASK_SUBJECT, read_evidence
from lightship.bundle.store import BlobStore
from lightship.errors import BundleRefused, NotFound
from lightship.types import Verdict

__all__ = [
    "CARD_FILE",
    "MANIFEST_FILE",
    "MAX_CARD_BYTES",
    "RELEASE_FILE",
    "EvidenceFound",
    "Verification",
    "evidence_path",
    "verify_folder",
    "verify_statements",
    "verify_stored",
]

MANIFEST_FILE = "bundle.json"
RELEASE_FILE = "release.json"
CARD_FILE = "card.md"
MAX_CARD_BYTES = 4 << 20
_EVIDENCE_PATH = re.compile(rf"evidence/{NAME_PATTERN.pattern}-[0-9a-f]{{12}}\.json")


@dataclass(frozen=True, slots=True)
class EvidenceFound:
    """One piece of evidence whose signature, subjects and digest are right.

    Attributes:
        listed: the release rests on it; otherwise it was added later by somebody who is trusted.
    """

    check: str
    verdict: Verdict
    summary: str
    digest: Digest
    signer: Signer
    listed: bool


@dataclass(frozen=True, slots=True)
class Verification:
    """What was found right.

    Attributes:
        bundle: the name of the bundle.
        release: digest of the release's envelope.
        evidence: in the order of the release, then what was added later.
        variants: names of the variants that are there with all their files.
        files: how many files of the manifest were there; ``bytes`` is their size together.
    """

    bundle: Digest
    release: Digest
    name: str
    version: int
    status: str
    signer: Signer
    evidence: tuple[EvidenceFound, ...]
    variants: tuple[str, ...]
    files: int
    bytes: int

    @property
    def unproven(self) -> bool:
        """Whether it lacks evidence that it is right: nobody judged its quality, or the release lists no evidence."""
        return self.status != "passed" or not any(each.listed for each in self.evidence)


def evidence_path(check: str, digest: Digest) -> str:
    """Return where a piece of evidence stands in an exported folder."""
    return f"evidence/{check}-{digest.hex[:12]}.json"


def verify_folder(path: Path, *, trust: TrustStore) -> Verification:
    """Verify an exported folder: its files are exactly those that release and manifest name, and all are right.

    Evidence that the release does not list may stand there too, if a trusted signer made it about this bundle.

    Raises:
        NotFound: there is no folder.
        BundleRefused: anything is wrong; the message names the file.
    """
    with Folder(path) as folder:
        present = set(folder.files())
        envelope = folder.read(RELEASE_FILE, max_bytes=MAX_ENVELOPE_BYTES)
        release, signer = open_release(envelope, trust=trust)
        manifest = _manifest(folder.read(MANIFEST_FILE, max_bytes=MAX_MANIFEST_BYTES), release)
        added = _check_presence(present, manifest, release, root=path)
        for entry in manifest.files:
            size, found = folder.digest(entry.path, max_bytes=entry.size)
            if (size, found) != (entry.size, entry.sha256):
                raise BundleRefused(
                    f"{entry.path} is not the file that {MANIFEST_FILE} lists: it has {size:,} bytes and the digest "
                    f"sha256:{found}, not {entry.size:,} bytes and sha256:{entry.sha256}."
                )
        if release.card is not None:
            _check_digest(CARD_FILE, folder.read(CARD_FILE, max_bytes=MAX_CARD_BYTES), Digest.parse(release.card))
        evidence = _judge_listed(
            {place: folder.read(place, max_bytes=MAX_ENVELOPE_BYTES) for place in _listed_paths(release)},
            manifest,
            release,
            trust=trust,
        )
        evidence += _judge_added(
            {place: folder.read(place, max_bytes=MAX_ENVELOPE_BYTES) for place in added}, manifest, trust=trust
        )
    return _verification(manifest, release, envelope, signer, evidence, absent=set())


def verify_statements(store: BlobStore, release_digest: str, *, trust: TrustStore) -> Verification:
    """Verify what a release in a store says: its signature, its manifest, and all evidence that it lists.

    No other file is read, so this is quick however large the model is; ``variants`` is empty and ``files`` is 0.

    Raises:
        NotFound: the store has no release of that digest.
        BundleRefused: anything is wrong; the message names the file.
    """
    envelope, release, signer, manifest = _stored_release(store, release_digest, trust=trust)
    evidence = _stored_evidence(store, release, manifest, trust=trust)
    every = {entry.path for entry in manifest.files}
    return _verification(manifest, release, envelope, signer, evidence, absent=every)


def verify_stored(store: BlobStore, release_digest: str, *, trust: TrustStore, complete: bool = True) -> Verification:
    """Verify a release in a store.

    With ``complete=False`` files below ``variants/`` may be missing, because a server fetches only the variant that it
    runs; ``Verification.variants`` says which variants are whole.

    Raises:
        NotFound: the store has no release of that digest.
        BundleRefused: anything is wrong; the message names the file.
    """
    envelope, release, signer, manifest = _stored_release(store, release_digest, trust=trust)
    absent: set[str] = set()
    for entry in manifest.files:
        name = f"sha256:{entry.sha256}"
        if not complete and entry.path.startswith("variants/") and not store.has(name):
            absent.add(entry.path)
            continue
        size = len(_blob(store, entry.path, name, max_bytes=entry.size))
        if size != entry.size:
            raise BundleRefused(f"{entry.path} must have {entry.size:,} bytes. It has {size:,}.")
    if release.card is not None:
        _blob(store, CARD_FILE, release.card, max_bytes=MAX_CARD_BYTES)
    evidence = _stored_evidence(store, release, manifest, trust=trust)
    return _verification(manifest, release, envelope, signer, evidence, absent=absent)


def _stored_release(
    store: BlobStore, release_digest: str, *, trust: TrustStore
) -> tuple[bytes, Release, Signer, Manifest]:
    envelope = store.get(Digest.parse(release_digest), max_bytes=MAX_ENVELOPE_BYTES)
    release, signer = open_release(envelope, trust=trust)
    manifest = _manifest(_blob(store, MANIFEST_FILE, release.bundle, max_bytes=MAX_MANIFEST_BYTES), release)
    return envelope, release, signer, manifest


def _stored_evidence(
    store: BlobStore, release: Release, manifest: Manifest, *, trust: TrustStore
) -> tuple[EvidenceFound, ...]:
    envelopes = {
        place: _blob(store, place, listed, max_bytes=MAX_ENVELOPE_BYTES)
        for place, (_, listed) in zip(_listed_paths(release), release.evidence, strict=True)
    }
    return _judge_listed(envelopes, manifest, release, trust=trust)


def _manifest(data: bytes, release: Release) -> Manifest:
    _check_digest(MANIFEST_FILE, data, Digest.parse(release.bundle))
    return Manifest.from_bytes(data)


def _check_digest(what: str, data: bytes, digest: Digest) -> None:
    if (found := Digest.of(data)) != digest:
        raise BundleRefused(f"{what} has the digest {found}, and the release rests on {digest}.")


def _listed_paths(release: Release) -> list[str]:
    return [evidence_path(check, Digest.parse(digest)) for check, digest in release.evidence]


def _check_presence(present: set[str], manifest: Manifest, release: Release, *, root: Path) -> list[str]:
    """Check that nothing is missing or extra; return the paths of evidence that was added after the release."""
    required = {MANIFEST_FILE, RELEASE_FILE, *(entry.path for entry in manifest.files), *_listed_paths(release)}
    if release.card is not None:
        required.add(CARD_FILE)
    if missing := sorted(required - present):
        raise BundleRefused(f"{missing[0]} is missing in {root}.")
    added = sorted(present - required)
    for path in added:
        if path.endswith("/"):
            raise BundleRefused(f"{shown(path)} in {root} is an empty folder, which no bundle has. Remove it.")
        if not _EVIDENCE_PATH.fullmatch(path):
            raise BundleRefused(
                f"{path!a} in {root} is no part of the bundle: neither {MANIFEST_FILE} nor {RELEASE_FILE} names it. "
                "Remove it if it is yours."
            )
    return added


def _blob(store: BlobStore, what: str, digest: str, *, max_bytes: int) -> bytes:
    try:
        return store.get(digest, max_bytes=max_bytes)
    except NotFound as exc:
        raise BundleRefused(f"{what} is missing. {exc}") from exc
    except BundleRefused as exc:
        raise BundleRefused(f"{what}: {exc}") from exc


def _judge_listed(
    envelopes: Mapping[str, bytes], manifest: Manifest, release: Release, *, trust: TrustStore
) -> tuple[EvidenceFound, ...]:
    """Judge the evidence that the release lists, given by path in the release's order."""
    found = []
    for (path, envelope), (check, digest) in zip(envelopes.items(), release.evidence, strict=True):
        _check_digest(path, envelope, Digest.parse(digest))
        evidence = _judge(path, envelope, manifest, trust=trust, listed=True)
        if evidence.check != check:
            raise BundleRefused(
                f"{path} is evidence of the check {evidence.check!r}; the release lists it as {check!r}."
            )
        found.append(evidence)
    require_passed(release, [(each.check, each.verdict) for each in found], what=RELEASE_FILE)
    return tuple(found)


def _judge_added(envelopes: Mapping[str, bytes], manifest: Manifest, *, trust: TrustStore) -> tuple[EvidenceFound, ...]:
    found = []
    for path, envelope in envelopes.items():
        evidence = _judge(path, envelope, manifest, trust=trust, listed=False)
        if (right := evidence_path(evidence.check, evidence.digest)) != path:
            raise BundleRefused(f"{path} holds evidence that belongs at {right}.")
        found.append(evidence)
    return tuple(found)


def _judge(path: str, envelope: bytes, manifest: Manifest, *, trust: TrustStore, listed: bool) -> EvidenceFound:
    """Return the evidence in an envelope if a trusted signer made it and it speaks of this bundle alone."""
    signed = read_evidence(envelope, trust=trust, what=path)
    files = {entry.sha256 for entry in manifest.files}
    for name, digest in signed.evidence.subjects.items():
        if (digest != manifest.task.digest) if name == TASK_SUBJECT else (digest not in files):
            raise BundleRefused(
                f"{path} is evidence of another bundle: its subject {name!r} has the digest sha256:{digest}, which is "
                f"{'not the task of this one' if name == TASK_SUBJECT else 'no file of this one'}."
            )
    found = signed.evidence
    return EvidenceFound(found.check, found.verdict, found.summary, signed.digest, signed.signer, listed)


def _verification(
    manifest: Manifest,
    release: Release,
    envelope: bytes,
    signer: Signer,
    evidence: tuple[EvidenceFound, ...],
    *,
    absent: set[str],
) -> Verification:
    checked = [entry for entry in manifest.files if entry.path not in absent]
    return Verification(
        bundle=Digest.parse(release.bundle),
        release=Digest.of(envelope),
        name=release.name,
        version=release.version,
        status=release.status,
        signer=signer,
        evidence=evidence,
        variants=tuple(item.name for item in manifest.variants if not absent & {item.graph, *item.files}),
        files=len(checked),
        bytes=sum(entry.size for entry in checked),
    )
