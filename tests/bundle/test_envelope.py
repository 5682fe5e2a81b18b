"""No bit of an envelope can change, and no envelope of one kind is taken for another."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightship.bundle.envelope import open_envelope, peek_payload, pre_authentication_encoding, seal
from lightship.bundle.signing import TrustStore
from lightship.data.files import canonical_json
from lightship.errors import BundleRefused

KIND = "application/x-test"


@pytest.fixture(scope="module")
def trust(tmp_path_factory):
    """A trust store for ada alone."""
    return TrustStore(tmp_path_factory.mktemp("envelope") / "trust")


@pytest.fixture
def key(make_key, trust):
    """Ada's key."""
    trust.add(make_key(0).public_pem, "ada")
    return make_key(0)


def test_pre_authentication_encoding_of_the_dsse_specification():
    """The test vector of DSSE 1.0, protocol.md."""
    encoded = pre_authentication_encoding("http://example.com/HelloWorld", b"hello world")

    assert encoded == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"


def test_lengths_are_bytes():
    """A type that is not ASCII is counted in bytes, as any other program would."""
    assert pre_authentication_encoding("é", b"") == b"DSSEv1 2 \xc3\xa9 0 "


def test_an_envelope_opens_for_who_trusts_the_signer(key, trust):
    """The payload comes back bit for bit, with the signer's name."""
    envelope = seal(b"\x00payload", payload_type=KIND, key=key)

    payload, signer = open_envelope(envelope, payload_type=KIND, trust=trust, what="e")
    assert (payload, signer.name) == (b"\x00payload", "ada")
    assert peek_payload(envelope, payload_type=KIND, what="e") == b"\x00payload"


def test_signing_is_deterministic(key):
    """Ed25519 has no random part, so the same statement is the same file."""
    assert seal(b"x", payload_type=KIND, key=key) == seal(b"x", payload_type=KIND, key=key)


def test_an_unknown_signer_is_refused_even_if_the_signature_is_right(stranger, trust):
    """The refusal names the key and the way to trust it."""
    envelope = seal(b"x", payload_type=KIND, key=stranger)

    with pytest.raises(BundleRefused, match=f"^e: The signer {stranger.key_id} is not trusted here.*trust add"):
        open_envelope(envelope, payload_type=KIND, trust=trust, what="e")


def test_every_single_bit_counts(key, trust):
    """All one-bit changes of one envelope, also of the parts that no signature covers."""
    envelope = seal(b"payload", payload_type=KIND, key=key)

    for bit in range(len(envelope) * 8):
        changed = bytearray(envelope)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(BundleRefused, match=r"^e"):
            open_envelope(bytes(changed), payload_type=KIND, trust=trust, what="e")


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_cuts_and_insertions_are_refused(exported, data):
    """An envelope with bytes taken out or put in does not open."""
    shipped = exported[0]
    envelope = seal(b"payload", payload_type=KIND, key=shipped.key)
    place = data.draw(st.integers(0, len(envelope)))
    if data.draw(st.booleans()):
        changed = envelope[:place] + data.draw(st.binary(min_size=1, max_size=4)) + envelope[place:]
    else:
        changed = envelope[:place] + envelope[place + data.draw(st.integers(1, 9)) :]
    if changed != envelope:
        with pytest.raises(BundleRefused, match=r"^e"):
            open_envelope(changed, payload_type=KIND, trust=shipped.trust, what="e")


def _padding_bits(document: dict[str, Any]) -> None:
    signature = document["signatures"][0]["sig"]
    assert signature.endswith("==")
    last = signature[-3]
    document["signatures"][0]["sig"] = signature[:-3] + chr(ord(last) + 1) + "=="


def _add_signature(document: dict[str, Any]) -> None:
    document["signatures"].append(document["signatures"][0])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda d: d.update(payloadType="application/vnd.in-toto+json"),
            "must have the payloadType 'application/x-test'",
        ),
        (lambda d: d.update(payloadType=None), "must have the payloadType"),
        (lambda d: d.update(extra=1), "unknown key 'extra'"),
        (lambda d: d.pop("payloadType"), "lacks the key 'payloadType'"),
        (lambda d: d.update(signatures=[]), "must have 1 to 1 items"),
        (_add_signature, "must have 1 to 1 items"),
        (lambda d: d["signatures"][0].update(alg="none"), "unknown key 'alg'"),
        (lambda d: d["signatures"][0].pop("keyid"), "lacks the key 'keyid'"),
        (lambda d: d["signatures"][0].update(keyid="ED25519:" + "0" * 32), "keyid must be 'ed25519:'"),
        (lambda d: d["signatures"][0].update(keyid="../../ada"), "keyid must be 'ed25519:'"),
        (lambda d: d["signatures"][0].update(sig=""), "sig must be base64"),
        (lambda d: d["signatures"][0].update(sig="AAAA"), "sig must have 64 bytes"),
        (lambda d: d["signatures"][0].update(sig=base64.b64encode(bytes(64)).decode()), "signature is not one of ada"),
        (lambda d: d["signatures"][0].update(sig=d["signatures"][0]["sig"].rstrip("=")), "sig must be base64"),
        (lambda d: d["signatures"][0].update(sig=d["signatures"][0]["sig"] + "\n"), "sig must be base64"),
        (_padding_bits, "sig must be base64 .* in its only form"),
        (lambda d: d.update(payload=""), "payload must be base64"),
        (lambda d: d.update(payload="cGF5bG9hZB=="), "payload must be base64|signature is not one of"),
        (lambda d: d.update(payload="cGF5_-9hZA=="), "payload must be base64"),
        (lambda d: d.update(payload="é"), "payload must be base64"),
        (lambda d: d.update(payload=["cGF5"]), "payload must be base64"),
    ],
)
def test_changed_envelopes_are_refused(key, trust, change, reason):
    """Each part has its rule."""
    document = json.loads(seal(b"payload", payload_type=KIND, key=key))
    change(document)

    with pytest.raises(BundleRefused, match=reason):
        open_envelope(canonical_json(document), payload_type=KIND, trust=trust, what="e")


@pytest.mark.parametrize("respell", [lambda e: e + b"\n", lambda e: e.replace(b'":', b'": '), lambda e: e[:-1]])
def test_another_spelling_of_an_envelope_is_refused(key, trust, respell):
    """One envelope has one form, so a digest names it."""
    envelope = respell(seal(b"payload", payload_type=KIND, key=key))

    with pytest.raises(BundleRefused, match=r"must be canonical JSON|is not UTF-8 JSON"):
        open_envelope(envelope, payload_type=KIND, trust=trust, what="e")


def test_a_huge_envelope_is_refused_before_it_is_parsed(trust):
    """The limit is the first thing looked at."""
    with pytest.raises(BundleRefused, match="may have at most 8,388,608 bytes"):
        open_envelope(b"[" * ((8 << 20) + 1), payload_type=KIND, trust=trust, what="e")
