"""A release: the signed record that a bundle, with this evidence, was let through under a name and a version."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lightship.bundle.digest import Digest
from lightship.bundle.document import (
    parse_document,
    plain_json,
    take_digest,
    take_int,
    take_list,
    take_mapping,
    take_name,
    take_object,
    take_time,
)
from lightship.bundle.envelope import MAX_ENVELOPE_BYTES, open_envelope, payload_json, peek_payload, seal
from lightship.bundle.signing import PrivateKey, Signer, TrustStore
from lightship.errors import BundleRefused
from lightship.types import Json, Verdict

__all__ = ["PAYLOAD_TYPE", "STATUSES", "Release", "open_release", "peek_release", "require_passed", "sign_release"]

PAYLOAD_TYPE = "application/vnd.lightship.release+json"
STATUSES = ("passed", "structural")
"""``passed``: the gate let it through. ``structural``: form and digests are right, quality was not judged."""

_FORMAT_VERSION = 1
_KEYS = ("bundle", "card", "created", "evidence", "format_version", "name", "policy", "status", "version")
_MAX_EVIDENCE = 1_000
_NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True, slots=True)
class Release:
    """What is signed.

    Attributes:
        version: 1, 2, … within ``name``.
        bundle: digest of ``bundle.json``.
        evidence: (name of the check, digest of the envelope's bytes) of all that the decision rests on.
        policy: what was asked for; any JSON.
        created: RFC 3339 time with zone.
        status: one of ``STATUSES``.
        card: digest of the model card, or None.
    """

    name: str
    version: int
    bundle: str
    evidence: tuple[tuple[str, str], ...]
    policy: Mapping[str, Json]
    created: str
    status: str
    card: str | None = None


def sign_release(release: Release, *, key: PrivateKey) -> bytes:
    """Return the envelope with the signed release.

    Raises:
        InvalidInput: NaN, infinity, or something that is not JSON in the policy.
        BundleRefused: a name, digest, time or status of a form that no reader accepts.
    """
    record: dict[str, Json] = {
        "bundle": release.bundle,
        "card": release.card,
        "created": release.created,
        "evidence": [{"check": check, "digest": digest} for check, digest in release.evidence],
        "format_version": _FORMAT_VERSION,
        "name": release.name,
        "policy": plain_json(release.policy),
        "status": release.status,
        "version": release.version,
    }
    payload = payload_json(record, what=f"The release {release.name}:{release.version}")
    _parse(payload, what=f"release {release.name}:{release.version}")  # what a reader refuses is never signed
    return seal(payload, payload_type=PAYLOAD_TYPE, key=key)


def require_passed(release: Release, found: Iterable[tuple[str, Verdict]], *, what: str = "release.json") -> None:
    """Refuse a release that calls itself passed while its evidence does not say so.

    Where the policy names ``required`` checks, each must have evidence among ``found`` (check, verdict), all of it
    passed. A reader that took the word ``passed`` for it would trust the signer's program, not the evidence.

    Raises:
        BundleRefused: names the check.
    """
    required = release.policy.get("required", [])
    if release.status != "passed" or not required:
        return
    if not isinstance(required, list) or not all(isinstance(check, str) for check in required):
        raise BundleRefused(f"{what}: policy.required must be a list of names of checks. Got {required!r:.100}.")
    verdicts: dict[str, list[Verdict]] = {}
    for check, verdict in found:
        verdicts.setdefault(check, []).append(verdict)
    for name in required:
        of_check = verdicts.get(str(name), [])
        if not of_check or any(verdict is not Verdict.PASSED for verdict in of_check):
            raise BundleRefused(
                f"{what}: its status is 'passed' and its policy requires {name!r}, but the evidence for that says "
                f"{', '.join(of_check) or 'nothing'}. Do not run it; ask its signer."
            )


def open_release(envelope: bytes, *, trust: TrustStore, what: str = "release.json") -> tuple[Release, Signer]:
    """Return the release and who signed it.

    Raises:
        BundleRefused: not an envelope with a release, an unknown signer, or a wrong signature.
    """
    payload, signer = open_envelope(envelope, payload_type=PAYLOAD_TYPE, trust=trust, what=what)
    return _parse(payload, what=what), signer


def peek_release(envelope: bytes, *, what: str = "release.json") -> Release:
    """Return the release WITHOUT looking at the signature: for moving it, never for relying on it."""
    return _parse(peek_payload(envelope, payload_type=PAYLOAD_TYPE, what=what), what=what)


def _parse(payload: bytes, *, what: str) -> Release:
    document = take_mapping(parse_document(payload, what=what, max_bytes=MAX_ENVELOPE_BYTES, floats=True), at=what)
    version = document.get("format_version")
    if type(version) is not int or version != _FORMAT_VERSION:
        raise BundleRefused(f"{what} has format_version {version!r:.40}. This program reads version {_FORMAT_VERSION}.")
    members = take_object(document, _KEYS, at=what)
    if members["status"] not in STATUSES:
        raise BundleRefused(f"{what}: status must be one of {', '.join(STATUSES)}. Got {members['status']!r:.100}.")
    return Release(
        name=_name(members["name"], at=f"{what}: name"),
        version=take_int(members["version"], at=f"{what}: version", low=1),
        bundle=take_digest(members["bundle"], at=f"{what}: bundle"),
        evidence=_evidence(members["evidence"], at=f"{what}: evidence"),
        policy=take_mapping(members["policy"], at=f"{what}: policy"),
        created=take_time(members["created"], at=f"{what}: created"),
        status=str(members["status"]),
        card=None if members["card"] is None else take_digest(members["card"], at=f"{what}: card"),
    )


def _name(value: Json, *, at: str) -> str:
    if not isinstance(value, str) or not _NAME_PATTERN.fullmatch(value):
        raise BundleRefused(
            f"{at} must be 1 to 128 of A-Z, a-z, 0-9, '.', '_', '-', the first a letter or digit. Got {value!r:.100}."
        )
    return value


def _evidence(value: Json, *, at: str) -> tuple[tuple[str, Digest], ...]:
    listed = []
    for index, item in enumerate(take_list(value, at=at, max_items=_MAX_EVIDENCE)):
        members = take_object(item, ("check", "digest"), at=f"{at}[{index}]")
        check = take_name(members["check"], at=f"{at}[{index}].check")
        listed.append((check, take_digest(members["digest"], at=f"{at}[{index}].digest")))
    # Twelve digits make the file name in an exported folder, so they must tell the pieces apart.
    if len({digest.hex[:12] for _, digest in listed}) != len(listed):
        raise BundleRefused(
            f"{at} lists one piece of evidence twice, or two whose digests start with the same 12 digits."
        )
    return tuple(listed)
