"""Versions, aliases, promotion, rollback and the history."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lightship.data.home import Home
from lightship.errors import Conflict, GateRefused, InvalidInput, LightshipError, NotFound
from lightship.registry import database as registry_module
from lightship.registry.database import open_database
from lightship.registry.names import Reference
from lightship.registry.records import AliasMove, EvidenceRow


def test_versions_count_from_one(registry, digest):
    """Each new bundle gets the next number, and is found again with all that was said of it."""
    row = EvidenceRow("accuracy", "passed", "0.981 [0.974, 0.987]", digest("evidence"))
    first = registry.add_version(
        "digits", bundle=digest("b1"), release=digest("r1"), evidence=[row], who="ada", why="new", note="first try"
    )
    second = registry.add_version("digits", bundle=digest("b2"), release=digest("r2"), who="bob")

    assert (first.version, second.version) == (1, 2)
    record = registry.versions("digits")[0]
    assert (record.bundle, record.release) == (digest("b1"), digest("r1"))
    assert record.evidence == (row,)
    assert (record.created_by, record.note, record.created) == ("ada", "first try", "2026-03-01T12:00:00.000000Z")


def test_the_first_version_becomes_production_and_later_ones_do_not(registry, add):
    """Nothing goes live by itself but the first."""
    add()
    add()

    assert registry.alias("digits").version == 1
    assert registry.versions("digits")[0].aliases == ("production",)
    assert registry.models()[0].aliases == {"production": 1}


def test_the_release_record_may_be_made_from_the_number(registry, digest):
    """A function gets the number that the version will have, so that a signed record can hold it."""
    registered = registry.add_version("digits", bundle=digest("b"), release=lambda n: digest(f"v{n}"), who="ada")

    assert registered.release == digest("v1")


def test_nothing_is_registered_when_the_release_record_cannot_be_made(registry, add, digest):
    """An error in the function leaves no version, no line and no number used."""

    def fails(version: int) -> str:
        raise GateRefused("no key to sign with")

    with pytest.raises(GateRefused, match="no key"):
        registry.add_version("digits", bundle=digest("b"), release=fails, who="ada")

    assert registry.models() == ()
    assert add() == 1
    assert registry.verify_history().ok


def test_the_same_bundle_is_one_version(registry, digest):
    """Registering a bundle again answers with the version that it has and writes nothing."""
    registry.add_version("digits", bundle=digest("b"), release=digest("r"), who="ada")
    before = registry.history()

    again = registry.add_version("digits", bundle=digest("b"), release=digest("other"), who="bob")

    assert (again.version, again.is_new, again.release) == (1, False, digest("r"))
    assert registry.history() == before


def test_one_bundle_may_stand_under_two_names(registry, digest):
    """Names are independent."""
    for name in ("digits", "numbers"):
        assert registry.add_version(name, bundle=digest("b"), release=digest(name), who="ada").is_new


def test_a_taken_version_is_a_conflict(registry, add, digest):
    """A number that exists, or is below one that does, is not given again."""
    add(version=5)

    for version in (3, 5):
        with pytest.raises(
            Conflict, match=f"Version {version} of 'digits' is taken or was passed over: the latest is 5"
        ):
            registry.add_version("digits", bundle=digest("new"), release=digest("r"), who="ada", version=version)

    assert add() == 6


def test_a_bundle_cannot_get_a_second_number(registry, add, digest):
    """Asking for another number for a bundle that has one is a conflict, not a second version."""
    registry.add_version("digits", bundle=digest("b"), release=digest("r"), who="ada")

    with pytest.raises(Conflict, match="is version 1 of 'digits' already, not 2"):
        registry.add_version("digits", bundle=digest("b"), release=digest("r"), who="ada", version=2)


def test_names_that_read_alike_cannot_coexist(registry, add):
    """``my-model`` and ``my_model`` would be mixed up sooner or later."""
    add("my-model")

    with pytest.raises(Conflict, match="'my_model' reads like 'my-model'"):
        add("my_model")

    assert [model.name for model in registry.models()] == ["my-model"]


@pytest.mark.parametrize("bad", ["", "sha256:abc", "md5:" + "0" * 64, "sha256:" + "A" * 64])
def test_what_is_no_digest_is_refused(registry, digest, bad):
    """A bundle and a release are named by SHA-256."""
    with pytest.raises(InvalidInput, match="64 hex digits"):
        registry.add_version("digits", bundle=bad, release=digest("r"), who="ada")
    with pytest.raises(InvalidInput, match="64 hex digits"):
        registry.add_version("digits", bundle=digest("b"), release=lambda _: bad, who="ada")


@pytest.mark.parametrize(("field", "text"), [("who", " "), ("who", "a" * 201), ("why", "\x1b[2J"), ("note", "a\ud800"),
                                             ("why", "x" * 5000)])  # fmt: skip
def test_texts_that_would_spoil_a_terminal_are_refused(registry, digest, field, text):
    """Who, why and note are printable and not endless."""
    texts = {"who": "ada", field: text}
    with pytest.raises(InvalidInput, match=f"`{field}` must"):
        registry.add_version("digits", bundle=digest("b"), release=digest("r"), **texts)


def test_promote_moves_an_alias(registry, add):
    """The answer says from where to where; doing it again changes nothing and leaves no line."""
    add()
    add()

    assert registry.promote("digits", 2, who="ada", why="better") == AliasMove("digits", "production", 1, 2, True)
    lines = len(registry.history().entries)
    assert registry.promote("digits", 2, who="ada") == AliasMove("digits", "production", 2, 2, False)
    assert len(registry.history().entries) == lines
    assert registry.promote("digits", 1, "staging", who="ada") == AliasMove("digits", "staging", None, 1, True)


def test_an_unproven_version_needs_consent(registry, add):
    """Without the flag, a version that lacks evidence, or has none at all, cannot become production."""
    add()
    add(unproven=True)
    add(bare=True)

    for version in (2, 3):
        with pytest.raises(GateRefused, match=rf"digits:{version} was released unproven.*--accept-unproven"):
            registry.promote("digits", version, who="ada")
    assert registry.alias("digits").version == 1
    assert registry.promote("digits", 2, who="ada", why="trial", accept_unproven=True).changed
    assert registry.history("digits").entries[-1].why == "trial [accepted as unproven]"


def test_an_unproven_first_version_is_production_only_when_somebody_accepts_it(registry, add):
    """The place stays free for the first version that may have it, whichever way that comes."""
    add(unproven=True)
    add(bare=True)
    with pytest.raises(NotFound, match="no production"):
        registry.alias("digits")

    add()

    assert registry.alias("digits").version == 3
    assert add(name="leaves", unproven=True, accept_unproven=True) == 1
    assert registry.alias("leaves").version == 1
    assert registry.history("leaves").entries[-1].why == "first version [accepted as unproven]"


def test_registering_an_unproven_bundle_again_with_consent_makes_it_production(registry, digest):
    """The same file, imported once more with the flag, takes the free place; a third time changes nothing."""
    bundle = {"bundle": digest("b"), "release": digest("r"), "who": "ada", "unproven": True}
    assert registry.add_version("digits", **bundle).alias is None

    again = registry.add_version("digits", **bundle, accept_unproven=True)

    assert (again.version, again.is_new, again.alias) == (1, False, "production")
    assert registry.add_version("digits", **bundle, accept_unproven=True).alias is None
    assert registry.verify_history().ok


def test_consent_given_once_does_not_move_production_by_itself(registry, add):
    """A later unproven version goes live by `promote` only, even when its import accepted that it is unproven."""
    add()
    add(unproven=True, accept_unproven=True)

    assert registry.alias("digits").version == 1


def test_a_rollback_is_no_way_round_the_consent(registry, add):
    """Back to a version that somebody accepted is fine; to one that nobody did needs the flag, for that alias."""
    add(unproven=True)
    add()
    registry.promote("digits", 1, who="ada", accept_unproven=True)
    registry.promote("digits", 2, who="ada")
    assert registry.rollback("digits", who="bob").to_version == 1

    with registry._writer.begin() as connection:  # as versions were promoted before consent was asked for
        record = registry_module._find(connection, Reference("digits", None, 1))
        now = "2026-03-02T00:00:00.000000Z"
        move = {"at": now, "who": "old", "action": "promote", "why": ""}
        registry_module._move(connection, record, "live", None, **move)
        second = registry_module._find(connection, Reference("digits", None, 2))
        registry._sign(connection, registry_module._move(connection, second, "live", 1, **move))
    with pytest.raises(GateRefused, match="rollback digits --accept-unproven"):
        registry.rollback("digits", "live", who="bob")
    assert registry.rollback("digits", "live", who="bob", accept_unproven=True).to_version == 1
    assert registry.history("digits").entries[-1].why == "[accepted as unproven]"


def test_rollback_goes_back_step_by_step(registry, add):
    """Twice means two versions back, never forth again; at the start there is nothing left."""
    for _ in range(3):
        add()
    registry.promote("digits", 3, who="ada")
    registry.promote("digits", 2, who="ada")

    assert registry.rollback("digits", who="ada", why="slow").to_version == 3
    assert registry.rollback("digits", who="ada").to_version == 1
    with pytest.raises(Conflict, match="had no version before its version 1"):
        registry.rollback("digits", who="ada")


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 3), max_size=12))
def test_aliases_behave_like_a_stack_of_versions(tmp_path_factory, digest, steps):
    """Any mix of promotions and rollbacks (0) agrees with a plain list."""
    with open_database(Home(tmp_path_factory.mktemp("stack"))) as registry:
        for number in range(3):
            registry.add_version(
                "digits", bundle=digest(number), release=digest(number), who="ada", accept_unproven=number == 0
            )
        stack = [1]
        for step in steps:
            if step:
                registry.promote("digits", step, who="ada", accept_unproven=True)
                stack += [step] if stack[-1] != step else []
            elif len(stack) > 1:
                registry.rollback("digits", who="ada")
                stack.pop()

        assert registry.alias("digits").version == stack[-1]
        assert registry.verify_history().ok


def test_history_tells_what_was_live_at_any_time(registry, add, clock):
    """Each moment answers with the versions of that moment, in every way a moment can be written."""
    add()
    clock.move(days=1)
    add()
    registry.promote("digits", 2, who="ada")
    clock.move(days=1)
    registry.rollback("digits", who="bob", why="complaints")

    def live(at: object) -> list[int]:
        return [item.version for item in registry.history("digits", at=at).live]

    assert live("2026-02-28") == []
    assert live("2026-03-01") == [1]
    assert live(datetime(2026, 3, 2, 12, tzinfo=UTC) - timedelta(microseconds=1)) == [1]
    assert live(datetime(2026, 3, 2, 12, tzinfo=UTC)) == [2]
    assert live("2026-03-02T23:59:59Z") == [2]
    assert live("2026-03-03") == live(None) == [1]
    last = registry.history().entries[-1]
    assert (last.who, last.why, last.action, last.from_version, last.to_version) == (
        "bob",
        "complaints",
        "rollback",
        2,
        1,
    )


def test_the_history_never_goes_back_in_time(registry, add, clock):
    """A clock that was set back does not put a line before the one it follows."""
    add()
    clock.move(hours=-5)
    add()

    times = [entry.at for entry in registry.history().entries]
    assert times == sorted(times)
    assert registry.verify_history().ok


def test_the_history_names_the_evidence(registry, digest):
    """A line says on which evidence the version stood."""
    row = EvidenceRow("accuracy", "passed", "good", digest("evidence"))
    registry.add_version("digits", bundle=digest("b"), release=digest("r"), evidence=[row], who="ada")

    assert {entry.evidence for entry in registry.history().entries} == {(digest("evidence"),)}


def test_looks_at_a_gate_are_counted_once_a_subject(registry):
    """The same graph measured again is no new look; another graph, or another gate set, is."""
    counts = [registry.count_look(gate, subject) for gate, subject in ["gx", "gy", "gx", "hx", "gz"]]

    assert counts == [1, 2, 2, 1, 3]


def test_what_is_not_there_is_answered_with_what_is(registry, add):
    """A wrong name, alias or version is answered with the near or the known ones."""
    with pytest.raises(NotFound, match="the registry is empty"):
        registry.versions("digits")
    add()
    for reference, message in {
        "digit": "Did you mean digits",
        "digits@stage": "aliases: production",
        "digits:4": "versions: 1",
    }.items():
        with pytest.raises(NotFound, match=message):
            registry.find(reference)
    with pytest.raises(NotFound, match="no version 4"):
        registry.promote("digits", 4, who="ada")
    with pytest.raises(NotFound, match="no alias 'staging'"):
        registry.rollback("digits", "staging", who="ada")


def test_a_registry_opened_to_read_refuses_to_write(registry, add, home):
    """It answers questions and changes nothing."""
    add()

    with open_database(home, read_only=True) as reader:
        assert reader.alias("digits").version == 1
        with pytest.raises(LightshipError, match="opened to read only"):
            reader.promote("digits", 1, who="ada")


def test_opening_to_read_makes_nothing(tmp_path):
    """Looking at a home that has no registry leaves no file behind."""
    with pytest.raises(NotFound, match="There is no registry"):
        open_database(Home(tmp_path / "home"), read_only=True)

    assert list(tmp_path.iterdir()) == []
