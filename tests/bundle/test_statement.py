"""Evidence says exactly what was signed, and nothing else is taken for evidence."""

from __future__ import annotations

import base64
import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lightship.bundle.digest import Digest
from lightship.bundle.envelope import seal
from lightship.bundle.statement import PAYLOAD_TYPE, open_evidence, read_evidence, sign_evidence, summary_of
from lightship.errors import BundleRefused, InvalidInput
from lightship.types import Interval, Verdict


def payload_of(envelope: bytes) -> dict[str, Any]:
    """Return the statement in an envelope."""
    value: dict[str, Any] = json.loads(base64.b64decode(json.loads(envelope)["payload"]))
    return value


def test_evidence_round_trip(shipped, make_evidence):
    """What was signed is read back equal; floats stay floats."""
    evidence = replace(
        make_evidence(shipped.manifest),
        measured={"accuracy": Interval(1.0, 0.5, 1.0, 0.95, 500).to_json(), "rows": 500, "note": "é\n"},
        verdict=Verdict.UNDECIDED,
    )
    envelope = shipped.sign(evidence)

    opened, signer = open_evidence(envelope, trust=shipped.trust)
    signed = read_evidence(envelope, trust=shipped.trust)

    assert opened == signed.evidence == evidence
    assert isinstance(opened.measured["accuracy"]["estimate"], float)
    assert (signer.name, signer.local) == ("ada", False)
    assert (signed.created, signed.machine) == ("2026-01-31T12:00:00Z", {"cpu": "test"})
    assert signed.digest == Digest.of(envelope)


def test_statement_is_in_toto(shipped, make_evidence):
    """Other tools that read in-toto statements find type, subjects and predicate."""
    statement = payload_of(shipped.sign(make_evidence(shipped.manifest)))

    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "urn:lightship:evidence:parity:v1"
    assert statement["subject"][0] == {"digest": {"sha256": shipped.manifest.task.digest}, "name": "task"} or (
        statement["subject"][1] == {"digest": {"sha256": shipped.manifest.task.digest}, "name": "task"}
    )
    assert sorted(statement["predicate"]) == ["check", "created", "machine", "measured", "method", "summary", "verdict"]


@pytest.mark.parametrize("value", [math.nan, math.inf, b"bytes", np.float32(1), {1, 2}, "\ud800"])
def test_what_json_cannot_say_is_not_signed(shipped, make_evidence, value):
    """NaN and friends are refused when they are signed, not when somebody reads them."""
    evidence = replace(make_evidence(shipped.manifest), measured={"x": value})

    with pytest.raises((InvalidInput, BundleRefused), match=r"cannot be written as JSON|half of a surrogate"):
        shipped.sign(evidence)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"check": "Parity"}, "check must be a name"),
        ({"check": "a/b"}, "check must be a name"),
        ({"subjects": {}}, "subject must have 1 to 1,000 items"),
        ({"subjects": {"task": "abc"}}, "must be a SHA-256"),
        ({"subjects": {"": "0" * 64}}, "must have 1 to 255 characters"),
        ({"summary": ""}, "summary must have 1 to 1000 characters"),
        ({"summary": "two\nlines"}, "summary must be one line"),
        ({"verdict": "great"}, "verdict must be one of passed, failed, undecided, unproven"),
    ],
)
def test_evidence_that_no_reader_takes_is_not_signed(shipped, make_evidence, changes, reason):
    """The writer keeps the reader's rules."""
    with pytest.raises(BundleRefused, match=reason):
        shipped.sign(replace(make_evidence(shipped.manifest), **changes))


def test_a_time_without_a_zone_is_not_signed(shipped, make_evidence):
    """A local time means nothing on another machine."""
    with pytest.raises(BundleRefused, match="created must be an RFC 3339 time with a zone"):
        sign_evidence(make_evidence(shipped.manifest), key=shipped.key, created="2026-01-31T12:00:00", machine={})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda s: s.update(_type="https://in-toto.io/Statement/v0.1"), "_type must be"),
        (lambda s: s.update(predicateType="urn:lightship:evidence:accuracy:v1"), "predicateType must be .*parity:v1"),
        (lambda s: s.update(predicateType="urn:lightship:evidence:parity:v2"), "predicateType must be .*parity:v1"),
        (lambda s: s.update(predicateType="https://slsa.dev/provenance/v1"), "predicateType must be"),
        (lambda s: s["predicate"].update(check="accuracy"), "predicateType must be .*accuracy:v1"),
        (lambda s: s["predicate"].update(extra=1), "unknown key 'extra'"),
        (lambda s: s["predicate"].pop("machine"), "lacks the key 'machine'"),
        (lambda s: s["predicate"].update(verdict="PASSED"), "verdict must be one of"),
        (lambda s: s["predicate"].update(measured=[]), "measured must be an object"),
        (lambda s: s["predicate"].update(created="yesterday"), "created must be an RFC 3339 time"),
        (lambda s: s.update(extra=1), "unknown key 'extra'"),
        (lambda s: s["subject"].append(s["subject"][0]), "twice"),
        (lambda s: s["subject"][0]["digest"].update(sha512="0"), "unknown key 'sha512'"),
        (lambda s: s["subject"][0]["digest"].update(sha256="0" * 63), "must be a SHA-256"),
        (lambda s: s["subject"][0].update(uri="x"), "unknown key 'uri'"),
    ],
)
def test_a_signed_statement_of_another_form_is_refused(shipped, make_evidence, change, reason):
    """A right signature does not make other statements ours."""
    statement = payload_of(shipped.sign(make_evidence(shipped.manifest)))
    change(statement)
    envelope = seal(json.dumps(statement).encode(), payload_type=PAYLOAD_TYPE, key=shipped.key)

    with pytest.raises(BundleRefused, match=reason):
        open_evidence(envelope, trust=shipped.trust)


@pytest.mark.parametrize("payload", [b"not json", b'{"_type":1,"_type":1}', b"[]", b'{"x":NaN}', b"1e999"])
def test_a_signed_payload_that_is_no_statement_is_refused(shipped, payload):
    """Signed nonsense is nonsense."""
    with pytest.raises(BundleRefused, match=r"^evidence "):
        open_evidence(seal(payload, payload_type=PAYLOAD_TYPE, key=shipped.key), trust=shipped.trust)


def test_a_release_is_no_evidence(shipped):
    """The type of the payload is signed, so one kind cannot be passed off as the other."""
    with pytest.raises(BundleRefused, match=r"must have the payloadType 'application/vnd\.in-toto"):
        open_evidence(shipped.store.get(shipped.release_digest), trust=shipped.trust)


def test_a_long_summary_is_cut_between_words(shipped, make_evidence):
    """One line of a thousand characters, which a reader takes, with no half of a word at its end."""
    words = summary_of("int8-static: loses 40 points;\n" * 60)

    assert 960 < len(words) <= 1000
    assert words.rpartition(" ")[0].rpartition(" ")[2] in ("int8-static", "loses", "40", "points")
    assert summary_of("a" * 2000) == "a" * 998 + " …"
    assert summary_of("short") == "short"
    opened, _ = open_evidence(
        shipped.sign(replace(make_evidence(shipped.manifest), summary=words)), trust=shipped.trust
    )
    assert opened.summary == words
