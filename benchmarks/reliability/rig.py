"""What the reliability scripts share: a server as a user starts it, questions with known answers, a table."""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import Popen
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).resolve().parent.parent / "serve"))

from load import Generator, Load, finished
from releases import TASK, image
from server import Server
from traffic import Question

from lightship.data.home import Home
from lightship.engine.runner import load_runner
from lightship.tasks.image_pixels import png_bytes

__all__ = [
    "CACHE",
    "Figures",
    "Generator",
    "Rig",
    "ask",
    "binary_request",
    "finished",
    "peak_per_s",
    "post",
    "run_script",
    "scratch_home",
    "tensor_question",
    "until",
]

CACHE = Path.home() / ".cache" / "lightship-benchmarks"


class Rig(Server):
    """A server and what its operator sees of it."""

    def __init__(self, home: Home, *arguments: str, log: Path, core: int | None = None, files: int = 0) -> None:
        super().__init__(home, arguments[0], *arguments[1:], core=core, log=log, files=files)
        assert self._process.stdout is not None
        self._process.stdout.close()  # it has said all it says there
        self.home, self.log = home, log
        self.grpc_address = str(self.said.get("grpc_url", ""))

    @property
    def process(self) -> Popen[str]:
        """The server's process."""
        return self._process

    def control(self, path: str, timeout_s: float = 5.0) -> tuple[int, bytes]:
        """Ask the control port."""
        return ask(
            self.control_address, b"GET %b HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" % path.encode(), timeout_s
        )

    def state(self) -> dict[str, Any]:
        """Return what ``/models`` says. The control plane comes a moment after the models at a start."""
        return dict(json.loads(self.control("/models")[1]))

    def model(self, name: str) -> dict[str, Any]:
        """Return the state of a served model."""
        return next(one for one in self.state()["models"] if one["name"] == name and one["state"] != "parked")

    def rss_mb(self, pid: int | None = None) -> float:
        """Return the resident memory of one process; by default of the server's own, which holds no model."""
        fields = Path(f"/proc/{pid or self.tree.pid}/statm").read_text().split()
        return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)

    def fds(self) -> int:
        """Return its open files."""
        return len(list(Path(f"/proc/{self.tree.pid}/fd").iterdir()))

    def threads(self) -> int:
        """Return its threads."""
        return len(list(Path(f"/proc/{self.tree.pid}/task").iterdir()))

    def workers(self) -> list[int]:
        """Return its processes."""
        return self.tree.pids[1:]

    def cpu_s(self) -> float:
        """Return the processor time of the server's own process."""
        fields = Path(f"/proc/{self.tree.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def ask(address: tuple[str, int], request: bytes, timeout_s: float = 10.0) -> tuple[int, bytes]:
    """Send bytes on a new connection; return status and body of the answer, or 0 and what came if there is none."""
    got = b""
    with socket.create_connection(address, timeout=timeout_s) as sock:
        with contextlib.suppress(OSError):
            sock.sendall(request)
        while True:
            try:
                piece = sock.recv(65536)
            except (ConnectionError, TimeoutError):
                break
            got += piece
            head, end, body = got.partition(b"\r\n\r\n")
            if head.startswith(b"HTTP/1.1 100"):
                got = body
                continue
            if end:
                size = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0])
                if len(body) >= size:
                    return int(head[9:12]), body[:size]
            if not piece:
                break
    return 0, got


def post(path: str, body: bytes, *headers: str) -> bytes:
    """Return a POST as bytes."""
    lines = (f"POST {path} HTTP/1.1", "Host: a", *headers, f"Content-Length: {len(body)}", "", "")
    return "\r\n".join(lines).encode() + body


def binary_request(name: str, seed: int, *, rows: int = 1, headers: tuple[str, ...] = ()) -> tuple[bytes, np.ndarray]:
    """Return the request of a binary tensor, and the tensor; the answer comes as JSON, for people to read."""
    row = TASK.encode(png_bytes(image(seed)))["image"][None]
    tensor = np.repeat(row, rows, axis=0)
    entry = {
        "name": "image",
        "shape": list(tensor.shape),
        "datatype": "FP32",
        "parameters": {"binary_data_size": tensor.nbytes},
    }
    head = json.dumps({"inputs": [entry]}).encode()
    asked = post(
        f"/v2/models/{name}/infer", head + tensor.tobytes(), f"Inference-Header-Content-Length: {len(head)}", *headers
    )
    return asked, tensor


def tensor_question(name: str, seed: int, graphs: dict[int, bytes], *, rows: int = 1) -> Question:
    """Return a question with the engine's own answer of each version."""
    request, tensor = binary_request(name, seed, rows=rows)
    expected = {
        version: load_runner(graph).run({"image": tensor})["logits"].ravel().tolist()
        for version, graph in graphs.items()
    }
    return Question(request, expected)


def until(condition: Callable[[], object], deadline_s: float = 30.0, *, every_s: float = 0.01) -> float:
    """Wait until a condition of another process holds; return the seconds it took.

    Raises:
        TimeoutError: it did not in time.
    """
    started = time.monotonic()
    while True:
        try:
            if condition():
                return time.monotonic() - started
        except (OSError, http.client.HTTPException, json.JSONDecodeError):
            pass  # it is not there yet, or busy
        if time.monotonic() - started > deadline_s:
            raise TimeoutError(f"It did not come true in {deadline_s:g} s.")
        time.sleep(every_s)


@contextlib.contextmanager
def scratch_home() -> Iterator[tuple[Home, Path]]:
    """Return an empty home and a folder, both gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="lightship-reliability-") as scratch:
        yield Home(Path(scratch) / "home").ensure(), Path(scratch)


def peak_per_s(rig: Rig, question: Question, scratch: Path, *, seconds: float = 2.0) -> Load:
    """Return what the server answers at most, in a closed loop of 32 connections."""
    file = scratch / "peak.request"
    file.write_bytes(question.request)
    return Generator(CACHE, core=None).run(rig.address, file, connections=32, seconds=seconds, warm_up=0.5)


@dataclass(slots=True)
class Figures:
    """A table: what was measured, what it may be at most (or must be), and whether it is."""

    title: str
    rows: list[tuple[str, Any, str, bool | None]] = field(default_factory=list)

    def add(self, name: str, value: Any, goal: str = "", *, met: bool | None = None) -> None:
        """Add a row and print it. ``met``: None for a figure without a goal."""
        value = round(value, 3) if isinstance(value, float) else value
        self.rows.append((name, value, goal, met))
        mark = {True: "ok", False: "MISSED", None: ""}[met]
        print(f"{self.title:14} {name:52} {value!s:>22}  {goal:22} {mark}", flush=True)

    def at_most(self, name: str, value: float, most: float, unit: str = "") -> None:
        """Add a figure with an upper bound."""
        self.add(name, value, f"<= {most:g} {unit}".rstrip(), met=value <= most)

    def exactly(self, name: str, value: Any, due: Any) -> None:
        """Add a figure that must be this."""
        self.add(name, value, f"= {due}", met=value == due)

    @property
    def missed(self) -> list[str]:
        """The names of figures beyond their goal."""
        return [f"{name}: {value} ({goal})" for name, value, goal, met in self.rows if met is False]


def run_script(measure: Callable[[bool, Figures], None], doc: str | None) -> None:
    """Run a script: its table, as JSON too if wanted; exit code 1 if a goal was missed."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the short form, as in the tests")
    parser.add_argument("--json", type=Path, help="write the table to this file")
    arguments = parser.parse_args()
    figures = Figures(Path(sys.argv[0]).stem)
    started = time.monotonic()
    measure(arguments.quick, figures)
    figures.add("seconds", time.monotonic() - started)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures.rows, indent=1, default=str) + "\n")
    sys.exit(1 if figures.missed else 0)
