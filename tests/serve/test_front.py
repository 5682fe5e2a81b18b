"""The front over real sockets: clocks, limits, order, refusals. Its clocks are short here.

Every test runs on asyncio's own loop and on uvloop (see conftest): tests of users run on the first, the product on the
second.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import socket
import struct
import time
import zlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from lightship.errors import Overloaded
from lightship.serve.access import OPEN, Access
from lightship.serve.dispatch import Dispatcher, Exchange, Route
from lightship.serve.front import Front
from lightship.serve.http import Outgoing, Response
from lightship.serve.limits import Clocks, Limits

DEADLINE_S = 10.0
PING = b"GET /ping HTTP/1.1\r\nHost: a\r\n\r\n"


@dataclass
class Service:
    """A front on a port; ``held`` are requests that nobody has answered yet."""

    front: Front
    port: int
    held: list[Exchange] = field(default_factory=list)
    gone: asyncio.Queue[str] = field(default_factory=asyncio.Queue)
    arrived: asyncio.Queue[Exchange] = field(default_factory=asyncio.Queue)

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a connection."""
        return await asyncio.open_connection("127.0.0.1", self.port)


@contextlib.asynccontextmanager
async def serving(*, limits: Limits | None = None, clocks: Clocks | None = None) -> AsyncIterator[Service]:
    """Run a front with a few routes on a free port."""
    dispatcher = Dispatcher(Access(None, clock=time.monotonic))
    service = Service(Front(dispatcher, limits=limits, clocks=clocks), 0)

    def echo(exchange: Exchange) -> None:
        exchange.answer(Response(200, (exchange.body,), content_type="application/octet-stream"))

    def hold(exchange: Exchange) -> None:
        service.held.append(exchange)
        exchange.on_gone = lambda: service.gone.put_nowait(exchange.head.request_id)
        service.arrived.put_nowait(exchange)

    def full(_exchange: Exchange) -> None:
        raise Overloaded("The queue is full.")

    def broken(_exchange: Exchange) -> None:
        raise ZeroDivisionError("/secret")

    dispatcher.register(Route("GET", "/ping", OPEN, lambda exchange: exchange.answer(Response(200, (b"pong",)))))
    dispatcher.register(Route("POST", "/echo", OPEN, echo))
    dispatcher.register(Route("POST", "/hold", OPEN, hold))
    dispatcher.register(Route("POST", "/full", OPEN, echo, admit=full))
    dispatcher.register(Route("GET", "/broken", OPEN, broken))
    listener = await asyncio.get_running_loop().create_server(service.front.connection, "127.0.0.1", 0)
    service.port = listener.sockets[0].getsockname()[1]
    try:
        yield service
    finally:
        listener.close()
        service.front.abort()
        await listener.wait_closed()


@dataclass
class Got:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> str:
        """The text of an error."""
        return json.loads(self.body)["error"]


async def read(reader: asyncio.StreamReader) -> Got:
    """Read one answer, or fail at the deadline."""
    async with asyncio.timeout(DEADLINE_S):
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        status = int(head[0].split()[1])
        body = await reader.readexactly(int(headers.get("content-length", "0"))) if status != 100 else b""
        return Got(status, headers, body)


async def ask(service: Service, data: bytes) -> Got:
    """Send one request on a connection of its own."""
    reader, writer = await service.open()
    writer.write(data)
    got = await read(reader)
    writer.close()
    return got


async def ended(reader: asyncio.StreamReader) -> bool:
    """Wait until the server closes; what it sends before is dropped."""
    async with asyncio.timeout(DEADLINE_S):
        with contextlib.suppress(ConnectionError):
            await reader.read()
    return True


def post(path: str, body: bytes, *lines: str) -> bytes:
    """Return the bytes of a POST."""
    fields = "".join(f"{line}\r\n" for line in lines)
    return f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n{fields}\r\n".encode() + body


async def test_one_connection_carries_many_requests():
    """Keep-alive is the default."""
    async with serving() as service:
        reader, writer = await service.open()
        for index in range(5):
            writer.write(post("/echo", b"x" * index))
            got = await read(reader)
            assert (got.status, got.body) == (200, b"x" * index)
        writer.close()


@pytest.mark.parametrize("step", [1, 7, 50])
async def test_a_request_may_come_in_pieces(step):
    """Byte by byte is as good as whole, also with an empty line before it."""
    async with serving() as service:
        reader, writer = await service.open()
        data = b"\r\n" + post("/echo", b"hello world", "X-Request-Id: abc")
        for start in range(0, len(data), step):
            writer.write(data[start : start + step])
            await asyncio.sleep(0)
        got = await read(reader)
        writer.close()

    assert got.body == b"hello world"
    assert got.headers["x-request-id"] == "abc"


async def test_pipelined_requests_are_answered_in_order():
    """One at a time, whichever is ready first."""
    async with serving() as service:
        reader, writer = await service.open()
        writer.write(post("/hold", b"1") + post("/echo", b"2") + PING + post("/echo", b"3"))
        (await service.arrived.get()).answer(Response(200, (b"held",)))
        bodies = [(await read(reader)).body for _ in range(4)]
        writer.close()

    assert bodies == [b"held", b"2", b"pong", b"3"]


async def test_thousands_of_pipelined_requests_do_not_nest():
    """Answers that are ready at once must not deepen the stack."""
    async with serving() as service:
        reader, writer = await service.open()
        writer.write(PING * 3000)
        for _ in range(3000):
            assert (await read(reader)).status == 200
        writer.close()


async def test_pipelined_requests_before_the_end_of_the_stream_are_answered():
    """As a script that writes its requests and closes its side sends them."""
    async with serving() as service:
        reader, writer = await service.open()
        writer.write(post("/echo", b"1") + PING + post("/echo", b"2"))
        writer.write_eof()
        answers = [await read(reader) for _ in range(3)]
        assert await reader.read() == b""
        writer.close()

    assert [answer.body for answer in answers] == [b"1", b"pong", b"2"]
    assert [answer.headers.get("connection") for answer in answers] == [None, None, "close"]


async def test_a_client_that_pipelines_does_not_keep_out_others():
    """One request a turn: another's answer comes in between."""
    async with serving() as service:
        reader, writer = await service.open()
        other, other_writer = await service.open()
        writer.write(PING * 3000)
        other_writer.write(PING)
        assert (await read(other)).body == b"pong"
        assert len(reader._buffer) < 2000 * 200
        writer.transport.abort()
        other_writer.close()


async def test_the_bytes_of_all_bodies_together_are_bounded():
    """What is announced counts, and is free again after the answer or when the client goes."""
    async with serving(limits=Limits(bodies_bytes=100)) as service:
        _, writer = await service.open()
        writer.write(post("/hold", b"x" * 60))
        exchange = await service.arrived.get()
        chunked = b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n29\r\n"
        for refused in (post("/echo", b"x" * 41), chunked):
            got = await ask(service, refused)
            assert (got.status, got.headers["retry-after"]) == (503, "1")
        assert (await ask(service, post("/echo", b"x" * 40))).status == 200
        exchange.answer(Response())
        assert (await ask(service, post("/echo", b"x" * 100))).status == 200
        _, leaving = await service.open()
        leaving.write(post("/echo", b"x" * 100)[:-1])
        await until_held(service, 100)
        leaving.transport.abort()
        await until_held(service, 0)
        writer.close()
        leaving.close()


async def until_held(service: Service, size: int) -> None:
    """Wait until the server holds so many bytes of bodies."""
    async with asyncio.timeout(DEADLINE_S):
        while service.front.held_bytes != size:  # noqa: ASYNC110 - a number has no event
            await asyncio.sleep(0.001)


async def test_a_pipelined_request_after_a_bad_one_is_not_answered():
    """After bytes that cannot be trusted the connection ends."""
    async with serving() as service:
        reader, writer = await service.open()
        writer.write(PING + b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n" + PING)
        assert (await read(reader)).status == 200
        bad = await read(reader)
        assert (bad.status, bad.headers["connection"]) == (400, "close")
        assert await reader.read() == b""
        writer.close()


@pytest.mark.parametrize(
    ("path", "method", "status"), [("/none", "GET", 404), ("/ping", "POST", 405), ("/echo", "GET", 405)]
)
async def test_unknown_paths_and_methods_are_refused(path, method, status):
    """With the methods that there are."""
    async with serving() as service:
        got = await ask(service, f"{method} {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())

    assert got.status == status
    assert "allow" in got.headers or status == 404


@pytest.mark.parametrize("method", ["OPTIONS", "TRACE", "PUT", "DELETE", "PATCH"])
async def test_other_methods_are_refused(method):
    """GET, HEAD and POST are all there is."""
    async with serving() as service:
        got = await ask(service, f"{method} /ping HTTP/1.1\r\nHost: a\r\n\r\n".encode())

    assert (got.status, got.headers["allow"]) == (405, "get, head")


async def test_head_has_the_length_but_no_body():
    """As GET would have it."""
    async with serving() as service:
        reader, writer = await service.open()
        writer.write(b"HEAD /ping HTTP/1.1\r\nHost: a\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        writer.write(PING)
        got = await read(reader)
        writer.close()

    assert b"content-length: 4\r\n" in head
    assert got.body == b"pong"


async def test_an_error_inside_is_500_without_its_insides(caplog):
    """And the connection and the server go on."""
    async with serving() as service:
        reader, writer = await service.open()
        writer.write(b"GET /broken HTTP/1.1\r\nHost: a\r\n\r\n" + PING)
        got = await read(reader)
        assert (await read(reader)).body == b"pong"
        writer.close()

    assert got.status == 500
    assert "secret" not in got.error


async def test_a_page_of_another_site_is_refused():
    """A browser sends Origin; nothing here is for it."""
    async with serving() as service:
        got = await ask(service, b"GET /ping HTTP/1.1\r\nHost: a\r\nOrigin: http://evil\r\n\r\n")

    assert got.status == 403


# Bodies


@pytest.mark.parametrize(("size", "status"), [(100, 200), (101, 413)])
async def test_a_body_is_bounded_by_its_announcement(size, status):
    """One byte too much is refused by the head alone."""
    async with serving(limits=Limits(body_bytes=100)) as service:
        got = await ask(service, post("/echo", b"x" * size))

    assert got.status == status


async def test_ten_gigabytes_are_refused_before_they_come():
    """And the connection closes: nobody wants what follows."""
    async with serving() as service:
        reader, writer = await service.open()
        writer.write(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 10000000000\r\n\r\nx")
        got = await read(reader)
        assert (got.status, got.headers["connection"]) == (413, "close")
        assert await ended(reader)
        writer.close()


async def test_a_chunked_body_is_taken():
    """And the next request on the connection too."""
    async with serving() as service:
        reader, writer = await service.open()
        writer.write(b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        writer.write(b"2\r\nde\r\n0\r\n\r\n" + PING)
        assert (await read(reader)).body == b"abcde"
        assert (await read(reader)).body == b"pong"
        writer.close()


async def test_a_chunked_body_over_the_limit_is_refused_while_it_comes():
    """Counted as it arrives."""
    async with serving(limits=Limits(body_bytes=100)) as service:
        reader, writer = await service.open()
        writer.write(
            b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n64\r\n" + b"x" * 100 + b"\r\n1\r\n"
        )
        assert (await read(reader)).status == 413
        writer.close()


@pytest.mark.parametrize("field", ["Content-Length: 1", "Transfer-Encoding: chunked"])
async def test_a_get_with_a_body_is_refused(field):
    """It would mean something else to somebody on the way."""
    async with serving() as service:
        assert (await ask(service, f"GET /ping HTTP/1.1\r\nHost: a\r\n{field}\r\n\r\n".encode())).status == 400


@pytest.mark.parametrize(("coding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
async def test_a_compressed_body_is_read(coding, pack):
    """The route sees what was meant."""
    async with serving() as service:
        got = await ask(service, post("/echo", pack(b"hello " * 100), f"Content-Encoding: {coding}"))

    assert (got.status, got.body) == (200, b"hello " * 100)


ZEROS = gzip.compress(b"\0" * (8 << 20), mtime=0)


CODED = {
    "a bomb": (ZEROS, "gzip", 413),
    "two codings": (gzip.compress(ZEROS, mtime=0), "gzip, gzip", 415),
    "br": (b"x", "br", 415),
    "zstd": (b"x", "zstd", 415),
    "not gzip": (b"not gzip", "gzip", 400),
    "cut short": (gzip.compress(b"hello", mtime=0)[:-4], "gzip", 400),
    "more after it": (gzip.compress(b"hello", mtime=0) + b"more", "gzip", 400),
    "two streams": (gzip.compress(b"a", mtime=0) * 2, "gzip", 400),
    "nothing": (b"", "gzip", 200),
}


@pytest.mark.parametrize("what", CODED)
async def test_a_compressed_body_is_bounded_and_whole(what):
    """8 MiB of zeros in 8 KiB grow more than a hundred times; an absent body has no coding (BI-053)."""
    body, coding, status = CODED[what]
    async with serving() as service:
        got = await ask(service, post("/echo", body, f"Content-Encoding: {coding}"))

        assert got.status == status
        assert (await ask(service, PING)).status == 200
        assert service.front.held_bytes == 0


async def test_what_comes_out_is_bounded_as_a_body_is():
    """Whatever went in."""
    noise = bytes(range(256)) * 64
    async with serving(limits=Limits(body_bytes=10_000)) as service:
        got = await ask(service, post("/echo", zlib.compress(noise), "Content-Encoding: deflate"))

    assert got.status == 413
    assert "10000" in got.error


async def test_who_expects_100_continue_gets_it_only_when_wanted():
    """A refusal comes instead of it, before the body is sent."""
    async with serving() as service:
        reader, writer = await service.open()
        writer.write(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
        assert (await read(reader)).status == 100
        writer.write(b"ok")
        assert (await read(reader)).body == b"ok"
        writer.write(b"POST /full HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
        refused = await read(reader)
        assert (refused.status, refused.headers["connection"]) == (429, "close")
        writer.close()


async def test_a_refusal_comes_before_the_body():
    """The head suffices to know that the queue is full; the connection goes on after a short body."""
    async with serving() as service:
        reader, writer = await service.open()
        writer.write(b"POST /full HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n")
        got = await read(reader)
        assert (got.status, got.headers["retry-after"]) == (429, "1")
        assert "connection" not in got.headers
        writer.write(b"12345" + PING)
        assert (await read(reader)).body == b"pong"
        writer.close()


# Limits


@pytest.mark.parametrize(("size", "status"), [(1000, 200), (1001, 431)])
async def test_a_head_is_bounded_in_bytes(size, status):
    """At its limit and one beyond."""
    start, end = b"GET /ping HTTP/1.1\r\nHost: a\r\nX: ", b"\r\n\r\n"
    data = start + b"y" * (size - len(start) - len(end)) + end
    async with serving(limits=Limits(head_bytes=1000)) as service:
        assert (await ask(service, data)).status == status


async def test_an_endless_target_is_refused_as_such():
    """414, not 431."""
    async with serving() as service:
        assert (await ask(service, b"GET /" + b"a" * 40_000)).status == 414


async def test_connections_are_bounded():
    """One too many is told so and closed; a place that is free again is given again."""
    async with serving(limits=Limits(connections=2)) as service:
        first, second = await service.open(), await service.open()
        for reader, writer in (first, second):
            writer.write(PING)
            assert (await read(reader)).status == 200
        reader, writer = await service.open()
        got = await read(reader)
        assert (got.status, got.headers["retry-after"]) == (503, "1")
        assert await ended(reader)
        writer.close()
        first[1].close()
        async with asyncio.timeout(DEADLINE_S):
            while len(service.front.connections) == 2:  # noqa: ASYNC110 - the set has no event
                await asyncio.sleep(0)
        assert (await ask(service, PING)).status == 200
        second[1].close()


async def test_connections_of_one_address_are_bounded_if_wished():
    """One too many is told so and closed, others go on; a place that is free again is given again."""
    async with serving(limits=Limits(connections=6, connections_per_peer=2)) as service:
        mine = [await service.open(), await service.open()]
        reader, writer = await service.open()
        got = await read(reader)
        assert (got.status, "This address" in got.error) == (429, True)
        assert await ended(reader)
        writer.close()
        other = await asyncio.open_connection("127.0.0.1", service.port, local_addr=("127.0.0.2", 0))
        for each in (*mine, other):
            each[1].write(PING)
            assert (await read(each[0])).status == 200
        mine[0][1].close()
        async with asyncio.timeout(DEADLINE_S):
            while len(service.front.connections) == 3:  # noqa: ASYNC110 - the set has no event
                await asyncio.sleep(0)
        assert (await ask(service, PING)).status == 200
        for each in (*mine, other):
            each[1].close()
        async with asyncio.timeout(DEADLINE_S):
            while service.front.connections:  # noqa: ASYNC110 - the set has no event
                await asyncio.sleep(0)
        assert not +service.front.peers


@pytest.mark.parametrize(
    "sent",
    [b"", b"GET /pi", b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nx"],
    ids=["nothing", "half a head", "half a body"],
)
async def test_who_does_not_say_what_it_wants_makes_room(sent):
    """The slowest goes first; whoever asked something, or waits for an answer, stays."""
    async with serving(limits=Limits(connections=3), clocks=Clocks(chance_s=0.1)) as service:
        asked, waits, slow = await service.open(), await service.open(), await service.open()
        asked[1].write(PING)
        assert (await read(asked[0])).status == 200
        waits[1].write(post("/hold", b"1"))
        held = await service.arrived.get()
        slow[1].write(sent)
        await asyncio.sleep(0.3)

        assert (await ask(service, PING)).status == 200
        assert await ended(slow[0])
        held.answer(Response(200, (b"done",)))
        assert (await read(waits[0])).body == b"done"
        asked[1].write(PING)
        assert (await read(asked[0])).status == 200
        for _, writer in (asked, waits, slow):
            writer.close()


async def test_who_was_refused_for_want_of_room_is_not_read_at_once():
    """A client that asks again at once cannot spend the server's time on refusals; it is answered a little later."""
    async with serving() as service:
        reader, writer = await service.open()
        started = time.monotonic()
        for _ in range(10):
            writer.write(post("/full", b"x"))
            got = await read(reader)
            assert (got.status, got.headers["retry-after"]) == (429, "1")
        writer.write(PING)
        assert (await read(reader)).status == 200
        took = time.monotonic() - started
        other = await ask(service, PING)
        writer.close()

    assert 0.08 < took < DEADLINE_S
    assert other.status == 200


async def test_what_is_pipelined_beyond_the_bound_stays_in_the_socket():
    """A client that sends without reading does not fill the server's memory, and nothing is lost."""
    async with serving(limits=Limits(ahead_bytes=1000)) as service:
        reader, writer = await service.open()
        writer.write(post("/hold", b"x"))
        exchange = await service.arrived.get()
        count = 20_000  # 640 KB, more than the bound
        writer.write(PING * count)
        await asyncio.sleep(0.05)
        (connection,) = service.front.connections
        assert len(connection._buffer) < 300_000  # the bound, and what one read of the socket adds
        exchange.answer(Response(200, (b"held",)))
        assert (await read(reader)).body == b"held"
        for _ in range(count // 100):
            assert (await read(reader)).body == b"pong"
        writer.close()


# Clocks


async def timed_end(service: Service, *pieces: bytes, every_s: float) -> tuple[float, bytes]:
    """Send piece after piece; return when the server closed and what it said."""
    reader, writer = await service.open()
    started = time.monotonic()

    async def send() -> None:
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(every_s)

    sending = asyncio.ensure_future(send())
    async with asyncio.timeout(DEADLINE_S):
        try:
            said = await reader.read()
        except ConnectionError:
            said = b""
    sending.cancel()
    writer.close()
    return time.monotonic() - started, said


SHORT = Clocks(head_s=0.3, body_s=0.3, idle_s=0.3, write_s=0.3)


async def test_a_slow_head_is_closed_at_an_absolute_time():
    """Byte after byte does not buy time."""
    async with serving(clocks=SHORT) as service:
        seconds, said = await timed_end(service, *(bytes([byte]) for byte in PING), every_s=0.05)

    assert 0.2 < seconds < 2.0
    assert said.startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize("said", [b"\x16\x03\x01\x02\x00\x01", b"GET /ping\r\n"], ids=["tls", "http-0.9"])
async def test_who_speaks_another_protocol_is_told_at_once(said):
    """Not when the clock of the head has run out, which here it does not."""
    async with serving(clocks=Clocks(head_s=1e6)) as service:
        reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
        writer.write(said)
        async with asyncio.timeout(10):
            answer = await reader.read()
        writer.close()

    assert answer.startswith(b"HTTP/1.1 400")


async def test_a_silent_connection_is_closed():
    """It said nothing, so it is told nothing."""
    async with serving(clocks=SHORT) as service:
        seconds, said = await timed_end(service, every_s=1.0)

    assert 0.2 < seconds < 2.0
    assert said == b""


async def test_a_body_that_stands_still_is_closed():
    """The head was fine, the body never came."""
    async with serving(clocks=SHORT) as service:
        seconds, said = await timed_end(service, post("/echo", b"x" * 10)[:-5], every_s=1.0)

    assert 0.2 < seconds < 2.0
    assert said.startswith(b"HTTP/1.1 408")


async def test_a_body_that_goes_on_is_not_closed():
    """Progress counts, not the whole time."""
    async with serving(clocks=SHORT) as service:
        data = post("/echo", b"x" * 8)
        _, said = await timed_end(service, data[:-8], *([b"x"] * 8), every_s=0.1)

    assert said.startswith(b"HTTP/1.1 200")


async def test_a_body_that_trickles_is_closed():
    """It makes progress, but less than a kilobyte a second."""
    async with serving(clocks=Clocks(body_s=5.0, slow_body_s=0.3)) as service:
        reader, writer = await service.open()
        started = time.monotonic()
        writer.write(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n")
        got = asyncio.create_task(read(reader))
        while not got.done() and time.monotonic() - started < DEADLINE_S:
            writer.write(b"x")
            await asyncio.sleep(0.02)
        writer.close()

    assert (await got).status == 408
    assert time.monotonic() - started < 4.5


async def test_a_long_body_has_as_long_as_it_needs_at_a_kilobyte_a_second():
    """It comes for longer than the clock of slow bodies, but not slowly."""
    async with serving(clocks=Clocks(body_s=5.0, slow_body_s=0.2)) as service:
        reader, writer = await service.open()
        writer.write(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 8000\r\n\r\n")
        for _ in range(8):
            writer.write(b"x" * 1000)
            await asyncio.sleep(0.05)
        got = await read(reader)
        writer.close()

    assert (got.status, len(got.body)) == (200, 8000)


async def test_an_idle_connection_is_closed_after_an_answer():
    """Keep-alive is not for ever."""
    async with serving(clocks=SHORT) as service:
        seconds, said = await timed_end(service, PING, every_s=1.0)

    assert 0.2 < seconds < 2.0
    assert said.count(b"HTTP/1.1 200") == 1


async def test_no_clock_runs_while_the_model_works():
    """A long answer is the model's business, and its deadline's."""
    async with serving(clocks=SHORT) as service:
        reader, writer = await service.open()
        writer.write(post("/hold", b"x"))
        exchange = await service.arrived.get()
        await asyncio.sleep(0.7)  # over twice all clocks: the point is that nothing happens
        exchange.answer(Response(200, (b"late",)))
        assert (await read(reader)).body == b"late"
        writer.close()


async def test_a_client_that_does_not_read_is_closed():
    """Its answer does not stay in memory."""
    async with serving(clocks=SHORT) as service:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("127.0.0.1", service.port))
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        body = b"x" * 30_000_000
        await loop.sock_sendall(sock, post("/echo", body))
        async with asyncio.timeout(DEADLINE_S):
            while service.front.connections:  # noqa: ASYNC110 - the set has no event
                await asyncio.sleep(0.01)
        sock.close()


# Clients that go


async def stream_of(service: Service, *, version: bytes = b"1.1") -> tuple[asyncio.StreamReader, Any, Outgoing]:
    """Ask for something and begin to answer it piece by piece."""
    reader, writer = await service.open()
    writer.write(post("/hold", b"x").replace(b"HTTP/1.1", b"HTTP/" + version))
    exchange = await service.arrived.get()
    streams: list[Outgoing] = []
    exchange.answer(Response(200, content_type="text/event-stream", stream=streams.append))
    return reader, writer, streams[0]


async def test_an_answer_may_come_piece_by_piece():
    """Chunked; the connection can be used again."""
    async with serving() as service:
        reader, writer, outgoing = await stream_of(service)
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        assert "transfer-encoding: chunked" in head
        assert "content-length" not in head
        assert outgoing.write(b"hello")
        assert await reader.readexactly(10) == b"5\r\nhello\r\n"
        assert outgoing.write(b"")  # an empty piece would be the end
        outgoing.write(b"x" * 300)
        outgoing.end()
        assert await reader.readuntil(b"0\r\n\r\n") == b"12c\r\n" + b"x" * 300 + b"\r\n0\r\n\r\n"
        assert not outgoing.write(b"late")
        writer.write(PING)
        assert (await read(reader)).body == b"pong"
        writer.close()


async def test_an_answer_piece_by_piece_ends_with_its_connection_in_http_1_0():
    """Chunks are not of its time."""
    async with serving() as service:
        reader, writer, outgoing = await stream_of(service, version=b"1.0")
        await reader.readuntil(b"\r\n\r\n")
        outgoing.write(b"hello")
        outgoing.end()
        async with asyncio.timeout(DEADLINE_S):
            assert await reader.read() == b"hello"
        writer.close()


async def test_who_streams_is_told_when_the_client_is_behind_and_when_it_has_caught_up():
    """And the server's buffer stays small."""
    async with serving() as service:
        reader, writer, outgoing = await stream_of(service)
        room = asyncio.Event()
        outgoing.on_room = room.set
        sent = 0
        while outgoing.write(b"x" * 65_536):
            sent += 65_536
            await asyncio.sleep(0)
        assert not room.is_set()
        async with asyncio.timeout(DEADLINE_S):
            while not room.is_set():
                await reader.read(65_536)
        outgoing.end()
        assert sent > 65_536
        writer.close()


async def test_who_streams_is_told_when_the_client_has_gone():
    """And may go on without harm."""
    async with serving() as service:
        _, writer, outgoing = await stream_of(service)
        gone = asyncio.Event()
        outgoing.on_gone = gone.set
        writer.transport.abort()
        async with asyncio.timeout(DEADLINE_S):
            await gone.wait()
        assert not outgoing.write(b"x")
        outgoing.end()


async def test_a_stream_that_breaks_off_has_no_end():
    """So that nobody takes half of an answer for all of it."""
    async with serving() as service:
        reader, writer, outgoing = await stream_of(service)
        await reader.readuntil(b"\r\n\r\n")
        outgoing.write(b"half")
        await reader.readexactly(9)
        outgoing.fail()
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(DEADLINE_S):
                assert await reader.read() == b""
        writer.close()


async def test_a_stream_to_a_client_that_does_not_read_is_closed():
    """After the clock, not when the stream ends (FI-08)."""
    async with serving(clocks=Clocks(write_s=0.3)) as service:
        _, writer, outgoing = await stream_of(service)
        gone = asyncio.Event()
        outgoing.on_gone = gone.set
        while outgoing.write(b"x" * 65_536):  # noqa: ASYNC110 - it writes
            await asyncio.sleep(0)
        async with asyncio.timeout(DEADLINE_S):
            await gone.wait()
        writer.close()


async def unread(service: Service, size: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Let a client have an answer of so many bytes that it does not read."""
    before = len(service.front.behind)
    reader, writer = await service.open()
    writer.write(post("/hold", b"x"))
    exchange = await service.arrived.get()
    exchange.answer(Response(200, (bytes(size),)))
    assert len(service.front.behind) == before + 1
    return reader, writer


async def whole_or_refused(service: Service, size: int) -> int:
    """Ask for so many bytes, read all that comes, and return the status."""
    reader, writer = await service.open()
    writer.write(post("/hold", b"x"))
    (await service.arrived.get()).answer(Response(200, (bytes(size),)))
    got = await read(reader)
    writer.close()
    assert len(got.body) == size or got.headers["retry-after"] == "1"
    return got.status


async def test_the_bytes_of_all_unread_answers_are_bounded():
    """What goes beyond is refused; once a client has had its time, it makes room: the one that takes least."""
    size = 32 << 20
    async with serving(limits=Limits(answers_bytes=3 * size)) as service:
        taking, taking_writer = await unread(service, size)
        _, lazy = await unread(service, size)
        assert await whole_or_refused(service, 2 * size) == 503
        got = len(await taking.readexactly(1 << 20))
        await asyncio.sleep(1.1)
        got += len(await taking.readexactly(8 << 20))
        assert await whole_or_refused(service, 2 * size) == 200
        assert len(service.front.behind) == 1
        while piece := await taking.read(1 << 20):
            got += len(piece)
            if got > size:
                break
        assert got > size  # with its head
        assert len(service.front.connections) <= 2
        taking_writer.close()
        lazy.close()


async def test_a_client_that_resets_drops_its_work():
    """At once."""
    async with serving() as service:
        _, writer = await service.open()
        writer.write(post("/hold", b"x", "X-Request-Id: r1"))
        await service.arrived.get()
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
        async with asyncio.timeout(DEADLINE_S):
            assert await service.gone.get() == "r1"


async def test_a_client_that_closes_drops_its_work():
    """A full close looks like a half close at first; a probe tells them apart."""
    async with serving() as service:
        _, writer = await service.open()
        writer.write(post("/hold", b"x", "X-Request-Id: r2"))
        await service.arrived.get()
        writer.close()
        async with asyncio.timeout(DEADLINE_S):
            assert await service.gone.get() == "r2"


async def test_a_client_that_only_ended_its_side_gets_its_answer():
    """As `nc -N` does."""
    async with serving() as service:
        reader, writer = await service.open()
        writer.write(post("/hold", b"x"))
        writer.write_eof()
        exchange = await service.arrived.get()
        await asyncio.sleep(0.2)  # the probes have to find that it is still there
        exchange.answer(Response(200, (b"here",)))
        interim, got = await read(reader), await read(reader)
        assert (interim.status, got.status, got.body) == (100, 200, b"here")
        assert got.headers["connection"] == "close"
        writer.close()


async def test_an_answer_for_a_client_that_has_gone_is_dropped():
    """Nobody is there, nothing breaks."""
    async with serving() as service:
        _, writer = await service.open()
        writer.write(post("/hold", b"x"))
        exchange = await service.arrived.get()
        writer.transport.abort()
        async with asyncio.timeout(DEADLINE_S):
            await service.gone.get()
        exchange.answer(Response())
        assert exchange.answered
        assert not service.front.connections


# Ending


async def test_draining_answers_what_was_accepted_and_closes_the_idle():
    """The last answer says so."""
    async with serving() as service:
        idle, idle_writer = await service.open()
        idle_writer.write(PING)
        await read(idle)
        reader, writer = await service.open()
        writer.write(post("/hold", b"x"))
        exchange = await service.arrived.get()
        draining = asyncio.ensure_future(service.front.drain(DEADLINE_S))
        assert await ended(idle)
        exchange.answer(Response(200, (b"last",)))
        got = await read(reader)
        assert (got.body, got.headers["connection"]) == (b"last", "close")
        assert await draining
        writer.close()
        idle_writer.close()


async def test_draining_gives_up_at_its_time():
    """A request that does not end does not hold the server for ever."""
    async with serving() as service:
        _, writer = await service.open()
        writer.write(post("/hold", b"x"))
        await service.arrived.get()
        assert not await service.front.drain(0.05)
        writer.close()


async def test_a_deadline_comes_by_header():
    """In milliseconds; without it the default holds."""
    async with serving(clocks=Clocks(request_s=7.0)) as service:
        _, writer = await service.open()
        writer.write(post("/hold", b"x", "X-Request-Timeout-Ms: 1500"))
        exchange = await service.arrived.get()
        assert exchange.deadline_s - exchange.arrived_s == pytest.approx(1.5)
        writer.close()
        _, writer = await service.open()
        writer.write(post("/hold", b"x"))
        exchange = await service.arrived.get()
        assert exchange.deadline_s - exchange.arrived_s == pytest.approx(7.0)
        writer.close()


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "600001", "x", "", "9" * 20])
async def test_a_wrong_deadline_is_refused(value):
    """Never guessed."""
    async with serving() as service:
        assert (await ask(service, post("/echo", b"x", f"X-Request-Timeout-Ms: {value}"))).status == 400
