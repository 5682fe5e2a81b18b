"""Heads and chunked bodies: what is taken, what is refused, at each limit and one beyond."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightship.errors import Overloaded, TooLarge, Unauthenticated, WorkerFailed
from lightship.serve.body import Chunked
from lightship.serve.http import AnswerHeads, HttpRefused, Response, error_response, parse_head
from lightship.serve.limits import Limits


def head(*lines: str, request: str = "POST /v2 HTTP/1.1", host: str | None = "localhost:8000") -> bytes:
    """Return the bytes of a head."""
    fields = [*([f"Host: {host}"] if host is not None else []), *lines]
    return "\r\n".join((request, *fields, "", "")).encode("latin-1")


def parse(data: bytes, limits: Limits | None = None):
    """Parse a head with the default limits."""
    return parse_head(data, limits or Limits())


def test_a_plain_head_is_read():
    """Method, path without query, lower-case headers, length."""
    found = parse(head("Content-Length: 12", "X-Thing: a", "x-thing: b", request="POST /a/b?c=d HTTP/1.1"))

    assert (found.method, found.path, found.target) == ("POST", "/a/b", "/a/b?c=d")
    assert (found.body_bytes, found.keep_alive, found.http_1_0) == (12, True, False)
    assert found.headers["x-thing"] == "a, b"
    assert found.request_id is None


@pytest.mark.parametrize(("given", "kept"), [("abc-1.2:3", True), ("a b", False), ("x" * 129, False), ('a"b', False)])
def test_a_request_id_is_kept_if_it_is_plain(given, kept):
    """It comes back in headers and logs."""
    assert parse(head(f"X-Request-Id: {given}")).request_id == (given if kept else None)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (head("Content-Length: 3", "Transfer-Encoding: chunked"), 400),
        (head("Content-Length: 3", "Content-Length: 3"), 400),
        (head("Content-Length: 3", "Content-Length: 4"), 400),
        (head("Content-Length: +1"), 400),
        (head("Content-Length: -1"), 400),
        (head("Content-Length: 0x10"), 400),
        (head("Content-Length: 1,1"), 400),
        (head("Content-Length: 1" + "0" * 30), 400),
        (head("Transfer-Encoding: xchunked"), 400),
        (head("Transfer-Encoding: chunked, identity"), 400),
        (head("Transfer-Encoding: identity, chunked"), 501),
        (head("Transfer-Encoding: gzip, chunked"), 501),
        (head("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"), 400),
        (head("Transfer-Encoding\t: chunked"), 400),
        (head("Transfer-Encoding: chunked", request="POST / HTTP/1.0"), 400),
        (b"GET / HTTP/1.1\nHost: a\n\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n", 400),
        (head("X: a\r\n folded"), 400),
        (head("X : a"), 400),
        (head("X: a\0b"), 400),
        (head("X: a\rb"), 400),
        (head(": a"), 400),
        (head(request="G\xc3T / HTTP/1.1"), 400),
        (head(request="GET /"), 400),
        (head(request="GET  / HTTP/1.1"), 400),
        (head(request="GET / HTTP/1.0", host="a/x?"), 400),
        (head(request="GET / HTTP/2.0"), 505),
        (head(request="GET / HTTP/0.9"), 505),
        (head(host=None), 400),
        (head("Host: other"), 400),
        (head(host="a/x?"), 400),
        (head(host="a#"), 400),
        (head(host="a@b"), 400),
        (head(host="[::1"), 400),
        (head(host="a b"), 400),
        (head(host=""), 400),
        (head(host="a" * 300), 400),
        (head(host="a:123456"), 400),
        (head(request="GET http://other/v2 HTTP/1.1"), 400),
        (head(request="GET * HTTP/1.1"), 400),
        (head(request="GET /a#b HTTP/1.1"), 400),
        (head(request="CONNECT a:1 HTTP/1.1"), 405),
        (head("Expect: 200-ok"), 417),
        (head("Authorization: a", "Authorization: b"), 400),
    ],
)
def test_ambiguous_or_broken_heads_are_refused(data, status):
    """Where two programs could read two things, we read none (BI-045 to BI-049)."""
    with pytest.raises(HttpRefused) as caught:
        parse(data)
    assert caught.value.status == status


@pytest.mark.parametrize(
    ("version", "line", "kept"),
    [
        ("1.1", "X: a", True),
        ("1.1", "Connection: close", False),
        ("1.1", "Connection: te, Close", False),
        ("1.0", "X: a", False),
        ("1.0", "Connection: keep-alive", False),
    ],
)
def test_a_connection_is_kept_as_the_client_asks(version, line, kept):
    """With HTTP/1.1 unless it says close, with HTTP/1.0 never; a body makes no difference."""
    for more in ("Content-Length: 0", "Content-Length: 5"):
        assert parse(head(line, more, request=f"POST /a HTTP/{version}")).keep_alive is kept


@pytest.mark.parametrize("host", ["a", "a.b-c:80", "127.0.0.1:1", "[::1]:8000", "localhost", "a_b"])
def test_valid_hosts_are_taken(host):
    """Names, addresses, ports."""
    assert parse(head(host=host)).headers["host"] == host


def test_http_1_0_needs_no_host():
    """Load balancers look for life with it."""
    assert parse(head(request="GET /livez HTTP/1.0", host=None)).path == "/livez"


def test_an_offer_to_upgrade_is_passed_over():
    """RFC 9110 lets a server ignore it."""
    assert parse(head("Connection: upgrade", "Upgrade: h2c")).path == "/v2"


@pytest.mark.parametrize(("count", "refused"), [(99, False), (100, True)])
def test_headers_are_counted(count, refused):
    """A hundred with the Host, not one more."""
    data = head(*(f"X-{index}: a" for index in range(count)))
    if refused:
        with pytest.raises(HttpRefused, match="at most 100 headers"):
            parse(data)
    else:
        assert len(parse(data).headers) == 100


@pytest.mark.parametrize(("size", "refused"), [(64, False), (65, True)])
def test_the_target_is_bounded(size, refused):
    """At its limit and one beyond."""
    data = head(request=f"GET /{'a' * (size - 1)} HTTP/1.1")
    if refused:
        with pytest.raises(HttpRefused, match="at most 64 bytes"):
            parse(data, Limits(target_bytes=64))
    else:
        assert len(parse(data, Limits(target_bytes=64)).target) == 64


def undo(data: bytes, *, limits: Limits | None = None, step: int = 1 << 20) -> tuple[bytes | None, bytes]:
    """Feed chunked bytes piece by piece; return the body and what is left."""
    chunked, buffer, body = Chunked(limits or Limits()), bytearray(), None
    for start in range(0, len(data), step):
        buffer += data[start : start + step]
        if body is None:
            body = chunked.feed(buffer)
    return body, bytes(buffer)


@given(st.lists(st.binary(min_size=1, max_size=20), max_size=6), st.integers(1, 30), st.binary(max_size=5))
def test_chunks_are_undone_however_they_are_cut(pieces, step, rest):
    """The body is whole and what follows it is untouched."""
    data = b"".join(f"{len(piece):x}\r\n".encode() + piece + b"\r\n" for piece in pieces) + b"0\r\n\r\n"

    assert undo(data + rest, step=step) == (b"".join(pieces), rest)


def test_chunk_extensions_are_read_over():
    """Nobody uses them, but they are HTTP."""
    assert undo(b"2;a=b\r\nxy\r\n0\r\n\r\n") == (b"xy", b"")


@pytest.mark.parametrize(
    "data",
    [
        b"0x1\r\na\r\n0\r\n\r\n",
        b"1\na\r\n0\r\n\r\n",
        b"1\r\nab\r\n0\r\n\r\n",
        b"1\r\na0\r\n\r\n",
        b"11112222333344445\r\n",
        b"\r\n",
        b" 1\r\na\r\n",
        b"1 \r\na\r\n",
        b"-1\r\na\r\n",
        b"1;" + b"x" * 300,
        b"1;a\rb\r\na\r\n0\r\n\r\n",
        b"1;\0\r\na\r\n0\r\n\r\n",
        b"0\r\nContent-Length: 3\r\n\r\n",
    ],
)
def test_wrong_chunks_are_refused(data):
    """Never a guess about where a request ends (BI-048)."""
    with pytest.raises(HttpRefused):
        undo(data)


@pytest.mark.parametrize("step", [1, 1000])
def test_chunked_bodies_are_bounded_by_bytes_and_by_chunks(step):
    """At each limit and one beyond."""
    small = Limits(body_bytes=10, chunks=3)

    assert undo(b"a\r\n0123456789\r\n0\r\n\r\n", limits=small, step=step)[0] == b"0123456789"
    assert undo(b"1\r\na\r\n" * 3 + b"0\r\n\r\n", limits=small, step=step)[0] == b"aaa"
    with pytest.raises(TooLarge, match="at most 10 bytes"):
        undo(b"b\r\n0123456789a\r\n0\r\n\r\n", limits=small, step=step)
    with pytest.raises(TooLarge, match="at most 3 chunks"):
        undo(b"1\r\na\r\n" * 4 + b"0\r\n\r\n", limits=small, step=step)


@pytest.mark.parametrize(
    ("error", "status", "extra"),
    [
        (Overloaded("full"), 429, ("retry-after", "1")),
        (WorkerFailed("died", retry_after_s=4.4), 503, ("retry-after", "4")),
        (Unauthenticated("who?"), 401, ("www-authenticate", "Bearer")),
        (HttpRefused(405, "no", headers=(("allow", "GET"),)), 405, ("allow", "GET")),
    ],
)
def test_errors_say_what_and_when_to_come_back(error, status, extra):
    """One shape for all of them."""
    response = error_response(error)

    assert response.status == status
    assert extra in response.headers
    assert bytes(response.body[0]) == b'{"error":"%s"}' % str(error).encode()


def test_an_unexpected_error_tells_nothing_of_the_inside():
    """No class, no path, no text of it."""
    response = error_response(ValueError("/secret/path"))

    assert response.status == 500
    assert b"secret" not in bytes(response.body[0])


def test_the_head_of_an_answer_has_the_length_of_all_its_buffers():
    """Several buffers, one length, one end."""
    response = Response(200, (b"ab", memoryview(b"cd")), headers=(("x-a", "b"),))

    heads = AnswerHeads()
    last = b"r".join(heads.around_id(response, 4, close=True, now=0.0))
    head = b"r".join(heads.around_id(response, 4, close=False, now=0.0))

    assert last.startswith(b"HTTP/1.1 200 OK\r\ndate: ")
    assert last.endswith(b"content-length: 4\r\nx-request-id: r\r\nx-a: b\r\nconnection: close\r\n\r\n")
    assert b"connection: close" not in head
    assert head.endswith(b"\r\n\r\n")


def test_a_kept_head_is_that_of_the_answer():
    """Each of what a head says makes another head, and each second a new date (a kept one would be sent for ever)."""
    heads = AnswerHeads()
    usual = {"size": 4, "close": False, "now": 0.0}
    known = heads.around_id(Response(200, (b"1234",)), **usual)

    others = [
        heads.around_id(Response(404, (b"1234",)), **usual),
        heads.around_id(Response(200, (b"1234",), "text/plain"), **usual),
        heads.around_id(Response(200, (b"1234",), headers=(("x-a", "b"),)), **usual),
        heads.around_id(Response(200, stream=lambda outgoing: outgoing.end()), **usual),
        heads.around_id(Response(200, (b"1234",)), **{**usual, "size": 5}),
        heads.around_id(Response(200, (b"1234",)), **{**usual, "close": True}),
    ]

    assert len({known, *others}) == 7
    assert heads.around_id(Response(200, (b"abcd",)), **usual) is known
    assert heads.around_id(Response(200, (b"1234",)), **{**usual, "now": 1.5}) is not known
