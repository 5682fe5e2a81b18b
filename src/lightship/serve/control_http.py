"""The connections of the control plane: uvicorn's, with a clock and a bound for heads and a bound for connections.

Uvicorn waits for the end of a head for ever, and what waits counts like what asks: a few dozen clients that send half a
head, or nothing, would hide the health. Here a head has a time and a size, and one connection too many takes the place
of the one that has said nothing complete for longest; so whoever asks is answered.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["ControlConnection"]

_MOST_CONNECTIONS = 32
_HEAD_S = 5.0
_HEAD_BYTES = 32 * 1024


class ControlConnection(HttpToolsProtocol):
    """A connection whose clock runs from its start, or from the first byte after an answer, to the end of a head."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.silent_since_s: float | None = None
        """When it was made or its last answer was; ``None`` while it is being answered or closed."""
        self._head_bytes = 0
        self._head_clock: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Make room for it, and start its clock."""
        super().connection_made(transport)
        self._make_room()
        self._await_head()
        self._start_head_clock()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget its clock."""
        self._stop_head_clock()
        self.silent_since_s = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes; too many without a request are the end."""
        if self.silent_since_s is not None:
            self._head_bytes += len(data)
            self._start_head_clock()
        super().data_received(data)
        if self.silent_since_s is not None and self._head_bytes > _HEAD_BYTES:
            self._give_up()

    def on_headers_complete(self) -> None:
        """Stop the clock: this request is going to be answered."""
        self._stop_head_clock()
        self.silent_since_s = None
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        """Wait for the next head; its clock starts with its first byte, till then the one for kept connections runs."""
        if not self.pipeline:
            self._await_head()
        super().on_response_complete()

    def _await_head(self) -> None:
        self.silent_since_s, self._head_bytes = self.loop.time(), 0

    def _start_head_clock(self) -> None:
        if self._head_clock is None:
            self._head_clock = self.loop.call_later(_HEAD_S, self._give_up)

    def _stop_head_clock(self) -> None:
        if self._head_clock is not None:
            self._head_clock.cancel()
            self._head_clock = None

    def _make_room(self) -> None:
        others = (one for one in self.connections if isinstance(one, ControlConnection))
        silent = [(one.silent_since_s, id(one), one) for one in others if one.silent_since_s is not None]
        if silent and len(self.connections) > _MOST_CONNECTIONS:
            min(silent)[-1]._give_up()

    def _give_up(self) -> None:
        self.silent_since_s = None  # it counts as closed from now on
        self._stop_head_clock()
        self.transport.abort()
