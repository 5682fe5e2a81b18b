"""One JSON line a request, written by a thread of its own, so that a log that nobody reads cannot stop the server.

A line has the request's id, contract, model, status and time; no payload, no header, no key, no path (a path is the
client's text). When the thread falls behind, lines are dropped and counted, and the count is a line too.
"""

from __future__ import annotations

import asyncio
import queue
import sys
import threading
import time
from typing import IO

import msgspec

from lightship.serve.dispatch import Exchange

__all__ = ["RequestLog"]

_MOST_WAITING = 10_000
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
    """Collects lines on the event loop and hands them to a thread ten times a second."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, every: bool, stream: IO[str] | None = None) -> None:
        self._loop = loop
        self._every = every
        self._stream = stream or sys.stderr
        self._lines: list[_Line] = []
        self._dropped = 0
        self._flush_set = False
        self._queue: queue.Queue[list[_Line] | None] = queue.Queue(maxsize=64)
        self._thread = threading.Thread(target=self._write, name="request-log", daemon=True)
        self._thread.start()

    def add(self, exchange: Exchange, status: int, seconds: float) -> None:
        """Note an answered request."""
        if not self._every and status < 500:
            return
        if len(self._lines) >= _MOST_WAITING:
            self._dropped += 1
            return
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
        """Hand over what is left and wait a moment for the thread."""
        self._flush()
        try:
            self._queue.put_nowait(None)
        except queue.Full:
            return
        self._thread.join(1.0)

    def _flush(self) -> None:
        self._flush_set = False
        lines, self._lines = self._lines, []
        try:
            self._queue.put_nowait(lines)
        except queue.Full:
            self._dropped += len(lines)

    def _write(self) -> None:
        encoder = msgspec.json.Encoder()
        while (lines := self._queue.get()) is not None:
            dropped, self._dropped = self._dropped, 0
            text = "".join(encoder.encode(line).decode() + "\n" for line in lines)
            if dropped:
                note = {"time": round(time.time(), 3), "event": "dropped lines", "count": dropped}
                text += encoder.encode(note).decode() + "\n"
            try:
                self._stream.write(text)
                self._stream.flush()
            except (OSError, ValueError):
                self._dropped += len(lines)
