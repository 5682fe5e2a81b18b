"""Evidence: a signed statement about exact bytes. An in-toto Statement v1 in a DSSE envelope.

The subjects are digests of the graphs that were judged and, under the name ``task``, of the task's configuration. So
evidence stands beside a bundle and never changes its name, and cannot be moved to a bundle with other bytes.
Numbers in ``measured`` and ``method`` may be floats here: the signature covers the bytes as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lightship.bundle.digest import Digest
from lightship.bundle.document import (
    parse_document,
    plain_json,
    take_hex,
    take_list,
    take_mapping,
    take_name,
    take_object,
    take_text,
    take_time,
)
from lightship.bundle.envelope import MAX_ENVELOPE_BYTES, open_envelope, payload_json, seal
from lightship.bundle.signing import PrivateKey, Signer, TrustStore
from lightship.errors import BundleRefused
from lightship.types import Json, Verdict

__all__ = [
    "PAYLOAD_TYPE",
    "TASK_SUBJECT",
    "Evidence",
    "SignedEvidence",
    "open_evidence",
    "read_evidence",
    "sign_evidence",
    "summary_of",
]

PAYLOAD_TYPE = "application/vnd.in-toto+json"
TASK_SUBJECT = "task"
"""The subject name of the task's configuration; its digest is ``TaskRef.digest``."""

_STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
_PREDICATE_KEYS = ("check", "created", "machine", "measured", "method", "summary", "verdict")
_MAX_SUBJECTS = 1_000
_MAX_SUMMARY = 1_000


@dataclass(frozen=True, slots=True)
class Evidence:
    """What one check found.

    Attributes:
        check: name of the check, e.g. ``parity``.
        subjects: SHA-256 in hex by a name for people; at least one. Each is a file of the bundle, or ``task``.
        summary: one line for people.
        measured: what was found: figures with their intervals.
        method: how: settings, rows, versions.
    """

    check: str
    verdict: Verdict
    subjects: Mapping[str, str]
    summary: str
    measured: Mapping[str, Json]
    method: Mapping[str, Json]


@dataclass(frozen=True, slots=True)
class SignedEvidence:
    """Evidence with who signed it, when and where it was made, and the digest of its envelope."""

    evidence: Evidence
    signer: Signer
    created: str
    machine: Mapping[str, Json]
    digest: Digest


def summary_of(text: str, *, most: int = _MAX_SUMMARY) -> str:
    """Return a text as a summary may be: one line of at most ``most`` characters, cut between two words."""
    line = " ".join(text.split())
    if len(line) <= most:
        return line
    kept = line[: most - 2].rpartition(" ")[0] or line[: most - 2]
    return kept.rstrip(" ,;:.") + " …"


def sign_evidence(evidence: Evidence, *, key: PrivateKey, created: str, machine: Mapping[str, Json]) -> bytes:
    """Return the envelope with the signed statement.

    ``created`` is an RFC 3339 time with zone; ``machine`` is what the measurements hold for (its fingerprint).

    Raises:
        InvalidInput: NaN, infinity, or something that is not JSON.
        BundleRefused: a name, subject, summary or time of a form that no reader accepts.
    """
    statement: dict[str, Json] = {
        "_type": _STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": digest}} for name, digest in sorted(evidence.subjects.items())],
        "predicateType": _predicate_type(evidence.check),
        "predicate": {
            "check": evidence.check,
            "created": created,
            "machine": plain_json(machine),
            "measured": plain_json(evidence.measured),
            "method": plain_json(evidence.method),
            "summary": evidence.summary,
            "verdict": str(evidence.verdict),
        },
    }
    payload = payload_json(statement, what=f"Evidence of {evidence.check!r}")
    _parse(payload, what=f"evidence of {evidence.check!r}")  # what a reader refuses is never signed
    return seal(payload, payload_type=PAYLOAD_TYPE, key=key)


def open_evidence(envelope: bytes, *, trust: TrustStore) -> tuple[Evidence, Signer]:
    """Return the evidence and who signed it.

    Raises:
        BundleRefused: not an envelope with a statement of ours, an unknown signer, or a wrong signature.
    """
    signed = read_evidence(envelope, trust=trust)
    return signed.evidence, signed.signer


def read_evidence(envelope: bytes, *, trust: TrustStore, what: str = "evidence") -> SignedEvidence:
    """Return all that an envelope says: as ``open_evidence``, with time, machine and the envelope's digest.

    ``what`` names the envelope in a refusal.
    """
    payload, signer = open_envelope(envelope, payload_type=PAYLOAD_TYPE, trust=trust, what=what)
    evidence, created, machine = _parse(payload, what=what)
    return SignedEvidence(evidence, signer, created, machine, Digest.of(envelope))


def _predicate_type(check: str) -> str:
    return f"urn:lightship:evidence:{check}:v1"


def _parse(payload: bytes, *, what: str) -> tuple[Evidence, str, Mapping[str, Json]]:
    document = parse_document(payload, what=what, max_bytes=MAX_ENVELOPE_BYTES, floats=True)
    statement = take_object(document, ("_type", "predicate", "predicateType", "subject"), at=what)
    if statement["_type"] != _STATEMENT_TYPE:
        raise BundleRefused(f"{what}: _type must be {_STATEMENT_TYPE!r}. Got {statement['_type']!r:.100}.")
    predicate = take_object(statement["predicate"], _PREDICATE_KEYS, at=f"{what}: predicate")
    check = take_name(predicate["check"], at=f"{what}: check")
    if statement["predicateType"] != _predicate_type(check):
        raise BundleRefused(
            f"{what}: predicateType must be {_predicate_type(check)!r}, as its check is {check!r}. "
            f"Got {statement['predicateType']!r:.100}."
        )
    evidence = Evidence(
        check=check,
        verdict=_verdict(predicate["verdict"], at=f"{what}: verdict"),
        subjects=_subjects(statement["subject"], at=f"{what}: subject"),
        summary=take_text(predicate["summary"], at=f"{what}: summary", max_chars=_MAX_SUMMARY),
        measured=take_mapping(predicate["measured"], at=f"{what}: measured"),
        method=take_mapping(predicate["method"], at=f"{what}: method"),
    )
    machine = take_mapping(predicate["machine"], at=f"{what}: machine")
    return evidence, take_time(predicate["created"], at=f"{what}: created"), machine


def _verdict(value: Json, *, at: str) -> Verdict:
    try:
        return Verdict(take_text(value, at=at))
    except ValueError as exc:
        raise BundleRefused(f"{at} must be one of {', '.join(Verdict)}. Got {value!r:.100}.") from exc


def _subjects(value: Json, *, at: str) -> dict[str, str]:
    subjects: dict[str, str] = {}
    for index, item in enumerate(take_list(value, at=at, min_items=1, max_items=_MAX_SUBJECTS)):
        members = take_object(item, ("digest", "name"), at=f"{at}[{index}]")
        name = take_text(members["name"], at=f"{at}[{index}].name", max_chars=255)
        if name in subjects:
            raise BundleRefused(f"{at} names {name!r} twice.")
        digest = take_object(members["digest"], ("sha256",), at=f"{at}[{index}].digest")
        subjects[name] = take_hex(digest["sha256"], at=f"{at}[{index}].digest.sha256")
    return subjects
