"""What a search has made and measured so far, on the disk: a search that was stopped goes on where it was.

Graphs are files, figures are lines of JSON, each with the time that it took. A line that was cut off by a crash is as
if it had not been written.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightship.data.files import write_atomic
from lightship.errors import LightshipError
from lightship.types import Json

__all__ = ["Interrupted", "Ledger"]


class Interrupted(LightshipError):
    """A piece of work was ended from outside: killed, or too slow just now. It may succeed another time."""


class Ledger:
    """One folder; what is in it belongs to one search with the same inputs on the same machine."""

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder, self._clock = folder, clock
        self._lines: dict[str, dict[str, Json]] = {}
        self.spent_s = 0.0
        """How long everything took that stands here, by this run and those before it."""
        for line in self._read():
            self._lines[line["key"]] = line["value"]
            self.spent_s += line["seconds"]

    @property
    def folder(self) -> Path:
        """Where files may be kept beside it."""
        return self._folder

    def graph(self, name: str) -> Path:
        """Return where the graph of that name stands, or will."""
        return self._folder / f"{name}.onnx"

    def keep_graph(self, name: str, graph: bytes) -> Path:
        """Write a graph; return its file."""
        write_atomic(path := self.graph(name), graph)
        return path

    def knows(self, key: str) -> bool:
        """Return whether something stands under ``key``, a failure too: then to recall it takes no time."""
        return key in self._lines

    def failed(self, key: str) -> bool:
        """Return whether a failure stands under ``key``."""
        return "error" in self._lines.get(key, {})

    def forget(self, key: str) -> None:
        """Let what stands under ``key`` be done again."""
        self._lines.pop(key, None)

    def recall(self, key: str, work: Callable[[], Json]) -> Json:
        """Return what stands under ``key``, else what ``work`` gives, and keep it.

        Raises:
            LightshipError: ``work`` failed, now or when it was done before. What only this moment made fail
                (``Interrupted``) is not kept.
        """
        if key not in self._lines:
            started = self._clock()
            try:
                self._write(key, {"value": work()}, started)
            except Interrupted:
                self.spent_s += self._clock() - started
                raise
            except LightshipError as exc:
                self._write(key, {"error": str(exc)}, started)
                raise
        found = self._lines[key]
        if "error" in found:
            raise LightshipError(str(found["error"]))
        return found["value"]

    def _write(self, key: str, value: dict[str, Json], started: float) -> None:
        seconds = self._clock() - started
        self.spent_s += seconds
        self._lines[key] = value
        with (self._folder / "ledger.jsonl").open("a") as file:
            file.write(json.dumps({"key": key, "value": value, "seconds": seconds}) + "\n")

    def _read(self) -> list[dict[str, Any]]:
        path = self._folder / "ledger.jsonl"
        try:
            written = path.read_bytes()
        except OSError:
            return []
        whole, mark, cut = written.rpartition(b"\n")
        if cut:
            write_atomic(path, whole + mark)
        return [found for line in whole.splitlines() if (found := _entry(line))]


def _entry(line: bytes) -> dict[str, Any] | None:
    """Return what a line says; None if it is not one of ours, as after a power cut: then it is done again."""
    try:
        found = json.loads(line)
        good = isinstance(found["key"], str) and isinstance(found["value"], dict) and found["seconds"] >= 0
    except (ValueError, KeyError, TypeError):
        return None
    return found if good else None
