"""Lines of the log: as many as somebody reads, the rest counted, and nobody waits for a reader."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

from lightship.serve.log_lines import LineWriter


@pytest.fixture
def pipe():
    """Return both ends of a pipe."""
    reading, writing = os.pipe()
    yield reading, writing
    for end in (reading, writing):
        os.close(end)


def test_lines_beyond_the_bound_are_dropped_and_counted(pipe):
    """Nobody reads for a while: `put` does not wait, and what was dropped is told when there is room."""
    reading, writing = pipe
    writer = LineWriter(writing, most_waiting=100)
    began = time.monotonic()
    for index in range(50_000):  # the pipe holds some two thousand
        writer.put([{"event": "line", "index": index}])
    assert time.monotonic() - began < 5

    with open(reading, closefd=False) as file:
        seen: list[int] = []
        dropped = 0
        while len(seen) + dropped < 50_000:
            line = json.loads(file.readline())
            if line["event"] == "line":
                seen.append(line["index"])
            else:
                dropped += line["count"]
    writer.close(timeout_s=5)

    assert seen == sorted(seen)
    assert len(seen) + dropped == 50_000
    assert dropped > 40_000


def test_a_log_that_cannot_be_written_is_told_when_it_can(tmp_path, pipe):
    """A full disk: the writer goes on, and counts."""
    reading, writing = pipe
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        writer = LineWriter(full)
        writer.put([{"event": "lost"}] * 3)
        time.sleep(0.2)
        os.dup2(writing, full)
        writer.put([{"event": "kept", "file": "\udc80"}])
        writer.close(timeout_s=5)
    finally:
        os.close(full)
    kept, dropped = (json.loads(line) for line in os.read(reading, 4096).splitlines())

    assert kept == {"event": "kept", "file": "\udc80"}
    assert (dropped["event"], dropped["count"]) == ("dropped lines", 3)


def test_a_process_whose_log_nobody_reads_ends(pipe):
    """By itself, half a second later; what libraries warn of is a line too."""
    reading, writing = pipe
    script = """
import logging
from lightship.serve.log_lines import log_to_stderr
log_to_stderr()
logging.getLogger("asyncio").warning("of a library")
for index in range(2000):
    logging.getLogger("lightship").info("%d %s", index, "x" * 200)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stderr=writing)
    assert process.wait(10) == 0
    first = json.loads(os.read(reading, 4096).splitlines()[0])

    assert (first["event"], first["level"], first["logger"]) == ("of a library", "warning", "asyncio")
