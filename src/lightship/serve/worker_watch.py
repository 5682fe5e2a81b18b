"""Looks at a worker now and then, and kills one that does not go on: what is dead can be replaced."""

from __future__ import annotations

import asyncio
import logging

from lightship.serve.limits import Clocks
from lightship.serve.worker_process import WorkerProcess

__all__ = ["WorkerWatch"]

log = logging.getLogger(__name__)

_LOOK_S = 0.25
_LATE_S = 1.0
_IDLE_SHARE = 5
_BASE_BYTES = 96 << 20  # programs and libraries, before a graph is loaded


class WorkerWatch:
    """Watches one worker from its start to its end.

    Its process may be stopped. It may be alive and give no sign of life: when it computes, an operator may be holding
    Python's lock, which ends; when all its threads sleep, it is locked for good. What looks like silence may also be
    this loop that came late, or a machine without time to spare: then the next look decides.
    """

    def __init__(self, worker: WorkerProcess, clocks: Clocks, *, memory_bytes: int = 0) -> None:
        self._worker = worker
        self._memory_bytes = memory_bytes
        self._clocks = clocks
        self._still_since_s: float | None = None
        self._ticks = -1

    async def run(self) -> None:
        """Look until cancelled, or until it had to be killed."""
        loop = asyncio.get_running_loop()
        looked_s = loop.time()
        while True:
            await asyncio.sleep(_LOOK_S)
            now_s = loop.time()
            why = self._fault(now_s) if now_s - looked_s < _LATE_S else ""
            looked_s = now_s
            if why:
                log.error("the worker of %s %s and is replaced", self._worker.title, why)
                self._worker.kill()
                return

    def _fault(self, now_s: float) -> str:
        if self._worker.stands_still():
            self._still_since_s = self._still_since_s or now_s
            # The first look may come just after it was stopped, so one period less is no sooner than asked for.
            return "stands still" if now_s - self._still_since_s >= self._clocks.stopped_s - _LOOK_S else ""
        self._still_since_s = None
        if self._memory_bytes and (held := self._worker.memory_bytes()) > self._memory_bytes + _BASE_BYTES:
            limit = f"{self._memory_bytes >> 20} MiB (--worker-memory)"
            return f"holds {(held - _BASE_BYTES) >> 20} MiB, more than its limit of {limit},"
        beat_s = self._worker.beat_s
        silent_s = now_s - beat_s if beat_s else 0.0  # none before it is ready: loading may hold Python's lock for long
        if silent_s >= self._clocks.silent_s:
            return f"has given no sign of life for {silent_s:.1f} s"
        if silent_s >= self._clocks.silent_s / _IDLE_SHARE:
            busy, ticks = self._worker.works_at()
            idle, self._ticks = not busy and ticks == self._ticks, ticks
            return "is locked" if idle else ""
        self._ticks = -1
        return ""
