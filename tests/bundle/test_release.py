"""A release says which bundle, on which evidence, under which name, and who says so."""

from __future__ import annotations

import base64
import json
from dataclasses import replace

import pytest

from lightship.bundle.envelope import seal
from lightship.bundle.release import PAYLOAD_TYPE, open_release, peek_release, sign_release
from lightship.errors import BundleRefused, InvalidInput

DIGEST = "sha256:" + "ab" * 32


def test_release_round_trip(shipped):
    """What was signed is read back equal, with its signer."""
    envelope = sign_release(shipped.release, key=shipped.key)

    release, signer = open_release(envelope, trust=shipped.trust)
    assert release == peek_release(envelope) == shipped.release
    assert signer.name == "ada"


def test_a_release_of_an_unknown_signer_is_refused_but_can_be_moved(shipped, stranger):
    """Peeking trusts nobody; opening does."""
    envelope = sign_release(shipped.release, key=stranger)

    assert peek_release(envelope) == shipped.release
    with pytest.raises(BundleRefused, match=rf"^release\.json: The signer {stranger.key_id} is not trusted here"):
        open_release(envelope, trust=shipped.trust)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"name": ""}, "name must be 1 to 128"),
        ({"name": "../x"}, "name must be 1 to 128"),
        ({"name": "{{7*7}}"}, "name must be 1 to 128"),
        ({"name": "x\nRUN touch canary"}, "name must be 1 to 128"),
        ({"version": 0}, "version must be an integer"),
        ({"version": True}, "version must be an integer"),
        ({"bundle": "x"}, "A digest must be"),
        ({"evidence": (("parity", "x"),)}, "A digest must be"),
        ({"evidence": (("Parity", DIGEST),)}, "must be a name"),
        ({"evidence": (("a", DIGEST), ("b", DIGEST))}, "lists one piece of evidence twice"),
        ({"evidence": (("a", DIGEST), ("b", DIGEST[:-1] + "c"))}, "start with the same 12 digits"),
        ({"created": "now"}, "created must be an RFC 3339 time"),
        ({"status": "fine"}, "status must be one of passed, structural"),
        ({"card": "x"}, "A digest must be"),
    ],
)
def test_a_release_that_no_reader_takes_is_not_signed(shipped, changes, reason):
    """The writer keeps the reader's rules."""
    with pytest.raises(BundleRefused, match=reason):
        sign_release(replace(shipped.release, **changes), key=shipped.key)


def test_a_policy_without_json_form_is_not_signed(shipped):
    """NaN is no margin."""
    with pytest.raises(InvalidInput, match="The release digits:1 cannot be written as JSON"):
        sign_release(replace(shipped.release, policy={"margin": float("nan")}), key=shipped.key)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda r: r.update(format_version=2), "format_version 2. This program reads version 1"),
        (lambda r: r.update(format_version=2, other=1), "format_version 2. This program reads version 1"),
        (lambda r: r.pop("format_version"), "format_version None"),
        (lambda r: r.update(extra=1), "unknown key 'extra'"),
        (lambda r: r.pop("card"), "lacks the key 'card'"),
        (lambda r: r.update(status=["passed"]), "status must be one of"),
        (lambda r: r["evidence"][0].update(verdict="passed"), "unknown key 'verdict'"),
    ],
)
def test_a_signed_release_of_another_form_is_refused(shipped, change, reason):
    """A right signature does not make other records ours."""
    record = json.loads(base64.b64decode(json.loads(sign_release(shipped.release, key=shipped.key))["payload"]))
    change(record)
    envelope = seal(json.dumps(record).encode(), payload_type=PAYLOAD_TYPE, key=shipped.key)

    with pytest.raises(BundleRefused, match=reason):
        open_release(envelope, trust=shipped.trust)
