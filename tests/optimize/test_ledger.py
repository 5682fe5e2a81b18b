"""A search that was stopped goes on where it was."""

from __future__ import annotations

from itertools import count

import pytest

from lightship.errors import LightshipError, Refused
from lightship.optimize.ledger import Interrupted, Ledger


def test_work_is_done_once(tmp_path):
    """The second ledger on the folder finds value, time and graph of the first."""
    first = Ledger(tmp_path, clock=count(step=2).__next__)
    first.keep_graph("int8", b"graph")

    assert first.recall("a", lambda: {"figure": 1.5}) == {"figure": 1.5}
    again = Ledger(tmp_path)
    assert again.recall("a", lambda: pytest.fail("done before")) == {"figure": 1.5}
    assert again.spent_s == first.spent_s == 2
    assert again.graph("int8").read_bytes() == b"graph"


def test_failure_is_kept_too(tmp_path):
    """What an engine cannot run is not tried again; the first time the error keeps its kind."""

    def fail() -> None:
        raise Refused("no such operator")

    with pytest.raises(Refused, match="no such operator"):
        Ledger(tmp_path).recall("a", fail)
    with pytest.raises(LightshipError, match="no such operator"):
        Ledger(tmp_path).recall("a", lambda: pytest.fail("done before"))


def test_line_that_a_crash_cut_is_as_if_never_written(tmp_path):
    """It is done again, and what follows does not grow onto the half line."""
    ledger = Ledger(tmp_path)
    ledger.recall("a", lambda: 1)
    ledger.recall("b", lambda: 2)
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(path.read_bytes()[:-5])

    again = Ledger(tmp_path)
    assert again.recall("a", lambda: pytest.fail("done before")) == 1
    assert again.recall("b", lambda: 3) == 3
    assert Ledger(tmp_path).recall("b", lambda: pytest.fail("done before")) == 3


def test_interrupt_leaves_nothing(tmp_path):
    """What was under way is done again."""

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Ledger(tmp_path).recall("a", stop)
    assert Ledger(tmp_path).recall("a", lambda: 1) == 1


@pytest.mark.parametrize("line", [b"garbage", b"\0" * 512, b"[1, 2]", b'{"key": 1, "value": {}, "seconds": 1}', b"{}"])
def test_damaged_line_is_as_if_never_written(tmp_path, line):
    """As a power cut leaves it; the lines round it count."""
    ledger = Ledger(tmp_path)
    ledger.recall("a", lambda: 1)
    with (tmp_path / "ledger.jsonl").open("ab") as file:
        file.write(line + b"\n")
    ledger.recall("b", lambda: 2)

    again = Ledger(tmp_path)
    assert again.knows("a")
    assert again.knows("b")


def test_what_was_killed_may_succeed_another_time(tmp_path):
    """A helper that ran out of memory once must not lose its variant for good."""

    def killed() -> None:
        raise Interrupted("killed by signal 9")

    ledger = Ledger(tmp_path)
    with pytest.raises(Interrupted):
        ledger.recall("a", killed)
    assert not ledger.knows("a")
    assert Ledger(tmp_path).recall("a", lambda: 1) == 1
