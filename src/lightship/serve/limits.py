"""The bounds of the server: sizes, counts and clocks, each with its default.

Every number that comes from outside meets one of these. A limit is inclusive: a value equal to it is fine.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Clocks", "Limits"]

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
        chunks: chunks of one chunked body.
        connections: open connections; one more is answered 503 and closed.
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
    chunks: int = 65_536
    connections: int = 2_048
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
        body_s: between two pieces of a body.
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
    body_s: float = 30.0
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
