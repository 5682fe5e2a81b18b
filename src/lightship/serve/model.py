"""One model version being served: its queue, its worker process, and the requests under way.

Everything here runs on the event loop and nothing waits: requests come in through ``submit`` with a callback, batches
leave over the worker's socket, and the loop wakes when the worker answers, a deadline passes or the worker dies.
Requests of a worker that dies are run once more, each alone, in a fresh one: if one of them is what kills it, the
others get their answers.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import msgspec

import lightship.errors
from lightship.engine.machine import usable_cores
from lightship.errors import (
    DeadlineExceeded,
    InvalidTensor,
    LightshipError,
    Overloaded,
    Unavailable,
    WorkerFailed,
)
from lightship.serve.batcher import BatchBounds, Batcher, Item
from lightship.serve.limits import Clocks, Limits
from lightship.serve.metrics import ModelFigures
from lightship.serve.source import ModelSource
from lightship.serve.tensors import PackedTensor, join_rows
from lightship.serve.wire import Channel, Done, Load, LoadFailed, Ready, RunRaw, RunTensors, TensorHead
from lightship.tasks.registry import load_task
from lightship.types import Interface

__all__ = ["Answer", "Catalog", "ServedModel", "State", "Told", "Work"]

log = logging.getLogger(__name__)

_BACK_OFF_S = (0.0, 0.1, 0.5, 2.0, 10.0, 30.0)
_CIRCUIT_DEATHS = 3  # in a row, with no good batch between: then new requests are refused while it restarts
_LOAD_S = 300.0
_END_S = 5.0


class State(StrEnum):
    """Where a model version is in its life."""

    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a request gets: the graph's outputs, or, for raw inputs, one JSON object a row."""

    outputs: tuple[PackedTensor, ...] = ()
    answers: tuple[bytes, ...] = ()


Told = Callable[[Answer | None, LightshipError | None], None]
"""Gets the answer or the error of a request."""


class Work:
    """One request for a model: its rows, its deadline, and whom to tell.

    Args:
        inputs: the graph's inputs in the interface's order (``tensors`` lane), or
        raws: raw inputs, one a row (``raw`` lane).
        done: called once, on the event loop, with an answer or an error; never after ``cancel``.
    """

    __slots__ = ("_done", "deadline_s", "inputs", "item", "model", "parts", "raws", "rows", "submitted_s", "taken")

    def __init__(
        self,
        *,
        rows: int,
        deadline_s: float,
        done: Told,
        inputs: tuple[PackedTensor, ...] = (),
        raws: tuple[bytes, ...] = (),
    ) -> None:
        self.inputs = inputs
        self.raws = raws
        self.rows = rows
        self.deadline_s = deadline_s
        self.parts: list[Answer] = []
        self.taken = 0  # rows that were put into the queue so far
        self.item: Item | None = None  # the part that waits or runs; a large request has one after the other
        self.model: ServedModel | None = None
        self.submitted_s = 0.0
        self._done: Told | None = done

    @property
    def over(self) -> bool:
        """Whether nobody waits for it any more."""
        return self._done is None

    def finish(self, answer: Answer | None, error: LightshipError | None) -> None:
        """Tell the caller, once."""
        done, self._done = self._done, None
        self.inputs, self.raws = (), ()
        if done is None:
            return
        try:
            done(answer, error)
        except Exception:
            # One answer that cannot be written must not take the others of its batch with it.
            log.exception("an answer could not be written")
            done(None, LightshipError("The answer could not be written. The server's log tells why."))

    def cancel(self) -> None:
        """Nobody waits any more: leave the queue; a batch that runs already runs on without it."""
        self._done = None
        self.inputs, self.raws = (), ()
        if self.model is not None:
            self.model.forget(self)


@dataclass(slots=True)
class _Part:
    """Some rows of a request, as the payload of an item."""

    work: Work
    start: int
    stop: int
    tries: int = 0


@dataclass(slots=True)
class _Batch:
    number: int
    items: list[Item]
    since_s: float  # since when the worker has had nothing before it
    deadline_s: float = field(init=False)

    def __post_init__(self) -> None:
        self.deadline_s = min(item.deadline_s for item in self.items)


class ServedModel:
    """One model version. ``start`` before use, ``close`` after."""

    def __init__(self, source: ModelSource, *, limits: Limits, clocks: Clocks, depth: int | None = None) -> None:
        self.source = source
        self.name = source.name
        self.version = str(source.version)
        self.interface: Interface = source.interface
        task = source.manifest.task
        self.task = load_task(task.name, task.codec_version, task.config)
        self.figures = ModelFigures()
        self.state = State.STARTING
        self.worker_pid: int | None = None
        self.deaths = 0
        self._limits = limits
        self._clocks = clocks
        self._batcher = Batcher(
            BatchBounds(
                batch_rows=source.batch_rows or 1,
                queue_items=limits.queue_requests,
                queue_bytes=limits.queue_bytes,
            )
        )
        # With a second core the next batch crosses, and is encoded, while the last one runs.
        self._depth = depth or min(2, usable_cores())
        self._running: dict[int, _Batch] = {}
        self._batches = 0
        self._pump_soon = False
        self._timer: asyncio.TimerHandle | None = None
        self._deaths_in_a_row = 0
        self._loop: asyncio.AbstractEventLoop
        self._channel: Channel | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._ready: asyncio.Future[Ready] | None = None
        self._dead: asyncio.Event
        self._supervisor: asyncio.Task[None] | None = None

    # Life

    async def start(self) -> None:
        """Start the worker and wait until it has passed its self-test.

        Raises:
            BundleRefused: it failed the self-test; the message names the golden input.
            LightshipError: it cannot load the graph, or died.
        """
        self._loop = asyncio.get_running_loop()
        await self._start_worker()
        self._supervisor = self._loop.create_task(self._supervise())

    async def close(self) -> None:
        """End the worker. What still waits is answered 503."""
        self.state = State.CLOSED
        if self._supervisor is not None:
            self._supervisor.cancel()
        for work in self._works():
            work.finish(None, Unavailable(f"The model {self.name} is being stopped."))
        if self._timer is not None:
            self._timer.cancel()
        await self._end_worker()

    async def _start_worker(self) -> None:
        ours, theirs = Channel.pair()
        ours.setblocking(False)
        with theirs:
            command = (sys.executable, "-P", "-m", "lightship.serve.worker", "--fd", str(theirs.fileno()))
            # From the loop's own thread: the worker asks to be killed when the thread that made it ends.
            self._process = subprocess.Popen(  # noqa: ASYNC220, S603 - quick; our own interpreter and module, no shell
                (*command, "--parent", str(os.getpid())), pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL
            )
        self.worker_pid = self._process.pid
        self._channel = Channel(ours)
        self._dead = asyncio.Event()
        self._ready = self._loop.create_future()
        self._loop.add_reader(ours.fileno(), self._on_readable)
        try:
            self._channel.send(*_load_message(self.source))
            ready = await asyncio.wait_for(self._ready, _LOAD_S)
        except BaseException as exc:
            await self._end_worker()
            if isinstance(exc, TimeoutError):
                raise WorkerFailed(f"The worker of {self.name}:{self.version} was not ready in {_LOAD_S:g} s.") from exc
            if isinstance(exc, OSError):
                raise self._died_loading() from exc
            raise
        self.state = State.READY
        log.info(
            "%s:%s is ready: %d golden inputs right, loaded in %.0f ms",
            self.name,
            self.version,
            ready.golden,
            ready.load_ms,
        )
        self._pump()

    def _died_loading(self) -> WorkerFailed:
        return WorkerFailed(f"The worker of {self.name}:{self.version} died while it was loading.")

    async def _end_worker(self) -> None:
        if self._channel is not None:
            self._loop.remove_reader(self._channel.socket.fileno())
            self._channel.close()
            self._channel = None
        process, self._process = self._process, None
        self.worker_pid = None
        if process is None:
            return
        try:
            await asyncio.to_thread(process.wait, 0.5 if self.state is State.CLOSED else 0.0)
        except subprocess.TimeoutExpired:
            process.kill()
            await asyncio.to_thread(process.wait, _END_S)

    async def _supervise(self) -> None:
        while True:
            await self._dead.wait()
            self.state = State.RESTARTING
            self.deaths += 1
            self._deaths_in_a_row += 1
            log.error("the worker of %s:%s died (%d in a row)", self.name, self.version, self._deaths_in_a_row)
            self._take_back_batches()
            await self._end_worker()
            await self._restart()

    async def _restart(self) -> None:
        while self.state is not State.READY:
            await asyncio.sleep(_BACK_OFF_S[min(self._deaths_in_a_row - 1, len(_BACK_OFF_S) - 1)])
            try:
                await self._start_worker()
            except LightshipError as exc:
                self._deaths_in_a_row += 1
                log.error("the worker of %s:%s cannot be started again: %s", self.name, self.version, exc)

    def _take_back_batches(self) -> None:
        """Queue the requests of a dead worker once more, each alone; those that were there before fail."""
        batches, self._running = list(self._running.values()), {}
        now = self._loop.time()
        for item in (item for batch in batches for item in batch.items):
            part: _Part = item.payload
            part.tries += 1
            item.alone = True
            if part.work.over:
                continue
            if part.tries > 1:
                message = "The worker process died twice with this request. Do not send it again unchanged."
                part.work.finish(None, WorkerFailed(message, retry_after_s=2.0))
                continue
            try:
                self._batcher.add(item, now, admitted=True)
            except DeadlineExceeded as exc:
                part.work.finish(None, exc)

    # Requests

    @property
    def ready(self) -> bool:
        """Whether a request would be run now."""
        return self.state is State.READY

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return len(self._batcher)

    @property
    def running(self) -> int:
        """Requests in the worker."""
        return sum(
            len(batch.items) for batch in list(self._running.values())
        )  # also asked from the control plane's thread

    def admit(self, size_bytes: int) -> None:
        """Refuse a request before its body is read, if it would be refused after.

        Raises:
            Overloaded: the queue is full.
            Unavailable: the worker keeps dying, or is not there yet.
        """
        restarting = self.state is State.RESTARTING and self._deaths_in_a_row < _CIRCUIT_DEATHS
        if not (self.state is State.READY or restarting):
            self.figures.refused += 1
            raise Unavailable(f"The model {self.name} is not ready. Try again later.", retry_after_s=2.0)
        try:
            self._batcher.refuse_if_full(size_bytes)
        except Overloaded:
            self.figures.refused += 1
            raise

    def submit(self, work: Work) -> None:
        """Let a request wait for the worker; ``work.done`` is called later, never from here.

        Raises:
            Overloaded, DeadlineExceeded, InvalidTensor: it was refused.
        """
        limit = self._limits.rows_per_request
        if not 1 <= work.rows <= limit:
            raise InvalidTensor(f"A request must have 1 to {limit} rows (limit `rows_per_request`). Got {work.rows}.")
        work.model = self
        work.submitted_s = self._loop.time()
        self._queue_next(work, admitted=False)

    def forget(self, work: Work) -> None:
        """Take a cancelled request out of the queue."""
        if work.item is not None:
            self._batcher.cancel(work.item)
            work.item = None
            self.figures.cancelled += 1

    def _queue_next(self, work: Work, *, admitted: bool) -> None:
        """Queue the next part of a request. A large one is in the queue once, so it cannot crowd out the others."""
        start = work.taken
        stop = min(work.rows, start + self._batcher.bounds.batch_rows) if self.source.batch_rows else work.rows
        if work.raws:
            key: object = "raw"
            size = sum(len(raw) for raw in work.raws[start:stop])
        else:
            key = tuple(one.shape[1:] for one in work.inputs)
            size = sum(len(one.data) for one in work.inputs) * (stop - start) // work.rows
        item = Item(
            key=key,
            rows=stop - start,
            size_bytes=size,
            deadline_s=work.deadline_s,
            payload=_Part(work, start, stop),
            alone=not self.source.batch_rows,
        )
        try:
            self._batcher.add(item, self._loop.time(), admitted=admitted)
        except Overloaded:
            self.figures.refused += 1
            raise
        work.item = item
        work.taken = stop
        if not self._pump_soon:
            # At the end of this turn of the loop: what arrived in the same turn runs in the same batch.
            self._pump_soon = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        """Send batches while the worker is free for them; answer what is too late; set the timer."""
        self._pump_soon = False
        now = self._loop.time()
        for item in self._batcher.expire(now):
            self._too_late(item)
        while self.state is State.READY and self._channel is not None and len(self._running) < self._depth:
            items = self._batcher.next_batch(now)
            if not items:
                break
            self._send(items, now)
        self._set_timer()

    def _send(self, items: list[Item], now: float) -> None:
        self._batches += 1
        batch = _Batch(self._batches, items, now)
        self._running[batch.number] = batch
        message, payload = _batch_message(batch.number, [item.payload for item in items])
        try:
            if self._channel is not None:
                self._channel.send(message, payload)
        except OSError as exc:
            log.error("the worker of %s:%s does not take a batch: %s", self.name, self.version, exc)
            self._worker_lost()
            return
        self.figures.sent(rows=sum(item.rows for item in items))
        for item in items:
            self.figures.queued(now - item.payload.work.submitted_s)

    # The worker's side

    def _on_readable(self) -> None:
        try:
            while self._channel is not None:
                received = self._channel.receive()
                if received is None:
                    self._worker_lost()
                    return
                self._on_message(*received)
        except BlockingIOError:
            return
        except (OSError, WorkerFailed) as exc:
            log.error("the worker of %s:%s cannot be understood: %s", self.name, self.version, exc)
            self._worker_lost()

    def _on_message(self, message: object, payload: memoryview) -> None:
        if isinstance(message, Done):
            batch = self._running.pop(message.batch, None)
            if batch is None:
                raise WorkerFailed(f"The worker answered the batch {message.batch}, which it was not sent.")
            self._deaths_in_a_row = 0
            for behind in self._running.values():
                behind.since_s = self._loop.time()  # it is its turn only now
            self.figures.ran(message.encode_us, message.run_us, message.decode_us)
            self._pump()  # first: the worker should not wait while answers are written
            self._deliver(batch, message, payload)
        elif self._ready is not None and not self._ready.done():
            if isinstance(message, Ready):
                self._ready.set_result(message)
            elif isinstance(message, LoadFailed):
                self._ready.set_exception(_error_named(message.error, message.message))

    def _worker_lost(self) -> None:
        if self._channel is not None:
            self._loop.remove_reader(self._channel.socket.fileno())
        if self._ready is not None and not self._ready.done():
            self._ready.set_exception(self._died_loading())
        if self.state is State.READY:
            self.state = State.RESTARTING
        self._dead.set()

    def _deliver(self, batch: _Batch, done: Done, payload: memoryview) -> None:
        failed = {failure.index: _error_named(failure.error, failure.message) for failure in done.failed}
        good = [item for index, item in enumerate(batch.items) if index not in failed]
        try:
            answers = _split_answers(done, payload, [item.rows for item in good], batched=bool(self.source.batch_rows))
        except WorkerFailed as exc:
            log.error("a batch of %s:%s was answered wrongly: %s", self.name, self.version, exc)
            failed, good = dict.fromkeys(range(len(batch.items)), exc), []
            answers = []
        for index, error in failed.items():
            batch.items[index].payload.work.finish(None, error)
        for item, answer in zip(good, answers, strict=True):
            self._part_done(item.payload.work, answer)

    def _part_done(self, work: Work, answer: Answer) -> None:
        if work.over:
            return
        work.parts.append(answer)
        if work.taken < work.rows:
            try:
                self._queue_next(work, admitted=True)
            except LightshipError as exc:
                work.finish(None, exc)
            return
        work.item = None
        work.finish(_join_answers(work.parts), None)

    # Deadlines

    def _too_late(self, item: Item) -> None:
        self.figures.expired += 1
        message = "The deadline of the request passed while it waited. Send less, or give it more time."
        item.payload.work.finish(None, DeadlineExceeded(message))

    def _set_timer(self) -> None:
        next_s = self._batcher.next_deadline() or math.inf
        for batch in self._running.values():
            next_s = min(next_s, batch.deadline_s, batch.since_s + self._clocks.hang_s)
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
        for batch in self._running.values():
            if batch.deadline_s <= now:
                for item in batch.items:
                    if item.deadline_s <= now and not item.payload.work.over:
                        self._too_late(item)
                late = (item.deadline_s for item in batch.items if not item.payload.work.over)
                batch.deadline_s = min(late, default=math.inf)
            if now - batch.since_s >= self._clocks.hang_s and self._process is not None:
                log.error("the worker of %s:%s hangs and is replaced", self.name, self.version)
                self._process.kill()
                batch.since_s = math.inf
        self._pump()

    def _works(self) -> list[Work]:
        running = [item.payload.work for batch in self._running.values() for item in batch.items]
        return running + [item.payload.work for item in self._batcher.expire(math.inf)]


class Catalog:
    """The model versions that a server has, by name and version."""

    def __init__(self, models: Iterable[ServedModel]) -> None:
        self.models = tuple(models)
        self._by_name: dict[str, dict[str, ServedModel]] = {}
        for model in self.models:
            self._by_name.setdefault(model.name, {})[model.version] = model

    @property
    def ready(self) -> bool:
        """Whether every model is ready."""
        return all(model.ready for model in self.models)

    def versions(self, name: str) -> tuple[str, ...]:
        """Return the versions of a name that are served; none if the name is not."""
        return tuple(self._by_name.get(name, ()))

    def find(self, name: str, version: str | None = None) -> ServedModel | None:
        """Return a model version; without a version, the one that was named first at the start."""
        versions = self._by_name.get(name)
        if versions is None:
            return None
        return versions.get(version) if version is not None else next(iter(versions.values()))


def _load_message(source: ModelSource) -> tuple[Load, list[bytes | memoryview]]:
    task = source.manifest.task
    config = msgspec.json.encode(dict(task.config))
    options = source.variant.options
    message = Load(
        model=f"{source.name}:{source.version}",
        engine=source.variant.engine,
        threads=usable_cores(),
        optimization=str(options.get("optimization", "all")),
        task=task.name,
        codec_version=task.codec_version,
        batch_rows=source.batch_rows,
        graph_size=len(source.graph),
        config_size=len(config),
        golden=tuple((path, len(raw)) for path, raw in source.golden),
        expected=tuple((name, len(data)) for name, data in source.expected),
        tolerance=source.tolerance,
    )
    return message, [source.graph, config, *(raw for _, raw in source.golden), *(data for _, data in source.expected)]


def _batch_message(number: int, parts: Sequence[_Part]) -> tuple[RunTensors | RunRaw, list[bytes | memoryview]]:
    rows = tuple(part.stop - part.start for part in parts)
    if parts[0].work.raws:
        raws = [raw for part in parts for raw in part.work.raws[part.start : part.stop]]
        return RunRaw(number, rows, tuple(len(raw) for raw in raws)), list(raws)
    total = sum(rows)
    heads, payload = [], []
    for index, first in enumerate(parts[0].work.inputs):
        size = 0
        for part in parts:
            whole = part.start == 0 and part.stop == part.work.rows
            tensor = part.work.inputs[index] if whole else part.work.inputs[index].rows(part.start, part.stop)
            payload.append(tensor.data)
            size += len(tensor.data)
        shape = first.shape if len(parts) == 1 and rows[0] == parts[0].work.rows else (total, *first.shape[1:])
        heads.append(TensorHead(first.name, first.dtype, shape, size))
    return RunTensors(number, rows, tuple(heads)), payload


def _split_answers(done: Done, payload: memoryview, rows: list[int], *, batched: bool) -> list[Answer]:
    """Give each request its rows of a batch's outputs. As many rows must come back as were sent.

    Raises:
        WorkerFailed: they are not.
    """
    total = sum(rows)
    at, outputs = 0, []
    for head in done.outputs:
        if batched and total and head.shape[:1] != (total,):
            raise WorkerFailed(f"A batch of {total} rows gave {list(head.shape)} for {head.name!r}.")
        outputs.append(PackedTensor(head.name, head.dtype, head.shape, payload[at : at + head.size]))
        at += head.size
    texts = []
    for size in done.answers:
        texts.append(bytes(payload[at : at + size]))
        at += size
    if done.answers and len(texts) != total:
        raise WorkerFailed(f"A batch of {total} rows gave {len(texts)} answers.")
    if len(rows) == 1:
        return [Answer(tuple(outputs), tuple(texts))]
    split, start = [], 0
    for count in rows:
        stop = start + count
        split.append(Answer(tuple(output.rows(start, stop) for output in outputs), tuple(texts[start:stop])))
        start = stop
    return split


def _join_answers(parts: Sequence[Answer]) -> Answer:
    if len(parts) == 1:
        return parts[0]
    outputs = tuple(join_rows(pieces) for pieces in zip(*(part.outputs for part in parts), strict=True))
    return Answer(outputs, tuple(text for part in parts for text in part.answers))


def _error_named(name: str, message: str) -> LightshipError:
    """Return the error that a worker named. Only our own classes that are made from a message alone are known."""
    cls = getattr(lightship.errors, name, None)
    if name in lightship.errors.__all__ and isinstance(cls, type) and issubclass(cls, LightshipError):
        try:
            return cls(message)
        except TypeError:
            return LightshipError(message)
    return LightshipError(message)
