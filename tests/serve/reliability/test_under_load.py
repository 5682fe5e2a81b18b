"""Versions that change, stops, dead workers and slow clients while others are being served: nobody loses an answer."""

from __future__ import annotations

import os
import signal
import time

import pytest
import reload
import slow_clients
import stop
import workers
from load import Generator, finished
from releases import deadly, network, release
from rig import CACHE, Rig, tensor_question, until
from tests.serve.reliability.conftest import missed
from traffic import Traffic

GRAPHS = {1: network(1, width=512, layers=4), 2: network(2, width=512, layers=4)}


@pytest.fixture
def two_versions(home):
    """Return a home with two versions of different weights."""
    for graph in GRAPHS.values():
        release(home, reload.NAME, graph)
    return home


def test_versions_change_and_every_answer_is_its_versions_own(two_versions, scratch, figures):
    """Over HTTP on kept and new connections and over gRPC, each version in a new process (FI-12)."""
    reload.good_reloads(two_versions, scratch, figures, reloads=2, graphs=GRAPHS, keep=False, rate=80.0, steady_s=1.0)

    assert missed(figures) == []


def test_versions_that_must_not_serve_change_nothing(two_versions, scratch, figures):
    """A flipped bit, half a graph, wrong answers, too large: the old version goes on, the reason is told (FI-13)."""
    reload.failed_reloads(two_versions, scratch, figures, times=4, graphs=GRAPHS, rate=80.0)

    assert missed(figures) == []


def test_a_stop_loses_nothing_that_was_accepted(home, scratch):
    """Neither a queue of long requests, nor half a body, nor what comes while connections are still taken (FI-01)."""
    graphs = {1: network(1, width=1024, layers=4)}
    release(home, stop.NAME, graphs[1])

    found = stop.one_stop(home, scratch, graphs, rate=40.0)

    assert found.lost == []
    assert found.late == {}
    assert found.code == 0
    assert found.long_ok == 12
    assert found.said_close
    assert found.unready_ms < 500  # the goal is 100; a busy machine asks later
    assert found.exit_s < stop.DRAIN_S + 1


def test_a_dead_worker_costs_a_delay(home, scratch, figures):
    """Under load, and another model does not notice (FI-04)."""
    for seed, name in enumerate(("digits", "other")):
        release(home, name, network(seed, width=512, layers=4))

    workers.kills(home, scratch, figures, number=signal.SIGKILL, times=1)

    assert missed(figures) == []


def test_on_one_core_a_full_queue_hides_nothing(home, scratch):
    """There the server sleeps beside a busy worker: an answer, a death and another model must wake it."""
    graphs = {name: {1: network(seed, width=1024, layers=4)} for seed, name in enumerate(("busy", "other"))}
    for name, versions in graphs.items():
        release(home, name, versions[1])
    asked, calm = (tensor_question(name, 1, versions) for name, versions in graphs.items())
    (scratch / "busy.request").write_bytes(asked.request)
    with Rig(home, "busy", "other", log=scratch / "core.log", core=0) as rig:
        until(lambda: rig.control("/readyz")[0] == 200)
        load = Generator(CACHE, core=None).start(
            rig.address, scratch / "busy.request", connections=200, seconds=3, warm_up=0.5
        )
        with Traffic(rig.address, [calm], rate=10, fresh=0.05) as traffic:
            time.sleep(1.5)
            os.kill(rig.model("busy")["worker_pids"][0], signal.SIGKILL)
            found = finished(load)
        deaths = rig.model("busy")["worker_deaths"], rig.model("other")["worker_deaths"]

    assert rig.process.returncode == 0
    assert deaths == (1, 0)
    assert found.statuses["ok"] > 0
    assert found.statuses["broken"] == found.statuses["other"] == found.statuses["unanswered"] == 0
    assert traffic.result.failed == []


def test_a_poison_in_batches_of_sixteen_costs_nobody_else_an_answer(home, scratch, figures):
    """Nor does it cost the others of the same model anything but time (FI-05)."""
    release(home, "other", network(1, width=512, layers=4))
    release(home, "deadly", deadly())

    workers.poison(home, scratch, figures, rounds=1)

    assert missed(figures) == []


def test_slow_clients_take_no_place_from_good_ones(figures):
    """Far more than there are connections, silent, with a trickling head or body (FI-07)."""
    quick = ("--limit", "connections=250", "--limit", "head_s=2", "--limit", "body_s=2", "--limit", "slow_body_s=2")
    slow_clients.slow(figures, count=450, options=quick, steady_s=1.0, opening_s=2.0)

    assert missed(figures) == []
