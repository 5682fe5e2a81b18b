"""Wrong, hostile and huge requests against a running server: each is refused in its way, and nobody else notices.

    python benchmarks/reliability/bad_inputs.py --quick     # without the large ones, 20 s
    python benchmarks/reliability/bad_inputs.py             # 1 min

After each case a sentinel request must be answered exactly as before, and the peak memory of the server and of its
workers may be at most the base, twice the largest body, and 64 MiB. No answer is 500, none takes over two seconds,
none tells of paths or of Python.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
import re
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from releases import endless, gray, greedy, network, release, release_tensors
from rig import Figures, Rig, ask, binary_request, post, run_script, scratch_home, until

from lightship.tasks.image_pixels import png_bytes

__all__ = ["CASES", "Attack", "Case", "Outcome", "home_of_models"]

BODY_BYTES = 64 << 20
MODELS = ("digits", "pair", "texts", "table", "greedy", "endless")
_SECRETS = re.compile(rb"Traceback|\.py\b|/home/|/tmp/|/usr/|site-packages|0x7f")
_WITHIN_S = 2.0

Answers = list[tuple[int, bytes]]
Play = Callable[[tuple[str, int]], Answers]


@dataclass(frozen=True, slots=True)
class Case:
    """One attack.

    Attributes:
        ident: of the catalog of bad inputs.
        data: the bytes; or what plays the part of the client and returns the answers.
        due: allowed statuses of each answer; 0 is a close without any.
        held: the unit test that has the case already, so that the tests need not repeat it.
        most_mb: what a process may take for it at its peak.
        body: what the answer's body must match.
    """

    ident: str
    name: str
    data: bytes | Play
    due: tuple[tuple[int, ...], ...]
    held: str = ""
    within_s: float = _WITHIN_S
    most_mb: float = 2 * BODY_BYTES / (1 << 20) + 64
    body: bytes = b""


def send(data: bytes, *, answers: int = 1, timeout_s: float = 5.0) -> Play:
    """Return what sends bytes and reads answers until there are enough, or the connection ends."""

    def play(address: tuple[str, int]) -> Answers:
        with socket.create_connection(address, timeout=timeout_s) as sock:
            writer = threading.Thread(target=_send_all, args=(sock, data), daemon=True)
            writer.start()
            found = _read(sock, answers)
        writer.join(1)
        return found

    return play


def _send_all(sock: socket.socket, data: bytes) -> None:
    try:
        sock.sendall(data)
    except OSError:
        return


def _read(sock: socket.socket, answers: int) -> Answers:
    found: Answers = []
    got = b""
    while len(found) < answers:
        head, end, rest = got.partition(b"\r\n\r\n")
        if end:
            size = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0] or 0)
            if len(rest) >= size:
                found.append((int(head[9:12]), rest[:size]))
                got = rest[size:]
                continue
        try:
            piece = sock.recv(1 << 16)
        except TimeoutError:
            return [*found, (-1, b"no answer in time")]
        except OSError:
            piece = b""
        if not piece:
            return [*found, (0, got)]
        got += piece
    return found


def head(
    *lines: str | bytes, request: str | bytes = "GET /livez HTTP/1.1", host: str | None = "a", end: bytes = b"\r\n"
) -> bytes:
    """Return the head of a request, wrong or not."""
    hosts = [] if host is None else [f"Host: {host}"]
    parts = [part.encode() if isinstance(part, str) else part for part in (request, *hosts, *lines)]
    return end.join(parts) + end + end


def v2(name: str, body: object, *headers: str) -> bytes:
    """Return a V2 request in JSON."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return post(f"/v2/models/{name}/infer", data, "Content-Type: application/json", *headers)


def pair(**changes: object) -> dict[str, object]:
    """Return a good request for the model ``pair``; ``a_shape=...`` and the like change one field."""
    a: dict[str, object] = {"name": "a", "shape": [1, 3], "datatype": "INT64", "data": [1, 2, 3]}
    b: dict[str, object] = {"name": "b", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}
    body: dict[str, object] = {"inputs": [a, b]}
    for key, value in changes.items():
        which, _, name = key.partition("_")
        {"a": a, "b": b, "top": body}[which][name] = value
    return body


def binary(name: str, inputs: list[dict[str, object]], tail: bytes, length: object = None) -> bytes:
    """Return a V2 request in its binary form."""
    first = json.dumps({"inputs": inputs}).encode()
    return post(
        f"/v2/models/{name}/infer",
        first + tail,
        f"Inference-Header-Content-Length: {len(first) if length is None else length}",
    )


def cities(tail: bytes, count: int = 1, size: int | None = None) -> bytes:
    """Return texts in binary form."""
    parameters = {"binary_data_size": len(tail) if size is None else size}
    return binary("texts", [{"name": "city", "shape": [count], "datatype": "BYTES", "parameters": parameters}], tail)


def picture(data: bytes, media: str = "image/png") -> bytes:
    """Return a request at the raw door."""
    return post("/predict/digits", data, f"Content-Type: {media}")


def png(
    width: int, height: int, rows: bytes, *, depth: int = 1, color: int = 0, bad_crc: bool = False, extra: bytes = b""
) -> bytes:
    """Return a PNG file, piece by piece."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = zlib.crc32(kind + data) ^ (1 if bad_crc and kind == b"IDAT" else 0)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)

    first = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + first + extra + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")


def encoded(mode: str, kind: str, **options: object) -> bytes:
    """Return an image file that Pillow writes."""
    out = io.BytesIO()
    pixels = np.kron(np.arange(49, dtype=np.uint8).reshape(7, 7) * 5, np.ones((4, 4), np.uint8))
    made = Image.fromarray(pixels.astype(np.uint16) * 256) if mode == "I;16" else Image.fromarray(pixels).convert(mode)
    made.save(out, kind, **options)
    return out.getvalue()


def frames(kind: str, count: int) -> bytes:
    """Return an animation of tiny frames."""
    out = io.BytesIO()
    made = [Image.fromarray(np.full((4, 4), index % 256, np.uint8)) for index in range(count)]
    made[0].save(out, kind, save_all=True, append_images=made[1:])
    return out.getvalue()


def looped_tiff() -> bytes:
    """Return a TIFF whose directory is followed by itself."""
    entries = ((256, 28), (257, 28), (258, 8), (259, 1), (262, 1), (273, 0), (278, 28), (279, 784))
    directory = struct.pack("<H", len(entries)) + b"".join(
        struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries
    )
    return b"II*\x00" + struct.pack("<I", 8) + directory + struct.pack("<I", 8)


def raw_json(text: str, **parameters: object) -> bytes:
    """Return a file in JSON."""
    entry = {"name": "raw", "shape": [1], "datatype": "BYTES", "parameters": parameters, "data": [text]}
    return v2("digits.raw", {"inputs": [entry]})


def chunked(*parts: bytes, path: str = "/predict/digits") -> bytes:
    """Return a chunked request of ready pieces."""
    return head("Transfer-Encoding: chunked", "Content-Type: image/png", request=f"POST {path} HTTP/1.1") + b"".join(
        parts
    )


def resets(address: tuple[str, int]) -> Answers:
    """Open and reset a thousand connections, at all places of a request."""
    request = picture(png_bytes(gray(9)))
    for index in range(1000):
        with socket.create_connection(address) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.sendall(request[: index % len(request)])
    return [(200, b"")]


def half_closed(data: bytes) -> Play:
    """Return what sends bytes, ends its side, and reads."""

    def play(address: tuple[str, int]) -> Answers:
        with socket.create_connection(address, timeout=5) as sock:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            found = _read(sock, 1)
            if found[0][0] == 100:
                found = _read(sock, 1)
            return found

    return play


def repeated(data: bytes, times: int) -> Play:
    """Return what sends the same again and again; its answer is the last one."""

    def play(address: tuple[str, int]) -> Answers:
        found: Answers = []
        for _ in range(times):
            found = send(data)(address)
        return found

    return play


REFUSED = ((400,),)
CLOSED = ((400,), (0,))
_HTTP, _FRONT, _CODEC = "test_http.py", "test_front.py", "test_v2_codec.py"
GOOD = head()


def _http_cases() -> Iterator[Case]:
    big = 10**30
    for name, lines in {
        "Content-Length and Transfer-Encoding": ("Content-Length: 3", "Transfer-Encoding: chunked"),
    }.items():
        yield Case("BI-045", name, send(head(*lines) + GOOD, answers=2), CLOSED)
    for value in ("+1", "-1", "0x10", "1,1", str(big), "1 1", ""):
        yield Case(
            "BI-046",
            f"Content-Length {value[:8]!r}",
            send(head(f"Content-Length: {value}") + GOOD, answers=2),
            CLOSED,
            held=_HTTP,
        )
    yield Case(
        "BI-046",
        "two lengths",
        send(head("Content-Length: 3", "Content-Length: 4") + GOOD, answers=2),
        CLOSED,
        held=_HTTP,
    )
    for value in ("xchunked", "chunked, identity", "identity, chunked", "chunked\x0b", '"chunked"'):
        yield Case(
            "BI-046",
            f"Transfer-Encoding {value!r}",
            send(head(f"Transfer-Encoding: {value}") + GOOD, answers=2),
            ((400, 501), (0,)),
            held=_HTTP,
        )
    yield Case(
        "BI-046",
        "tab before the colon",
        send(head("Transfer-Encoding\t: chunked") + GOOD, answers=2),
        CLOSED,
        held=_HTTP,
    )
    for name, data in {
        "bare LF": head(end=b"\n"),
        "one bare LF": b"GET /livez HTTP/1.1\nHost: a\r\n\r\n",
        "folded header": head("X: a\r\n b"),
        "space before the colon": head("X : a"),
        "NUL in a value": head(b"X: a\0b"),
        "CR in a value": head(b"X: a\rb"),
        "method not ASCII": head(request=b"G\xc3T /livez HTTP/1.1"),
        "header name not ASCII": head(b"X\xff: a"),
        "no name": head(": a"),
    }.items():
        yield Case("BI-047", name, send(data + GOOD, answers=2), CLOSED, held=_HTTP)
    for name, body in {
        "data without CR LF": b"3\r\nabcX\r\n0\r\n\r\n",
        "size 0x1": b"0x1\r\na\r\n0\r\n\r\n",
        "17 digits": b"0" * 16 + b"1\r\na\r\n0\r\n\r\n",
        "negative size": b"-1\r\na\r\n0\r\n\r\n",
        "1 MB extension": b"1;" + b"a" * (1 << 20) + b"\r\na\r\n0\r\n\r\n",
        "trailer": b"1\r\na\r\n0\r\nContent-Length: 5\r\n\r\n",
        "size of 2**63": b"7fffffffffffffff\r\na",
    }.items():
        yield Case("BI-048", name, send(chunked(body) + GOOD, answers=2), ((400, 413), (0,)), held=_HTTP)
    for host in ("a/x?", "a#", "a@b", "[::1", "", "a" * 300, "a b", "a,b", "a:b"):
        yield Case("BI-049", f"Host {host[:12]!r}", send(head(host=host) + GOOD, answers=2), CLOSED, held=_HTTP)
    yield Case("BI-049", "no Host", send(head(host=None) + GOOD, answers=2), CLOSED, held=_HTTP)
    yield Case("BI-049", "two Hosts", send(head("Host: b") + GOOD, answers=2), CLOSED, held=_HTTP)
    yield Case(
        "BI-049",
        "absolute target",
        send(head(request="GET http://b/livez HTTP/1.1") + GOOD, answers=2),
        CLOSED,
        held=_HTTP,
    )
    yield Case(
        "BI-050",
        "65,537 chunks of one byte",
        send(chunked(b"1\r\na\r\n" * 65_537, b"0\r\n\r\n")),
        ((413,),),
        held=_HTTP,
    )
    yield Case("BI-051", "64 KB header", send(head("X: " + "a" * 65_536)), ((431,),), held=_FRONT)
    yield Case("BI-051", "5,000 headers", send(head(*(f"X{i}: a" for i in range(5000)))), ((431,),))
    yield Case("BI-051", "101 headers", send(head(*(f"X{i}: a" for i in range(100)))), ((431,),), held=_HTTP)
    yield Case("BI-051", "1 MB target", send(head(request="GET /" + "a" * (1 << 20) + " HTTP/1.1")), ((414,),))
    huge = f"Content-Length: {BODY_BYTES + 1}"
    yield Case(
        "BI-052",
        "body too large, by length",
        send(head(huge, request="POST /predict/digits HTTP/1.1") + b"a"),
        ((413,),),
        held=_FRONT,
    )
    yield Case(
        "BI-052",
        "body too large, 100-continue",
        send(head(huge, "Expect: 100-continue", request="POST /predict/digits HTTP/1.1")),
        ((413,),),
    )
    yield Case(
        "BI-052",
        "10 GB, one byte",
        send(head("Content-Length: 10000000000", request="POST /predict/digits HTTP/1.1") + b"a"),
        ((413,),),
        held=_FRONT,
    )
    for coding in ("gzip", "br", "zstd", "deflate", ", ".join(["gzip"] * 20), "x"):
        yield Case(
            "BI-053",
            f"Content-Encoding {coding[:14]}",
            send(post("/predict/digits", zlib.compress(bytes(10_000)), f"Content-Encoding: {coding}")),
            ((400, 415),),
        )
    zeros = gzip.compress(bytes(32 << 20), 9)
    yield Case(
        "BI-053",
        "gzip of 32 MB of zeros",
        send(post("/predict/digits", zeros, "Content-Encoding: gzip")),
        ((400, 413, 415),),
    )
    packed = gzip.compress(json.dumps(pair()).encode())
    for name, data in {
        "half of it": packed[:-12],
        "twice": packed * 2,
        "bytes after it": packed + b"x",
        "wrong checksum": packed[:-6] + b"abcdef",
    }.items():
        yield Case(
            "BI-053",
            f"gzip, {name}",
            send(post("/v2/models/pair/infer", data, "Content-Type: application/json", "Content-Encoding: gzip")),
            ((200, 400, 415),) if name == "twice" else ((400, 415),),
        )
    for method in ("PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "CONNECT"):
        yield Case(
            "BI-057",
            method,
            send(head(request=f"{method} {'a:1' if method == 'CONNECT' else '/livez'} HTTP/1.1")),
            ((405, 501),),
            held=_FRONT,
        )
    yield Case("BI-057", "no method of HTTP", send(head(request="BREW /livez HTTP/1.1")), ((400, 405, 501),))
    yield Case("BI-057", "HTTP/0.9", send(b"GET /livez\r\n\r\n"), ((400, 505),))
    yield Case("BI-057", "HTTP/2 preface", send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), ((400, 405, 505),))
    yield Case(
        "BI-057",
        "TLS hello",
        send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200) + b"\r\n\r\n"),
        ((400,),),
    )
    yield Case(
        "BI-057",
        "Upgrade: h2c",
        send(head("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAA")),
        ((200,),),
    )
    yield Case(
        "BI-057",
        "valid, then invalid, then valid",
        send(GOOD + head(host="a@b") + GOOD, answers=3),
        ((200,), (400,), (0,)),
    )
    yield Case("BI-057", "half-close after a request", half_closed(GOOD), ((200,),))
    yield Case("BI-057", "half-close in a body", half_closed(picture(png_bytes(gray(9)))[:-5]), ((0, 400),))
    yield Case("BI-057", "a thousand resets", resets, ((200,),), within_s=20)


def _v2_cases() -> Iterator[Case]:
    for name, body in {
        "100,000 deep": b'{"inputs":' + b"[" * 100_000,
        "integer of 100,000 digits": json.dumps(pair())
        .encode()
        .replace(b"[1, 2, 3]", b"[1,2," + b"1" * 100_000 + b"]"),
        "1e400": json.dumps(pair()).encode().replace(b"[1, 2]}", b"[1,1e400]}"),
        "NaN": json.dumps(pair()).encode().replace(b"[1, 2]}", b"[NaN,1]}"),
        "Infinity": json.dumps(pair()).encode().replace(b"[1, 2]}", b"[-Infinity,1]}"),
        "a key twice": b'{"inputs":[],"inputs":[]}',
        "lone surrogate": b'{"id":"\\ud800","inputs":[]}',
        "byte order mark": b"\xef\xbb\xbf" + json.dumps(pair()).encode(),
        "trailing comma": b'{"inputs":[],}',
        "UTF-16": json.dumps(pair()).encode("utf-16"),
        "empty": b"",
        "null": b"null",
        "text": b'"x"',
        "NUL after it": json.dumps(pair()).encode() + b"\0",
    }.items():
        yield Case("BI-054", name, send(v2("pair", body)), REFUSED, held=_CODEC, within_s=0.5)
    yield Case("BI-054", "10**5 keys", send(v2("pair", {str(i): 1 for i in range(100_000)})), REFUSED)
    for name, media in {"wrong": "text/csv", "text": "text/plain"}.items():
        yield Case(
            "BI-055",
            f"content type {name}",
            send(post("/v2/models/pair/infer", json.dumps(pair()).encode(), f"Content-Type: {media}")),
            ((400, 415),),
            held=_CODEC,
        )
    yield Case("BI-055", "empty body", send(post("/v2/models/pair/infer", b"")), ((400, 415),))
    yield Case("BI-055", "empty image", send(post("/predict/digits", b"")), ((400, 415),))
    yield Case(
        "BI-055",
        "body on GET",
        send(head("Content-Length: 3", request="GET /v2 HTTP/1.1") + b"abc"),
        REFUSED,
        held=_FRONT,
    )
    part = b'--x\r\nContent-Disposition: form-data; name="f"; filename="../../x"\r\n\r\na\r\n'
    for name, (boundary, body) in {
        "100,000 parts": ("; boundary=x", part * 100_000 + b"--x--"),
        "1 MB part header": ("; boundary=x", b"--x\r\nX: " + b"a" * (1 << 20) + b"\r\n\r\na\r\n--x--"),
        "no boundary": ("", part),
        "million dashes": ("; boundary=x", b"-" * 1_000_000),
    }.items():
        for path in ("/predict/digits", "/v2/models/pair/infer"):
            yield Case(
                "BI-056",
                f"{name} at {path[:8]}",
                send(post(path, body, f"Content-Type: multipart/form-data{boundary}")),
                ((400, 415),),
                within_s=0.5,
            )
    for shape in (
        [-1, 3],
        [0, 3],
        [2**63, 3],
        [10**9, 3],
        [1, 4],
        [1.0, 3],
        ["1", 3],
        [[1], 3],
        [],
        None,
        [3],
        [1, 3, 1],
        [2, 3],
    ):
        yield Case(
            "BI-058", f"shape {shape}", send(v2("pair", pair(a_shape=shape))), REFUSED, held=_CODEC, within_s=0.5
        )
    for name, changes in {
        "unknown datatype": {"a_datatype": "INT65"},
        "another datatype": {"a_datatype": "FP32"},
        "2**63": {"a_data": [1, 2, 2**63]},
        "1.5 for INT64": {"a_data": [1, 2, 1.5]},
        "true for INT64": {"a_data": [1, 2, True]},
        "text for INT64": {"a_data": [1, 2, "3"]},
        "null": {"a_data": [1, 2, None]},
        "1e39 for FP32": {"b_data": [1, 1e39]},
    }.items():
        yield Case("BI-059", name, send(v2("pair", pair(**changes))), REFUSED, held=_CODEC, within_s=0.5)
    for name, tail in {
        "length past the end": b"\xff\0\0\0a",
        "length of 4 GB": b"\xff\xff\xff\xffa",
        "three bytes": b"\1\0\0",
        "two for one": b"\1\0\0\0a\1\0\0\0b",
        "none": b"",
        "not UTF-8": b"\2\0\0\0\xc3\x28",
        "NUL in it": b"\3\0\0\0a\0b",
    }.items():
        yield Case(
            "BI-059",
            f"BYTES: {name}",
            send(cities(tail)),
            ((200, 400),) if "NUL" in name else REFUSED,
            held="" if "UTF" in name or "NUL" in name else _CODEC,
        )
    yield Case(
        "BI-059",
        "BYTES: number in JSON",
        send(v2("texts", {"inputs": [{"name": "city", "shape": [1], "datatype": "BYTES", "data": [1]}]})),
        REFUSED,
    )
    yield Case(
        "BI-059",
        "BYTES: NUL in JSON",
        send(v2("texts", {"inputs": [{"name": "city", "shape": [1], "datatype": "BYTES", "data": ["a\0b"]}]})),
        ((200, 400),),
    )
    yield Case(
        "BI-059",
        "BYTES: base64 that is not UTF-8",
        send(
            v2(
                "texts",
                {
                    "inputs": [
                        {
                            "name": "city",
                            "shape": [1],
                            "datatype": "BYTES",
                            "parameters": {"content_type": "base64"},
                            "data": ["w yg="],
                        }
                    ]
                },
            )
        ),
        REFUSED,
    )
    tail = np.arange(3).tobytes() + np.ones(2, np.float32).tobytes()
    for length in (-1, 10**6, 10**19, "x", "1e2", "+5", "", 1):
        yield Case(
            "BI-060",
            f"header length {length!r}",
            send(binary("pair", _sized(24, 8), tail, length)),
            REFUSED,
            held=_CODEC,
        )
    for name, sizes in {
        "negative": (-24, 8),
        "sum too small": (24, 4),
        "sum too large": (24, 16),
        "text": ("24", 8),
        "2**64": (2**64, 8),
        "of the other": (8, 24),
        "zero": (0, 8),
    }.items():
        yield Case(
            "BI-060", f"binary_data_size {name}", send(binary("pair", _sized(*sizes), tail)), REFUSED, held=_CODEC
        )
    inputs = pair()["inputs"]
    assert isinstance(inputs, list)
    for name, changes in {
        "input missing": {"top_inputs": inputs[:1]},
        "input twice": {"top_inputs": [inputs[0], inputs[0]]},
        "input too much": {"top_inputs": [*inputs, inputs[0]]},
        "empty name": {"a_name": ""},
        "output unknown": {"top_outputs": [{"name": "z"}]},
        "output twice": {"top_outputs": [{"name": "y"}] * 2},
        "10,000 outputs": {"top_outputs": [{"name": "y"}] * 10_000},
        "10,000 inputs": {"top_inputs": inputs * 5_000},
    }.items():
        yield Case("BI-061", name, send(v2("pair", pair(**changes))), REFUSED, held=_CODEC)
    for name in (
        "../digits",
        "..%2fdigits",
        "%252e",
        "pair;b",
        "",
        "a" * 7000,
        "pair%00",
        "digits.raw.raw",
        "pair.raw",
        "PAIR",
        "pair%E2%80%8F",
        "pair:1",
        "pair@production",
    ):
        yield Case("BI-062", f"name {name[:16]!r}", send(v2(name, pair())), ((404,),), held="test_server.py")
    for version in ("-1", "0", "01", "1.0", str(10**20), "latest", "1/../1", "2"):
        yield Case(
            "BI-062",
            f"version {version[:12]!r}",
            send(post(f"/v2/models/pair/versions/{version}/infer", json.dumps(pair()).encode())),
            ((404,),),
            held="test_server.py",
        )
    yield Case("BI-062", "name of 10**5 characters", send(v2("a" * 100_000, pair())), ((414,),))
    yield Case("BI-062", "name with a space", send(v2("pa ir", pair())), REFUSED)
    yield Case("BI-062", "name with a NUL", send(v2("pa\0ir", pair())), REFUSED)
    yield Case("BI-062", "name with a right-to-left mark", send(v2("pair\u200f", pair())), REFUSED)
    for rows, due in ((16_385, 400), (16_384, 200)):
        data = {"a_shape": [rows, 3], "a_data": [1, 2, 3] * rows, "b_shape": [rows, 2], "b_data": [1, 2] * rows}
        yield Case("BI-063", f"{rows} rows", send(v2("pair", pair(**data))), ((due,),))
    yield Case(
        "BI-063",
        "rows that differ between inputs",
        send(v2("pair", pair(b_shape=[2, 2], b_data=[1, 2, 3, 4]))),
        REFUSED,
    )
    yield Case("BI-063", "ragged", send(v2("pair", pair(a_data=[[1, 2], [3]]))), REFUSED, held=_CODEC)
    for name, values in {
        "NaN": [np.nan, 1],
        "infinity": [np.inf, -np.inf],
        "-0, denormal": [-0.0, 1e-45],
        "largest": [3.4e38, -3.4e38],
    }.items():
        data = np.arange(1, 4).tobytes() + np.array(values, np.float32).tobytes()
        yield Case(
            "BI-064",
            f"{name} in, JSON out",
            send(binary("pair", _sized(24, 8), data)),
            ((200, 400),),
            body=rb"^(?!.*(NaN|Infinity)[,\]]).*$" if name != "NaN" else b"",
        )
    yield Case("BI-064", "0/0 in the graph", send(v2("pair", pair(a_data=[0, 0, 0], b_data=[0, 1]))), REFUSED)
    yield Case(
        "BI-065", "400 GB for one image", send(post("/predict/greedy", png_bytes(gray(0))), timeout_s=10), ((400, 503),)
    )
    yield Case(
        "BI-065",
        "a row number beyond the table",
        send(v2("table", {"inputs": [{"name": "at", "shape": [1, 2], "datatype": "INT64", "data": [0, 10**12]}]})),
        ((400,),),
    )
    yield Case(
        "BI-066",
        "2**62 rounds for one image",
        send(post("/predict/endless", png_bytes(gray(0)), "X-Request-Timeout-Ms: 500"), timeout_s=10),
        ((504,),),
    )
    for name, value in {"-1": -1, "0": 0, "10**18": 10**18, "text": "1", "1.5": 1.5}.items():
        yield Case(
            "BI-067", f"timeout {name}", send(v2("pair", pair(top_parameters={"timeout": value}))), REFUSED, held=_CODEC
        )
    yield Case("BI-067", "priority 10**9", send(v2("pair", pair(top_parameters={"priority": 10**9}))), ((200, 400),))
    yield Case(
        "BI-067",
        "10,000 parameters",
        send(v2("pair", pair(top_parameters={str(i): i for i in range(10_000)}))),
        ((200, 400),),
    )
    yield Case("BI-067", "1 MB id", send(v2("pair", pair(top_id="x" * (1 << 20)))), REFUSED, held=_CODEC)
    yield Case("BI-067", "id with CR LF", send(v2("pair", pair(top_id="a\r\nSet-Cookie: b"))), ((200, 400),))
    yield Case(
        "BI-067", "request id header with quotes", send(v2("pair", pair(), 'X-Request-Id: "><script>')), ((200,),)
    )
    for path in (
        "/v2/systemsharedmemory/region/x/register",
        "/v2/cudasharedmemory/status",
        "/v2/repository/index",
        "/v2/repository/models/digits/load",
        "/v2/repository/models/digits/unload",
        "/v2/logging",
        "/v2/trace/setting",
        "/v2/models/digits/trace/setting",
        "/v2/models/digits/config",
        "/v2/models/stats",
        "/metrics",
        "/models",
        "/docs",
        "/openapi.json",
        "/invocations",
        "/v1/models/digits:predict",
        "/score",
        "/predictions/digits",
    ):
        yield Case("BI-070", path, send(post(path, b"{}")), ((404, 405),), held="test_server.py")
    shared = {
        "name": "a",
        "shape": [1, 3],
        "datatype": "INT64",
        "parameters": {"shared_memory_region": "x", "shared_memory_byte_size": 24},
    }
    yield Case("BI-070", "tensor in shared memory", send(v2("pair", {"inputs": [shared, inputs[1]]})), REFUSED)


def _media_cases() -> Iterator[Case]:
    yield Case(
        "BI-071", "PNG of 60,000 x 60,000", send(picture(png(60_000, 60_000, bytes(10_000)))), ((400, 413, 415),)
    )
    few = png(7_000, 7_000, bytes(876 * 7_000))  # six kilobytes, 49 megapixels
    yield Case("BI-071", "PNG of 7,000 x 7,000, all there", send(picture(few)), ((200, 400, 413, 415),), most_mb=64)
    yield Case("BI-071", "PNG of 65,535 x 1", send(picture(png(65_535, 1, bytes(8193)))), ((200, 400, 413, 415),))
    yield Case("BI-071", "PNG of 0 x 0", send(picture(png(0, 0, b""))), ((400, 415),))
    yield Case("BI-071", "PNG of 2**31-1", send(picture(png(2**31 - 1, 2**31 - 1, b"a"))), ((400, 413, 415),))
    jpeg = encoded("L", "JPEG")
    yield Case("BI-072", "half a JPEG", send(picture(jpeg[: len(jpeg) // 2], "image/jpeg")), ((400, 415),))
    # Pillow leaves the pixels' CRC alone, for zlib has a checksum of its own over them; so 200 is right too.
    yield Case(
        "BI-072", "PNG with a bad CRC", send(picture(png(28, 28, bytes(5 * 28), bad_crc=True))), ((200, 400, 415),)
    )
    yield Case("BI-072", "PNG with half its data", send(picture(png_bytes(gray(9))[:60])), ((400, 415),))
    yield Case("BI-072", "TIFF in a loop", send(picture(looped_tiff(), "image/tiff")), ((400, 415),))
    yield Case("BI-072", "TIFF said to be PNG", send(picture(looped_tiff())), ((400, 415),))
    yield Case("BI-072", "ICO", send(picture(encoded("RGB", "ICO"), "image/x-icon")), ((400, 415),))
    svg = b'<?xml version="1.0"?><!DOCTYPE s [<!ENTITY a SYSTEM "file:///etc/passwd">]><svg>&a;</svg>'
    yield Case("BI-072", "SVG with entities", send(picture(svg, "image/svg+xml")), ((400, 415),))
    yield Case("BI-072", "JPEG said to be PNG", send(picture(jpeg, "image/png")), ((200, 400, 415),))
    yield Case(
        "BI-072",
        "EPS",
        send(picture(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%id) (r) file\n")),
        ((400, 415),),
    )
    text = zlib.compress(bytes(8 << 20), 9)
    chunk = struct.pack(">I", len(text) + 3) + b"zTXta\0\0" + text + struct.pack(">I", zlib.crc32(b"zTXta\0\0" + text))
    yield Case(
        "BI-072", "PNG with a text bomb", send(picture(png(28, 28, bytes(5 * 28), extra=chunk))), ((200, 400, 415),)
    )
    for mode, kind in (
        ("CMYK", "JPEG"),
        ("I;16", "PNG"),
        ("P", "PNG"),
        ("LA", "PNG"),
        ("RGBA", "PNG"),
        ("1", "PNG"),
        ("RGB", "BMP"),
        ("RGB", "PPM"),
    ):
        yield Case(
            "BI-073", f"{mode} {kind}", send(picture(encoded(mode, kind), f"image/{kind.lower()}")), ((200, 400, 415),)
        )
    for kind, media in (("GIF", "image/gif"), ("WEBP", "image/webp"), ("PNG", "image/png")):
        yield Case(
            "BI-074",
            f"{kind} of 1,000 frames",
            send(picture(frames(kind, 1000), media)),
            ((200, 400, 415) if kind == "PNG" else (400, 415),),
        )
    good = base64.b64encode(png_bytes(gray(9))).decode()
    for name, text in {
        "bad alphabet": "*" + good[1:],
        "no padding": good.rstrip("=") + "A",
        "line break": good[:20] + "\n" + good[20:],
        "URL alphabet": "-_" + good[2:],
        "data URL": f"data:image/png;base64,{good}",
        "empty": "",
    }.items():
        yield Case("BI-075", name, send(raw_json(text, content_type="base64")), ((400, 415),))
    yield Case("BI-075", "another content type", send(raw_json(good, content_type="base32")), ((400, 415),))
    yield Case("BI-075", "no content type", send(raw_json(good)), ((400, 415),))
    yield Case("BI-076", "a URL for a file", send(raw_json("http://127.0.0.1:1/x.png")), ((400, 415),))
    yield Case("BI-076", "a path for a file", send(raw_json("file:///etc/passwd")), ((400, 415),))


def _sized(first: object, second: object, rows: int = 1) -> list[dict[str, object]]:
    a = {"name": "a", "shape": [rows, 3], "datatype": "INT64", "parameters": {"binary_data_size": first}}
    b = {"name": "b", "shape": [rows, 2], "datatype": "FP32", "parameters": {"binary_data_size": second}}
    return [a, b]


def _large_cases() -> Iterator[Case]:
    """Yield those that move megabytes."""
    piece = b"100000\r\n" + bytes(1 << 20) + b"\r\n"
    count = 1_000_000
    million = _sized(24 * count, 8 * count, count)
    zeros = gzip.compress(bytes(32 << 20), 9) * 10
    yield Case("BI-050", "a million chunks", send(chunked(b"1\r\na\r\n" * 1_000_000, b"0\r\n\r\n")), ((413,),))
    yield Case("BI-051", "20 MB header", send(head("X: " + "a" * (20 << 20))), ((431,),))
    yield Case("BI-052", "body too large, chunked", send(chunked(piece * 65, b"0\r\n\r\n")), ((413,),))
    yield Case(
        "BI-052",
        "as large as allowed and no image",
        send(picture(bytes(BODY_BYTES)), timeout_s=20),
        ((400, 415),),
    )
    yield Case("BI-054", "50 MB of [", send(v2("pair", b"[" * (50 << 20))), ((400, 413),))
    yield Case("BI-054", "16 MB of [", send(v2("pair", b"[" * (16 << 20))), ((400, 413),))
    yield Case(
        "BI-054",
        "16 MB of [1,",
        send(v2("pair", b'{"inputs":[' + b"[1]," * (4 << 20) + b"1]}")),
        ((400, 413),),
    )
    yield Case(
        "BI-059",
        "BYTES: 16 MB text",
        send(cities(struct.pack("<I", 16 << 20) + b"a" * (16 << 20))),
        ((200, 400),),
    )
    yield Case(
        "BI-060",
        "header length wrong, 2,000 times",
        repeated(binary("pair", _sized(24, 8), bytes(32), 10**6), 2000),
        REFUSED,
        within_s=20,
    )
    yield Case("BI-063", "a million rows", send(binary("pair", million, bytes(32 * count))), ((400, 413),))
    yield Case("BI-063", "a million texts", send(cities(b"\0\0\0\0" * count, count)), ((400, 413),))
    yield Case(
        "BI-053",
        "gzip of 320 MB of zeros",
        send(post("/predict/digits", zeros, "Content-Encoding: gzip")),
        ((400, 413, 415),),
    )
    bomb = png(20_000, 20_000, bytes(2501 * 20_000))
    yield Case("BI-071", "PNG of 20,000 x 20,000, all there", send(picture(bomb)), ((400, 413, 415),))


CASES: tuple[Case, ...] = (*_http_cases(), *_v2_cases(), *_media_cases())


@dataclass(slots=True)
class Outcome:
    """What one case did; ``wrong`` says what it may not have done."""

    statuses: list[int]
    seconds: float
    grown_mb: float
    wrong: list[str] = field(default_factory=list)


class Attack:
    """Plays cases against a server and looks at it after each one."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self._sentinel, _ = binary_request("digits", 1)
        self._answer = ask(rig.address, self._sentinel)
        assert self._answer[0] == 200, self._answer
        for name, body in {"pair": v2("pair", pair()), "texts": cities(b"\1\0\0\0a")}.items():
            assert ask(rig.address, body)[0] == 200, name
        self._base_mb = {pid: rig.rss_mb(pid) for pid in rig.tree.pids}

    def play(self, case: Case) -> Outcome:
        """Play one case."""
        pids = self._rig.tree.pids
        for pid in pids:
            Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak counts from here
        began = time.monotonic()
        assert callable(case.data)
        answers = case.data(self._rig.address)
        found = Outcome([status for status, _ in answers], time.monotonic() - began, 0.0)
        late = min(found.seconds, 9.9)
        if len(answers) != len(case.due) or any(
            status not in due for status, due in zip(found.statuses, case.due, strict=False)
        ):
            found.wrong.append(f"answered {found.statuses} {answers[0][1][:100]!r}, due {case.due}")
        if late > case.within_s:
            found.wrong.append(f"took {late:.1f} s")
        for status, body in answers:
            if status >= 400 and not body.startswith(b'{"error":"'):
                found.wrong.append(f"{status} has no error text: {body[:80]!r}")
            if secret := _SECRETS.search(body):
                found.wrong.append(f"tells {secret[0]!r}: {body[:200]!r}")
            if case.body and status == 200 and not re.search(case.body, body, re.S):
                found.wrong.append(f"body {body[:200]!r}")
        self._look(found, pids)
        if found.grown_mb > case.most_mb:
            found.wrong.append(f"took {found.grown_mb:.0f} MiB")
        return found

    def _look(self, found: Outcome, pids: list[int]) -> None:
        answer = ask(self._rig.address, self._sentinel)
        if answer != self._answer:
            found.wrong.append(f"the sentinel was answered {answer[0]} {answer[1][:80]!r}")
        if self._rig.process.poll() is not None:
            found.wrong.append("the server is dead")
        if set(pids) - set(self._rig.tree.pids):
            found.wrong.append("a worker died")
            self._base_mb |= {pid: self._rig.rss_mb(pid) for pid in self._rig.tree.pids if pid not in self._base_mb}
        for pid in self._rig.tree.pids:
            grown = peak_mb(pid) - self._base_mb.get(pid, 1e9)
            found.grown_mb = max(found.grown_mb, grown)


def peak_mb(pid: int) -> float:
    """Return the peak of a process's resident memory."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def home_of_models(home, scratch: Path) -> None:  # type: ignore[no-untyped-def]
    """Put the models into a home."""
    release(home, "digits", network(1))
    release(home, "greedy", greedy())
    release(home, "endless", endless())
    release_tensors(home, scratch)


def measure(quick: bool, figures: Figures) -> None:
    """Play them all."""
    with scratch_home() as (home, scratch):
        home_of_models(home, scratch)
        with Rig(home, *MODELS, log=scratch / "bad.log") as rig:
            until(lambda: rig.control("/readyz")[0] == 200)
            attack = Attack(rig)
            cases = CASES if quick else (*CASES, *_large_cases())
            worst_mb, wrong = 0.0, 0
            for case in cases:
                found = attack.play(case)
                worst_mb = max(worst_mb, found.grown_mb)
                wrong += bool(found.wrong)
                shown = f"{found.statuses} {found.seconds * 1000:.0f} ms {found.grown_mb:+.0f} MiB"
                if found.wrong:
                    figures.add(f"{case.ident} {case.name}", shown, "; ".join(found.wrong), met=False)
            figures.exactly(f"cases that went wrong, of {len(cases)}", wrong, 0)
            figures.at_most("largest peak of memory", worst_mb, 192, "MiB")
            traces = rig.log.read_text().count('"trace"')
            figures.exactly("traces in the log", traces, 0)
            if traces:
                Path("/tmp/lightship-bad-inputs.log").write_text(rig.log.read_text())


if __name__ == "__main__":
    run_script(measure, __doc__)
