"""What servers use to find a version."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest

from lightship.data.home import Home
from lightship.errors import NotFound, Refused
from lightship.registry.database import open_database
from lightship.registry.resolve import Resolved, resolve


def test_the_three_forms_of_a_reference_are_resolved(home, registry, add, digest):
    """A bare name is its production; an alias and a version are themselves."""
    add()
    add()
    registry.promote("digits", 2, "staging", who="ada")
    bundles, releases = zip(*((one.bundle, one.release) for one in registry.versions("digits")), strict=True)

    assert resolve(home, "digits") == Resolved("digits", 1, bundles[0], releases[0], "production")
    assert resolve(home, "digits@staging") == Resolved("digits", 2, bundles[1], releases[1], "staging")
    assert resolve(home, "digits:2") == Resolved("digits", 2, bundles[1], releases[1], None)


def test_what_is_missing_is_answered_with_what_exists(home, registry, add):
    """The message helps to type it right the next time."""
    with pytest.raises(NotFound, match="the registry is empty"):
        resolve(home, "digits")
    for name in ("digits", "my-model", "flowers"):
        add(name)

    for reference, message in {
        "digts": "Did you mean digits",
        "my_model": "Did you mean my-model",
        "zzz": "There is: digits, flowers, my-model",
        "digits@staging": "Its aliases: production",
        "digits:7": "Its versions: 1",
    }.items():
        with pytest.raises(NotFound, match=message):
            resolve(home, reference)


def test_a_home_without_a_registry_is_not_found(tmp_path):
    """The message names the file, and nothing is made."""
    with pytest.raises(NotFound, match=r"There is no registry at .*registry\.db"):
        resolve(Home(tmp_path), "digits")

    assert list(tmp_path.iterdir()) == []


def test_resolving_loads_neither_sqlalchemy_nor_alembic(home, registry, add):
    """Serving pays for no library that it does not use."""
    add()
    program = (
        "import sys; from pathlib import Path; from lightship.data.home import Home\n"
        "from lightship.registry.resolve import resolve\n"
        f"print(resolve(Home(Path({str(home.root)!r})), 'digits').version)\n"
        "print([m for m in ('sqlalchemy', 'alembic', 'numpy', 'httpx') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30)

    assert done.stdout.split("\n")[:2] == ["1", "[]"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to read-only folders")
def test_a_read_only_home_can_be_read_by_permission(home, registry, add):
    """Modes that forbid writing do not disturb a reader."""
    add()
    home.registry.chmod(0o444)
    home.root.chmod(0o555)
    try:
        assert resolve(home, "digits").version == 1
        with open_database(home, read_only=True) as reader:
            assert reader.verify_history().ok
    finally:
        home.root.chmod(0o755)


def test_reading_leaves_no_trace_in_the_home(home, registry, add):
    """A reader makes no lock, journal or other file, so a read-only mount serves."""
    add()
    registry.close()
    home.registry.with_name("registry.db.lock").unlink()
    before = {path.name: path.stat().st_mtime_ns for path in home.root.iterdir()}

    assert resolve(home, "digits").version == 1
    with open_database(home, read_only=True) as reader:
        assert reader.models()[0].latest == 1

    assert {path.name: path.stat().st_mtime_ns for path in home.root.iterdir()} == before


def test_a_newer_schema_is_refused(home, registry, add):
    """An older program does not guess at tables that it does not know."""
    add()
    set_revision(home, "0999")

    for use in (lambda: resolve(home, "digits"), lambda: open_database(home)):
        with pytest.raises(Refused, match=r"has schema 0999; this program knows up to .* A newer Lightship"):
            use()


def set_revision(home, revision):
    """Write another schema revision into the file."""
    with closing(sqlite3.connect(home.registry)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (revision,))
