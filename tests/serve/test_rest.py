"""When the server leaves its core to the workers, and when it must not."""

from __future__ import annotations

import asyncio
import select
import socket
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from lightship.serve.rest import Rest


@dataclass
class Model:
    """A model as ``Rest`` sees it."""

    sated: bool = False
    hungry: bool = False
    worker_descriptors: tuple[int, ...] = ()


@pytest.fixture
def rests(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return how long the server was ready to rest, each time; real sockets are polled."""
    times: list[float] = []
    real = select.poll

    class Poll:
        def __init__(self) -> None:
            self._poll = real()
            self.register = self._poll.register

        def poll(self, ms: float) -> list[tuple[int, int]]:
            times.append(ms)
            return self._poll.poll(ms)

    monkeypatch.setattr(select, "poll", Poll)
    return times


@pytest.fixture
def worker() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Return both ends of a worker's channel."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def _asked(*models: Model, times: int = 1, listener: int | None = None) -> None:
    async def ask() -> None:
        rest = Rest(lambda: models, lambda: listener)
        for _ in range(times):
            rest.soon()
        await asyncio.sleep(0)

    asyncio.run(ask())


def test_it_rests_once_however_many_requests_came(rests: list[float]) -> None:
    """A sleep for each request would add up to seconds."""
    _asked(Model(sated=True), times=5)
    assert rests == [10]


def test_more_models_wait_for_each_other_no_longer(rests: list[float]) -> None:
    """A second model's requests wait half as long."""
    _asked(Model(sated=True), Model())
    assert rests == [5]


@pytest.mark.parametrize("model", [Model(), Model(hungry=True)], ids=["idle", "hungry"])
def test_it_does_not_rest_while_a_worker_could_have_work(rests: list[float], model: Model) -> None:
    """A server that sleeps beside an idle engine loses what it wanted to win."""
    _asked(model)
    assert rests == []


def test_a_hungry_worker_goes_before_the_rest_of_another(rests: list[float]) -> None:
    """One overloaded model must not keep work from another."""
    _asked(Model(sated=True), Model(hungry=True))
    assert rests == []


def test_a_worker_that_answers_ends_it(
    monkeypatch: pytest.MonkeyPatch, worker: tuple[socket.socket, socket.socket]
) -> None:
    """Resting on the wrong descriptor would leave the engine idle: here for ever, so the test would time out."""
    monkeypatch.setattr("lightship.serve.rest._LONGEST_MS", 3_600_000)
    ours, theirs = worker
    theirs.send(b"done")
    _asked(Model(sated=True, worker_descriptors=(ours.fileno(),)), Model())


def test_a_client_that_connects_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop takes one connection a turn: a thousand at once would wait for as many sleeps."""
    monkeypatch.setattr("lightship.serve.rest._LONGEST_MS", 3_600_000)
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()):
        _asked(Model(sated=True), listener=listener.fileno())
