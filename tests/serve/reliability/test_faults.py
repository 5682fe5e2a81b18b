"""What must come back does, and a machine that fails takes no answer with it."""

from __future__ import annotations

import faults
import large_answers
import leaks
import pytest
from releases import network, promote, release
from rig import Rig, tensor_question
from tests.serve.reliability.conftest import missed

GRAPHS = {1: network(1, width=512, layers=4), 2: network(2, width=512, layers=4)}


@pytest.fixture
def two_versions(home):
    """Return a home with two versions, the first in production."""
    for graph in GRAPHS.values():
        release(home, faults.NAME, graph)
    promote(home, faults.NAME, 1)
    return home


def test_reloads_keep_no_memory(home, scratch, figures):
    """A version that is gone is gone, with its bytes, files and threads."""
    leaks.reloads(home, scratch, figures, cycles=6, width=1024)

    assert missed(figures) == []


def test_clients_that_go_leave_no_trace(home, scratch, figures):
    """In the head, in the body, in the queue or while the model runs (FI-09)."""
    release(home, "heavy", network(3, width=1024, layers=6))

    leaks.disconnects(home, scratch, figures, times=300)

    assert missed(figures) == []


def test_without_files_the_connected_are_served(two_versions, scratch, figures):
    """No busy loop, no flood of lines, health on the control port, and it recovers (FI-19)."""
    faults.out_of_files(two_versions, scratch, figures, graphs=GRAPHS, seconds=0.5)

    assert missed(figures) == []


def test_a_log_that_nobody_reads_stops_nothing(two_versions, scratch, figures):
    """Lines are dropped and counted (FI-28)."""
    faults.log_stalls(two_versions, scratch, figures, graphs=GRAPHS, seconds=1.0)

    assert missed(figures) == []


def test_a_stop_needs_no_reader_of_the_log(two_versions, scratch, figures):
    """SIGTERM with a full pipe ends the server all the same."""
    faults.stopped_with_full_pipe(two_versions, scratch, figures)

    assert missed(figures) == []


def test_the_wall_clock_may_jump(two_versions, scratch, figures):
    """An hour forth, back, ten years ahead: deadlines and signs of life do not notice (FI-24)."""
    faults.moved_clock(two_versions, scratch, figures, graphs=GRAPHS)

    assert missed(figures) == []


def test_a_large_answer_holds_up_nobody(home, scratch, figures):
    """128 KiB of row numbers make 165 MB of JSON; who asks for something else meanwhile is answered as usual."""
    graphs = {1: network(1)}
    release(home, "digits", graphs[1])
    large_answers.release_wide(home, scratch)
    with Rig(home, "digits", "wide", log=scratch / "serve.log") as rig:
        large_answers.one_read(rig, figures, [tensor_question("digits", 1, graphs)], binary=False)

    assert missed(figures) == []
