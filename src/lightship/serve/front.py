"""What all connections of the data plane share: routes, limits, clocks, and how they end together.

The protocol that each of them speaks is in ``connection``.
"""

from __future__ import annotations

import asyncio
import ipaddress
import math
import secrets
from collections import Counter, deque
from collections.abc import Callable
from itertools import count

from lightship.serve.connection import Connection
from lightship.serve.dispatch import Dispatcher, Exchange
from lightship.serve.http import AnswerHeads, Heads
from lightship.serve.limits import Clocks, Limits

__all__ = ["Front", "Served"]

_CHANCE_S = 1.0  # for a client to take something of its answer, before it may be cut off for another's
_COOLING_S = 0.01
_LEAST_PER_S = 400  # refused connections that are read again, however few are answered

Served = Callable[[Exchange, int, float], None]
"""Called after each answer with its exchange, its status and the seconds since the head came: for metrics and log."""


class Front:
    """What all connections of one server share: routes, limits, clocks, the set of them, and whether it is ending."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        *,
        limits: Limits | None = None,
        clocks: Clocks | None = None,
        served: Served | None = None,
    ) -> None:
        self.dispatcher = dispatcher
        self.limits = limits or Limits()
        self.clocks = clocks or Clocks()
        self.served = served
        self.heads = Heads(self.limits)
        self.answer_heads = AnswerHeads()
        self.connections: set[Connection] = set()
        self.peers: Counter[bytes] = Counter()  # open connections by address
        self.unsaid: dict[Connection, float] = {}  # whose request is not all there, and since when; the oldest first
        self._loop = asyncio.get_running_loop()
        self.cooling = _Cooling(self._loop)
        self.behind = _Behind(self.limits.answers_bytes)
        self.held_bytes = 0
        self.closing = False
        self.last_answers = False  # every answer from now on is the last on its connection
        self._all_gone = asyncio.Event()
        self._own_ids = secrets.token_hex(6)
        self._numbers = count(1)

    def connection(self) -> Connection:
        """Return the protocol of a new connection; the factory for ``loop.create_server``."""
        return Connection(self, asyncio.get_running_loop())

    def new_id(self) -> str:
        """Return an id for a request that brings none: unique on this server, without a random draw each."""
        return f"{self._own_ids}-{next(self._numbers)}"

    def forget(self, connection: Connection) -> None:
        """Drop a closed connection."""
        if connection in self.connections:
            self.connections.discard(connection)
            self.peers[connection.peer] -= 1
            if not self.peers[connection.peer]:
                del self.peers[connection.peer]
        self.unsaid.pop(connection, None)
        self.behind.discard(connection)
        if not self.connections:
            self._all_gone.set()

    @staticmethod
    def peer_of(transport: asyncio.BaseTransport) -> bytes:
        """Return what counts as one peer: an IPv4 address, or the network of 64 bits that an IPv6 address is in."""
        name = transport.get_extra_info("peername")
        if not isinstance(name, tuple):
            return b""  # it has gone already, or has no address
        address = ipaddress.ip_address(name[0].partition("%")[0])
        mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
        return (mapped or address).packed[:8]

    def add(self, connection: Connection) -> None:
        """Count a new connection."""
        self.connections.add(connection)
        self.peers[connection.peer] += 1

    async def drain(self, timeout_s: float) -> bool:
        """Close idle connections now and the others after their answer; return whether all ended in time."""
        self.closing = self.last_answers = True
        for connection in tuple(self.connections):
            connection.end_soon()
        if self.connections:
            self._all_gone.clear()
            try:
                await asyncio.wait_for(self._all_gone.wait(), timeout_s)
            except TimeoutError:
                return False
        return True

    def make_room(self, now: float) -> bool:
        """Close the connection that has been slowest to say what it wants; return whether there was one."""
        oldest = next(iter(self.unsaid), None)
        if oldest is None or now - self.unsaid[oldest] < self.clocks.chance_s:
            return False
        oldest.abort()
        self.forget(oldest)
        return True

    def lets_in(self, model: object) -> bool:
        """Return whether a request that was let in for a model has no answer yet. Asked seldom."""
        return any(one.version is model for one in self.connections)

    def abort(self) -> None:
        """Close every connection at once."""
        for connection in tuple(self.connections):
            connection.abort()


class _Behind:
    """Connections whose clients take their answers more slowly than these are made, and how much is held for them."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._since: dict[Connection, tuple[float, int]] = {}  # since when, and how much there was to take then

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._since)

    def add(self, connection: Connection, unsent_bytes: int, now: float) -> None:
        """Note that a client has not taken all that was written."""
        self._since[connection] = (now, unsent_bytes)

    def discard(self, connection: Connection) -> None:
        """Note that it has caught up, or has gone."""
        self._since.pop(connection, None)

    def make_room(self, size: int, now: float) -> bool:
        """Return whether so many bytes more may be held. For them, whoever takes least of its answer is cut off."""
        while held := sum([connection.unsent_bytes for connection in self._since]):
            if held + size <= self._most_bytes:
                break
            slowest = min(self._since, key=lambda one: self._taken_per_s(one, now))
            if self._taken_per_s(slowest, now) == math.inf:
                return False
            self.discard(slowest)
            slowest.abort()
        return True

    def _taken_per_s(self, connection: Connection, now: float) -> float:
        since_s, unsent_bytes = self._since[connection]
        seconds = now - since_s
        return (unsent_bytes - connection.unsent_bytes) / seconds if seconds >= _CHANCE_S else math.inf


class _Cooling:
    """Connections that were refused for want of room, and how fast they are read again.

    A refusal costs a good part of what a small model costs. So a server that has more to do than it can must not spend
    its time on refusing: for eight answers one of the refused is read again, or 400 a second if that is more, and more
    than that while none is refused again.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: deque[Connection] = deque()
        self._at_once = 1
        self._refused = False
        self._ticked_s = 0.0
        self._ticking = False
        self.answered = 0  # requests since the last time

    def add(self, connection: Connection) -> None:
        """Let a refused connection wait; it is told when it may go on."""
        self._waiting.append(connection)
        self._refused = True
        if not self._ticking:
            self._ticking, self.answered, self._ticked_s = True, 0, self._loop.time()
            self._loop.call_later(_COOLING_S, self._tick)

    def _tick(self) -> None:
        now = self._loop.time()
        least = round(_LEAST_PER_S * (now - self._ticked_s))
        self._ticked_s = now
        self._at_once = max(least, self.answered // 8) if self._refused else self._at_once * 2
        self._refused, self.answered = False, 0
        for _ in range(min(self._at_once, len(self._waiting))):
            self._waiting.popleft().cooled()
        self._ticking = bool(self._waiting)
        if self._ticking:
            self._loop.call_later(_COOLING_S, self._tick)
