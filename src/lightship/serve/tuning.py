"""Finds the batch at which a model answers most rows a second, on this machine, and remembers it.

A larger batch is not always a quicker one: a small network gains up to 64 rows, a transformer may lose a quarter by
then, because its activations no longer fit the cache. It is measured in the worker itself, when nobody asks for
anything, and given up when somebody does; what was found is kept in the home, under the digest of the bundle, the
variant, the machine with its libraries, and the threads. Until then a default holds. A batch is never larger than what
the release was proven for.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path

from lightship.engine.machine import fingerprint, usable_cores
from lightship.engine.tuning import read_rates, tuning_path, write_rates
from lightship.serve.model import ServedModel, State

__all__ = ["Tuner", "best_batch", "candidates"]

log = logging.getLogger(__name__)

_NEAR = 0.97  # a smaller batch is as good as the best one from here on: in a larger one everybody waits longer
_CROSSING_S = 0.0003  # what a batch costs besides the engine: two processes, some system calls
_SHARED_CROSSING_S = 0.002  # on one core also: the server's turn, and then the engine finds its caches empty
_LARGEST = 256
_BUDGET_MS = 4000
_IDLE_S = 1.0
_LOOK_S = 0.25
_TRIES = 20


def candidates(proven_rows: int) -> tuple[int, ...]:
    """Return the batches to try: powers of two, and the largest that is allowed."""
    most = min(proven_rows, _LARGEST)
    powers = [1 << power for power in range(most.bit_length()) if 1 << power <= most]
    return tuple(sorted({*powers, most}))


def best_batch(rows_per_s: Mapping[int, float], *, cores: int) -> int:
    """Return the batch to run at most: the smallest that is near the best, counted with what each batch costs besides.

    Args:
        rows_per_s: what the engine alone answers, by batch.
        cores: what the server and its workers have together.

    >>> best_batch({1: 100.0, 2: 180.0, 4: 181.0, 8: 150.0}, cores=2)
    2
    >>> best_batch({1: 16_000.0, 4: 32_000.0, 32: 36_000.0, 64: 35_000.0}, cores=2)  # small rows: crossing is dear
    64
    >>> best_batch({1: 500.0, 2: 500.0, 4: 500.0, 32: 500.0, 64: 500.0}, cores=1)  # dearer on one core
    32
    """
    crossing_s = _SHARED_CROSSING_S if cores == 1 else _CROSSING_S
    rates = {rows: rows / (rows / rate + crossing_s) for rows, rate in rows_per_s.items()}
    return min(rows for rows, rate in rates.items() if rate >= _NEAR * max(rates.values()))


class Tuner:
    """Tunes models one after the other, in the background.

    Args:
        folder: where results are kept.
        busy: whether the server has anything to do.
        again: measure also what was measured before.
    """

    def __init__(self, folder: Path, *, busy: Callable[[], bool], again: bool = False) -> None:
        self._folder = folder
        self._busy = busy
        self._again = again
        self._machine = ""
        # Not the models themselves: one that is replaced before its turn comes must not stay in memory for it.
        self._waiting: list[tuple[weakref.ref[ServedModel], int]] = []
        self._measuring = False
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, model: ServedModel) -> None:
        """Tune a model that is ready."""
        if model.source.batch_rows > 1:
            self._run(self._look_up(model))

    async def close(self) -> None:
        """Give up on what has not been measured."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _run(self, work: Coroutine[None, None, None]) -> None:
        self._tasks.add(task := asyncio.get_running_loop().create_task(work))
        task.add_done_callback(self._tasks.discard)

    async def _look_up(self, model: ServedModel) -> None:
        path = await asyncio.to_thread(self._path, model)
        known = None if self._again else await asyncio.to_thread(read_rates, path)
        if known is not None:
            self._use(model, known)
            if len(known) > 1:  # one rate alone is a search's: the batch that it found best, without a server around it
                return
        self._waiting = [entry for entry in self._waiting if entry[0]() is not None]
        self._waiting.append((weakref.ref(model), _TRIES))
        if not self._measuring:
            self._measuring = True
            self._run(self._measure_all())

    async def _measure_all(self) -> None:
        while self._waiting:
            await self._wait_until_idle()
            ref, tries = self._waiting.pop(0)
            if not await self._measured(ref()) and tries > 1:
                self._waiting.append((ref, tries - 1))
        self._measuring = False

    async def _measured(self, model: ServedModel | None) -> bool:
        """Measure a model and use and keep what was found; return whether there is nothing left to do for it."""
        if model is None or model.state is State.CLOSED:
            return True
        rates = await model.measure(candidates(model.source.batch_rows), budget_ms=_BUDGET_MS)
        if rates is None:
            return False
        self._use(model, rates)
        log.info("%s:%s runs batches of up to %d rows: measured", model.name, model.version, model.batch_rows)
        await asyncio.to_thread(_write, self._path(model), rates)
        return True

    def _use(self, model: ServedModel, rates: Mapping[int, float]) -> None:
        model.use_tuned(best_batch(rates, cores=usable_cores()), rates)

    async def _wait_until_idle(self) -> None:
        loop = asyncio.get_running_loop()
        since_s = loop.time()
        while loop.time() - since_s < _IDLE_S:
            await asyncio.sleep(_LOOK_S)
            if self._busy():
                since_s = loop.time()

    def _path(self, model: ServedModel) -> Path:
        self._machine = self._machine or str(fingerprint()["digest"])
        source = model.source
        return tuning_path(
            self._folder,
            bundle=source.bundle,
            variant=source.variant.name,
            machine=self._machine,
            threads=model.most_threads,
        )


def _write(path: Path, rates: Mapping[int, float]) -> None:
    try:
        write_rates(path, rates)
    except OSError as exc:
        log.warning("what was measured cannot be kept: %s", exc.strerror)
