"""Log records as JSON lines on stderr, for the server and its workers."""

from __future__ import annotations

import logging
import sys

import msgspec

__all__ = ["JsonLines", "log_to_stderr"]


def log_to_stderr() -> None:
    """Write the package's records, from INFO on, to stderr. For the edge of a process; a library sets up no logging."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    package = logging.getLogger("lightship")
    package.addHandler(handler)
    package.setLevel(logging.INFO)
    package.propagate = False


class JsonLines(logging.Formatter):
    """Formats the package's own log records as JSON lines."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line."""
        line = {
            "time": round(record.created, 3),
            "event": record.getMessage(),
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line).decode()
