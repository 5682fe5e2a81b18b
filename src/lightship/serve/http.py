"""HTTP/1.1 without I/O: read the head of a request, write the head of an answer. Bodies are read in ``body``.

Strict on purpose: where two programs could read the same bytes as two different requests, the bytes are refused
(RFC 9112 §11.2, request smuggling). llhttp, through httptools, parses the head; what it lets pass is checked here:
one Host of valid grammar, no bare LF, no folded header, origin-form targets only.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any, Protocol

import httptools
import msgspec

from lightship.errors import InvalidInput, LightshipError, TooLarge, Unavailable, status_of
from lightship.serve.limits import Limits

__all__ = [
    "AnswerHeads",
    "Head",
    "Heads",
    "HttpRefused",
    "Outgoing",
    "Response",
    "check_request_line",
    "error_response",
    "parse_head",
    "too_large",
]

Buffer = bytes | memoryview

_REASONS = {
    200: "OK",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    409: "Conflict",
    413: "Content Too Large",
    414: "URI Too Long",
    415: "Unsupported Media Type",
    417: "Expectation Failed",
    429: "Too Many Requests",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    501: "Not Implemented",
    503: "Service Unavailable",
    504: "Gateway Timeout",
    505: "HTTP Version Not Supported",
}

# One space between the parts: programs differ in what they make of two.
_REQUEST_LINE = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+ [^\x00-\x20\x7f]+ HTTP/[0-9]\.[0-9]\r\n")
_NO_METHOD = re.compile(rb"(?!\r\Z)[^!#$%&'*+.^_`|~0-9A-Za-z-]")  # the rest of an empty line may be on its way
# A name, IPv4 or bracketed IPv6, then an optional port (RFC 9110 §7.2). Percent signs and user names have no use here.
_HOST = re.compile(rb"(?:[A-Za-z0-9](?:[A-Za-z0-9._-]{0,253})|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")
_ONCE = frozenset({"content-length", "transfer-encoding", "authorization", "inference-header-content-length"})
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")
_STATUS_LINES = {status: f"HTTP/1.1 {status} {reason}\r\n" for status, reason in _REASONS.items()}
_END = "\r\n"
_CLOSE = "connection: close\r\n\r\n"
_CHUNKED = "transfer-encoding: chunked\r\n"
_REMEMBERED_HEADS = 1_024
_REMEMBERED_BYTES = 1_024  # of one head
_CODINGS = ("gzip", "deflate")


class HttpRefused(InvalidInput):
    """A request that breaks HTTP or a limit of it. It knows its status, for HTTP has more of them than our errors."""

    def __init__(self, status: int, message: str, *, headers: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(message)
        self.status = status
        self.headers = tuple(headers)


@dataclass(slots=True, eq=False)
class Head:
    """The head of one request. Shared by all requests with the same bytes, see ``Heads``: nobody changes what it says.

    Attributes:
        target: the request target as it came; nothing is decoded, so nothing can decode to something else.
        path: the target without its query.
        headers: lower-case names; a header that came more than once is joined by ``", "``.
        body_bytes: the announced length; ``None`` for a chunked body.
        request_id: the client's own, if it gave one that is safe to repeat.
        timeout_ms: what it gave as its deadline; 0 if that is no number of milliseconds.
        body_refusal: status and text, if a body may not come with this head.
        coding: the content coding of the body, ``gzip`` or ``deflate``; None for none.
        way: what the dispatcher found for it, so that it need not look that up each time.
    """

    method: str
    target: str
    path: str
    headers: Mapping[str, str]
    keep_alive: bool
    http_1_0: bool
    body_bytes: int | None
    expects_continue: bool
    request_id: str | None
    timeout_ms: int | None = None
    body_refusal: tuple[int, str] | None = None
    coding: str | None = None
    way: Any = None


@dataclass(slots=True)
class _Collector:
    """Receives httptools' callbacks."""

    target: bytes = b""
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    complete: bool = False

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self.complete = True


class Heads(dict[bytes, Head]):
    """Heads by their bytes. Remembers those that were fine: on a kept connection a client sends the same each time.

    ``heads[data]`` parses what is not known yet, and raises as ``parse_head`` does. What is remembered depends on the
    bytes alone; keys and models are looked at anew for every request.
    """

    def __init__(self, limits: Limits) -> None:
        super().__init__()
        self._limits = limits

    def __missing__(self, data: bytes) -> Head:
        head = parse_head(data, self._limits)
        if len(data) <= _REMEMBERED_BYTES:
            if len(self) >= _REMEMBERED_HEADS:
                self.clear()
            self[data] = head
        return head


def parse_head(data: bytes, limits: Limits) -> Head:
    """Parse the bytes of one head, which end with an empty line.

    Raises:
        HttpRefused: they are no request, an ambiguous one, or one over a limit; the connection must be closed after it.
    """
    if data.count(b"\n") != data.count(b"\r\n"):
        raise HttpRefused(400, "A header line must end with CR LF. Got a bare LF.")
    check_request_line(data)
    collector = _Collector()
    parser = httptools.HttpRequestParser(collector)
    try:
        parser.feed_data(data)
    except httptools.HttpParserUpgrade:
        pass  # an offer to switch protocols may be ignored (RFC 9110 §7.8); CONNECT is refused as a method below
    except httptools.HttpParserError as exc:
        raise HttpRefused(400, f"The request is not valid HTTP: {exc}.") from exc
    if not collector.complete:
        raise HttpRefused(400, "The request is not valid HTTP: its head does not end where its empty line is.")
    if parser.get_http_version() not in ("1.1", "1.0"):
        raise HttpRefused(505, f"HTTP/1.1 or HTTP/1.0 is spoken here. Got HTTP/{parser.get_http_version()}.")
    return _checked_head(collector, parser, limits)


def check_request_line(data: bytes | bytearray) -> None:
    """Check what there is of the first line of a head.

    Raises:
        HttpRefused: no request begins like this.
    """
    if _NO_METHOD.match(data) or (b"\r\n" in data and _REQUEST_LINE.match(data) is None):
        raise HttpRefused(400, "The request is not valid HTTP: its first line must be 'METHOD /path HTTP/1.1'.")


def _checked_head(collector: _Collector, parser: httptools.HttpRequestParser, limits: Limits) -> Head:
    if len(collector.headers) > limits.header_count:
        raise HttpRefused(431, f"A request has at most {limits.header_count} headers. Got {len(collector.headers)}.")
    method = parser.get_method().decode("ascii")
    path = _path_of(method, collector.target, limits)
    headers: dict[str, str] = {}
    hosts = 0
    for raw_name, raw_value in collector.headers:
        name = raw_name.lower().decode("ascii")
        value = raw_value.decode("latin-1").strip(" \t")
        if name == "host":
            hosts += 1
            if _HOST.fullmatch(raw_value.strip(b" \t")) is None:
                raise HttpRefused(400, "The Host header must be a name or an address, with or without a port.")
        elif name in _ONCE and name in headers:
            raise HttpRefused(400, f"The header {name} must come once.")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    http_1_0 = parser.get_http_version() == "1.0"
    if hosts != 1 and not (http_1_0 and hosts == 0):  # load balancers look for life with HTTP/1.0, which has no Host
        raise HttpRefused(400, f"A request must have exactly one Host header. Got {hosts}.")
    return Head(
        method=method,
        target=collector.target.decode("ascii"),
        path=path,
        headers=headers,
        keep_alive=_keep_alive(headers, http_1_0=http_1_0),
        http_1_0=http_1_0,
        body_bytes=_body_length(headers, http_1_0=http_1_0),
        expects_continue=_expects_continue(headers, http_1_0=http_1_0),
        request_id=_request_id(headers),
        timeout_ms=_timeout_ms(headers),
        body_refusal=_body_refusal(method, headers),
        coding=_coding(headers),
    )


def _path_of(method: str, target: bytes, limits: Limits) -> str:
    if len(target) > limits.target_bytes:
        raise HttpRefused(414, f"A request target has at most {limits.target_bytes} bytes. Got {len(target)}.")
    if method == "CONNECT":
        raise HttpRefused(405, "CONNECT is not offered here.", headers=(("allow", "GET, HEAD, POST"),))
    # A target with a host in it would be a second opinion on where the request goes.
    if not target.startswith(b"/") or b"#" in target or not target.isascii():
        raise HttpRefused(400, "The request target must be a path that starts with '/', without a fragment.")
    return target.partition(b"?")[0].decode("ascii")


def _keep_alive(headers: Mapping[str, str], *, http_1_0: bool) -> bool:
    # Not llhttp's answer: it forgets what the request said as soon as a request without a body is complete. Connections
    # of HTTP/1.0 are not kept: nobody would tell its clients that they are.
    options = [option.strip() for option in headers.get("connection", "").lower().split(",")]
    return not http_1_0 and "close" not in options


def _body_length(headers: Mapping[str, str], *, http_1_0: bool) -> int | None:
    coding, length = headers.get("transfer-encoding"), headers.get("content-length")
    if coding is not None:
        if length is not None or http_1_0:
            raise HttpRefused(400, "Transfer-Encoding must not come with Content-Length, nor with HTTP/1.0.")
        if coding.lower() != "chunked":
            raise HttpRefused(501, "The only transfer coding taken here is 'chunked'.")
        return None
    if length is None:
        return 0
    if not (length.isascii() and length.isdigit() and len(length) <= 19):
        raise HttpRefused(400, "Content-Length must be a decimal number.")
    return int(length)


def _expects_continue(headers: Mapping[str, str], *, http_1_0: bool) -> bool:
    expect = headers.get("expect")
    if expect is None or http_1_0:
        return False
    if expect.lower() != "100-continue":
        raise HttpRefused(417, "The only expectation met here is '100-continue'.")
    return True


def _timeout_ms(headers: Mapping[str, str]) -> int | None:
    given = headers.get("x-request-timeout-ms")
    if given is None:
        return None
    return int(given) if given.isascii() and given.isdigit() and len(given) <= 9 else 0


def _body_refusal(method: str, headers: Mapping[str, str]) -> tuple[int, str] | None:
    if method != "POST":
        return 400, f"A {method} request has no body here."
    coding = _coding(headers)
    if coding is not None and coding not in _CODINGS:
        known = " or ".join(_CODINGS)
        return 415, f"The content coding of a body may be {known}, or none. Got {coding[:40]!r}."
    return None


def _coding(headers: Mapping[str, str]) -> str | None:
    coding = headers.get("content-encoding", "identity").lower()
    return None if coding == "identity" else coding


def _request_id(headers: Mapping[str, str]) -> str | None:
    given = headers.get("x-request-id")
    # A strange id is replaced, not refused: it comes back in headers and logs, where only plain characters are safe.
    if given is None or _REQUEST_ID.fullmatch(given.encode("latin-1")) is None:
        return None
    return given


def too_large(size: int, limits: Limits) -> TooLarge:
    """Return the error of a body over the limit."""
    return TooLarge(
        f"A request body has at most {limits.body_bytes} bytes (limit `body_bytes`). Got {size} or more. "
        "Send fewer rows a request."
    )


class Outgoing(Protocol):
    """The body of an answer that is written piece by piece."""

    on_room: Callable[[], None] | None
    """Called when the client has caught up after ``write`` said no."""
    on_gone: Callable[[], None] | None
    """Called if the client goes before the end."""

    def write(self, data: bytes) -> bool:
        """Send a piece; return whether there is room for more. Without effect when the client has gone."""

    def end(self) -> None:
        """Say that this was all."""

    def fail(self) -> None:
        """Break off, so that the client sees that the answer is not whole."""


class Response(msgspec.Struct):
    """An answer. ``body`` may be several buffers, which are written one after the other without being joined first.

    Attributes:
        stream: writes the body instead, now or later; called when the head has been sent.
    """

    status: int = 200
    body: Sequence[Buffer] = (b"",)
    content_type: str = "application/json"
    headers: Sequence[tuple[str, str]] = ()
    stream: Callable[[Outgoing], None] | None = None


def error_response(error: BaseException) -> Response:
    """Return the answer for an error: ``{"error": "..."}``. What is not ours tells nothing of its insides."""
    headers: tuple[tuple[str, str], ...] = ()
    if isinstance(error, HttpRefused):
        status, headers = error.status, error.headers
    else:
        status = status_of(error).http
    message = str(error) if isinstance(error, LightshipError) else "The server failed. Its log tells why."
    if isinstance(error, Unavailable) and status in (429, 503):
        headers = (*headers, ("retry-after", str(max(1, round(error.retry_after_s)))))
    if status == 401:
        headers = (*headers, ("www-authenticate", "Bearer"))
    return Response(status, (msgspec.json.encode({"error": message}),), headers=headers)


class AnswerHeads:
    """Writes the heads of answers: status line and headers, with the empty line after them.

    Answers differ in little but the id of their request, so what stands before it and after it is kept, as long as the
    date in it is right: for the rest of the second.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], tuple[bytes, bytes]] = {}
        self._date = ""
        self._until_s = 0.0

    def around_id(self, response: Response, size: int, now: float, *, close: bool) -> tuple[bytes, bytes]:
        """Return the head up to the request id, and the rest of it.

        A body that is written piece by piece is chunked, or ends with its connection if that closes.

        Args:
            size: of the body.
            now: by the loop's clock.
        """
        if now >= self._until_s:
            self._next_second(now)
        key = (size, response.headers, response.content_type, response.status, close, response.stream is None)
        return self._known.get(key) or self._write(key, response, size, close=close)

    def _next_second(self, now: float) -> None:
        wall_s = time.time()
        self._date = formatdate(int(wall_s), usegmt=True)
        self._until_s = now + 1 - wall_s % 1
        self._known.clear()

    def _write(self, key: tuple[object, ...], response: Response, size: int, *, close: bool) -> tuple[bytes, bytes]:
        length = f"content-length: {size}\r\n" if response.stream is None else "" if close else _CHUNKED
        before = (
            f"{_STATUS_LINES[response.status]}date: {self._date}\r\ncontent-type: {response.content_type}\r\n"
            f"{length}x-request-id: "
        )
        fields = "".join([f"{name}: {value}\r\n" for name, value in response.headers])
        after = f"\r\n{fields}{_CLOSE if close else _END}"
        if len(self._known) >= _REMEMBERED_HEADS:
            self._known.clear()
        found = self._known[key] = (before.encode("latin-1"), after.encode("latin-1"))
        return found
