"""A client that ended its stream while it waits: has it gone, or does it only not say any more? Both look the same.

An interim answer (RFC 9110 §15.2: any client must read over it) makes the host of a closed socket answer with a reset,
which the state of our socket shows. A client that waits for its answer loses nothing.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

__all__ = ["HalfClosed"]

_TCP_CLOSED = 7  # state in TCP_INFO, include/net/tcp_states.h
_LOOK_AFTER_S = (0.02, 0.05, 0.1, 0.2, 0.5)


class HalfClosed:
    """Looks after one such client as long as it waits.

    Args:
        waits: whether it still waits for the first byte of an answer.
        gone: called when it has gone.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        loop: asyncio.AbstractEventLoop,
        *,
        waits: Callable[[], bool],
        gone: Callable[[], None],
    ) -> None:
        self._transport = transport
        self._loop = loop
        self._waits = waits
        self._gone = gone
        self._looked = 0

    def look(self) -> None:
        """Look now, and again."""
        sock: socket.socket | None = self._transport.get_extra_info("socket")
        if not self._waits() or sock is None:
            return
        if not self._looked:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        elif _tcp_state(sock) == _TCP_CLOSED:
            self._gone()
            return
        self._loop.call_later(_LOOK_AFTER_S[min(self._looked, len(_LOOK_AFTER_S) - 1)], self.look)
        self._looked += 1


def _tcp_state(sock: Any) -> int:
    try:
        return int(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0])
    except OSError:
        return _TCP_CLOSED
