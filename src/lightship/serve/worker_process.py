"""One worker process and the server's end of its channel: how it is started, spoken to and ended.

It knows nothing of requests and starts nothing again; ``supervisor`` does. Everything here runs on the event loop but
``spawn``, which may come before there is one: then the worker imports its libraries while the server still reads.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from lightship.errors import WorkerFailed
from lightship.serve.slots import Slots
from lightship.serve.wire import Beat, Channel, Load, LoadFailed, Message, Ready, stop_message
from lightship.serve.work import error_named

__all__ = ["WorkerProcess"]

log = logging.getLogger(__name__)

_END_S = 5.0
_CPU_TICKS = slice(11, 13)  # utime and stime, counted from the state
_PAGE_BYTES = resource.getpagesize()


class WorkerProcess:
    """A worker, from ``spawn`` over ``load`` to ``end``."""

    def __init__(self) -> None:
        self.title = "(no model yet)"
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: Channel | None = None
        self._stops: socket.socket | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready: asyncio.Future[Ready] | None = None
        self.beat_s = 0.0
        """When it last gave a sign of life, by the loop's clock."""
        self._on_message: Callable[[Message, memoryview], None]
        self._on_lost: Callable[[], None]

    @classmethod
    def spawn(cls) -> WorkerProcess:
        """Start a process. From the main thread: the worker asks to be killed when the thread that made it ends."""
        worker = cls()
        ours, theirs = Channel.pair()
        our_stops, their_stops = Channel.pair()
        ours.setblocking(False)
        our_stops.setblocking(False)
        slots = Slots()
        with theirs, their_stops:
            numbers = (theirs.fileno(), their_stops.fileno(), slots.descriptor)
            command = (sys.executable, "-P", "-m", "lightship.serve.worker_start", "--parent", str(os.getpid()))
            worker._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module, no shell
                (*command, "--fd", str(numbers[0]), "--stop-fd", str(numbers[1]), "--slots-fd", str(numbers[2])),
                pass_fds=numbers,
                stdin=subprocess.DEVNULL,
            )
        worker._channel, worker._stops = Channel(ours, slots=slots), our_stops
        return worker

    @property
    def pid(self) -> int | None:
        """Its process, while there is one."""
        return None if self._process is None else self._process.pid

    @property
    def descriptor(self) -> int | None:
        """The server's end of the channel, while it is open."""
        return None if self._channel is None else self._channel.socket.fileno()

    def memory_bytes(self) -> int:
        """Return its resident memory; 0 when it is gone."""
        try:
            with Path(f"/proc/{self.pid}/statm").open() as file:
                return int(file.read().split()[1]) * _PAGE_BYTES
        except (OSError, IndexError):
            return 0

    def stands_still(self) -> bool:
        """Return whether the process is stopped (SIGSTOP, a debugger)."""
        return _stat(f"/proc/{self.pid}/stat")[:1] in (["T"], ["t"])

    def works_at(self) -> tuple[bool, int]:
        """Return whether any of its threads runs or waits for a disk, and the processor time of all, in ticks."""
        busy, ticks = False, 0
        with contextlib.suppress(OSError):
            for thread in Path(f"/proc/{self.pid}/task").iterdir():
                fields = _stat(f"{thread}/stat")
                busy = busy or fields[:1] not in (["S"], [])
                ticks += sum(int(field) for field in fields[_CPU_TICKS])
        return busy, ticks

    async def load(
        self,
        message: Load,
        payload: Sequence[bytes | memoryview],
        *,
        timeout_s: float,
        on_message: Callable[[Message, memoryview], None],
        on_lost: Callable[[], None],
    ) -> Ready:
        """Let it load a graph, and wait until it has passed its self-test.

        Args:
            on_message: called with what it sends after that.
            on_lost: called, perhaps more than once, when it is gone or cannot be understood, after it was ready.

        Raises:
            BundleRefused: it failed the self-test.
            LightshipError: it cannot load the graph, died, or took too long. The process still has to be ended.
        """
        if self._channel is None:
            raise self._died_loading()
        self.title = message.model
        self._on_message, self._on_lost = on_message, on_lost
        self._loop = asyncio.get_running_loop()
        self._ready = self._loop.create_future()
        self._loop.add_reader(self._channel.socket.fileno(), self._on_readable)
        try:
            self._channel.send(message, payload)
            return await asyncio.wait_for(self._ready, timeout_s)
        except TimeoutError as exc:
            raise WorkerFailed(f"The worker of {self.title} was not ready in {timeout_s:g} s.") from exc
        except OSError as exc:
            raise self._died_loading() from exc

    def send(self, message: Message, payload: Sequence[bytes | memoryview] = ()) -> None:
        """Send a message.

        Raises:
            OSError: it is gone, or has not taken what was sent before.
        """
        if self._channel is None:
            raise BrokenPipeError("the worker was ended")
        self._channel.send(message, payload)

    def stop(self, batch: int) -> None:
        """Tell it that nobody waits for a batch any more.

        Raises:
            OSError: it is gone, or does not listen.
        """
        if self._stops is None:
            raise BrokenPipeError("the worker was ended")
        self._stops.send(stop_message(batch))

    def kill(self) -> None:
        """Kill it; its end is told like any other death."""
        if self._process is not None:
            self._process.kill()

    async def end(self, *, wait_s: float = 0.0) -> None:
        """Close the channel, give it some time to go by itself, and see to it that it is gone."""
        if self._channel is not None:
            if self._loop is not None:
                self._loop.remove_reader(self._channel.socket.fileno())
            self._channel.close()
            self._channel = None
        if self._stops is not None:
            self._stops.close()
            self._stops = None
        process, self._process = self._process, None
        if process is None:
            return
        try:
            await asyncio.to_thread(process.wait, wait_s)
        except subprocess.TimeoutExpired:
            process.kill()
            await asyncio.to_thread(process.wait, _END_S)

    def _on_readable(self) -> None:
        if self._channel is None:
            return
        try:
            received = self._channel.receive()  # one: to ask for another costs as much as to be told that there is one
            if received is None:
                self._lost()
            else:
                self._received(*received)
        except BlockingIOError:
            return
        except (OSError, WorkerFailed) as exc:
            log.error("the worker of %s cannot be understood: %s", self.title, exc)
            self._lost()

    def _received(self, message: Message, payload: memoryview) -> None:
        if type(message) is Beat:
            if self._loop is not None:
                self.beat_s = self._loop.time()
        elif self._ready is None or self._ready.done():
            self._on_message(message, payload)
        elif isinstance(message, Ready):
            self.beat_s = self._ready.get_loop().time()
            self._ready.set_result(message)
        elif isinstance(message, LoadFailed):
            self._ready.set_exception(error_named(message.error, message.message))

    def _lost(self) -> None:
        if self._channel is not None and self._loop is not None:
            self._loop.remove_reader(self._channel.socket.fileno())
        if self._ready is not None and not self._ready.done():
            self._ready.set_exception(self._died_loading())
        else:
            self._on_lost()

    def _died_loading(self) -> WorkerFailed:
        return WorkerFailed(f"The worker of {self.title} died while it was loading.")


def _stat(path: str) -> list[str]:
    """Return the fields after the name, which may hold spaces; the first is the state. None if there is no such one."""
    try:
        with Path(path).open() as file:
            return file.read().rpartition(")")[2].split()
    except OSError:
        return []
