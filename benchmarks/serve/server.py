"""A Lightship server as a user starts it: a home with the model released, then ``lightship serve``."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from graphs import Subject

from lightship.data.home import Home

__all__ = ["ProcessTree", "Server", "release"]

BATCH = 64  # as far as the floor goes
_TICKS = os.sysconf("SC_CLK_TCK")


def release(home: Home, subject: Subject) -> None:
    """Import the network into ``home`` as its production version, as a user would."""
    with tempfile.TemporaryDirectory(prefix="lightship-bench-") as scratch:
        file, rows = Path(scratch) / f"{subject.name}.onnx", Path(scratch) / "rows.npz"
        file.write_bytes(subject.graph)
        golden = [subject.row(seed) for seed in range(4)]
        np.savez(rows, **{name: np.concatenate([row[name] for row in golden]) for name in golden[0]})
        command = (sys.executable, "-m", "lightship.cli.main", "import", str(file), "--name", subject.name)
        bounds = (f"--upto={dim}={size}" for dim, size in {"batch": BATCH, **subject.upto}.items())
        options = ("--golden", str(rows), *bounds, "--accept-unproven", "--quiet", "--json")
        done = subprocess.run(
            command + options,
            env={**os.environ, "LIGHTSHIP_HOME": str(home.root)},
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(f"The network could not be imported: {done.stderr}")


class ProcessTree:
    """A process and all of its children: what they cost together."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    @property
    def pids(self) -> list[int]:
        """Every process that is alive in it."""
        return [self.pid, *_children(self.pid)]

    def cpu_s(self) -> float:
        """User and system time so far, of all of them. A process that ended counts through its parent."""
        total = 0
        for pid in self.pids:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
        return total / _TICKS

    def memory_mb(self) -> float:
        """Proportional set size: pages that several share are counted once."""
        return sum(_kilobytes(f"/proc/{pid}/smaps_rollup", "Pss:") for pid in self.pids) / 1024


def _children(pid: int) -> Iterator[int]:
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            yield int(child)
            yield from _children(int(child))


def _kilobytes(path: str, key: str) -> int:
    return next(int(line.split()[1]) for line in Path(path).read_text().splitlines() if line.startswith(key))


class Server:
    """``lightship serve NAME``, pinned on ``core`` with all of its processes; each may open ``files`` files."""

    def __init__(self, home: Home, name: str, *arguments: str, core: int | None, log: Path, files: int = 0) -> None:
        pin = () if core is None else ("taskset", "-c", str(core))
        if files:
            pin = ("prlimit", f"--nofile={files}:{files}", *pin)
        serve = (sys.executable, "-m", "lightship.cli.main", "serve", name, "--port", "0", "--auth", "none", "--json")
        with log.open("w") as stderr:
            self._process = subprocess.Popen(
                (*pin, *serve, *arguments),
                env={**os.environ, "LIGHTSHIP_HOME": str(home.root)},
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"The server did not start: {log.read_text()}")
        self.said = said = json.loads(line)
        self.address = _address(said["url"])
        self.control_address = _address(said["control_url"])
        self.tree = ProcessTree(self._process.pid)
        self._log = log

    def complaints(self) -> list[str]:
        """Return what the server logged as a warning or worse: a worker that died explains a strange figure."""
        lines = [json.loads(line) for line in self._log.read_text().splitlines() if line.startswith("{")]
        return [f"{line['level']}: {line['event']}" for line in lines if line["level"] not in ("debug", "info")]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, at: TracebackType | None) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(40)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)


def _address(url: str) -> tuple[str, int]:
    host, _, port = url.removeprefix("http://").partition(":")
    return host, int(port)
