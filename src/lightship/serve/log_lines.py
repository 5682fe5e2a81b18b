"""Log lines as JSON on stderr, for the server and its workers, by a thread of their own.

Who reads stderr may stop reading: then a pipe is full, and a write waits for as long as that lasts. So nobody but the
thread writes. Lines that find no room wait, up to a bound; what is beyond it is dropped and counted, and the count is a
line too. The thread writes to the descriptor itself: a buffer of Python's would be flushed at exit, and wait there.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence

import msgspec

__all__ = ["LineWriter", "log_to_stderr", "stderr_lines"]

_STDERR = 2
_MOST_WAITING = 10_000
_AT_ONCE_BYTES = 4_096  # what a pipe takes whole: the server and its workers share one (PIPE_BUF)
_END_S = 0.5


def log_to_stderr() -> None:
    """Write records to stderr: the package's from INFO on, warnings of libraries. For the edge of a process.

    Those of libraries too, for without a handler Python writes them itself, on the thread that warns.
    """
    logging.getLogger().addHandler(_LineHandler(stderr_lines()))
    logging.getLogger("lightship").setLevel(logging.INFO)


@functools.cache
def stderr_lines() -> LineWriter:
    """Return the process's one writer of lines."""
    return LineWriter(_STDERR)


class LineWriter:
    """Writes lines to a descriptor, in a daemon thread. ``put`` and ``close`` can be called from any thread."""

    def __init__(self, fd: int, *, most_waiting: int = _MOST_WAITING) -> None:
        self._fd = fd
        self._most_waiting = most_waiting
        self._changed = threading.Condition()  # on an RLock: a finalizer that logs may interrupt a `put`
        self._waiting: list[object] = []
        self._dropped = 0
        self._closed = False
        self._encode = msgspec.json.Encoder().encode
        self._thread = threading.Thread(target=self._run, name="log-lines", daemon=True)
        self._thread.start()

    def put(self, lines: Sequence[object]) -> None:
        """Hand over lines, as what JSON can be made of; never waits."""
        with self._changed:
            room = self._most_waiting - len(self._waiting)
            self._waiting.extend(lines[:room])
            self._dropped += max(0, len(lines) - room)
            self._changed.notify()

    def close(self, *, timeout_s: float = _END_S) -> None:
        """Let the thread write what waits and end; wait for it so long at most."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                lines, self._waiting = self._waiting, []
                dropped, self._dropped = self._dropped, 0
            if not lines:
                return
            lost = self._write(lines)
            # Told here, where all that came before has found room.
            lost += dropped if dropped and self._write([_note(dropped)]) else 0
            with self._changed:
                self._dropped += lost

    def _write(self, lines: list[object]) -> int:
        """Write lines; return how many could not be written."""
        written = 0
        for count, piece in self._pieces(lines):
            try:
                while piece:
                    piece = piece[os.write(self._fd, piece) :]  # noqa: PLW2901 - what is left of it
            except OSError:  # nobody can read it any more, or the disk is full
                return len(lines) - written
            written += count
        return 0

    def _pieces(self, lines: list[object]) -> Iterator[tuple[int, bytes]]:
        count, piece = 0, b""
        for line in lines:
            text = self._text(line) + b"\n"
            if piece and len(piece) + len(text) > _AT_ONCE_BYTES:
                yield count, piece
                count, piece = 0, b""
            count, piece = count + 1, piece + text
        yield count, piece

    def _text(self, line: object) -> bytes:
        try:
            return self._encode(line)
        except UnicodeEncodeError:  # half a surrogate pair, such as in the name of a file that is not UTF-8
            return json.dumps(msgspec.to_builtins(line)).encode()


def _note(dropped: int) -> dict[str, object]:
    return {"time": round(time.time(), 3), "event": "dropped lines", "level": "warning", "count": dropped}


class _LineHandler(logging.Handler):
    """Makes lines of log records. ``logging.shutdown``, which Python calls at exit, ends the writer with it."""

    def __init__(self, writer: LineWriter) -> None:
        super().__init__()
        self._writer = writer
        self._traces = logging.Formatter()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line: dict[str, object] = {
                "time": round(record.created, 3),
                "event": record.getMessage(),
                "level": record.levelname.lower(),
                "logger": record.name,
            }
            if record.exc_info:
                line["trace"] = self._traces.formatException(record.exc_info)
            self._writer.put((line,))
        except Exception:  # noqa: BLE001 - what logging does with arguments that do not fit
            self.handleError(record)

    def close(self) -> None:
        self._writer.close()
        super().close()
