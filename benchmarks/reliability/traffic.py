"""Good traffic whose every answer is checked, in a process of its own.

    python traffic.py SPEC.json     # ends when its stdin ends; then prints one JSON object

Requests come by a schedule, whether or not earlier ones were answered; a time counts from when a request was due. The
compiled generator (``benchmarks/serve/load.c``) is for speed and counts statuses; this one is for truth: an answer is
good only if it is 200 and is what the version that it names answers to that question.
"""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

__all__ = ["Question", "Result", "Traffic"]

OK = "ok"
_LATE_S = 15.0  # how long answers are waited for at the end
_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Question:
    """A whole HTTP request, and the output that each version gives to it; no expectation: any 200 is good."""

    request: bytes
    expected: Mapping[int, Sequence[float]] = field(default_factory=dict)


@dataclass(slots=True)
class Result:
    """What came back. A record is (due, milliseconds, verdict, version)."""

    records: list[tuple[float, float, str, int]]

    @property
    def failed(self) -> list[tuple[float, float, str, int]]:
        """What was not answered as it had to be."""
        return [record for record in self.records if record[2] != OK]

    @property
    def why(self) -> dict[str, int]:
        """The failures, counted."""
        return dict(Counter(verdict for _, _, verdict, _ in self.failed).most_common(_SHOWN))

    @property
    def versions(self) -> dict[int, int]:
        """Good answers by version."""
        return dict(sorted(Counter(version for _, _, verdict, version in self.records if verdict == OK).items()))

    def between(self, start_s: float, end_s: float) -> Result:
        """Return what was due in that time (monotonic clock)."""
        return Result([record for record in self.records if start_s <= record[0] < end_s])

    def ms(self, part: float) -> float:
        """Return a quantile of the times of good answers."""
        times = sorted(took for _, took, verdict, _ in self.records if verdict == OK)
        return times[min(len(times) - 1, int(part * len(times)))] if times else float("nan")

    def first(self, version: int, after_s: float) -> float | None:
        """Return when the first answer of a version came, after a moment."""
        times = [due + took / 1000 for due, took, verdict, found in self.records if verdict == OK and found == version]
        return min((moment for moment in times if moment >= after_s), default=None)


class Traffic:
    """Runs the program as a context manager; ``result`` is there afterwards.

    Args:
        fresh: share of requests that use a connection of their own.
        connections: kept connections at most.
    """

    def __init__(
        self,
        address: tuple[str, int],
        questions: Sequence[Question],
        *,
        rate: float,
        connections: int = 32,
        fresh: float = 0.0,
    ) -> None:
        spec = {
            "address": address,
            "questions": [
                {
                    "request": base64.b64encode(one.request).decode(),
                    "expected": {str(k): list(v) for k, v in one.expected.items()},
                }
                for one in questions
            ],
            "rate": rate,
            "connections": connections,
            "fresh": fresh,
        }
        self._scratch = tempfile.TemporaryDirectory(prefix="lightship-traffic-")
        self._spec = Path(self._scratch.name) / "spec.json"
        self._spec.write_text(json.dumps(spec))
        self._out = Path(self._scratch.name) / "out.json"
        self.result = Result([])

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            (sys.executable, __file__, str(self._spec), str(self._out)), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._process.stdout is not None
        self._process.stdout.readline()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, at: TracebackType | None) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(_LATE_S + 15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
            raise
        finally:
            self._process.stdout.close()
        self.result = Result([tuple(record) for record in json.loads(self._out.read_text())])
        self._scratch.cleanup()


class _Connection(asyncio.Protocol):
    def __init__(self, client: _Client) -> None:
        self._client = client
        self._data = bytearray()
        self.busy: _Asked | None = None
        self.answers = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]

    def ask(self, asked: _Asked, request: bytes) -> None:
        self.busy = asked
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._data += data
        while (end := self._data.find(b"\r\n\r\n")) >= 0:
            head = bytes(self._data[:end]).lower()
            status = int(head[9:12])
            if status == 100:
                del self._data[: end + 4]
                continue
            size = int(head.partition(b"content-length: ")[2].partition(b"\r")[0])
            if len(self._data) < end + 4 + size:
                return
            body = bytes(self._data[end + 4 : end + 4 + size])
            del self._data[: end + 4 + size]
            asked, self.busy = self.busy, None
            self.answers += 1
            if asked is not None:
                self._client.answered(asked, status, body)
            if b"connection: close" in head:
                self.transport.close()
            else:
                self._client.free(self)
                return

    def connection_lost(self, exc: Exception | None) -> None:
        asked, self.busy = self.busy, None
        if asked is not None:
            what = "cut off" if self._data else f"broken on {'a kept' if self.answers else 'a new'} connection"
            self._client.note(asked, f"{what}: {type(exc).__name__}", 0)
        self._client.lost(self)


@dataclass(slots=True)
class _Asked:
    due_s: float
    question: int


class _Client:
    def __init__(self, spec: dict[str, Any]) -> None:
        self._address = tuple(spec["address"])
        self._requests = [base64.b64decode(one["request"]) for one in spec["questions"]]
        self._fresh_requests = [one.replace(b"\r\n", b"\r\nConnection: close\r\n", 1) for one in self._requests]
        self._expected = [{int(k): v for k, v in one["expected"].items()} for one in spec["questions"]]
        self._rate, self._most, self._fresh = spec["rate"], spec["connections"], spec["fresh"]
        self._idle: deque[_Connection] = deque()
        self._waiting: deque[_Asked] = deque()
        self._open = 0
        self._known: dict[tuple[int, bytes], tuple[str, int]] = {}
        self.records: list[tuple[float, float, str, int]] = []
        self.out = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, ended: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        start, number, debt = time.monotonic() + 0.05, 0, 0.0
        while not ended.is_set():
            due = start + number / self._rate
            pause = due - time.monotonic()
            if pause > 0.0005:
                await asyncio.sleep(pause)
            asked = _Asked(due, number % len(self._requests))
            number += 1
            self.out += 1
            debt += self._fresh
            if debt >= 1.0:
                debt -= 1.0
                self._keep(loop.create_task(self._ask_fresh(asked)))
            else:
                self._waiting.append(asked)
                self._send()
        until = time.monotonic() + _LATE_S
        while self.out and time.monotonic() < until:  # noqa: ASYNC110 - twice a test, at its end
            await asyncio.sleep(0.01)
        for _ in range(self.out):
            self.records.append((time.monotonic(), 0.0, "never answered", 0))

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _send(self) -> None:
        while self._waiting and self._idle:
            connection = self._idle.pop()
            if not connection.transport.is_closing():
                asked = self._waiting.popleft()
                connection.ask(asked, self._requests[asked.question])
        if self._waiting and self._open < self._most:
            self._open += 1
            self._keep(asyncio.get_running_loop().create_task(self._connect()))

    async def _connect(self) -> None:
        try:
            _, connection = await asyncio.get_running_loop().create_connection(
                lambda: _Connection(self), *self._address
            )
        except OSError as exc:
            self._open -= 1
            if self._waiting:
                self._not_sent(self._waiting.popleft(), exc)
                self._send()  # the next one has its own try
            return
        self.free(connection)

    async def _ask_fresh(self, asked: _Asked) -> None:
        self._open += 1
        try:
            _, connection = await asyncio.get_running_loop().create_connection(
                lambda: _Connection(self), *self._address
            )
        except OSError as exc:
            self._open -= 1
            self._not_sent(asked, exc)
            return
        connection.ask(asked, self._fresh_requests[asked.question])

    def _not_sent(self, asked: _Asked, why: OSError) -> None:
        asked.due_s = time.monotonic()  # it was never sent: what counts is when there was no server
        self.note(asked, f"no connection: {type(why).__name__}", 0)

    def free(self, connection: _Connection) -> None:
        self._idle.append(connection)
        self._send()

    def lost(self, connection: _Connection) -> None:
        self._open -= 1
        if connection in self._idle:
            self._idle.remove(connection)

    def answered(self, asked: _Asked, status: int, body: bytes) -> None:
        if status != 200:
            self.note(asked, f"{status} {body[:160].decode(errors='replace')}", 0)
            return
        key = (asked.question, body)
        if key not in self._known:
            if len(self._known) > 10_000:
                self._known.clear()
            self._known[key] = self._judge(asked.question, body)
        self.note(asked, *self._known[key])

    def _judge(self, question: int, body: bytes) -> tuple[str, int]:
        expected = self._expected[question]
        said = json.loads(body)
        version = int(said.get("model_version") or said.get("version") or 0)
        if not expected:
            return OK, version
        if version not in expected:
            return f"names version {version}", version
        (output,) = said["outputs"]
        pairs = zip(output["data"], expected[version], strict=True)
        far = max(abs(got - due) / (1 + abs(due)) for got, due in pairs)
        return (OK, version) if far < 1e-4 else (f"wrong for version {version} by {far:.2g}", version)

    def note(self, asked: _Asked, verdict: str, version: int) -> None:
        self.out -= 1
        self.records.append((asked.due_s, (time.monotonic() - asked.due_s) * 1000, verdict, version))


def main() -> None:
    import uvloop

    async def go() -> None:
        ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(sys.stdin.fileno(), ended.set)
        print("running", flush=True)
        await client.run(ended)

    client = _Client(json.loads(Path(sys.argv[1]).read_text()))
    uvloop.run(go())
    Path(sys.argv[2]).write_text(json.dumps(client.records))


if __name__ == "__main__":
    main()
