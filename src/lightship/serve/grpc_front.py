"""The gRPC door of the data plane: calls in, answers out, by the same decisions as over HTTP.

grpcio speaks HTTP/2; everything else is ours. A call goes through a ``Dispatcher`` of its own: each method names its
roles, and who asks for what is not there needs a key too. A call's message is read only after that (to grpcio every
method takes a stream of messages, which puts the reading into our hands), and no more of them at once than the limit of
all bodies allows. What a message asks for is then done on the server's own loop, where the models' queues are.

A call waits in a thread of grpcio's plain server. Its asyncio server is shut down by one call whose path is not UTF-8,
from anybody who can reach the port (seen in 1.85.1), and costs more a call.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
import logging
import re
import secrets
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from lightship.errors import (
    Conflict,
    DeadlineExceeded,
    InvalidInput,
    LightshipError,
    NotFound,
    Overloaded,
    TooLarge,
    Unavailable,
    status_of,
)
from lightship.serve.access import Access, Roles
from lightship.serve.dispatch import Dispatcher, Exchange, Route
from lightship.serve.http import Head, Response
from lightship.serve.limits import Clocks, Limits
from lightship.v2.grpc_library import load_grpc

if TYPE_CHECKING:
    import grpc

__all__ = ["GrpcFront", "GrpcMethod", "GrpcServed"]

log = logging.getLogger(__name__)

_CONTRACT = "grpc"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
_SPARE_CALLS = 32  # threads to refuse the calls that are over the limit, and tell them when to come again
_FAILED = "The server failed. Its log tells why."
_LONGEST_TEXT = 1_000  # of an error; it travels in a header
_KEEPALIVE_S = 60.0
_LEAST_PING_S = 10.0
_LOOK_S = 0.5  # how often slow clients are looked for
_NO_DEADLINE_S = 1e8  # grpcio gives a very long time instead of none

GrpcServed = Callable[[Exchange, int, float], None]
"""Called after each answer with its exchange, the HTTP status that it would have, and the seconds since it began."""


@dataclass(frozen=True, slots=True)
class GrpcMethod:
    """A method, whom it is for, and what answers it.

    Attributes:
        path: ``/package.Service/Method``.
        answer: gets one message and returns one, on the loop; raises ``LightshipError``. Cancelled when nobody waits
            any more.
        stream: many messages in, one answer out for each, in order.
    """

    path: str
    roles: Roles
    answer: Callable[[Exchange, bytes], Awaitable[bytes]]
    stream: bool = False


class _NoSuchMethod(NotFound):
    """gRPC has a code of its own for this."""


class _Gone(Exception):
    """Nobody waits for the answer any more."""


class GrpcFront:
    """Listens and answers: ``listen``, then ``start``, then ``drain`` or ``abort``.

    Args:
        access: used under a lock here, so not the one of another door.
        stream_error: makes the message that says on a stream that one of its requests failed.
        served: called on the loop.
    """

    def __init__(
        self,
        methods: Sequence[GrpcMethod],
        access: Access,
        *,
        limits: Limits,
        clocks: Clocks,
        served: GrpcServed,
        stream_error: Callable[[str], bytes],
    ) -> None:
        self.calls = 0
        self._limits = limits
        self._clocks = clocks
        self._served = served
        self._id_prefix = secrets.token_hex(6)
        self._ids = itertools.count(1)
        self._stream_error = stream_error
        self._methods = {method.path: method for method in methods}
        self._dispatcher = Dispatcher(access)
        for method in methods:
            self._dispatcher.register(Route("POST", method.path, method.roles, _unused, contract=_CONTRACT))
        self._lock = threading.Lock()  # of the dispatcher and of ``calls``
        # Before a message is there its size is not known: each may be of the largest.
        self._slots = threading.BoundedSemaphore(max(1, limits.bodies_bytes // limits.body_bytes))
        self._held_bytes = 0
        self._untaken = _Untaken(limits.answers_bytes, clocks.write_s)
        # Contexts of calls whose next message is awaited: until when, and whether they are streams.
        self._reading: dict[Any, tuple[float, bool]] = {}
        self._loop = asyncio.get_running_loop()
        self._draining = False
        self._look: asyncio.TimerHandle | None = None
        self._server: Any = None
        self._rpc_error: type[Exception] = load_grpc().RpcError

    def listen(self, host: str, port: int, credentials: grpc.ServerCredentials | None = None) -> int:
        """Take the port (0: any) and return it; calls are taken from ``start`` on.

        Raises:
            Conflict: the address cannot be used.
        """
        grpc = load_grpc()
        calls = self._limits.calls + _SPARE_CALLS
        server = grpc.server(
            concurrent.futures.ThreadPoolExecutor(calls, thread_name_prefix="grpc"),
            handlers=(_handlers(self._methods, self._call, self._stream),),
            options=_options(self._limits, self._clocks),
            maximum_concurrent_rpcs=calls,
        )
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            if credentials is None:
                bound: int = server.add_insecure_port(address)
            else:
                bound = server.add_secure_port(address, credentials)
        except RuntimeError:
            bound = 0
        if not bound:
            raise Conflict(f"The address {address} cannot be used for gRPC. Choose another --host or --grpc-port.")
        self._server = server
        return bound

    def start(self) -> None:
        """Take calls."""
        self._server.start()
        self._look_for_slow()

    async def drain(self, timeout_s: float) -> bool:
        """Take no more calls (GOAWAY) and wait for those under way; return whether all ended in time."""
        self._draining = True
        stopped = self._server.stop(timeout_s)
        return await asyncio.to_thread(stopped.wait, timeout_s)

    async def abort(self) -> None:
        """End every call at once."""
        if self._look is not None:
            self._look.cancel()
        stopped = self._server.stop(0)
        await asyncio.to_thread(stopped.wait, 1.0)

    # One call, in its thread

    def _call(self, path: str, messages: Iterator[bytes], context: Any) -> bytes | None:
        exchange, refused = self._begin(path, context)
        try:
            with self._admitted(exchange, refused) as method:
                data = self._read(exchange, messages, context)
                context.add_callback(partial(self._untaken.discard, exchange))
                answer = self._wait(self._answer(method, exchange, data, context), context)
        except LightshipError as exc:
            self._refuse(exchange, exc, context)
        except (_Gone, self._rpc_error):  # grpcio raises its own when a call ends while its message is awaited
            return None
        except Exception:
            log.exception("request %s failed inside the server", exchange.request_id)
            self._refuse(exchange, LightshipError(_FAILED), context)
        context.set_trailing_metadata((("x-request-id", exchange.request_id),))
        return answer

    def _read(self, exchange: Exchange, messages: Iterator[bytes], context: Any) -> bytes:
        """Return the call's message, as soon as there is room to take one."""
        left_s = max(0.0, exchange.deadline_s - time.monotonic())
        if not self._slots.acquire(timeout=left_s):
            raise DeadlineExceeded("The deadline of the call passed while the server took in others.")
        try:
            until_s = min(exchange.deadline_s, time.monotonic() + self._clocks.body_s)
            data = self._next(messages, context, until_s)
        finally:
            self._slots.release()
        if data is None:
            raise InvalidInput("A call needs a message. Got none.")
        return data

    def _next(
        self, messages: Iterator[bytes], context: Any, until_s: float, *, of_stream: bool = False
    ) -> bytes | None:
        """Return the next message, ``None`` at their end. A client that is too slow is cut off."""
        self._reading[context] = (until_s, of_stream)
        try:
            return next(messages, None)
        finally:
            self._reading.pop(context, None)

    def _wait(self, answer: Any, context: Any) -> bytes:
        """Let the loop make an answer and wait for it; drop the work if the call ends before."""
        future: concurrent.futures.Future[bytes] = asyncio.run_coroutine_threadsafe(answer, self._loop)
        if not context.add_callback(partial(_drop, future)):
            future.cancel()
        try:
            return future.result()
        except (concurrent.futures.CancelledError, asyncio.CancelledError):
            raise _Gone from None

    async def _answer(self, method: GrpcMethod, exchange: Exchange, data: bytes, context: Any) -> bytes:
        size = len(data)
        if self._held_bytes + size > self._limits.bodies_bytes:
            raise Unavailable("The server holds as many request bytes as it takes. Try again later.")
        self._held_bytes += size
        try:
            answer = await method.answer(exchange, data)
            self._untaken.add(exchange, context, len(answer))
        except LightshipError:
            raise
        except Exception as exc:
            log.exception("request %s failed inside the server", exchange.request_id)
            raise LightshipError(_FAILED) from exc
        finally:
            self._held_bytes -= size
        self._count(exchange, 200)
        return answer

    def _refuse(self, exchange: Exchange, error: LightshipError, context: Any) -> None:
        """End a call with an error. Does not return: this is how grpcio wants it."""
        status = status_of(error)
        self._loop.call_soon_threadsafe(self._count, exchange, status.http)
        trailing = [("x-request-id", exchange.request_id)]
        if isinstance(error, Unavailable) and not isinstance(error, DeadlineExceeded):
            # The first is what gRPC's own retries go by (its proposal A6), the second is the word that HTTP has for it.
            trailing.append(("grpc-retry-pushback-ms", str(round(error.retry_after_s * 1000))))
            trailing.append(("retry-after", str(max(1, round(error.retry_after_s)))))
        context.set_trailing_metadata(tuple(trailing))
        code = "UNIMPLEMENTED" if isinstance(error, _NoSuchMethod) else status.grpc
        context.abort(load_grpc().StatusCode[code], _text(error))

    # A stream of requests, in its thread

    def _stream(self, path: str, messages: Iterator[bytes], context: Any) -> Iterator[bytes]:
        exchange, refused = self._begin(path, context)
        try:
            with self._admitted(exchange, refused) as method:
                while not self._draining:
                    until_s = time.monotonic() + self._clocks.longest_request_s
                    data = self._next(messages, context, until_s, of_stream=True)
                    if data is None:
                        break
                    each, _ = self._begin(path, context)
                    try:
                        yield self._answer_of_stream(method, each, data, context)  # goes on when grpcio has sent it
                    finally:
                        self._untaken.discard(each)
                else:
                    raise Unavailable("The server is being stopped.")
        except LightshipError as exc:
            self._refuse(exchange, exc, context)
        except (_Gone, self._rpc_error):
            return
        except Exception:
            log.exception("request %s failed inside the server", exchange.request_id)
            self._refuse(exchange, LightshipError(_FAILED), context)
        context.set_trailing_metadata((("x-request-id", exchange.request_id),))

    def _answer_of_stream(self, method: GrpcMethod, exchange: Exchange, data: bytes, context: Any) -> bytes:
        with self._lock:
            self._dispatcher.admit(exchange)  # a stream must not outlive its key
        try:
            return self._wait(self._answer(method, exchange, data, context), context)
        except LightshipError as exc:
            self._loop.call_soon_threadsafe(self._count, exchange, status_of(exc).http)
            return self._stream_error(_text(exc))

    # What both have in common

    def _begin(self, path: str, context: Any) -> tuple[Exchange, LightshipError | None]:
        """Return a call's exchange, and why it is refused whatever it asks for."""
        refused: LightshipError | None = None
        try:
            headers = _headers(path, context.invocation_metadata() or (), self._limits)
        except TooLarge as exc:
            headers, refused = {}, exc
        given = headers.get("x-request-id", "")
        head = Head(
            method="POST",
            target=path,
            path=path if path in self._methods else "/",  # to the byte; the dispatcher relies on the first slash
            headers=headers,
            keep_alive=True,
            http_1_0=False,
            body_bytes=None,
            expects_continue=False,
            request_id=given if _REQUEST_ID.fullmatch(given) else None,
        )
        now = time.monotonic()
        request_id = head.request_id or f"{self._id_prefix}-{next(self._ids):x}"
        exchange = Exchange(head, request_id=request_id, arrived_s=now, on_answer=_unused)
        left_s = context.time_remaining()
        longest_s = self._clocks.request_s if left_s > _NO_DEADLINE_S else self._clocks.longest_request_s
        exchange.deadline_s = now + min(left_s, longest_s)
        return exchange, refused

    @contextmanager
    def _admitted(self, exchange: Exchange, refused: LightshipError | None) -> Iterator[GrpcMethod]:
        """Let a call in, or refuse it; count it while it is under way."""
        if refused is not None:
            raise refused
        with self._lock:
            try:
                route = self._dispatcher.admit(exchange)
            except NotFound:
                raise _NoSuchMethod("There is no such method here.") from None
            if self.calls >= self._limits.calls:
                raise Overloaded(f"{self.calls} calls are under way, as many as the server takes. Try again later.")
            self.calls += 1
        try:
            yield self._methods[route.pattern]
        finally:
            with self._lock:
                self.calls -= 1

    def _count(self, exchange: Exchange, status: int) -> None:
        self._served(exchange, status, time.monotonic() - exchange.arrived_s)

    def _look_for_slow(self) -> None:
        """Cut off the calls whose message does not come: while a thread waits for it, only this can end it."""
        now = time.monotonic()
        for context, (until_s, of_stream) in list(self._reading.items()):
            if now > until_s or (of_stream and self._draining):
                with suppress(Exception):  # it may have ended this moment
                    context.cancel()
        self._look = self._loop.call_later(_LOOK_S, self._look_for_slow)


class _Untaken:
    """Answers that grpcio was given and that their clients have not taken. It tells nothing of what is on its way.

    Added to on the loop, taken from by grpcio's threads.
    """

    def __init__(self, most_bytes: int, write_s: float) -> None:
        self._most_bytes = most_bytes
        self._write_s = write_s
        self._answers: dict[Exchange, tuple[float, int, Any]] = {}  # since when, how much, its call; the oldest first

    def add(self, exchange: Exchange, context: Any, size: int) -> None:
        """Count an answer. For its room, who has not taken one in ``write_s`` is cut off.

        Raises:
            Unavailable: there is no room.
        """
        now = time.monotonic()
        answers = list(self._answers.items())
        held = sum(size for _, (_, size, _) in answers)
        for other, (since_s, freed, call) in answers:
            if held + size <= self._most_bytes:
                break
            if now - since_s < self._write_s:
                raise Unavailable("The server holds as many bytes of answers as it takes. Try again later.")
            self.discard(other)
            held -= freed
            with suppress(Exception):  # it may have ended this moment
                call.cancel()
        self._answers[exchange] = (now, size, context)
        if not context.is_active():  # then nobody will tell that it is over
            self.discard(exchange)

    def discard(self, exchange: Exchange) -> None:
        """An answer has been taken, or nobody waits for it any more."""
        self._answers.pop(exchange, None)


def _drop(future: concurrent.futures.Future[bytes]) -> None:
    future.cancel()


def _unused(_: Exchange | Response) -> None:
    """Stand in for what only HTTP needs of a route and an exchange."""


def _headers(path: str, metadata: Sequence[tuple[str, str | bytes]], limits: Limits) -> dict[str, str]:
    """Return the metadata of a call as HTTP has them.

    grpcio holds its own limit of the same size only from the moment when the client has confirmed it, which a client
    need not do.

    Raises:
        TooLarge: there is too much of it.
    """
    size = len(path) + sum(len(name) + len(value) for name, value in metadata)
    if size > limits.head_bytes or len(metadata) > limits.header_count:
        raise TooLarge(
            f"The metadata of a call has at most {limits.head_bytes} bytes and {limits.header_count} entries (limits "
            f"`head_bytes`, `header_count`). Got {size} and {len(metadata)}."
        )
    headers: dict[str, str] = {}
    for name, value in metadata:
        text = value if isinstance(value, str) else value.decode("latin-1")
        headers[name] = f"{headers[name]}, {text}" if name in headers else text
    return headers


def _text(error: LightshipError) -> str:
    return str(error)[:_LONGEST_TEXT]


def _handlers(methods: dict[str, GrpcMethod], call: Any, stream: Any) -> Any:
    grpc = load_grpc()

    class _Every(grpc.GenericRpcHandler):  # type: ignore[name-defined, misc]  # loaded late, so without a type
        """Takes every call, also those of methods that are not there."""

        def service(self, details: Any) -> Any:
            path = details.method
            method = methods.get(path)
            if method is not None and method.stream:
                return grpc.stream_stream_rpc_method_handler(partial(stream, path))
            return grpc.stream_unary_rpc_method_handler(partial(call, path))

    return _Every()


def _options(limits: Limits, clocks: Clocks) -> list[tuple[str, int]]:
    """Return the settings of grpcio's core, https://grpc.github.io/grpc/core/group__grpc__arg__keys.html."""
    return [
        ("grpc.so_reuseport", 0),  # else a second server would share the port and take half of the calls
        ("grpc.max_receive_message_length", limits.body_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_metadata_size", limits.head_bytes),
        ("grpc.absolute_max_metadata_size", limits.head_bytes),
        ("grpc.max_concurrent_streams", limits.calls + _SPARE_CALLS),  # with fewer a client would wait, not be told
        # It counts calls that have ended, and so refuses a good client's next ones with a reset that says nothing. What
        # it protects from, calls begun and reset without end, was tried without it: 60,000 a second did no harm.
        ("grpc.http.overload_protection", 0),
        ("grpc.max_allowed_incoming_connections", limits.connections),
        ("grpc.server_handshake_timeout_ms", round(clocks.head_s * 1000)),
        ("grpc.max_connection_idle_ms", round(clocks.idle_s * 1000)),
        ("grpc.keepalive_time_ms", round(_KEEPALIVE_S * 1000)),
        ("grpc.keepalive_timeout_ms", round(clocks.write_s * 1000)),
        ("grpc.http2.min_ping_interval_without_data_ms", round(_LEAST_PING_S * 1000)),
        ("grpc.http2.max_ping_strikes", 3),
        ("grpc.compression_enabled_algorithms_bitset", 1),  # none: what a message unpacks to has no limit
    ]
