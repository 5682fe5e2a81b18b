"""The history finds what was done to it behind the registry's back."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing

import pytest

from lightship.data.files import canonical_json, sha256_hex
from lightship.registry.chain import GENESIS

TRIGGERS = ["history_no_update", "history_no_delete", "history_only_at_end", "versions_no_update", "versions_no_delete",
            "versions_no_replace"]  # fmt: skip

COPIED = ["at", "who", "action", "name", "version", "alias", "from_version", "to_version", "bundle", "release", "why",
          "evidence", "prev_hash", "hash"]  # fmt: skip


@pytest.fixture
def filled(registry, add):
    """A registry with eight lines of history."""
    for _ in range(3):
        add()
    registry.promote("digits", 2, who="ada", why="better")
    registry.promote("digits", 3, who="ada")
    registry.rollback("digits", who="bob")
    registry.promote("digits", 3, "staging", who="bob")
    assert registry.verify_history().count == 8
    return registry


def tamper(registry, *statements):
    """Change the file as somebody would who knows SQLite and wants no trigger in the way."""
    with closing(sqlite3.connect(registry.path)) as connection, connection:
        for trigger in TRIGGERS:
            connection.execute(f"DROP TRIGGER {trigger}")
        for statement in statements:
            connection.execute(statement)


def test_an_untouched_history_verifies(filled):
    """No false alarm, and the head is the hash of the last line."""
    check = filled.verify_history()

    assert check.ok
    assert check.head == filled.history().entries[-1].hash


def test_a_stranger_can_recompute_the_chain(filled):
    """The hash is SHA-256 over the canonical JSON of the line without its hash, as the docs say."""
    previous = GENESIS
    with closing(sqlite3.connect(filled.path)) as connection:
        connection.row_factory = sqlite3.Row
        rows = [dict(row) for row in connection.execute("SELECT * FROM history ORDER BY seq")]
    for row in rows:
        claimed = row.pop("hash")
        row["evidence"] = json.loads(row["evidence"])
        assert row["prev_hash"] == previous
        assert claimed == "sha256:" + sha256_hex(canonical_json(row))
        previous = claimed


@pytest.mark.parametrize("column", ["at", "who", "action", "name", "alias", "bundle", "release", "why"])
def test_an_edit_of_any_text_is_found(filled, column):
    """Whichever field is changed, the line is named."""
    tamper(filled, f"UPDATE history SET {column} = '2026-03-01T12:00:00.000001Z' WHERE seq = 5")

    assert any("Line 5 of the history was changed" in problem for problem in filled.verify_history().problems)


@pytest.mark.parametrize("column", ["version", "from_version", "to_version"])
def test_an_edit_of_any_number_is_found(filled, column):
    """Whichever number is changed, the line is named."""
    tamper(filled, f"UPDATE history SET {column} = 9 WHERE seq = 5")

    assert any("Line 5 of the history was changed" in problem for problem in filled.verify_history().problems)


@pytest.mark.parametrize(
    ("statements", "message"),
    [
        (["UPDATE history SET evidence = '[\"x\"]' WHERE seq = 2"], "Line 2 of the history was changed"),
        (["DELETE FROM history WHERE seq = 4"], "Between line 3 and line 5"),
        (["DELETE FROM history WHERE seq = 1"], "Between line 0 and line 2"),
        (["DELETE FROM history WHERE seq = 8"], "ends at line 7; its head says 8"),
        (["DELETE FROM history"], "ends at line 0; its head says 8"),
        (["DELETE FROM history WHERE seq = 8", "UPDATE chain_head SET lines = 7"], "not the one that its head names"),
        (["DELETE FROM chain_head"], "its head says 0"),
        (
            ["DELETE FROM history WHERE seq = 4", "UPDATE history SET seq = seq - 1 WHERE seq > 4"],
            "Line 4 of the history does not follow",
        ),
        (
            [
                "UPDATE history SET seq = 99 WHERE seq = 6",
                "UPDATE history SET seq = 6 WHERE seq = 7",
                "UPDATE history SET seq = 7 WHERE seq = 99",
            ],
            "Line 6 of the history does not follow",
        ),
        (
            ["INSERT INTO history SELECT * FROM (SELECT 9, " + ", ".join(COPIED) + " FROM history WHERE seq = 8)"],
            "Line 9 of the history does not follow",
        ),
        (["UPDATE versions SET bundle = 'sha256:00' WHERE version = 2"], "digits:2 has other digests"),
        (["UPDATE versions SET release = 'sha256:00' WHERE version = 2"], "digits:2 has other digests"),
        (["DELETE FROM aliases", "DELETE FROM versions WHERE version = 2"], "digits:2 is in the history only"),
        (
            ["UPDATE aliases SET version = 1 WHERE alias = 'production'"],
            "digits@production points to 1; by the history",
        ),
        (["DELETE FROM aliases WHERE alias = 'staging'"], "digits@staging points to None; by the history it is 3"),
    ],
)
def test_every_other_kind_of_tampering_is_found(filled, statements, message):
    """Removed, cut off, moved and copied lines, and tables that say something else than the history."""
    tamper(filled, *statements)

    check = filled.verify_history()
    assert not check.ok
    assert any(message in problem for problem in check.problems), check.problems


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("UPDATE history SET who = 'eve'", "append-only"),
        ("DELETE FROM history", "append-only"),
        ("INSERT OR REPLACE INTO history SELECT * FROM history WHERE seq = 3", "grows at its end"),
        ("UPDATE versions SET unproven = 0", "never changes"),
        ("DELETE FROM versions", "never removed"),
        ("INSERT OR REPLACE INTO versions SELECT * FROM versions", "never changes"),
    ],
)
def test_the_database_itself_refuses_careless_changes(filled, statement, message):
    """Triggers stop a tool that does not know the rules."""
    with (
        closing(sqlite3.connect(filled.path)) as connection,
        pytest.raises(sqlite3.IntegrityError, match=message),
    ):
        connection.execute(statement)
