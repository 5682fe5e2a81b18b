"""DSSE envelopes: bytes, what kind of bytes they are, and a signature over both.

Source: DSSE 1.0 (secure-systems-lab/dsse). Ours are narrower: canonical JSON, exactly one signature, strict base64;
so no bit of an envelope can change without a refusal, not even one that the signature does not cover.
"""

from __future__ import annotations

import base64
import binascii
import json

from lightship.bundle.document import parse_document, take_list, take_object, take_text
from lightship.bundle.signing import KEY_ID_PATTERN, PrivateKey, Signer, TrustStore
from lightship.data.files import canonical_json
from lightship.errors import BundleRefused, InvalidInput
from lightship.types import Json

__all__ = ["MAX_ENVELOPE_BYTES", "open_envelope", "payload_json", "peek_payload", "pre_authentication_encoding", "seal"]

MAX_ENVELOPE_BYTES = 8 << 20
_SIGNATURE_BYTES = 64


def pre_authentication_encoding(payload_type: str, payload: bytes) -> bytes:
    """Return the bytes that are signed: ``DSSEv1``, then length and bytes of the type and of the payload."""
    kind = payload_type.encode("utf-8")
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def payload_json(value: Json, *, what: str) -> bytes:
    """Return the JSON bytes of a payload. Floats keep their point, so that they are read back as floats."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"))
        return text.encode("utf-8")
    except (TypeError, ValueError) as exc:  # a ValueError is NaN, infinity, or a surrogate
        raise InvalidInput(f"{what} cannot be written as JSON: {exc}.") from exc


def seal(payload: bytes, *, payload_type: str, key: PrivateKey) -> bytes:
    """Return the envelope of ``payload``, signed by ``key``."""
    signature = key.sign(pre_authentication_encoding(payload_type, payload))
    return canonical_json(
        {
            "payload": base64.b64encode(payload).decode("ascii"),
            "payloadType": payload_type,
            "signatures": [{"keyid": key.key_id, "sig": base64.b64encode(signature).decode("ascii")}],
        }
    )


def open_envelope(envelope: bytes, *, payload_type: str, trust: TrustStore, what: str) -> tuple[bytes, Signer]:
    """Return the payload, which must be of ``payload_type``, and who signed it.

    ``what`` names the envelope in a refusal.

    Raises:
        BundleRefused: not an envelope of that type, the signer is not trusted, or the signature is wrong.
    """
    payload, key_id, signature = _take_apart(envelope, payload_type=payload_type, what=what)
    message = pre_authentication_encoding(payload_type, payload)
    return payload, trust.verify(message, signature, key_id=key_id, what=what)


def peek_payload(envelope: bytes, *, payload_type: str, what: str) -> bytes:
    """Return the payload WITHOUT looking at the signature: for moving a release, never for relying on one."""
    return _take_apart(envelope, payload_type=payload_type, what=what)[0]


def _take_apart(envelope: bytes, *, payload_type: str, what: str) -> tuple[bytes, str, bytes]:
    document = parse_document(envelope, what=what, max_bytes=MAX_ENVELOPE_BYTES)
    if canonical_json(document) != envelope:
        raise BundleRefused(f"{what} must be canonical JSON (RFC 8785): no white space, sorted keys, shortest escapes.")
    members = take_object(document, ("payload", "payloadType", "signatures"), at=what)
    if members["payloadType"] != payload_type:
        raise BundleRefused(f"{what} must have the payloadType {payload_type!r}. Got {members['payloadType']!r:.100}.")
    signatures = take_list(members["signatures"], at=f"{what}: signatures", min_items=1, max_items=1)
    signed = take_object(signatures[0], ("keyid", "sig"), at=f"{what}: signatures[0]")
    key_id = take_text(signed["keyid"], at=f"{what}: keyid", max_chars=100)
    if not KEY_ID_PATTERN.fullmatch(key_id):
        raise BundleRefused(f"{what}: keyid must be 'ed25519:' and 32 lowercase hex digits. Got {key_id!r}.")
    signature = _from_base64(signed["sig"], at=f"{what}: sig")
    if len(signature) != _SIGNATURE_BYTES:
        raise BundleRefused(f"{what}: sig must have {_SIGNATURE_BYTES} bytes. Got {len(signature)}.")
    return _from_base64(members["payload"], at=f"{what}: payload"), key_id, signature


def _from_base64(value: Json, *, at: str) -> bytes:
    try:
        text = value if isinstance(value, str) else ""
        data = base64.b64decode(text.encode("ascii"), validate=True)
    except (UnicodeEncodeError, binascii.Error) as exc:
        raise BundleRefused(f"{at} must be base64 (RFC 4648, section 4): {exc}.") from exc
    # Unused bits of the last character may be anything for the decoder; here only one spelling is right.
    if not text or base64.b64encode(data).decode("ascii") != text:
        raise BundleRefused(f"{at} must be base64 (RFC 4648, section 4) in its only form, and not empty.")
    return data
