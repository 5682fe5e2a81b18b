"""Many writers, sudden death and damaged files."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

from lightship.errors import LightshipError, NotFound, Refused, Unavailable
from lightship.registry.database import open_database
from lightship.registry.resolve import resolve
from lightship.registry.sqlite import connect_writer, write_lock

WRITER = Path(__file__).with_name("writer.py")


@pytest.fixture
def writers(home):
    """Return a process that starts writers on command; see ``writer.py``."""
    process = subprocess.Popen(
        [sys.executable, str(WRITER), str(home.root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        yield process
        process.stdin.close()


def command(process, text):
    """Send a line."""
    process.stdin.write(f"{text}\n")
    process.stdin.flush()


def integrity(home):
    """Return what SQLite says after reading everything."""
    with closing(sqlite3.connect(home.registry)) as connection:
        return connection.execute("PRAGMA integrity_check").fetchone()[0]


@pytest.mark.parametrize(("processes", "rounds"), [(2, 25), (8, 12)])
def test_processes_that_release_at_once_get_consecutive_numbers(home, writers, processes, rounds):
    """No number twice, none left out, no error to any of them; they also make the file at once."""
    command(writers, f"run {processes} {rounds}")
    lines = list(iter(writers.stdout.readline, f"done {[0] * processes}\n"))

    numbers = sorted(int(line) for line in lines)
    assert numbers == list(range(1, processes * rounds + 1))
    with open_database(home, read_only=True) as registry:
        assert registry.verify_history().ok
        assert [record.version for record in registry.versions("digits")] == numbers
    assert {path.name for path in home.root.iterdir()} == {"registry.db", "registry.db.lock", "keys", "trust"}


def test_threads_that_share_a_registry_get_consecutive_numbers(registry, digest):
    """One object serves many threads."""
    numbers: list[int] = []

    def work(thread: int) -> None:
        for turn in range(5):
            bundle = digest(f"{thread} {turn}")
            numbers.append(
                registry.add_version("digits", bundle=bundle, release=bundle, who="ada", accept_unproven=True).version
            )

    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(numbers) == list(range(1, 21))


def test_what_was_acknowledged_survives_kill_9(home, registry, writers):
    """Whenever the writer dies, every number it printed is there, the file is whole and the chain holds."""
    moments = random.Random(20260301)
    acknowledged: set[int] = set()
    for death in range(1, 11):
        command(writers, "endless")
        pid = int(writers.stdout.readline().removeprefix("pid "))
        lines = [writers.stdout.readline()]
        timer = threading.Timer(moments.uniform(0.0, 0.1), os.kill, (pid, signal.SIGKILL))
        timer.start()
        lines += iter(writers.stdout.readline, "dead\n")
        timer.join()
        acknowledged |= {int(line) for line in lines}

        assert resolve(home, "digits").version == 1
        there = {record.version for record in registry.versions("digits")}
        assert acknowledged <= there
        assert len(there - acknowledged) <= death  # at most one a death: written, but not told any more
        assert there == set(range(1, len(there) + 1))
        assert registry.verify_history().ok
        assert integrity(home) == "ok"


def test_a_reader_undoes_a_write_that_was_cut_off(home, registry, add, tmp_path):
    """The journal of a killed writer is rolled back by the next reader, which sees the state before."""
    add()
    with closing(connect_writer(home.registry)) as connection:
        connection.execute("PRAGMA cache_size=1")  # so that pages reach the file before the commit
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("DELETE FROM aliases")
        connection.executemany("INSERT INTO gate_looks VALUES (?, ?, '')", [(str(n), "x" * 500) for n in range(200)])
        for suffix in ("", "-journal"):  # what a crash at this moment would leave
            shutil.copy(f"{home.registry}{suffix}", tmp_path / f"registry.db{suffix}")
        connection.execute("ROLLBACK")
    for suffix in ("", "-journal"):
        shutil.copy(tmp_path / f"registry.db{suffix}", f"{home.registry}{suffix}")

    assert resolve(home, "digits").version == 1
    assert not home.registry.with_name("registry.db-journal").exists()


def test_writers_use_the_safest_settings(home, registry):
    """What the connection says, not what we asked for; also after a tool has changed the file to a write-ahead log."""
    with closing(sqlite3.connect(home.registry)) as tool:
        assert tool.execute("PRAGMA journal_mode=WAL").fetchone() == ("wal",)
    with closing(connect_writer(home.registry)) as connection:
        found = {
            name: connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("journal_mode", "synchronous", "foreign_keys", "trusted_schema", "busy_timeout")
        }

    extra = 3
    assert found == {
        "journal_mode": "delete",
        "synchronous": extra,
        "foreign_keys": 1,
        "trusted_schema": 0,
        "busy_timeout": 5000,
    }


def spoil_into_nothing(data: bytes) -> bytes:
    """Return no bytes at all."""
    return b""


def spoil_all(data: bytes) -> bytes:
    """Return noise."""
    return random.Random(1).randbytes(len(data))


def spoil_end(data: bytes) -> bytes:
    """Return the first half."""
    return data[: len(data) // 2]


def spoil_middle(data: bytes) -> bytes:
    """Return the first page and a bit, then noise."""
    return data[:5000] + random.Random(2).randbytes(len(data) - 5000)


def spoil_zeros(data: bytes) -> bytes:
    """Return zeros."""
    return bytes(len(data))


@pytest.mark.parametrize("spoil", [spoil_into_nothing, spoil_all, spoil_end, spoil_middle, spoil_zeros])
def test_a_damaged_file_is_refused_and_left_alone(home, registry, add, spoil):
    """The message names the file and the way out; the bytes stay, for whoever can still save something."""
    add()
    registry.close()
    spoiled = spoil(home.registry.read_bytes())
    home.registry.write_bytes(spoiled)

    with pytest.raises(LightshipError, match=r"registry\.db is damaged: .* Put a copy from your backup"):
        open_database(home)
    with pytest.raises(LightshipError, match="is damaged"):
        registry.promote("digits", 1, "staging", who="ada")

    assert home.registry.read_bytes() == spoiled


@pytest.mark.parametrize("spoil", [spoil_into_nothing, spoil_all, spoil_end, spoil_zeros])
def test_a_server_refuses_a_damaged_file_too(home, registry, add, spoil):
    """The quick way to a version gives the same message."""
    add()
    registry.close()
    home.registry.write_bytes(spoil(home.registry.read_bytes()))

    with pytest.raises(LightshipError, match=r"registry\.db is damaged"):
        resolve(home, "digits")


def test_a_database_of_something_else_is_refused(home):
    """A file of the right name with other tables is not filled with ours."""
    home.root.mkdir()
    with closing(sqlite3.connect(home.registry)) as connection, connection:
        connection.execute("CREATE TABLE recipes (name)")
    before = home.registry.read_bytes()

    with pytest.raises(Refused, match="no Lightship registry"):
        open_database(home)

    assert home.registry.read_bytes() == before


def test_a_folder_in_place_of_the_file_is_an_error_with_its_name(home):
    """No traceback, no change."""
    home.registry.mkdir(parents=True)

    with pytest.raises(LightshipError, match=r"registry\.db"):
        open_database(home)


def test_a_file_that_is_taken_away_is_not_made_anew(home, registry, add):
    """An open registry whose file is gone says so; an empty one in its place would hide the loss."""
    add()
    home.registry.unlink()

    with pytest.raises(NotFound, match="There is no registry"):
        registry.models()
    with pytest.raises(LightshipError, match=r"registry\.db"):
        registry.promote("digits", 1, "staging", who="ada")
    assert not home.registry.exists()


def test_a_second_writer_is_told_when_the_place_stays_taken(home, registry):
    """A process that holds the lock for too long does not make others wait for ever."""
    with (
        write_lock(home.registry),
        pytest.raises(Unavailable, match=r"Another process has been writing .* for 0\.05 s"),
        write_lock(home.registry, timeout_s=0.05),
    ):
        pass
    with write_lock(home.registry, timeout_s=5):  # who gave up does not hold the place later
        pass


def test_another_program_that_locks_the_file_is_reported(home, registry, add, monkeypatch):
    """A foreign tool with the file open for writing leads to "try again", not to a traceback."""
    add()
    monkeypatch.setattr("lightship.registry.sqlite.BUSY_MS", 50)
    with closing(sqlite3.connect(home.registry, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(Unavailable, match="Another program has held the registry"):
            registry.promote("digits", 1, "staging", who="ada")
        with pytest.raises(Unavailable, match="Another program has held the registry"):
            resolve(home, "digits")
        other.execute("ROLLBACK")

    assert registry.promote("digits", 1, "staging", who="ada").changed
