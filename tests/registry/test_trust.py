"""What a version is, is what was signed of it: the registry's own columns can be changed by who may write its file."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest

from lightship.bundle.digest import Digest
from lightship.data.home import Home
from lightship.errors import BundleRefused, GateRefused, InvalidInput, NotFound
from lightship.registry.records import EvidenceRow

FORGED = "digits:2 is proven; its signed release is structural"


def tamper(home: Home, statement: str, *values: object) -> None:
    """Change the registry as somebody who may write its file can."""
    with closing(sqlite3.connect(home.registry)) as connection:
        names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger' AND tbl_name = 'versions'")
        for (name,) in names.fetchall():
            connection.execute(f"DROP TRIGGER {name}")
        connection.execute(statement, values)
        connection.commit()


@pytest.fixture
def forged(home, registry, add):
    """Return the registry, where somebody wrote that the structural version 2 is proven."""
    add()
    add(unproven=True)
    tamper(home, "UPDATE versions SET unproven = 0 WHERE version = 2")
    return registry


@pytest.fixture
def show(home, monkeypatch):
    """Return a function that runs ``lightship show``."""
    monkeypatch.setenv("LIGHTSHIP_HOME", str(home.root))
    command = [sys.executable, "-m", "lightship.cli.main", "show"]
    return lambda *arguments: subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)


def test_a_forged_column_does_not_make_a_version_proven(forged):
    """Neither for production nor for another alias; and consent to what was forged is none."""
    for alias, options in (("production", {}), ("staging", {}), ("production", {"accept_unproven": True})):
        with pytest.raises(BundleRefused, match=FORGED):
            forged.promote("digits", 2, alias, who="mallory", **options)

    assert forged.alias("digits").version == 1
    assert [model.aliases for model in forged.models()] == [{"production": 1}]


def test_a_rollback_is_no_way_round_a_forged_column(home, registry, add):
    """Also when the version before was live with consent."""
    add(unproven=True, accept_unproven=True)
    add()
    registry.promote("digits", 2, who="ada")
    tamper(home, "UPDATE versions SET unproven = 0 WHERE version = 1")

    with pytest.raises(BundleRefused, match="digits:1 is proven; its signed release is structural"):
        registry.rollback("digits", who="ada", accept_unproven=True)


def test_show_says_what_was_signed_and_that_the_registry_says_otherwise(forged, show):
    """On stdout what holds, on stderr the contradiction, exit code 6."""
    text, as_json = show("digits:2"), show("digits:2", "--json")
    said = json.loads(as_json.stdout)

    assert (text.returncode, as_json.returncode) == (6, 6)
    assert "unproven" in text.stdout
    assert FORGED in text.stderr
    assert (said["unproven"], said["signed"]["status"]) == (True, "structural")
    assert FORGED in said["problem"]
    assert show("digits:1").returncode == 0


def test_forged_verdicts_are_found(home, registry, add, show):
    """The evidence that is shown is the signed one; a promotion is refused."""
    add()
    add()
    forged = [{"check": "accuracy", "verdict": "passed", "summary": "1.000", "digest": "sha256:" + "0" * 64}]
    tamper(home, "UPDATE versions SET evidence = ? WHERE version = 2", json.dumps(forged))

    with pytest.raises(BundleRefused, match=r"digits:2 rests on accuracy passed \(sha256:000000000000\); its signed"):
        registry.promote("digits", 2, who="mallory")
    done = show("digits:2")
    assert (done.returncode, "1.000" in done.stdout, "good" in done.stdout) == (6, False, True)


def test_the_good_release_of_another_version_does_not_help(home, registry, add, show):
    """A release is of one name, version and bundle."""
    add()
    add(unproven=True)
    (good, _) = registry.versions("digits")
    tamper(home, "UPDATE versions SET unproven = 0, release = ? WHERE version = 2", good.release)

    with pytest.raises(BundleRefused, match="is of digits:1"):
        registry.promote("digits", 2, who="mallory", accept_unproven=True)
    done = show("digits:2")
    assert done.returncode == 6
    assert "is of digits:1" in done.stderr
    assert "not verified" in done.stdout


def test_what_is_registered_is_what_the_release_says(registry, sign):
    """No argument makes a structural release proven; the evidence is read from the release."""
    bundle, record, row = sign(status="structural")
    registered = registry.add_version(
        "digits", bundle=bundle, release=record, evidence=[row], who="ada", unproven=False
    )
    other_bundle, other_record, other_row = sign(seed="2")
    registry.add_version("digits", bundle=other_bundle, release=other_record, who="ada")

    first, second = registry.versions("digits")
    assert registered.alias is None
    assert (first.unproven, second.unproven) == (True, False)
    assert second.evidence == (other_row,)
    assert registry.alias("digits").version == 2  # the place was free for it


@pytest.mark.parametrize(
    "other", [{"verdict": "failed"}, {"summary": "better"}, {"check": "latency"}, {"digest": "sha256:" + "0" * 64}]
)
def test_other_evidence_than_the_releases_is_refused(registry, sign, other):
    """Nothing is registered then."""
    bundle, record, row = sign()
    given = {"check": row.check, "verdict": row.verdict, "summary": row.summary, "digest": row.digest, **other}

    with pytest.raises(InvalidInput, match="must be what its signed release lists: accuracy"):
        registry.add_version("digits", bundle=bundle, release=record, evidence=[EvidenceRow(**given)], who="ada")
    assert registry.models() == ()


def test_the_release_of_a_stranger_is_refused(registry, sign, tmp_path):
    """Who signed it has to be trusted by this home."""
    bundle, record, _ = sign(signer=tmp_path / "keys")

    with pytest.raises(BundleRefused, match="trust"):
        registry.add_version("digits", bundle=bundle, release=record, who="mallory", accept_unproven=True)
    assert registry.models() == ()


def test_a_release_that_is_not_there_proves_nothing(home, registry, add, show):
    """Consent goes on, a column does not."""
    add()
    add()
    release = Digest.parse(registry.versions("digits")[1].release)
    next(home.store.rglob(release.hex)).unlink()

    with pytest.raises(GateRefused, match=rf"digits:2 was released unproven: its signed release {release} is not in"):
        registry.promote("digits", 2, who="ada")
    done = show("digits:2")
    assert "not in the store" in done.stdout
    assert "not verified" in done.stdout


@pytest.mark.parametrize("consent", ["no", "yes", 1, object()])
def test_only_true_is_consent(registry, add, consent):
    """A text is none, whatever it says."""
    add(unproven=True, accept_unproven=consent)
    with pytest.raises(NotFound, match="no production"):
        registry.alias("digits")
    with pytest.raises(GateRefused, match="--accept-unproven"):
        registry.promote("digits", 1, who="ada", accept_unproven=consent)
    registry.promote("digits", 1, who="ada", accept_unproven=True)
    add()
    registry.promote("digits", 2, who="ada")
    assert registry.rollback("digits", who="ada", accept_unproven=consent).to_version == 1  # it was accepted before
