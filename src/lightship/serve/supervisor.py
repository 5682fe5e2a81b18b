"""Keeps the worker of one model version alive: starts it, and starts it again, with growing pauses, when it dies.

After three deaths with no good batch between the circuit is open: new requests are refused until a worker is there.
An input that is found to be what kills has cost two deaths and counts as one, and only once: it is kept away. Inputs
that kill and are new each time open the circuit like other deaths; and where good batches come between, each restart
after the third of them in a minute waits a little, so that the machine does not spend its time on starting workers.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from enum import StrEnum
from typing import Protocol

import msgspec

from lightship.engine.runner import EngineOptions
from lightship.errors import LightshipError
from lightship.extensions import places_of
from lightship.serve.limits import Clocks
from lightship.serve.source import ModelSource
from lightship.serve.wire import Load, Message
from lightship.serve.worker_process import WorkerProcess
from lightship.serve.worker_watch import WorkerWatch

__all__ = ["State", "Supervised", "Supervisor"]

log = logging.getLogger(__name__)

_BACK_OFF_S = (0.0, 0.1, 0.5, 2.0, 10.0, 30.0)
_CIRCUIT_DEATHS = 3  # in a row, with no good batch between: then new requests are refused while it restarts
_POISONS = 3  # found in this time; more of them, and each restart waits
_POISONS_WITHIN_S = 60.0
_POISONED_WAIT_S = 0.5
_END_S = 0.5  # a worker that is told to go needs less


class State(StrEnum):
    """Where a model version is in its life."""

    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"
    CLOSED = "closed"


class Supervised(Protocol):
    """What has a worker kept alive."""

    def worker_up(self, worker: WorkerProcess) -> None:
        """A worker is ready for batches."""

    def worker_down(self) -> bool:
        """It is no more; its batches will not be answered. Return whether one input is known to be what killed it."""

    def worker_says(self, message: Message, payload: memoryview) -> None:
        """It sent a message."""


class Supervisor:
    """The life of one model version's worker. ``start`` before use, ``close`` after."""

    def __init__(
        self, source: ModelSource, owner: Supervised, *, clocks: Clocks, threads: int, memory_bytes: int
    ) -> None:
        self.source = source
        self.most_threads = threads
        self.threads = threads
        """Of the engine; one where the worker found that a graph is too small for more."""
        self.memory_limit_bytes = memory_bytes
        self._clocks = clocks
        self.state = State.STARTING
        self.deaths = 0
        self.in_a_row = 0
        self._poisons_in_a_row = 0
        self._poisons_found_s: deque[float] = deque(maxlen=_POISONS + 1)
        self._title = f"{source.name}:{source.version}"
        self._owner = owner
        self._worker: WorkerProcess | None = None
        self._dead: asyncio.Event
        self._task: asyncio.Task[None] | None = None
        self._watch: asyncio.Task[None] | None = None

    @property
    def worker_pid(self) -> int | None:
        """The process of the worker, while there is one."""
        return None if self._worker is None else self._worker.pid

    @property
    def memory_bytes(self) -> int:
        """Memory that the worker holds now."""
        return 0 if self._worker is None else self._worker.memory_bytes()

    @property
    def accepting(self) -> bool:
        """Whether requests may wait: there is a worker, or will be soon."""
        return self.state is State.READY or (self.state is State.RESTARTING and self.in_a_row < _CIRCUIT_DEATHS)

    async def start(self, worker: WorkerProcess | None = None, *, background: bool = False) -> None:
        """Start the worker and wait until it has passed its self-test.

        Args:
            worker: a process that was spawned already.
            background: load with a lower priority, for others are being served.

        Raises:
            BundleRefused: it failed the self-test; the message names the golden input.
            LightshipError: it cannot load the graph, or died.
        """
        await self._start_worker(worker, background=background)
        self._task = asyncio.get_running_loop().create_task(self._supervise())

    async def close(self) -> None:
        """End the worker, and what keeps it alive."""
        self.state = State.CLOSED
        if self._task is not None:
            self._task.cancel()
        await self._end_worker(wait_s=_END_S)

    def good_batch(self) -> None:
        """The worker has done what it is for."""
        self.in_a_row = self._poisons_in_a_row = 0

    def kill_worker(self, why: str) -> None:
        """Have the worker replaced."""
        log.error("the worker of %s %s and is replaced", self._title, why)
        if self._worker is not None:
            self._worker.kill()

    def lost(self) -> None:
        """The worker is gone, or as good as gone."""
        if self.state is State.READY:
            self.state = State.RESTARTING
        self._dead.set()

    async def _start_worker(self, worker: WorkerProcess | None = None, *, background: bool = False) -> None:
        self._dead = asyncio.Event()
        self._worker = worker = worker or WorkerProcess.spawn()
        watch = asyncio.get_running_loop().create_task(
            WorkerWatch(worker, self._clocks, memory_bytes=self.memory_limit_bytes).run()
        )
        self._watch = watch
        try:
            ready = await worker.load(
                *self._load_message(background=background),
                timeout_s=self._clocks.load_s,
                on_message=self._owner.worker_says,
                on_lost=self.lost,
            )
        except BaseException:
            await self._end_worker()
            raise
        self.state = State.READY
        self.threads = ready.threads
        log.info("%s is ready: %d golden inputs right, loaded in %.0f ms", self._title, ready.golden, ready.load_ms)
        self._owner.worker_up(worker)

    async def _end_worker(self, *, wait_s: float = 0.0) -> None:
        worker, self._worker = self._worker, None
        if self._watch is not None:
            self._watch.cancel()
        if worker is not None:
            await worker.end(wait_s=wait_s)

    async def _supervise(self) -> None:
        while True:
            await self._dead.wait()
            self.state = State.RESTARTING
            self.deaths += 1
            self.in_a_row += 1
            log.error("the worker of %s died (%d in a row)", self._title, self.in_a_row)
            if self._owner.worker_down():
                self._poison_found()
            await self._end_worker()
            await self._restart()

    def _poison_found(self) -> None:
        """The death before was that input's too: the two count as one."""
        self._poisons_in_a_row += 1
        self.in_a_row = max(self.in_a_row - 1, self._poisons_in_a_row)
        self._poisons_found_s.append(asyncio.get_running_loop().time())

    def _pause_s(self) -> float:
        """Return how long to wait before the next start."""
        pause_s = _BACK_OFF_S[min(max(self.in_a_row - 1, 0), len(_BACK_OFF_S) - 1)]
        found = self._poisons_found_s
        if len(found) > _POISONS and asyncio.get_running_loop().time() - found[0] < _POISONS_WITHIN_S:
            return max(pause_s, _POISONED_WAIT_S)
        return pause_s

    async def _restart(self) -> None:
        while self.state is not State.READY:
            await asyncio.sleep(self._pause_s())
            try:
                await self._start_worker()
            except LightshipError as exc:
                self.in_a_row += 1
                log.error("the worker of %s cannot be started again: %s", self._title, exc)

    def _load_message(self, *, background: bool) -> tuple[Load, list[bytes | memoryview]]:
        source = self.source
        task = source.manifest.task
        config = msgspec.json.encode(dict(task.config))
        message = Load(
            model=f"{source.name}:{source.version}",
            engine=source.variant.engine,
            threads=self.most_threads,
            options=EngineOptions.from_json(source.variant.options).options_json(),
            task=task.name,
            codec_version=task.codec_version,
            batch_rows=source.batch_rows,
            graph_size=len(source.graph),
            config_size=len(config),
            golden=tuple((path, len(raw)) for path, raw in source.golden),
            expected=tuple((name, len(data)) for name, data in source.expected),
            tolerance=source.tolerance,
            places=places_of((("tasks", task.name), ("engines", source.variant.engine))),
            background=background,
            memory_bytes=self.memory_limit_bytes,
            values=dict(source.interface.values),
        )
        return message, [
            source.graph,
            config,
            *(raw for _, raw in source.golden),
            *(data for _, data in source.expected),
        ]
