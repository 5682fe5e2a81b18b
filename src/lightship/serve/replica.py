"""One worker of a model version and the batches that are in it.

A model version has one, or several that take batches from one queue: when one of them dies, the others go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Sequence
from typing import Protocol

from lightship.errors import WorkerFailed
from lightship.serve.limits import Clocks
from lightship.serve.source import ModelSource
from lightship.serve.supervisor import Supervisor
from lightship.serve.wire import Done, Measured, Message, Tune
from lightship.serve.work import Batch, Work, batch_message
from lightship.serve.worker_process import WorkerProcess

__all__ = ["Owner", "Replica"]

log = logging.getLogger(__name__)


class Owner(Protocol):
    """Whose requests a replica runs."""

    def replica_up(self) -> None:
        """A worker is ready for batches."""

    def replica_down(self, batches: Sequence[Batch]) -> bool:
        """A worker died with these batches; return whether one input is known to be what killed it."""

    def ran(self, batch: Batch, done: Done, payload: memoryview) -> None:
        """A worker has run a batch."""

    def too_late(self, work: Work) -> None:
        """The deadline of a request has passed."""


class Replica:
    """One worker, kept alive, and its batches.

    Attributes:
        life: what starts the worker, and starts it again.
        worker: only while it takes batches.
        running: the batches that it has, in the order in which it runs them.
    """

    def __init__(self, source: ModelSource, owner: Owner, *, clocks: Clocks, threads: int, memory_bytes: int) -> None:
        self.life = Supervisor(source, self, clocks=clocks, threads=threads, memory_bytes=memory_bytes)
        self.worker: WorkerProcess | None = None
        self.running: dict[int, Batch] = {}
        self._owner = owner
        self._clocks = clocks
        self._title = f"{source.name}:{source.version}"
        self._batches = 0
        self._measured: asyncio.Future[Measured | None] | None = None

    async def close(self) -> None:
        """End the worker."""
        self._gone()
        await self.life.close()

    def _gone(self) -> None:
        self.worker = None
        if self._measured is not None and not self._measured.done():
            self._measured.set_result(None)

    # What its supervisor tells

    def worker_up(self, worker: WorkerProcess) -> None:
        """A worker is ready: it may be sent what waits."""
        self.worker = worker
        self._owner.replica_up()

    def worker_down(self) -> bool:
        """The worker is no more; return whether one input is known to be what killed it."""
        self._gone()
        batches, self.running = list(self.running.values()), {}
        return self._owner.replica_down(batches)

    def worker_says(self, message: Message, payload: memoryview) -> None:
        """The worker has run a batch.

        Raises:
            WorkerFailed: it was not sent that one.
        """
        if not isinstance(message, Done):
            if isinstance(message, Measured) and self._measured is not None and not self._measured.done():
                self._measured.set_result(message)
            return
        batch = self.running.pop(message.batch, None)
        if batch is None:
            raise WorkerFailed(f"The worker answered the batch {message.batch}, which it was not sent.")
        self.life.good_batch()
        for behind in self.running.values():
            behind.since_s = asyncio.get_running_loop().time()  # it is its turn only now
        self._owner.ran(batch, message, payload)

    # Batches

    def send(self, items: list[Work], now: float) -> bool:
        """Send a batch to its worker; return whether there is one and it took it. If not, the batch has not run."""
        worker = self.worker
        if worker is None:
            return False
        self._batches += 1
        batch = Batch(self._batches, items, now)
        self.running[batch.number] = batch
        try:
            worker.send(*batch_message(batch.number, items))
        except OSError as exc:
            log.error("the worker of %s does not take a batch: %s", self._title, exc)
            del self.running[batch.number]  # it is not what the worker died of
            self.worker = None
            self.life.lost()
            return False
        return True

    async def measure(self, rows: Sequence[int], *, budget_ms: int) -> dict[int, float] | None:
        """Return rows a second by batch, or nothing when a request came between, or the worker went."""
        if self.worker is None:
            return None
        self._measured = asyncio.get_running_loop().create_future()
        try:
            self.worker.send(Tune(tuple(rows), budget_ms))
            found = await self._measured
        except OSError:
            return None
        if found is None or not found.whole or not found.rows:
            return None
        return {count: count * 1e6 / took for count, took in zip(found.rows, found.run_us, strict=True)}

    # Clocks

    def next_s(self) -> float:
        """Return when a deadline of its batches passes, or the first of them has taken too long."""
        next_s = math.inf
        for index, batch in enumerate(self.running.values()):
            next_s = min(next_s, batch.deadline_s, math.inf if index else batch.kill_s(self._clocks))
        return next_s

    def look(self, now: float) -> None:
        """Tell requests whose deadline has passed; have a worker replaced that does not come to an end."""
        for batch in self.running.values():
            if batch.deadline_s <= now:
                self._batch_late(batch, now)
        first = next(iter(self.running.values()), None)  # those behind it have not had their turn
        if first is not None and now >= first.kill_s(self._clocks):
            self.life.kill_worker("hangs" if first.over_s is None else "does not stop a batch nobody waits for")
            first.killed = True

    def _batch_late(self, batch: Batch, now: float) -> None:
        """Answer those of its requests whose time is up. When nobody waits for it any more, it has to end."""
        for item in batch.items:
            if item.deadline_s <= now and not item.over:
                self._owner.too_late(item)
        late = (item.deadline_s for item in batch.items if not item.over)
        batch.deadline_s = min(late, default=math.inf)
        if batch.deadline_s == math.inf and self.worker is not None:
            batch.over_s = now
            with contextlib.suppress(OSError):  # then its death is told soon
                self.worker.stop(batch.number)
