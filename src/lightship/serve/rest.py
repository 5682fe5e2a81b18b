"""Leaves the one core that the server and its workers share to the workers, while these have enough to do.

A request that arrives wakes the server, which takes the core from the engine and spoils its caches: for one request
more in a queue that holds the next batch already, or for a refusal. So while a worker runs a batch and its next one
waits, the server sleeps for some milliseconds, until a worker has something to say or a client connects; then it reads
all that has come. With a second core it can read beside the engine, and need not sleep.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable, Iterable
from typing import Protocol

__all__ = ["Rest"]

_LONGEST_MS = 10  # that a refusal, a question for health or another model's request may wait


class Worked(Protocol):
    """A model whose workers share the core."""

    @property
    def sated(self) -> bool:
        """Whether its workers run batches, and the next one waits."""

    @property
    def hungry(self) -> bool:
        """Whether a worker could be sent what waits."""

    @property
    def worker_descriptors(self) -> tuple[int, ...]:
        """What is readable when one of its workers says something."""


class Rest:
    """Sleeps on the event loop, on purpose.

    Args:
        models: returns those that are served now.
        listener: returns the descriptor that connections come in on; None while there is none. The loop takes one
            connection a turn: a burst of them would wait for as many sleeps.
    """

    def __init__(self, models: Callable[[], Iterable[Worked]], listener: Callable[[], int | None]) -> None:
        self._models = models
        self._listener = listener
        self._asked = False

    def soon(self) -> None:
        """Rest when this turn of the loop is over, if there is still nothing better to do."""
        if not self._asked:
            self._asked = True
            asyncio.get_running_loop().call_soon(self._rest)

    def _rest(self) -> None:
        self._asked = False
        models = tuple(self._models())
        if not any(model.sated for model in models) or any(model.hungry for model in models):
            return
        wakers = select.poll()
        if (listener := self._listener()) is not None:
            wakers.register(listener, select.POLLIN)
        for descriptor in (each for model in models for each in model.worker_descriptors):
            wakers.register(descriptor, select.POLLIN)
        wakers.poll(_LONGEST_MS / len(models))
