"""The data plane's own asyncio protocol: bytes of a connection in, answers out, everything bounded and clocked.

A connection is in one state at a time: waiting for a head, reading a body, waiting for the answer, writing it. One
timer per connection guards the state's clock; the hot path only moves a deadline, it does not touch the timer.
A request is refused by its head alone where that is possible, before its body is read. After such a refusal the
connection closes: what follows on it is a body that nobody wants.
"""

from __future__ import annotations

import asyncio
import math
from functools import partial
from typing import TYPE_CHECKING

from lightship.errors import LightshipError, Overloaded, Unavailable
from lightship.serve.answer_stream import HIGH_WATER_BYTES, AnswerStream
from lightship.serve.body import Chunked, Counted, decoded
from lightship.serve.dispatch import Exchange, Route
from lightship.serve.half_closed import HalfClosed
from lightship.serve.http import Head, HttpRefused, Response, check_request_line, error_response, too_large
from lightship.serve.limits import Clocks

if TYPE_CHECKING:
    from lightship.serve.front import Front

__all__ = ["Connection"]

_CR = 13
_NEVER = math.inf
_SKIPPED_BYTES = 64 * 1024
_JOINED_BYTES = 16 * 1024  # an answer up to this is written in one piece
_LEAST_BYTES_PER_S = 1024  # of a body
_GRACE_S = 1.0  # for the first request of a connection that was made just before the server stopped listening
_LINGER_S = 1.0  # how long a refused body is read and dropped, so that the refusal is not lost to a reset


class Connection(asyncio.Protocol):
    """One client connection."""

    __slots__ = (
        "_body",
        "_body_due_s",
        "_buffer",
        "_closing",
        "_cooling",
        "_deadline_s",
        "_discarding",
        "_eof",
        "_exchange",
        "_fresh",
        "_front",
        "_held_bytes",
        "_loop",
        "_outgoing",
        "_reading_paused",
        "_route",
        "_skip_left",
        "_timer",
        "_timer_s",
        "_transport",
        "_unsent_bytes",
        "_writing_paused",
        "peer",
    )

    def __init__(self, front: Front, loop: asyncio.AbstractEventLoop) -> None:
        self._front = front
        self._loop = loop
        self._transport: asyncio.Transport
        self.peer = b""  # whose it is, as the front counts them
        self._buffer = bytearray()
        self._exchange: Exchange | None = None
        self._route: Route | None = None
        self._body: Counted | Chunked | None = None  # that is being read
        self._closing = False
        self._eof = False
        self._reading_paused = False
        self._writing_paused = False
        self._discarding = False
        self._cooling = False  # it was refused a moment ago, and is not read
        self._deadline_s = _NEVER
        self._timer: asyncio.TimerHandle | None = None
        self._timer_s = _NEVER  # when it fires
        self._unsent_bytes = 0
        self._fresh = True  # nothing was asked yet on this connection
        self._held_bytes = 0  # what this connection's body takes of the server's limit
        self._outgoing: AnswerStream | None = None  # an answer that is being written piece by piece
        self._skip_left = 0  # bytes of a refused body that are still to come, to be dropped
        self._body_due_s = 0.0  # when a body of which nothing came is too slow

    @property
    def version(self) -> object:
        """The model version that let its request in, if it has one that is not answered."""
        return None if self._exchange is None else self._exchange.version

    @property
    def unsent_bytes(self) -> int:
        """What its client has not taken yet."""
        return self._transport.get_write_buffer_size()

    # The transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a new connection, or turn it away at the limit."""
        self._transport = transport  # type: ignore[assignment]  # a stream server's transports are Transports
        self._transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)
        front = self._front
        now = self._loop.time()
        self.peer = front.peer_of(transport)
        greedy = front.peers[self.peer] >= front.limits.connections_per_peer
        crowded = greedy or (len(front.connections) >= front.limits.connections and not front.make_room(now))
        if crowded or front.closing:
            who = "This address" if greedy else "The server"
            full = error_response(
                (Overloaded if greedy else Unavailable)(f"{who} has as many connections as it takes.")
            )
            self._write(full, front.new_id(), now, close=True)
            self._transport.close()
            self._closing = True
            return
        front.add(self)
        front.unsaid[self] = now
        self._await_until(front.clocks.head_s, now)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Drop what is under way for this client."""
        self._closing = True
        if self._timer is not None:
            self._timer.cancel()
        exchange, self._exchange = self._exchange, None
        self._hold(0)
        if exchange is not None:
            exchange.client_gone()
        if self._outgoing is not None:
            self._outgoing.lost()
        self._front.forget(self)

    def data_received(self, data: bytes) -> None:
        """Take bytes: of a head, of a body, or of requests to come."""
        if self._discarding or self._closing:
            return
        if self._exchange is None and not (self._buffer or self._skip_left or self._writing_paused):
            end = data.find(b"\r\n\r\n", 0, self._front.limits.head_bytes) + 4
            if end > 3 and self._take_whole(data, end):
                return
            if not self._fresh:
                # The absolute clock of a head starts with its first byte; for the first head, with the connection.
                now = self._loop.time()
                self._front.unsaid[self] = now
                self._await_until(self._front.clocks.head_s, now)
        self._buffer += data
        self._advance(progress=True)

    def eof_received(self) -> bool:
        """Take the end of what the client sends.

        A client that only ended its own side still gets its answer. One that has gone altogether looks the same at
        this point; a probe tells them apart, so that its work can be dropped. With TLS there is no such half.
        """
        self._eof = True
        if not self._transport.can_write_eof():
            self._close()
            return False
        if self._exchange is None:
            self._next_request()  # what was pipelined before the end may still be whole requests
        elif self._body is not None:
            self._close()
        elif not self._exchange.head.http_1_0 and self._outgoing is None:
            HalfClosed(self._transport, self._loop, waits=self._waits, gone=self.abort).look()
        return not self._closing

    def pause_writing(self) -> None:
        """Note that the client takes its answer slowly; a clock runs on it."""
        self._writing_paused = True
        self._unsent_bytes = self.unsent_bytes
        now = self._loop.time()
        self._front.behind.add(self, self._unsent_bytes, now)
        self._await_until(self._front.clocks.write_s, now)

    def resume_writing(self) -> None:
        """Go on with the next request."""
        self._writing_paused = False
        self._front.behind.discard(self)
        if self._outgoing is not None:
            self._deadline_s = _NEVER
            self._outgoing.caught_up()
        elif self._exchange is None and not self._closing:
            self._await_until(self._front.clocks.idle_s)
            self._advance(progress=False)

    # The request's side

    def _take_whole(self, data: bytes, end: int) -> bool:
        """Take the usual case, one whole request in one piece, past the buffer; return whether it was that."""
        if data[0] == _CR:
            return False
        try:
            head = self._front.heads[data[:end]]
            if head.body_bytes != len(data) - end or head.expects_continue:
                return False
            self._begin(head, data[end:])
        except LightshipError as exc:
            self._refuse(exc, body_left=0)
        return True

    def _advance(self, *, progress: bool) -> None:
        begun = False
        try:
            while not self._closing and not self._writing_paused:
                if self._skip_left:
                    if not self._skip():
                        break
                elif self._exchange is None:
                    # One request a turn of the loop: a client that pipelines thousands must not keep out the others.
                    if begun or not self._take_head():
                        break
                    begun = True
                elif self._body is not None:
                    if not self._take_body(self._body, progress=progress):
                        break
                else:
                    break
        except LightshipError as exc:
            self._refuse(exc)
        if self._eof and self._exchange is None and not begun and not self._closing and not self._writing_paused:
            self._close()  # the client ended its side, and no further request is whole
        self._hold_back()

    def _hold(self, size: int) -> None:
        """Count the bytes of this connection's body among those that the server holds.

        Raises:
            Unavailable: with these the server would hold too many.
        """
        front, more = self._front, size - self._held_bytes
        held = front.held_bytes + more
        if more > 0 and held > front.limits.bodies_bytes:
            raise Unavailable("The server holds as many request bytes as it takes. Try again later.")
        front.held_bytes = held
        self._held_bytes = size

    def _hold_back(self) -> None:
        # While an answer is awaited, later requests are held up to a bound; then the socket's own flow control works.
        too_much = len(self._buffer) > self._front.limits.ahead_bytes
        if self._cooling:
            return
        waiting = (self._exchange is not None and self._body is None) or self._writing_paused
        if waiting and too_much and not self._reading_paused:
            self._reading_paused = True
            self._transport.pause_reading()
        elif self._reading_paused and not (waiting and too_much) and not self._closing:
            self._reading_paused = False
            self._transport.resume_reading()

    def _take_head(self) -> bool:
        buffer = self._buffer
        while buffer.startswith(b"\r\n"):  # RFC 9112 §2.2: an empty line before a request is passed over
            del buffer[:2]
        limit = self._front.limits.head_bytes
        end = buffer.find(b"\r\n\r\n", 0, limit)
        if end < 0:
            if len(buffer) >= limit:
                raise self._head_too_large(limit)
            if b"\n\n" in buffer or b"\n\r\n" in buffer:
                raise HttpRefused(400, "A header line must end with CR LF. Got a bare LF.")
            check_request_line(buffer)  # who speaks another protocol need not wait for the clock
            return False
        data = bytes(buffer[: end + 4])
        del buffer[: end + 4]
        self._begin(self._front.heads[data])
        return True

    def _head_too_large(self, limit: int) -> HttpRefused:
        line_end = self._buffer.find(b"\r\n")
        if line_end < 0 or line_end > self._front.limits.target_bytes + 64:
            return HttpRefused(414, f"A request target has at most {self._front.limits.target_bytes} bytes.")
        return HttpRefused(431, f"The head of a request has at most {limit} bytes.")

    def _skip(self) -> bool:
        """Drop what has come of a refused body; return whether all of it has."""
        dropped = min(len(self._buffer), self._skip_left)
        del self._buffer[:dropped]
        self._skip_left -= dropped
        if not self._skip_left:
            self._await_until(self._front.clocks.idle_s)
        return not self._skip_left

    def _begin(self, head: Head, body: bytes | None = None) -> None:
        """Begin a request. ``body``: all of it, if it came together with the head."""
        front = self._front
        self._fresh = False
        now, clocks = self._loop.time(), front.clocks
        exchange = Exchange(head, head.request_id or front.new_id(), now, self._answer, now + clocks.request_s)
        self._exchange = exchange
        if head.timeout_ms is not None:
            exchange.deadline_s = now + _timeout_s(head.timeout_ms, clocks)
        size = head.body_bytes
        if size is not None and size > front.limits.body_bytes:
            raise too_large(size, front.limits)
        self._route = front.dispatcher.admit(exchange)
        if size != 0:
            if head.body_refusal is not None:
                raise HttpRefused(*head.body_refusal)
            if size is not None:
                self._hold(size)
        if body is not None or size == 0:
            self._handle(body or b"")
        else:
            self._await_body(head, now)

    def _await_body(self, head: Head, now: float) -> None:
        if head.expects_continue and not self._buffer:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        size = head.body_bytes
        self._body = Chunked(self._front.limits) if size is None else Counted(size)
        self._front.unsaid.setdefault(self, now)
        self._body_due_s = now + self._front.clocks.slow_body_s
        self._body_clock(0)

    def _take_body(self, body: Counted | Chunked, *, progress: bool) -> bool:
        whole = body.feed(self._buffer)
        self._hold(body.size)
        if whole is None:
            if progress:
                self._body_clock(body.taken)
            return False
        self._body = None
        self._handle(whole)
        return True

    def _body_clock(self, taken: int) -> None:
        """Wait for the next piece of a body, which may be slow, but not as slow as it likes."""
        now = self._loop.time()
        due_s = self._body_due_s + taken / _LEAST_BYTES_PER_S
        self._await_until(min(self._front.clocks.body_s, due_s - now), now)

    def _handle(self, body: bytes) -> None:
        exchange, route = self._exchange, self._route
        if exchange is None or route is None:
            return
        self._deadline_s = _NEVER  # the model's queue answers for the request's deadline from here on
        if self._front.unsaid:
            self._front.unsaid.pop(self, None)
        try:
            if exchange.head.coding is not None and body:
                body = decoded(body, exchange.head.coding, self._front.limits)
                self._hold(len(body))
            exchange.body = body
            route.handle(exchange)
        except Exception as exc:  # noqa: BLE001 - it is answered, and logged if it is a fault of ours
            exchange.failed(exc)

    # Answers

    def _answer(self, response: Response) -> None:
        exchange, front = self._exchange, self._front
        if exchange is None or self._closing:
            return
        now, head = self._loop.time(), exchange.head
        close = front.last_answers or not head.keep_alive or (self._eof and not self._buffer)
        whole = head.method != "HEAD"
        response = self._write(response, exchange.request_id, now, close=close, whole=whole)
        front.held_bytes -= self._held_bytes
        self._held_bytes = 0
        if response.stream is None or not whole:
            self._answered(exchange, response.status, now, close=close)
        else:
            self._outgoing = AnswerStream(
                self._transport, partial(self._streamed, exchange, response.status, close=close), chunked=not close
            )
            response.stream(self._outgoing)

    def _streamed(self, exchange: Exchange, status: int, *, close: bool) -> None:
        self._answered(exchange, status, self._loop.time(), close=close)

    def _answered(self, exchange: Exchange, status: int, now: float, *, close: bool) -> None:
        """All of an answer has been written."""
        front = self._front
        front.cooling.answered += 1
        if front.served is not None:
            front.served(exchange, status, now - exchange.arrived_s)
        self._exchange = self._outgoing = None
        if close:
            self._linger()
            return
        if not self._writing_paused:
            self._deadline_s = deadline_s = now + front.clocks.idle_s
            if self._timer_s > deadline_s:
                self._set_timer()
        if self._buffer or self._eof:
            # Not from here: a row of pipelined requests that are answered at once must not nest.
            self._loop.call_soon(self._next_request)

    def _next_request(self) -> None:
        if not self._closing and self._exchange is None and not self._writing_paused:
            if not self._skip_left:
                self._await_until(self._front.clocks.head_s)
            self._advance(progress=False)

    def _refuse(self, error: LightshipError, *, body_left: int | None = None) -> None:
        """Answer an error of the head or of the body, of which ``body_left`` bytes are still to come (None: all).

        The connection goes on if the request was understood and its body is absent or short enough to be read over;
        a server that has more to do than it can should not have to open connections again as well. Else it closes.
        """
        exchange, self._exchange, self._route = self._exchange, None, None
        if exchange is not None and exchange.answered:
            return
        self._front.unsaid.pop(self, None)
        goes_on = exchange is not None and self._can_go_on(exchange.head, body_left)
        if exchange is not None and goes_on:
            self._skip_left = (exchange.head.body_bytes or 0) if body_left is None else body_left
        self._body = None
        self._hold(0)
        response = error_response(error)
        request_id = exchange.request_id if exchange is not None else self._front.new_id()
        now = self._loop.time()
        whole = exchange is None or exchange.head.method != "HEAD"
        self._write(response, request_id, now, close=not goes_on, whole=whole)
        if exchange is not None:
            if self._front.served is not None:
                self._front.served(exchange, response.status, now - exchange.arrived_s)
            exchange.client_gone()
        if not goes_on:
            self._linger()
            return
        self._await_until(self._front.clocks.slow_body_s if self._skip_left else self._front.clocks.idle_s)
        if isinstance(error, Unavailable):
            self._cool()
        elif self._buffer:
            self._loop.call_soon(self._next_request)

    def _cool(self) -> None:
        """Read nothing more of this client for a moment: whoever comes back at once is not read, not refused again."""
        self._cooling = True
        if not self._reading_paused:
            self._reading_paused = True
            self._transport.pause_reading()
        self._front.cooling.add(self)

    def cooled(self) -> None:
        """Go on after a refusal."""
        self._cooling = False
        if self._closing:
            return
        self._await_until(self._front.clocks.slow_body_s if self._skip_left else self._front.clocks.idle_s)
        self._hold_back()
        if self._buffer:
            self._next_request()

    def _can_go_on(self, head: Head, body_left: int | None) -> bool:
        if self._body is not None or self._eof or self._front.last_answers or not head.keep_alive:
            return False
        # Who expects 100 Continue may send the body after a refusal or not; its next bytes could be either.
        left = head.body_bytes if body_left is None else body_left
        return left is not None and left <= _SKIPPED_BYTES and not head.expects_continue

    def _linger(self) -> None:
        # Closing with unread bytes in the socket resets the connection, and the client may lose the answer: half-close,
        # read and drop for a moment, then close.
        self._discarding = True
        self._buffer.clear()
        if self._reading_paused:
            self._reading_paused = False
            self._transport.resume_reading()
        if self._eof or not self._transport.can_write_eof():
            self._close()
            return
        self._transport.write_eof()
        self._await_until(_LINGER_S)

    def _write(self, response: Response, request_id: str, now: float, *, close: bool, whole: bool = True) -> Response:
        """Write an answer, or its head alone if it is not to be ``whole``; return it, or what stands in its place."""
        body = response.body
        size = sum(map(len, body))
        if whole and size > _JOINED_BYTES and not self._front.behind.make_room(size, now):
            full = Unavailable("The server holds as many bytes of answers as it takes. Try again later.")
            return self._write(error_response(full), request_id, now, close=close, whole=whole)
        before, after = self._front.answer_heads.around_id(response, size, now, close=close)
        parts = (before, request_id.encode(), after, *body) if whole else (before, request_id.encode(), after)
        if size > _JOINED_BYTES:
            self._transport.writelines(parts)
        else:
            self._transport.write(b"".join(parts))
        return response

    # Ends and clocks

    def end_soon(self) -> None:
        """Close now if nothing is under way, else after the answer.

        A connection that is new has its first request on the way; it gets a moment for it.
        """
        if self._exchange is None and not self._buffer and not self._fresh:
            self._close()
        elif self._fresh:
            self._await_until(_GRACE_S)

    def abort(self) -> None:
        """Close at once."""
        self._closing = True
        self._transport.abort()

    def _close(self) -> None:
        self._closing = True
        self._buffer.clear()
        self._transport.close()
        # An answer that the client does not take must not hold the connection for ever.
        self._await_until(self._front.clocks.write_s)

    def _await_until(self, seconds: float, now: float | None = None) -> None:
        self._deadline_s = deadline_s = (self._loop.time() if now is None else now) + seconds
        if self._timer_s > deadline_s:
            self._set_timer()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_s = self._deadline_s
        self._timer = self._loop.call_at(self._deadline_s, self._tick)

    def _tick(self) -> None:
        self._timer, self._timer_s = None, _NEVER
        if self._transport.is_closing() and not self._transport.get_write_buffer_size():
            return
        if self._loop.time() + 0.001 < self._deadline_s:
            if self._deadline_s != _NEVER:
                self._timer_s = self._deadline_s
                self._timer = self._loop.call_at(self._deadline_s, self._tick)
            return
        self._out_of_time()

    def _out_of_time(self) -> None:
        unsent = self.unsent_bytes
        if self._closing or self._discarding or self._writing_paused:
            if unsent and unsent < self._unsent_bytes and not self._discarding:
                self._unsent_bytes = unsent
                self._await_until(self._front.clocks.write_s)
                return
            self.abort()
        elif self._exchange is not None:
            clocks = self._front.clocks
            self._refuse(
                HttpRefused(
                    408,
                    f"The body made no progress for {clocks.body_s:g} s (clock `body_s`), or less than "
                    f"{_LEAST_BYTES_PER_S} bytes a second after {clocks.slow_body_s:g} s (clock `slow_body_s`).",
                )
            )
        elif self._skip_left:
            self._close()
        elif self._buffer:
            self._refuse(
                HttpRefused(408, f"The head was not there after {self._front.clocks.head_s:g} s (clock `head_s`).")
            )
        else:
            self._close()

    def _waits(self) -> bool:
        """Whether this client waits for an answer of which nothing has been sent."""
        return not self._closing and self._exchange is not None and self._outgoing is None


def _timeout_s(given_ms: int, clocks: Clocks) -> float:
    longest_ms = int(clocks.longest_request_s * 1000)
    if not 1 <= given_ms <= longest_ms:
        raise HttpRefused(400, f"The header x-request-timeout-ms must be a whole number in [1, {longest_ms}].")
    return given_ms / 1000
