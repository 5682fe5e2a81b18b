"""The gRPC door against raw HTTP/2 frames: what no client library would send (BI-087, R-20)."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable
from dataclasses import dataclass, field

import h2.config
import h2.connection
import h2.events
import pytest
from hpack import Encoder
from hyperframe.frame import ContinuationFrame, DataFrame, Frame, HeadersFrame, SettingsFrame

FRAME_BYTES = 16_384
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DEADLINE_S = 20.0


@dataclass
class Ended:
    """How a call ended: ``how`` is what came last, ``headers`` holds headers and trailers."""

    how: str
    headers: dict[bytes, bytes] = field(default_factory=dict)

    @property
    def status(self) -> int | None:
        """The gRPC status; None if there was none."""
        given = self.headers.get(b"grpc-status")
        return None if given is None else int(given)


def call(
    address: str,
    path: bytes,
    *,
    method: bytes = b"POST",
    extra: list[tuple[bytes, bytes]] | None = None,
    data: bytes | None = b"\0" * 5,
) -> Ended:
    """Send one call and return how it ended. The server's settings are not waited for, nor confirmed before.

    ``data=None`` leaves the call open: its headers are all that is sent.
    """
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=DEADLINE_S) as sock:
        try:
            sock.sendall(_request(path, method, extra or [], data))
            return _answer(sock)
        except (ConnectionError, TimeoutError) as exc:
            return Ended(type(exc).__name__)


class Unread:
    """A call whose answer is not taken, beyond the 64 KiB that HTTP/2 lets a server send unasked."""

    def __init__(self, address: str, path: bytes, message: bytes) -> None:
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=DEADLINE_S)
        self.http2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding=None))
        self.http2.initiate_connection()
        names = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "test")]
        self.http2.send_headers(1, [*names, ("content-type", "application/grpc"), ("te", "trailers")])
        left = b"\0" + len(message).to_bytes(4, "big") + message
        while left:
            if room := min(self.http2.local_flow_control_window(1), FRAME_BYTES, len(left)):
                self.http2.send_data(1, left[:room], end_stream=room == len(left))
                left = left[room:]
                self.socket.sendall(self.http2.data_to_send())
            else:
                self.http2.receive_data(self.socket.recv(65_536))

    def rest(self) -> int:
        """Return how many bytes of the answer come until the server ends the call."""
        size = 0
        while True:
            for event in self.http2.receive_data(self.socket.recv(65_536)):
                if isinstance(event, h2.events.DataReceived):
                    size += len(event.data)
                elif isinstance(event, h2.events.StreamEnded | h2.events.StreamReset | h2.events.ConnectionTerminated):
                    return size


def _request(path: bytes, method: bytes, extra: list[tuple[bytes, bytes]], data: bytes | None) -> bytes:
    headers = [
        (b":method", method),
        (b":scheme", b"http"),
        (b":path", path),
        (b":authority", b"test"),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
        *extra,
    ]
    block = Encoder().encode(headers, huffman=False)
    pieces = [block[at : at + FRAME_BYTES] for at in range(0, len(block), FRAME_BYTES)]
    frames: list[Frame] = [HeadersFrame(1, pieces[0]), *(ContinuationFrame(1, piece) for piece in pieces[1:])]
    frames[-1].flags.add("END_HEADERS")
    if data is not None:
        frames.append(DataFrame(1, data, flags=["END_STREAM"]))
    return PREFACE + SettingsFrame(0).serialize() + b"".join(frame.serialize() for frame in frames)


def _answer(sock: socket.socket) -> Ended:
    connection = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding=None))
    connection.initiate_connection()
    connection.send_headers(1, [(":method", "POST"), (":scheme", "http"), (":path", "/"), (":authority", "test")])
    headers: dict[bytes, bytes] = {}
    while piece := sock.recv(65_536):
        for event in connection.receive_data(piece):
            if isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived):
                headers.update(event.headers or {})
            elif isinstance(event, h2.events.StreamEnded):
                return Ended("ended", headers)
            elif isinstance(event, h2.events.StreamReset | h2.events.ConnectionTerminated):
                return Ended(type(event).__name__, headers)
    return Ended("closed", headers)


SERVICE = b"/inference.GRPCInferenceService/"
INFER = SERVICE + b"ModelInfer"
LIVE = SERVICE + b"ServerLive"
OK, CANCELLED, OUT_OF_RANGE, UNAUTHENTICATED = 0, 1, 11, 16
STRANGE = [
    INFER[1:],  # without its slash: CVE-2026-33186 in another implementation
    b"/" + INFER,
    INFER + b"/",
    INFER.lower(),
    INFER + b"?x=1",
    INFER.replace(b"M", b"%4d"),
    INFER + b"\x00",
    b"/x/.." + INFER,
    b"http://test" + INFER,
    SERVICE + b"Nothing",
    SERVICE,
    SERVICE + b"/ServerMetadata",
    b"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    b"/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    b"/grpc.health.v1.Health/Watch",  # Check is open, as the other questions for health
    b"/",
    b"",
    b"*",
    b"/\xff\xfe/x",  # not UTF-8
    b"/a" * 30_000,
]


@pytest.fixture(scope="module")
def address(home, launch: Callable[..., object]) -> str:
    """Return the gRPC address of a server that asks for keys."""
    return launch(home, "digits", "--grpc-port", "0").grpc_url


@pytest.mark.parametrize("path", STRANGE, ids=lambda path: repr(path[:60]))
def test_no_path_gets_round_the_key(address, path):
    """A stranger gets no answer but a refusal, whatever the path; and the server goes on."""
    for name in (path, *((path[1:],) if path.startswith(b"/i") else ())):
        assert call(address, name).status in (None, CANCELLED, OUT_OF_RANGE, UNAUTHENTICATED)

    assert call(address, LIVE).status == OK


def test_mutated_paths_never_pass_without_a_key(address):
    """1,000 paths a few bytes away from real ones; only liveness itself is open."""
    draw = random.Random(7)
    for _ in range(1_000):
        path = bytearray(draw.choice((INFER, LIVE, SERVICE + b"ModelMetadata")))
        for _ in range(draw.randint(1, 3)):
            at = draw.randrange(len(path))
            path[at : at + draw.randint(0, 1)] = bytes(draw.randbytes(draw.randint(0, 2)))
        if bytes(path) not in (LIVE, SERVICE + b"ServerReady"):
            assert call(address, bytes(path)).status != OK, path
    assert call(address, LIVE).status == OK


@pytest.mark.parametrize("method", [b"GET", b"PUT", b"post"])
def test_other_http_methods_are_no_calls(address, method):
    """A call is a POST."""
    assert call(address, LIVE, method=method).status != OK


@pytest.mark.parametrize("size", [33_000, 1_000_000, 5_000_000])
def test_metadata_is_bounded_also_for_a_client_that_confirms_no_limit(address, size):
    """The core holds its limit only once the client has confirmed it; ours holds always (BI-087)."""
    assert call(address, LIVE, extra=[(b"x-a", b"a" * size)]).status not in (None, OK)
    assert call(address, LIVE, extra=[(b"x-a", b"a" * 20_000)]).status == OK


def test_thousands_of_headers_are_refused(address):
    """Many small ones as well as one large one; also the same name each time."""
    assert call(address, LIVE, extra=[(b"x-%d" % i, b"a") for i in range(2_000)]).status not in (None, OK)
    assert call(address, LIVE, extra=[(b"x-a", b"a")] * 2_000).status not in (None, OK)


def test_two_keys_are_none(address, home):
    """Which one would count? Neither does."""
    twice = [(b"authorization", b"Bearer lsk_00000000_" + b"A" * 43), (b"authorization", b"x")]

    assert call(address, INFER, extra=twice).status == UNAUTHENTICATED


@pytest.mark.parametrize("name", [b"authorization", b"x-request-id", b"grpc-timeout", b"x-a-bin", b"grpc-encoding"])
def test_strange_header_values_end_the_call_alone(address, name):
    """Bytes that are no text, no time, no base64, no coding."""
    assert call(address, INFER, extra=[(name, b"\xff\xfe")]).status not in (None, OK)
    assert call(address, LIVE).status == OK


def test_a_call_from_a_web_page_is_refused(address):
    """No page of another site may use what its visitor can reach."""
    assert call(address, LIVE, extra=[(b"origin", b"http://evil.example")]).status == 7
