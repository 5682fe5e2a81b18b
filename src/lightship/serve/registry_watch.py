"""Tells a running server when an alias has moved. A thread that reads the registry; standard library only.

SQLite counts the commits of a file in its header, so a look costs one short read, and the registry is asked only when
the count has changed. A registry that is gone, locked or damaged is a message, not an end: the server goes on, and the
thread looks again.
Source: https://www.sqlite.org/fileformat2.html#file_change_counter
"""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lightship.data.home import Home
from lightship.errors import LightshipError
from lightship.registry.resolve import Resolved, resolve

__all__ = ["RegistryWatch", "Seen"]

log = logging.getLogger(__name__)

_EVERY_S = 0.25
_ANYWAY_S = 5.0  # also without a sign of a change, so that a registry that cannot be read any more is noticed
_COUNTER = slice(24, 28)
_NO_FILES = (b"",)  # this process can open none now, which says nothing of the registry


@dataclass(frozen=True, slots=True)
class Seen:
    """One look at the registry.

    Attributes:
        versions: what each reference names now; one that could not be resolved is missing.
        trouble: why it could not be read, as one line; empty if it could.
    """

    versions: Mapping[str, Resolved]
    trouble: str = ""


class RegistryWatch:
    """Looks at the registry from a thread of its own and tells what it saw when that is news.

    Args:
        references: what to resolve, such as ``digits`` or ``digits@staging``.
        tell: called in the thread.
    """

    def __init__(
        self, home: Home, references: Sequence[str], *, tell: Callable[[Seen], None], every_s: float = _EVERY_S
    ) -> None:
        self._home = home
        self._references = tuple(references)
        self._tell = tell
        self._every_s = every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="registry-watch", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Tell the thread to end. It may be waiting for a lock, so nobody waits for it."""
        self._stop.set()

    def _run(self) -> None:
        last: tuple[bytes, ...] | None = None
        looked_s = 0.0
        while not self._stop.wait(self._every_s if looked_s else 0.0):
            mark, now_s = _mark(self._home.registry), time.monotonic()
            if mark == _NO_FILES or (mark == last and now_s - looked_s < _ANYWAY_S):
                continue
            looked_s = now_s
            seen = self._look()
            last = None if seen.trouble else mark  # while it cannot be read, each look is a try
            if self._stop.is_set():
                return
            self._tell(seen)

    def _look(self) -> Seen:
        found, trouble = {}, ""
        for reference in self._references:
            try:
                found[reference] = resolve(self._home, reference)
            except (LightshipError, OSError) as exc:
                trouble = " ".join(str(exc).split())
            except Exception as exc:
                log.exception("the registry cannot be read")
                trouble = f"the registry cannot be read ({type(exc).__name__})"
        return Seen(found, trouble)


def _mark(path: Path) -> tuple[bytes, ...]:
    """Return what changes with each commit: the file itself and its change counter."""
    try:
        with path.open("rb") as file:
            header = file.read(_COUNTER.stop)
            stat = path.stat()
    except OSError as exc:
        return _NO_FILES if exc.errno in (errno.EMFILE, errno.ENFILE) else (str(exc.errno).encode(),)
    return (f"{stat.st_dev}:{stat.st_ino}:{stat.st_size}".encode(), header[_COUNTER])
