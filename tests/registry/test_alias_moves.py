"""Who may write the registry's file cannot make an alias point elsewhere: the move is signed, or nobody follows it."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from dataclasses import asdict

import pytest

from lightship.bundle.signing import PrivateKey
from lightship.errors import BundleRefused
from lightship.registry.alias_moves import signed_move
from lightship.registry.chain import sealed
from lightship.registry.database import open_database
from lightship.registry.records import HistoryEntry
from lightship.registry.resolve import resolve

POINTS_TO_1 = "UPDATE aliases SET version = 1 WHERE alias = 'production'"


@pytest.fixture
def live(registry, add):
    """A registry whose production was moved from version 1 to 2."""
    add()
    add()
    registry.promote("digits", 2, who="ada", why="better")
    return registry


def change(registry, *statements):
    """Write into the file, as somebody who may, and who has no key."""
    with closing(sqlite3.connect(registry.path)) as connection, connection:
        for statement in statements:
            connection.execute(*statement) if isinstance(statement, tuple) else connection.execute(statement)


def forged(registry) -> HistoryEntry:
    """Return the line that a promotion to version 1 would have written now, with its hash."""
    last = registry.history().entries[-1]
    first = registry.history().entries[0]
    return sealed(
        HistoryEntry(
            **{
                **asdict(last),
                "seq": last.seq + 1,
                "version": 1,
                "from_version": 2,
                "to_version": 1,
                "bundle": first.bundle,
                "release": first.release,
                "evidence": first.evidence,
                "prev_hash": last.hash,
                "hash": "",
            }
        )
    )


def write_line(registry, entry: HistoryEntry, *more) -> None:
    """Write a whole line, its head and the alias, as the registry itself would."""
    row = {**asdict(entry), "evidence": json.dumps(entry.evidence)}
    places = ", ".join(f":{name}" for name in row)
    change(
        registry,
        (f"INSERT INTO history ({', '.join(row)}) VALUES ({places})", row),
        ("UPDATE chain_head SET lines = ?, hash = ?", (entry.seq, entry.hash)),
        POINTS_TO_1,
        *more,
    )


def refused_everywhere(registry, home, why: str) -> None:
    """Hold that nothing follows the alias, that verification tells, and that a version by its number is there."""
    for follow in (
        lambda: resolve(home, "digits"),
        lambda: registry.find("digits"),
        lambda: registry.alias("digits"),
        lambda: registry.rollback("digits", who="bob"),
    ):
        with pytest.raises(BundleRefused, match=why):
            follow()
    assert any(why in problem for problem in registry.verify_history().problems)
    assert resolve(home, "digits:1").version == 1


def test_a_moved_alias_is_not_followed_until_somebody_promotes(live, home):
    """The error says how to put it right, and that works also for the version that it was moved to."""
    change(live, POINTS_TO_1)

    refused_everywhere(live, home, "its last signed move made it version 2")
    with pytest.raises(BundleRefused, match=r"lightship promote digits:VERSION --alias production"):
        resolve(home, "digits")
    assert live.promote("digits", 1, who="ada", why="yes, really").changed
    assert resolve(home, "digits").version == 1
    assert live.verify_history().ok


def test_a_whole_line_that_nobody_signed_is_not_followed(live, home):
    """Hashes can be computed by everybody, so the chain alone holds."""
    write_line(live, forged(live))

    assert not any("Line" in problem for problem in live.verify_history().problems)
    refused_everywhere(live, home, "Nobody has signed that digits@production is version 1")


def test_a_signature_of_another_line_does_not_serve(live, home):
    """The first move to version 1 was signed, once; it is no licence to go back there."""
    entry = forged(live)
    write_line(
        live, entry, ("INSERT INTO alias_moves SELECT ?, envelope FROM alias_moves ORDER BY seq LIMIT 1", (entry.seq,))
    )

    refused_everywhere(live, home, f"line {entry.seq} of the history is not the one that was signed")


def test_a_signature_of_a_stranger_does_not_serve(live, home):
    """A key that nobody here trusts."""
    entry = forged(live)
    envelope = signed_move(entry, key=PrivateKey.generate())
    write_line(live, entry, ("INSERT INTO alias_moves VALUES (?, ?)", (entry.seq, envelope)))

    refused_everywhere(live, home, "not trusted")


def test_a_removed_signature_is_no_way_back_to_unsigned_aliases(live, home):
    """Opening the registry again signs nothing that has lost its signature."""
    change(live, "DELETE FROM alias_moves", POINTS_TO_1)

    open_database(home).close()
    refused_everywhere(live, home, "Nobody has signed")


def older(registry) -> None:
    """Make the file what a program wrote that did not sign."""
    change(registry, "DROP TABLE alias_moves", "UPDATE alembic_version SET version_num = '0001'")


def test_an_old_registry_goes_on(live, home):
    """Its aliases are signed when it is brought up to date, once its history was found to hold."""
    older(live)

    with open_database(home) as registry:
        assert registry.verify_history().ok
        assert registry.alias("digits").version == 2
    assert resolve(home, "digits").version == 2


def test_an_old_registry_whose_history_does_not_hold_is_not_signed(live, home):
    """What was changed before is not vouched for; nothing is followed until somebody says where it should point."""
    older(live)
    change(live, POINTS_TO_1)

    with pytest.raises(BundleRefused, match="are not signed, for its history does not hold: digits@production points"):
        open_database(home)
    with open_database(home) as registry:
        with pytest.raises(BundleRefused, match=r"Nobody has signed|last signed move"):
            registry.alias("digits")
        registry.promote("digits", 2, who="ada")
        assert registry.alias("digits").version == 2
