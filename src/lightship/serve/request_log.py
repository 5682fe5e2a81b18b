"""One JSON line a request, with its id, contract, model, status and time.

No payload, no header, no key, no path (a path is the client's text).
"""

from __future__ import annotations

import asyncio
import time

import msgspec

from lightship.serve.dispatch import Exchange
from lightship.serve.log_lines import stderr_lines

__all__ = ["RequestLog"]

_FLUSH_S = 0.1


class _Line(msgspec.Struct, frozen=True):
    time: float
    event: str
    request: str
    method: str
    contract: str
    model: str
    key: str
    status: int
    ms: float


class RequestLog:
    """Collects lines on the event loop and hands them over ten times a second: each time wakes a thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._writer = stderr_lines()
        self._lines: list[_Line] = []
        self._flush_set = False

    def add(self, exchange: Exchange, status: int, seconds: float) -> None:
        """Note an answered request."""
        head = exchange.head
        key = exchange.key.id if exchange.key is not None else ""
        self._lines.append(
            _Line(
                round(time.time(), 3),
                "request",
                exchange.request_id,
                head.method,
                exchange.contract,
                exchange.model,
                key,
                status,
                round(seconds * 1000, 3),
            )
        )
        if not self._flush_set:
            self._flush_set = True
            self._loop.call_later(_FLUSH_S, self._flush)

    def close(self) -> None:
        """Hand over what is left."""
        self._flush()

    def _flush(self) -> None:
        self._flush_set = False
        lines, self._lines = self._lines, []
        self._writer.put(lines)
