"""The body of an answer that is written piece by piece."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

__all__ = ["HIGH_WATER_BYTES", "AnswerStream"]

HIGH_WATER_BYTES = 256 * 1024
"""A client that has more than this to take is behind."""


class AnswerStream:
    """The body of one answer, written piece by piece: chunked, or up to the end of its connection.

    ``write`` says no when the client is behind; a caller that goes on all the same only fills the server's memory.
    """

    def __init__(self, transport: asyncio.Transport, ended: Callable[[], None], *, chunked: bool) -> None:
        self._transport = transport
        self._ended = ended
        self._chunked = chunked
        self._over = False
        self.on_room: Callable[[], None] | None = None
        self.on_gone: Callable[[], None] | None = None

    def write(self, data: bytes) -> bool:
        """Send a piece; return whether there is room for more."""
        if self._over or not data:
            return not self._over
        self._transport.write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)
        return not self._over and self._transport.get_write_buffer_size() <= HIGH_WATER_BYTES

    def end(self) -> None:
        """Say that this was all."""
        if not self._over:
            self._over = True
            if self._chunked:
                self._transport.write(b"0\r\n\r\n")
            self._ended()

    def fail(self) -> None:
        """Break off, so that the client sees that the answer is not whole."""
        if not self._over:
            self._over = True
            self._transport.abort()

    def caught_up(self) -> None:
        """The client has taken what was written."""
        if self.on_room is not None and not self._over:
            self.on_room()

    def lost(self) -> None:
        """The client has gone."""
        over, self._over = self._over, True
        if self.on_gone is not None and not over:
            self.on_gone()
