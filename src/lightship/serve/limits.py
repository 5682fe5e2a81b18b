"""The bounds of the server: sizes, counts and clocks, each with its default.

Every number that comes from outside meets one of these. A limit is inclusive: a value equal to it is fine.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, fields

from lightship.errors import InvalidInput

__all__ = ["Clocks", "Limits", "limits_of", "size_of"]

_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Limits:
    """What one server takes in, at most.

    Attributes:
        head_bytes: request line and headers together, with their line ends.
        header_count: header fields of one request.
        target_bytes: the request target (path and query).
        body_bytes: a request body, counted after chunked coding is undone.
        bodies_bytes: bodies of all connections together, from their announcement to the answer.
        json_bytes: JSON of one request; the parser needs some 13 times as much memory. Binary tensors are not counted.
            An answer in JSON has at most a value for 16 of them.
        inflation: how many times its size a compressed body may grow, beyond the first MiB.
        answer_bytes: tensors of one answer; where the graph says their size, a request is refused before it runs.
        answers_bytes: answers that a model puts together from several batches; and again answers that clients have not
            taken. For one more of these the client that takes least is cut off; if all take theirs, it becomes a 503.
        chunks: chunks of one chunked body.
        connections: open connections, those in a TLS handshake among them. One more takes the place of the one that
            has been slowest to say what it wants, if that has had its chance; else it is answered 503 and closed. gRPC
            has as many of its own, and closes one more.
        connections_per_peer: open connections of one address, over HTTP; of IPv6 the first 64 bits count. More than any
            address has by default, for behind a load balancer all are one.
        calls: gRPC calls under way, streams included; each has a thread.
        ahead_bytes: bytes of later, pipelined requests that are held while one is being answered.
        queue_requests: requests that wait for one model.
        queue_bytes: bytes of input that wait for one model.
        rows_per_request: rows of one request; a server splits them into batches of the proven size.
    """

    head_bytes: int = 32 * 1024
    header_count: int = 100
    target_bytes: int = 8 * 1024
    body_bytes: int = 64 * _MIB
    json_bytes: int = 16 * _MIB
    bodies_bytes: int = 512 * _MIB
    answer_bytes: int = 64 * _MIB
    answers_bytes: int = 192 * _MIB
    inflation: int = 100
    chunks: int = 65_536
    connections: int = 2_048
    connections_per_peer: int = 65_536
    calls: int = 256
    ahead_bytes: int = 64 * 1024
    queue_requests: int = 256
    queue_bytes: int = 256 * _MIB
    rows_per_request: int = 16_384


@dataclass(frozen=True, slots=True)
class Clocks:
    """How long the server waits for what.

    Attributes:
        head_s: from the first byte of a request, or from the connection if it is the first, to the end of its headers.
        chance_s: for a new connection to say what it wants, before another may take its place.
        body_s: between two pieces of a body.
        slow_body_s: for a body besides the time that it takes at 1 KiB a second.
        idle_s: between two requests on one connection.
        write_s: between two pieces of an answer that the peer takes.
        request_s: deadline of a request that names none.
        longest_request_s: the longest deadline that a request may name.
        lame_s: after the server was told to stop, how long it still takes connections: readiness is off already, and
            whoever asks is answered with ``Connection: close``.
        drain_s: for the requests that were accepted before the server was told to stop.
        hang_s: for one batch in a worker, before the worker counts as hung and is replaced.
        overdue_s: for a batch whose requests are all too late and that was told to stop, before the same.
        stopped_s: for a worker whose process stands still (SIGSTOP).
        silent_s: for a worker that computes but gives no sign of life; one that does nothing gets a fifth of it.
        load_s: for a worker to load its graph and to pass its self-test.
    """

    head_s: float = 10.0
    chance_s: float = 0.25
    body_s: float = 30.0
    slow_body_s: float = 10.0
    idle_s: float = 30.0
    write_s: float = 30.0
    request_s: float = 30.0
    longest_request_s: float = 600.0
    lame_s: float = 0.3
    drain_s: float = 30.0
    hang_s: float = 60.0
    overdue_s: float = 1.0
    stopped_s: float = 0.5
    silent_s: float = 5.0
    load_s: float = 120.0


_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_SIZE = re.compile(r"([0-9]{1,15})([kmg]?)(i?b)?", re.IGNORECASE)


def size_of(text: str) -> int:
    """Return a number of bytes (or of things) that a person wrote: ``1048576``, ``512MiB``, ``2g``.

    Raises:
        InvalidInput: it is none.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise InvalidInput(f"A size is a whole number with k, m or g, such as 512m or 2GiB. Got {text!r}.")
    return int(found[1]) * _UNITS[found[2].lower()]


def limits_of(texts: Iterable[str]) -> tuple[Limits, Clocks]:
    """Return the limits and clocks with what a person wants to be different: ``queue_requests=512``, ``drain_s=10``.

    Raises:
        InvalidInput: no such name, or not a number that it can have.
    """
    limits = {one.name for one in fields(Limits)}
    clocks = {one.name for one in fields(Clocks)}
    sizes: dict[str, int] = {}
    seconds: dict[str, float] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise InvalidInput(f"A limit is NAME=VALUE, such as queue_requests=512. Got {text!r}.")
        if name in limits:
            sizes[name] = _at_least_one(name, value)
        elif name in clocks:
            seconds[name] = _seconds(name, value)
        else:
            near = difflib.get_close_matches(name, sorted(limits | clocks), n=3) or sorted(limits | clocks)
            raise InvalidInput(f"There is no limit {name!r}. Did you mean {', '.join(near)}?")
    return Limits(**sizes), Clocks(**seconds)


def _at_least_one(name: str, value: str) -> int:
    size = size_of(value)
    if size < 1:
        raise InvalidInput(f"The limit {name} must be at least 1. Got {value!r}.")
    return size


def _seconds(name: str, value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= 86_400:
        raise InvalidInput(f"The clock {name} must be above 0 and at most 86400 seconds. Got {value!r}.")
    return seconds
