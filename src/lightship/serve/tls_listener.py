"""Takes connections that begin with a TLS handshake, and counts them from the moment when they are taken.

The loop's own server tells nobody of a connection before its handshake is done, so any number could be under way.
Here they count against the limit of open connections: one more takes the place of the handshake that has been under
way for longest, if that has had its chance, or of the slowest client that has one; else it is closed, for nothing can
be said before a handshake.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import Mapping
from typing import Any

from lightship.serve.front import Front

__all__ = ["TlsListener"]

log = logging.getLogger(__name__)

_AT_ONCE = 64  # connections that are taken in one turn of the loop
_NO_FILES_S = 1.0
_NO_FILES = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


class TlsListener:
    """Takes the connections of a listening socket, from the constructor to ``close``. Used on the event loop only.

    Args:
        sock: listens and does not block.
        tls: what the loop's ``connect_accepted_socket`` takes for the handshake.
    """

    def __init__(self, front: Front, sock: socket.socket, tls: Mapping[str, Any]) -> None:
        self._front = front
        self._sock = sock
        self._tls = tls
        self._loop = asyncio.get_running_loop()
        self._shaking: dict[asyncio.Task[None], tuple[socket.socket, float]] = {}  # since when; the oldest first
        self._closed = False
        self._loop.add_reader(sock, self._take_all)

    @property
    def handshakes(self) -> int:
        """How many are under way."""
        return len(self._shaking)

    def close(self) -> None:
        """Take no more, and close the socket; handshakes go on."""
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._sock)
            self._sock.close()

    def abort(self) -> None:
        """Break off all handshakes that are under way."""
        for accepted, _ in self._shaking.values():
            _break_off(accepted)

    def take(self, accepted: socket.socket) -> asyncio.Task[None] | None:
        """Begin the handshake of a connection, or close it if there is no room; return what ends with the handshake."""
        accepted.setblocking(False)
        if not self._has_room():
            accepted.close()
            return None
        task = self._loop.create_task(self._shake_hands(accepted))
        self._shaking[task] = (accepted, self._loop.time())
        task.add_done_callback(self._done)
        return task

    def _take_all(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                accepted, _ = self._sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as exc:
                if exc.errno not in _NO_FILES:
                    raise
                log.error("no connection can be taken for %g s: %s", _NO_FILES_S, exc.strerror)
                self._loop.remove_reader(self._sock)
                self._loop.call_later(_NO_FILES_S, self._go_on)
                return
            self.take(accepted)

    def _go_on(self) -> None:
        if not self._closed:
            self._loop.add_reader(self._sock, self._take_all)

    def _has_room(self) -> bool:
        front = self._front
        if len(front.connections) + len(self._shaking) < front.limits.connections:
            return True
        now = self._loop.time()
        task = next(iter(self._shaking), None)
        if task is not None and now - self._shaking[task][1] >= front.clocks.chance_s:
            oldest, _ = self._shaking.pop(task)
            _break_off(oldest)
            return True
        return front.make_room(now)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._shaking.pop(task, None)

    async def _shake_hands(self, accepted: socket.socket) -> None:
        with contextlib.suppress(OSError):  # a client that fails its handshake, or has gone
            await self._loop.connect_accepted_socket(self._front.connection, accepted, **self._tls)


def _break_off(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it has gone by itself
        sock.shutdown(socket.SHUT_RDWR)  # so the handshake fails, and whoever makes it closes
