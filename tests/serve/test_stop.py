"""SIGTERM at any moment: exit code 0, no traceback, no worker left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from lightship.data.home import Home
from lightship.registry.database import open_database

DEADLINE_S = 30.0


def children_of(pid: int) -> set[int]:
    """Return the processes that a process has started and that were not reaped."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == pid:
                found.add(int(entry.name))
    return found


def lives(pid: int) -> bool:
    """Return whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.fixture
def start(home, tmp_path) -> Iterator:
    """Return a function that starts ``lightship serve`` and does not wait."""
    started: list[subprocess.Popen[bytes]] = []

    def go(*arguments: str) -> tuple[subprocess.Popen[bytes], Path]:
        log = tmp_path / f"{len(started)}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "lightship.cli.main", "serve", *arguments, "--auth", "none", "--port", "0"],
                env={**os.environ, "LIGHTSHIP_HOME": str(home.root), "OMP_NUM_THREADS": "1"},
                stdout=output,
                stderr=output,
            )
        started.append(process)
        return process, log

    yield go
    for process in started:
        process.kill()
        process.wait(DEADLINE_S)


def live_still(pids: set[int]) -> list[int]:
    """Return which of these processes live on for two seconds; one that has just begun needs a moment to see it."""
    until = time.monotonic() + 2.0
    while (left := [pid for pid in pids if lives(pid)]) and time.monotonic() < until:
        time.sleep(0.01)
    return left


@pytest.mark.parametrize("times", [1, 2])
def test_at_any_time_while_it_starts(start, times):
    """Whatever it was doing: importing, verifying, loading, just ready."""
    problems = []
    for step in range(6):
        process, log = start("digits")
        until = time.monotonic() + DEADLINE_S
        while not log.exists() or not children_of(process.pid):  # from here on it has a worker
            assert time.monotonic() < until
            assert process.poll() is None
            time.sleep(0.005)
        time.sleep(step * 0.11)
        workers = children_of(process.pid)
        for _ in range(times):
            process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        code = process.wait(DEADLINE_S)
        took_s = time.monotonic() - began
        left = live_still(workers)
        if code != 0 or "Traceback" in log.read_text() or left or took_s > (2.5 if times == 1 else 1.6):
            problems.append((step, code, took_s, left, log.read_text()))

    assert problems == []


def test_while_a_version_is_loaded(tmp_path, release_model, launch):
    """The new worker goes too."""
    home = Home(tmp_path / "home").ensure()
    release_model(home, "digits")
    release_model(home, "digits", mean="0.5", golden_mean="0.5")
    server = launch(home, "digits", "--auth", "none")
    before = children_of(server.process.pid)
    with open_database(home) as registry:
        registry.promote("digits", 2, who="test", accept_unproven=True)
    until = time.monotonic() + DEADLINE_S
    while len(workers := children_of(server.process.pid)) == len(before):
        assert time.monotonic() < until
        time.sleep(0.002)

    server.process.terminate()

    assert server.process.wait(DEADLINE_S) == 0
    assert live_still(workers) == []
    assert "Traceback" not in server.log.read_text()


def test_a_hangup_is_no_stop(home, launch):
    """Tools send SIGHUP to have settings read again; here they are followed without it, and nobody is cut off."""
    server = launch(home, "digits", "--auth", "none")

    server.process.send_signal(signal.SIGHUP)

    assert httpx.get(f"{server.url}/readyz").status_code == 200
    server.process.terminate()
    assert server.process.wait(DEADLINE_S) == 0
    assert "SIGHUP" in server.log.read_text()


def test_a_second_signal_ends_it_within_a_second(home, launch):
    """Although a request is still running that would take long."""
    import socket

    server = launch(home, "digits", "--auth", "none")
    with socket.create_connection(server.address) as sock:
        sock.sendall(b"POST /predict/digits HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc")
        time.sleep(0.1)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.6)
        assert server.process.poll() is None
        server.process.send_signal(signal.SIGINT)
        began = time.monotonic()

        assert server.process.wait(DEADLINE_S) == 0
        assert time.monotonic() - began < 1.5
