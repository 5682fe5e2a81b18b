"""One model version being served: its queue, and the requests under way. The hot path of the server.

Everything here runs on the event loop and nothing waits: requests come in through ``submit`` with a callback, batches
leave over a worker's socket, and the loop wakes when a worker answers, a deadline passes or a worker dies.
Requests of a worker that dies are run once more, each alone: if one of them is what kills it, the others get their
answers. A worker and its batches are a ``replica``; keeping it alive is the business of ``supervisor``.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import math
from collections.abc import Callable, Mapping, Sequence

from lightship.engine.machine import usable_cores
from lightship.errors import (
    DeadlineExceeded,
    InvalidTensor,
    LightshipError,
    Overloaded,
    TooLarge,
    Unavailable,
    WorkerFailed,
)
from lightship.serve.access import ApiKey
from lightship.serve.batcher import BatchBounds, Batcher
from lightship.serve.limits import Clocks, Limits
from lightship.serve.metrics import ModelFigures
from lightship.serve.poisoners import Poisoners
from lightship.serve.quarantine import Quarantine
from lightship.serve.replica import Replica
from lightship.serve.rest import Rest
from lightship.serve.source import ModelSource
from lightship.serve.supervisor import State
from lightship.serve.tensors import ITEM_BYTES
from lightship.serve.wire import Done
from lightship.serve.work import (
    Answer,
    Batch,
    Parts,
    Room,
    Told,
    Work,
    error_named,
    split_answers,
)
from lightship.serve.worker_process import WorkerProcess
from lightship.tasks.registry import load_task
from lightship.types import Interface

__all__ = ["Answer", "ServedModel", "State", "Told", "Work"]

log = logging.getLogger(__name__)

_DEFAULT_BATCH = 32  # until it is measured
_SETTLE_S = 0.05  # after a death: what killed one worker from outside may have killed others, which is told soon


class ServedModel:
    """One model version. ``start`` before use, ``close`` after.

    Args:
        workers: how many take batches from its queue.
        threads: of the engine of each.
        memory_bytes: that each may hold.
        rest: told of requests that change nothing before the worker has run its batch; where it shares our core.
    """

    def __init__(
        self,
        source: ModelSource,
        *,
        limits: Limits,
        clocks: Clocks,
        depth: int | None = None,
        workers: int = 1,
        threads: int | None = None,
        memory_bytes: int = 0,
        rest: Rest | None = None,
    ) -> None:
        self.source = source
        self.name = source.name
        self.version = str(source.version)
        self.interface: Interface = source.interface
        task = source.manifest.task
        self.task = load_task(task.name, task.codec_version, task.config)
        self.figures = ModelFigures()
        self._limits = limits
        self._answer_row_bytes = _row_bytes(source) or 0
        self._sized = _row_bytes(source) is not None  # else an answer is looked at when it is there
        # With more it is looked at why.
        self._most_rows = min(limits.rows_per_request, limits.answer_bytes // (self._answer_row_bytes or 1))
        self._clocks = clocks
        self._room = Room(limits.answers_bytes)
        self._rest = rest
        self._replicas = tuple(
            Replica(source, self, clocks=clocks, threads=threads or usable_cores(), memory_bytes=memory_bytes)
            for _ in range(workers)
        )
        self._batcher = Batcher[Work](
            BatchBounds(
                batch_rows=min(source.batch_rows, _DEFAULT_BATCH) or 1,
                queue_items=limits.queue_requests,
                queue_bytes=limits.queue_bytes,
            )
        )
        self._whole_rows = min(self._most_rows, self._batcher.bounds.batch_rows)  # of a request that is not cut
        # With a second core the next batch crosses, and is encoded, while the last one runs.
        self._depth = depth or min(2, usable_cores())
        self._started = self._closed = False
        self.coming = 0  # requests that were let in and are not read yet
        self._suspects: set[Work] = set()  # what was in a worker that died, until it has run alone
        self._quarantine = Quarantine()
        self._poisoners = Poisoners()
        self.rows_per_s: Mapping[int, float] | None = None  # by batch, once it is measured
        self._pump_soon = False
        self._collected = -1  # how many waited in the last turn of the loop
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop

    # Life

    async def start(self, worker: WorkerProcess | None = None, *, background: bool = False) -> None:
        """Start the workers and wait until each has passed its self-test.

        Args:
            worker: a process that was spawned already, for the first.
            background: load with a lower priority, for others are being served.

        Raises:
            BundleRefused: it failed the self-test, and so did the reference where it may stand in; the message names
                the golden input.
            LightshipError: it cannot load the graph, or died.
        """
        self._loop = asyncio.get_running_loop()
        first, *others = self._replicas
        try:
            await first.life.start(worker, background=background)
        except LightshipError as exc:
            if self.source.fallback is None:
                raise
            await self._fall_back(self.source.fallback, exc, background=background)
        try:
            for replica in others:  # one after the other: each takes the cores, and memory, to load
                await replica.life.start(background=background)
        except BaseException:
            await asyncio.gather(*(replica.close() for replica in self._replicas))
            raise
        self._started = True

    async def _fall_back(self, read: Callable[[], ModelSource], why: LightshipError, *, background: bool) -> None:
        """Let the bundle's reference answer, because the variant that it proposes does not work on this machine."""
        proposed = self.source.variant.name
        log.error(
            "%s:%s falls back to its reference, for the variant %s does not work on this machine: %s "
            "(--strict-variant refuses to serve it then)",
            *(self.name, self.version, proposed, why),
        )
        reference = await asyncio.to_thread(read)
        self._set_source(dataclasses.replace(reference, instead_of=(proposed, str(why))))
        await self._replicas[0].life.start(background=background)

    def _set_source(self, source: ModelSource) -> None:
        self.source = source
        for replica in self._replicas:
            replica.life.source = source

    async def close(self) -> None:
        """End the workers. What still waits is answered 503."""
        self._closed = True
        for replica in self._replicas:
            replica.worker = None
        for work in self._works():
            work.finish(None, Unavailable(f"The model {self.name} is being stopped."))
        if self._timer is not None:
            self._timer.cancel()
        await asyncio.gather(*(replica.close() for replica in self._replicas))
        # Nothing runs it again, and whoever still holds this object should not hold the graph with it.
        self._set_source(dataclasses.replace(self.source, graph=b"", golden=(), expected=(), fallback=None))

    @property
    def state(self) -> State:
        """Where it is in its life: once all of its workers have started, it is ready while one of them is."""
        states = [replica.life.state for replica in self._replicas]
        if State.READY in states:
            return State.READY if self._started else State.STARTING
        return states[0]

    @property
    def ready(self) -> bool:
        """Whether a request would be run now."""
        return self.state is State.READY

    @property
    def worker_pids(self) -> tuple[int, ...]:
        """The processes of its workers, while there are any."""
        pids = (replica.life.worker_pid for replica in self._replicas)
        return tuple(pid for pid in pids if pid is not None)

    @property
    def threads(self) -> int:
        """Threads of the engine of each worker."""
        return self._replicas[0].life.threads

    @property
    def most_threads(self) -> int:
        """Threads that these may have."""
        return self._replicas[0].life.most_threads

    @property
    def batch_rows(self) -> int:
        """The largest batch that is run."""
        return self._batcher.bounds.batch_rows

    @property
    def quarantined(self) -> int:
        """Inputs that are kept away because they killed a worker."""
        return len(self._quarantine)

    @property
    def memory_limit_bytes(self) -> int:
        """What its workers may hold together; 0 is no limit."""
        return sum(replica.life.memory_limit_bytes for replica in self._replicas)

    @property
    def memory_bytes(self) -> int:
        """Memory that its workers hold now."""
        return sum(replica.life.memory_bytes for replica in self._replicas)

    @property
    def fell_back(self) -> bool:
        """Whether the reference answers because the variant that the bundle proposes does not work here."""
        return self.source.instead_of is not None

    @property
    def deaths(self) -> int:
        """How many of its workers died or were replaced."""
        return sum(replica.life.deaths for replica in self._replicas)

    def replica_up(self) -> None:
        """A worker is ready: send it what waits."""
        self._pump()

    def replica_down(self, batches: Sequence[Batch]) -> bool:
        """Queue the requests of a dead worker once more, each alone. One that has been alone is what killed it.

        Returns:
            Whether such a one was found. It is answered 500 and kept away for a while.
        """
        found = False
        for work in (work for batch in batches for work in batch.items):
            self._suspects.discard(work)
            work.tries += 1
            if work.over:
                continue
            if work.tries > 1:
                found = True
                self._poison_found(work)
                message = "The model's process died twice on this input. Do not send it again unchanged."
                work.finish(None, LightshipError(message))
            elif not self._of_poisoner(work):
                self._try_alone(work)
        if self._suspects and len(self._replicas) > 1:
            self._loop.call_later(_SETTLE_S, self._pump)  # another worker may be free for them
        return found

    def _poison_found(self, work: Work) -> None:
        """Keep an input away, and its key too once that has sent too many."""
        now, key = self._loop.time(), work.owner
        self._quarantine.add(work, now)
        if seconds := self._poisoners.found(key, now):
            log.error("%s:%s runs nothing of the key %s for %.0f s: its inputs kill the worker",
                      *(self.name, self.version, key, seconds))  # fmt: skip

    def _of_poisoner(self, work: Work) -> bool:
        """Answer a request that waits, or has to run again, if its key is kept away by now."""
        try:
            self._poisoners.refuse(work.owner, self._loop.time())
        except Overloaded as exc:
            self._suspects.discard(work)
            self.figures.refused += 1
            work.finish(None, exc)
            return True
        return False

    def _try_alone(self, work: Work) -> None:
        work.alone = True
        if self._wait_again(work):
            self._suspects.add(work)

    def _wait_again(self, work: Work) -> bool:
        try:
            self._batcher.add(work, self._loop.time(), admitted=True)
        except LightshipError as exc:
            self._suspects.discard(work)
            work.finish(None, exc)
            return False
        return True

    def use_tuned(self, batch_rows: int, rows_per_s: Mapping[int, float]) -> None:
        """Run batches of at most so many rows, as was measured, and never more than the release was proven for."""
        self.rows_per_s = rows_per_s
        rows = max(1, min(batch_rows, self.source.batch_rows))
        self._batcher.bounds = dataclasses.replace(self._batcher.bounds, batch_rows=rows)
        self._whole_rows = min(self._most_rows, rows)

    async def measure(self, rows: Sequence[int], *, budget_ms: int) -> dict[int, float] | None:
        """Return rows a second by batch of one worker; nothing when a request came between, or the worker went."""
        return await self._replicas[0].measure(rows, budget_ms=budget_ms)

    def ran(self, batch: Batch, done: Done, payload: memoryview) -> None:
        """A worker has run a batch."""
        if self._suspects:
            self._suspects.difference_update(batch.items)
        self.figures.ran(done.encode_us, done.run_us, done.decode_us)
        if self._depth > 1:
            self._pump()  # first: the worker should not wait while answers are written
            self._deliver(batch, done, payload)
        else:
            # On one core a busy worker only takes it from us: answers first, and what they bring in runs with the rest.
            self._deliver(batch, done, payload)
            self._pump_later(-1)

    # Requests

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return len(self._batcher)

    @property
    def running(self) -> int:
        """Requests in the workers."""
        # Also asked from the control plane's thread, hence the copies.
        batches = (batch for replica in self._replicas for batch in list(replica.running.values()))
        return sum(len(batch.items) for batch in batches)

    @property
    def sated(self) -> bool:
        """Whether its workers run as much as they are sent at once, and the next batch waits."""
        return self._full and len(self._batcher) >= self._batcher.bounds.batch_rows

    @property
    def hungry(self) -> bool:
        """Whether a worker could be sent what waits."""
        return len(self._batcher) > 0 and not self._full

    @property
    def worker_descriptors(self) -> tuple[int, ...]:
        """The sockets that its workers speak on."""
        workers = (replica.worker for replica in self._replicas)
        found = (worker.descriptor for worker in workers if worker is not None)
        return tuple(descriptor for descriptor in found if descriptor is not None)

    @property
    def _full(self) -> bool:
        for replica in self._replicas:  # noqa: SIM110 - asked for every request; a generator takes three times as long
            if len(replica.running) < self._depth:
                return False
        return True

    def _free(self, depth: int) -> Replica | None:
        """Return the replica with the fewest batches that could be sent one more."""
        found, least = None, depth
        for replica in self._replicas:
            if len(replica.running) < least and replica.worker is not None:
                found, least = replica, len(replica.running)
        return found

    def admit(self, size_bytes: int, key: ApiKey | None = None) -> None:
        """Refuse a request before its body is read, if it would be refused after.

        Raises:
            Overloaded: the queue is full, or the key is kept away because of what it has sent.
            Unavailable: the worker keeps dying, or is not there yet.
        """
        if self._replicas[0].worker is None and not any(replica.life.accepting for replica in self._replicas):
            self.figures.refused += 1
            raise Unavailable(f"The model {self.name} is not ready. Try again later.", retry_after_s=2.0)
        try:
            if key is not None and self._poisoners:
                self._poisoners.refuse(key.id, self._loop.time())
            self._batcher.refuse_if_full(size_bytes, coming=self.coming)
        except Overloaded:
            self.figures.refused += 1
            if self._rest is not None and self.sated:
                self._rest.soon()
            raise

    def submit(self, work: Work) -> None:
        """Let a request wait for the worker; ``work.done`` is called later, never from here.

        Raises:
            Overloaded, DeadlineExceeded, InvalidTensor: it was refused.
        """
        if self._closed:
            raise Unavailable(f"This version of {self.name} is served no longer. Send it again.")
        if 1 <= work.rows <= self._whole_rows:
            self._queue(work, admitted=False)
        else:
            self._submit_in_parts(work)

    def _submit_in_parts(self, work: Work) -> None:
        """Let as much of a request wait as a batch may have; the rest of it follows."""
        if not 1 <= work.rows <= self._most_rows:
            self._refuse_rows(work)
        if not self.source.batch_rows or work.rows <= self._batcher.bounds.batch_rows:
            self._queue(work, admitted=False)
            return
        size = work.rows * self._answer_row_bytes if self._sized and not work.raws else None
        parts = Parts(work, self._queue_more, self._room, answer_bytes=size)
        try:
            self._queue(parts.next(self._batcher.bounds.batch_rows), admitted=False)
        except LightshipError:
            parts.cancel()
            raise

    def _refuse_rows(self, work: Work) -> None:
        if not 1 <= work.rows <= (limit := self._limits.rows_per_request):
            raise InvalidTensor(f"A request must have 1 to {limit} rows (limit `rows_per_request`). Got {work.rows}.")
        if not work.raws:
            self._refuse_long_answer(work.rows * self._answer_row_bytes)

    def _refuse_long_answer(self, size: int) -> None:
        if size > (most := self._limits.answer_bytes):
            raise TooLarge(
                f"An answer has at most {most} bytes of tensors (limit `answer_bytes`). This one would have {size}. "
                "Send fewer rows a request."
            )

    def forget(self, work: Work) -> None:
        """Take cancelled work out of the queue."""
        self._batcher.cancel(work)
        self._suspects.discard(work)
        self.figures.cancelled += 1

    def _queue_more(self, parts: Parts) -> None:
        try:
            self._queue(parts.next(self._batcher.bounds.batch_rows), admitted=True)
        except LightshipError as exc:
            parts.fail(exc)

    def _queue(self, work: Work, *, admitted: bool) -> None:
        work.submitted_s = now = self._loop.time()
        if not self.source.batch_rows:
            work.alone = True
        if self._quarantine.until:
            self._quarantine.refuse(work, now)
        try:
            self._batcher.add(work, now, admitted=admitted)
        except Overloaded:
            self.figures.refused += 1
            raise
        work.model = self
        if self._pump_soon:
            return
        if self._free(self._depth) is not None:
            self._pump_later(len(self._batcher))
        elif self._timer is None or self._timer.when() > work.deadline_s:
            self._set_timer()  # the worker is busy, and will ask for more
        if self._rest is not None and self.sated:
            self._rest.soon()

    def _pump_later(self, collected: int) -> None:
        """Send at the end of this turn of the loop: what arrived in the same turn runs in the same batch."""
        self._pump_soon = True
        self._collected = collected
        self._loop.call_soon(self._pump if self._depth > 1 else self._collect)

    def _collect(self) -> None:
        """On one core: read all that has come before the worker takes the core, for as long as a turn brings more."""
        waiting = len(self._batcher)
        if self._collected < waiting < self._batcher.bounds.batch_rows:
            self._collected = waiting
            self._loop.call_soon(self._collect)
        else:
            self._pump()

    def _pump(self) -> None:
        """Send batches while the worker is free for them; answer what is too late; set the timer."""
        self._pump_soon = False
        now = self._loop.time()
        for item in self._batcher.expire(now):
            self.too_late(item)
        depth = min(1, self._depth) if self._suspects else self._depth  # so that a death tells which of them it was
        while (replica := self._free(depth)) is not None:
            items = self._batcher.next_batch(now)
            if not items:
                break
            if self._poisoners:
                items = [item for item in items if not self._of_poisoner(item)]
            if items:
                self._send(replica, items, now)
        self._set_timer()

    def _send(self, replica: Replica, items: list[Work], now: float) -> None:
        if not replica.send(items, now):
            for item in items:
                self._wait_again(item)
        else:
            self.figures.sent(rows=sum([item.rows for item in items]))
            self.figures.queued([now - item.submitted_s for item in items])

    def _deliver(self, batch: Batch, done: Done, payload: memoryview) -> None:
        items = batch.items
        if done.failed:
            failed = {each.index: error_named(each.error, items[each.index].told(each.message)) for each in done.failed}
            for index, error in failed.items():
                items[index].finish(None, error)
            items = [item for index, item in enumerate(items) if index not in failed]
        try:
            rows = [item.rows for item in items]
            answers = split_answers(done, payload, rows, batched=bool(self.source.batch_rows))
        except WorkerFailed as exc:
            log.error("a batch of %s:%s was answered wrongly: %s", self.name, self.version, exc)
            for item in items:
                item.finish(None, exc)
            return
        for item, answer in zip(items, answers, strict=True):
            if not self._sized and (too_long := self._too_long(answer)) is not None:
                item.finish(None, too_long)
            else:
                item.finish(answer, None)

    def _too_long(self, answer: Answer) -> TooLarge | None:
        try:
            self._refuse_long_answer(answer.size_bytes)
        except TooLarge as exc:
            return exc
        return None

    # Deadlines

    def too_late(self, item: Work) -> None:
        """Answer a request whose deadline has passed."""
        self.figures.expired += 1
        self._suspects.discard(item)
        message = "The deadline of the request passed while it waited. Send less, or give it more time."
        item.finish(None, DeadlineExceeded(message))

    def _set_timer(self) -> None:
        next_s = self._batcher.next_deadline() or math.inf
        for replica in self._replicas:
            next_s = min(next_s, replica.next_s())
        if next_s == math.inf:
            return
        if self._timer is not None and self._timer.when() <= next_s:
            return  # it fires early and sets itself again
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(next_s, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        now = self._loop.time()
        for replica in self._replicas:
            replica.look(now)
        self._pump()

    def _works(self) -> list[Work]:
        running = [item for replica in self._replicas for batch in replica.running.values() for item in batch.items]
        return running + self._batcher.expire(math.inf)


def _row_bytes(source: ModelSource) -> int | None:
    """Return what a row of all outputs takes, or the whole of them without rows; None if the graph does not say."""
    skip = 1 if source.batch_rows else 0
    total = 0
    for spec in source.interface.outputs:
        dims = spec.shape[skip:]
        if spec.dtype not in ITEM_BYTES or any(not isinstance(dim, int) for dim in dims):
            return None
        total += math.prod(dim for dim in dims if isinstance(dim, int)) * ITEM_BYTES[spec.dtype]
    return total
