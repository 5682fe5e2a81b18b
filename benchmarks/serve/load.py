"""The load generator from Python: compile ``load.c`` once, run it on its own core, read its figures."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Generator", "Load", "Times", "finished"]

SOURCE = Path(__file__).with_name("load.c")


@dataclass(frozen=True, slots=True)
class Times:
    """Milliseconds of all answers of one kind."""

    count: int
    p50: float
    p90: float
    p99: float
    p999: float
    mean: float
    worst: float


@dataclass(frozen=True, slots=True)
class Load:
    """What came back in one window. ``server_cpu_s`` is what ``Generator.run`` was told to measure."""

    ok_per_s: float
    statuses: dict[str, int]
    with_retry_after: int
    due: int
    accepted: Times | None
    refused: Times | None
    late: Times | None
    body_bytes: tuple[int, int]
    generator_cpu: float
    interval_s: float
    intervals: list[list[float]]
    server_cpu_s: float = 0.0

    @property
    def all_ok(self) -> bool:
        """Whether every request of the window was answered 200."""
        return self.statuses["ok"] > 0 and not any(count for name, count in self.statuses.items() if name != "ok")


class Generator:
    """Runs the compiled program on ``core``."""

    def __init__(self, cache: Path, *, core: int | None) -> None:
        source = SOURCE.read_bytes()
        self._program = cache / f"load-{hashlib.sha256(source).hexdigest()[:12]}"
        self._pin = () if core is None else ("taskset", "-c", str(core))
        if not self._program.exists():
            cache.mkdir(parents=True, exist_ok=True)
            subprocess.run(("cc", "-O2", "-Wall", "-Wextra", "-o", str(self._program), str(SOURCE)), check=True)

    def start(self, address: tuple[str, int], request: Path, **options: float) -> subprocess.Popen[str]:
        """Start it; the options are those of ``load.c`` with underscores."""
        flags = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", f"{value:g}")]
        command = (*self._pin, str(self._program), address[0], str(address[1]), str(request), *flags)
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def run(
        self,
        address: tuple[str, int],
        request: Path,
        *,
        cpu_s: Callable[[], float] = lambda: 0.0,
        **options: float,
    ) -> Load:
        """Run it to the end; ``cpu_s`` is read when the window begins and when it is over."""
        process = self.start(address, request, **options)
        assert process.stdout is not None
        process.stdout.readline()
        before = cpu_s()
        process.stdout.readline()
        return finished(process, server_cpu_s=cpu_s() - before)


def finished(process: subprocess.Popen[str], *, server_cpu_s: float = 0.0) -> Load:
    """Return the figures of a generator that was started; wait for its end."""
    assert process.stdout is not None
    said = process.stdout.read()  # it bounds its own time
    process.stdout.close()
    if process.wait():
        raise RuntimeError(f"The load generator ended with code {process.returncode}.")
    return _read(json.loads(said.splitlines()[-1]), server_cpu_s)


def _read(figures: dict[str, Any], server_cpu_s: float) -> Load:
    def times(name: str) -> Times | None:
        return Times(**figures[name]) if figures[name] else None

    names = ("ok", "429", "503", "other", "broken", "never_sent", "unanswered")
    return Load(
        ok_per_s=figures["ok_per_s"],
        statuses={name: figures[name] for name in names},
        with_retry_after=figures["with_retry_after"],
        due=figures["due"],
        accepted=times("accepted_ms"),
        refused=times("refused_ms"),
        late=times("late_ms"),
        body_bytes=tuple(figures["body_bytes"]),
        generator_cpu=figures["cpu_share"],
        interval_s=figures["interval_s"],
        intervals=figures["intervals"],
        server_cpu_s=server_cpu_s,
    )
