"""The body of a request while it comes in, and what is undone of it: chunked transfer coding, compression.

Framed by our own code, which makes its limits exact and leaves the bytes of the next pipelined request untouched.
"""

from __future__ import annotations

import re
import zlib

from lightship.errors import TooLarge
from lightship.serve.http import HttpRefused, too_large
from lightship.serve.limits import Limits

__all__ = ["Chunked", "Counted", "decoded"]

_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})(?:;[\t\x20-\x7e\x80-\xff]*)?\r\n")
_WINDOW_BITS = {"gzip": 31, "deflate": 15}  # as zlib wants to be told the format; deflate is zlib's (RFC 9110 §8.4.1.2)
_FREE_BYTES = 1 << 20  # may come out of however few
_LONGEST_CHUNK_LINE = 256  # size and extensions; extensions are read over, nobody uses them


class Counted:
    """A body whose length was announced."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.taken = 0  # bytes of it that are there
        self._pieces: list[bytes] = []

    def feed(self, buffer: bytearray) -> bytes | None:
        """Take what can be taken from the front of ``buffer``; return the whole body once it is there."""
        piece = bytes(memoryview(buffer)[: self.size - self.taken])
        del buffer[: len(piece)]
        self.taken += len(piece)
        self._pieces.append(piece)
        return b"".join(self._pieces) if self.taken == self.size else None


class Chunked:
    """Undoes chunked transfer coding (RFC 9112 §7.1), strictly: no trailers, no bare LF, bounded lines and counts."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._pieces: list[bytes] = []
        self.size = 0  # of the body so far, with what the current chunk announces
        self.taken = 0  # bytes of it that are there
        self._chunks = 0
        self._left = -1  # bytes of the current chunk still to come; -1: its size line comes next
        self._last = False

    def feed(self, buffer: bytearray) -> bytes | None:
        """Take what can be taken from the front of ``buffer``; return the whole body once it is there.

        Raises:
            HttpRefused: the coding is wrong.
            TooLarge: the body or the number of chunks is over its limit.
        """
        while True:
            if self._left < 0:
                if not self._take_size_line(buffer):
                    return None
            elif self._last:
                if len(buffer) < 2:
                    return None
                if buffer[:2] != b"\r\n":
                    raise HttpRefused(400, "A chunked body must end with an empty line; trailers are not taken here.")
                del buffer[:2]
                return b"".join(self._pieces)
            elif not self._take_data(buffer):
                return None

    def _take_size_line(self, buffer: bytearray) -> bool:
        end = buffer.find(b"\n", 0, _LONGEST_CHUNK_LINE)
        if end < 0:
            if len(buffer) >= _LONGEST_CHUNK_LINE:
                raise HttpRefused(400, f"The line before a chunk has at most {_LONGEST_CHUNK_LINE} bytes.")
            return False
        line = _CHUNK_LINE.fullmatch(bytes(buffer[: end + 1]))
        if line is None:
            raise HttpRefused(400, "A chunk must start with its size in hexadecimal digits, then CR LF.")
        self._left = int(line[1], 16)
        del buffer[: end + 1]
        self._last = self._left == 0
        self._chunks += 1
        self.size += self._left
        if self.size > self._limits.body_bytes:
            raise too_large(self.size, self._limits)
        if self._chunks > self._limits.chunks + 1:  # the last, empty one is no chunk of data
            raise TooLarge(f"A body has at most {self._limits.chunks} chunks (limit `chunks`).")
        return True

    def _take_data(self, buffer: bytearray) -> bool:
        if self._left:
            piece = bytes(buffer[: self._left])
            del buffer[: len(piece)]
            self._left -= len(piece)
            self.taken += len(piece)
            self._pieces.append(piece)
            if self._left:
                return False
        if len(buffer) < 2:
            return False
        if buffer[:2] != b"\r\n":
            raise HttpRefused(400, "The data of a chunk must be followed by CR LF.")
        del buffer[:2]
        self._left = -1
        return True


def decoded(body: bytes, coding: str, limits: Limits) -> bytes:
    """Undo the content coding of a body (RFC 9110 §8.4.1). What comes out is counted while it comes out.

    Raises:
        HttpRefused: it is not of that coding, or not whole.
        TooLarge: what comes out is over ``body_bytes``, or too many times what went in.
    """
    decoder = zlib.decompressobj(wbits=_WINDOW_BITS[coding])
    most = min(limits.body_bytes, max(_FREE_BYTES, len(body) * limits.inflation))
    try:
        data = decoder.decompress(body, most + 1)
    except zlib.error as exc:
        raise HttpRefused(400, f"The body is not of the content coding {coding}.") from exc
    if len(data) > limits.body_bytes:
        raise too_large(len(data), limits)
    if len(data) > most:
        raise TooLarge(f"A body may grow {limits.inflation} times when it is decompressed (limit `inflation`).")
    if not decoder.eof or decoder.unused_data:
        raise HttpRefused(400, f"The body must be one whole stream of the content coding {coding}.")
    return data
