"""SIGTERM under load: what was accepted is answered, then the process goes, with exit code 0.

    python benchmarks/reliability/stop.py --quick     # 15 s
    python benchmarks/reliability/stop.py             # 3 min

Each round a fresh server, with short requests on kept and on new connections, a queue of long ones (a batch of many
rows each), idle connections, a body half sent, and somebody who watches readiness. What counts as accepted is what
was sent before the signal.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from releases import network, promote, release
from rig import Figures, Rig, ask, binary_request, run_script, scratch_home, tensor_question, until
from traffic import Traffic

from lightship.data.home import Home

NAME = "digits"
DRAIN_S = 5.0
LONG_ROWS = 256


@dataclass
class Round:
    """What one stop did."""

    lost: list[str] = field(default_factory=list)
    late: dict[str, int] = field(default_factory=dict)
    unready_ms: float = float("nan")
    exit_s: float = float("nan")
    code: int | None = None
    long_ok: int = 0
    said_close: bool = False
    log: list[str] = field(default_factory=list)


def one_stop(home: Home, scratch: Path, graphs: dict[int, bytes], *, rate: float) -> Round:
    """Start, load, stop."""
    result = Round()
    questions = [tensor_question(NAME, seed, graphs) for seed in range(4)]
    long_request, _ = binary_request(NAME, 1, rows=LONG_ROWS, headers=("X-Request-Timeout-Ms: 20000",))
    rig = Rig(home, NAME, "--limit", f"drain_s={DRAIN_S:g}", log=scratch / "stop.log")
    until(lambda: rig.control("/readyz")[0] == 200)
    idle = [socket.create_connection(rig.address) for _ in range(20)]
    for sock in idle[:10]:  # half of them are not new
        sock.sendall(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")
        sock.recv(4096)
    half = socket.create_connection(rig.address, timeout=20)
    answers: list[tuple[int, bytes]] = []
    with Traffic(rig.address, questions, rate=rate, connections=16, fresh=0.2) as traffic:
        time.sleep(0.6)
        threads = [
            threading.Thread(target=lambda: answers.append(ask(rig.address, long_request, 20.0))) for _ in range(12)
        ]
        for thread in threads:
            thread.start()
        short = questions[0].request
        half.sendall(short[: len(short) // 2])
        time.sleep(0.15)
        watch = _Readiness(rig.control_address)
        watch.start()
        signaled = time.monotonic()
        rig.process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
        half.sendall(short[len(short) // 2 :])
        came = half.recv(65536)
        if not came.startswith(b"HTTP/1.1 200"):
            result.lost.append(f"half a body: {came[:60]!r}")
        result.said_close = b"connection: close" in came.lower()
        try:
            result.code = rig.process.wait(DRAIN_S + 5)
        except subprocess.TimeoutExpired:
            rig.process.kill()
        result.exit_s = time.monotonic() - signaled
        for thread in threads:
            thread.join()
    watch.stop()
    result.unready_ms = (watch.unready_s - signaled) * 1000
    result.lost += [f"a long request: {status} {body[:60]!r}" for status, body in answers if status != 200]
    result.long_ok = sum(status == 200 for status, _ in answers)
    result.lost += [verdict for due, _, verdict, _ in traffic.result.failed if due < signaled - 0.002]
    result.late = traffic.result.between(signaled, signaled + 0.25).why  # still lame: connections are taken
    result.log = [one for one in rig.complaints() if "root" not in one and "structural" not in one]
    for sock in (*idle, half):
        sock.close()
    return result


class _Readiness(threading.Thread):
    """Asks the data port and the control port every few milliseconds until one says no."""

    def __init__(self, address: tuple[str, int]) -> None:
        super().__init__()
        self._address, self._ended, self.unready_s = address, threading.Event(), float("inf")

    def run(self) -> None:
        while not self._ended.is_set():
            try:
                status, _ = ask(self._address, b"GET /readyz HTTP/1.1\r\nHost: a\r\n\r\n", 2.0)
            except OSError:
                status = 0
            if status != 200:
                self.unready_s = time.monotonic()
                return
            time.sleep(0.005)

    def stop(self) -> None:
        self._ended.set()
        self.join()


def second_signal(home: Home, scratch: Path) -> tuple[float, int | None]:
    """Return the seconds from the second signal to the end, while a long request runs, and the exit code."""
    rig = Rig(home, NAME, log=scratch / "second.log")
    long_request, _ = binary_request(NAME, 1, rows=4096)
    holder = threading.Thread(target=lambda: ask(rig.address, long_request, 30.0))
    half = socket.create_connection(rig.address)
    half.sendall(long_request[:5000])  # a body that never comes holds the drain
    holder.start()
    time.sleep(0.2)
    rig.process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert rig.process.poll() is None, "it did not wait for what it had accepted"
    second = time.monotonic()
    rig.process.send_signal(signal.SIGTERM)
    try:
        code = rig.process.wait(10)
    except subprocess.TimeoutExpired:
        rig.process.kill()
        code = None
    took = time.monotonic() - second
    holder.join()
    half.close()
    return took, code


def while_loading(home: Home, scratch: Path) -> tuple[float, int | None, list[int]]:
    """SIGTERM while a version loads under traffic; return seconds, exit code and processes left."""
    promote(home, NAME, 1)
    rig = Rig(home, NAME, log=scratch / "loading.log")
    promote(home, NAME, 2)
    until(lambda: len(rig.workers()) > 1, every_s=0.002)
    workers = rig.workers()
    began = time.monotonic()
    rig.process.send_signal(signal.SIGTERM)
    try:
        code = rig.process.wait(20)
    except subprocess.TimeoutExpired:
        rig.process.kill()
        code = None
    took = time.monotonic() - began
    time.sleep(0.3)
    return (
        took,
        code,
        [pid for pid in workers if Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes()],
    )


def measure(quick: bool, figures: Figures) -> None:
    """Stop again and again."""
    graphs = {1: network(1, width=1024, layers=4)}
    with scratch_home() as (home, scratch):
        release(home, NAME, graphs[1])
        rounds = [one_stop(home, scratch, graphs, rate=40.0) for _ in range(2 if quick else 50)]
        release(home, NAME, network(2))
        forced = [second_signal(home, scratch) for _ in range(1 if quick else 5)]
        loading = [while_loading(home, scratch) for _ in range(1 if quick else 5)]
    lost = [one for each in rounds for one in each.lost]
    late = [one for each in rounds for one in each.late.items()]
    complaints = [one for each in rounds for one in each.log]
    figures.add("stops under load, long requests answered", f"{len(rounds)}, {sum(one.long_ok for one in rounds)}")
    figures.exactly(f"accepted requests lost {lost[:3] or ''}", len(lost), 0)
    figures.exactly(f"failed in the 0.25 s after the signal {late[:3] or ''}", len(late), 0)
    figures.at_most("readiness off, worst", max(one.unready_ms for one in rounds), 100, "ms")
    figures.exactly("exit codes", sorted({one.code for one in rounds}, key=str), [0])
    figures.at_most("from signal to end, worst", max(one.exit_s for one in rounds), DRAIN_S + 1, "s")
    figures.exactly("answers after the signal say Connection: close", all(one.said_close for one in rounds), True)
    figures.exactly(f"log complaints {complaints[:2] or ''}", len(complaints), 0)
    figures.at_most("a second signal: to the end, worst", max(took for took, _ in forced), 1.0, "s")
    figures.exactly("a second signal: exit codes", sorted({code for _, code in forced}, key=str), [0])
    figures.at_most("while a version loads: to the end, worst", max(took for took, _, _ in loading), 2.5, "s")
    figures.exactly("while a version loads: exit codes", sorted({code for _, code, _ in loading}, key=str), [0])
    figures.exactly("while a version loads: processes left", sum(len(left) for _, _, left in loading), 0)


if __name__ == "__main__":
    run_script(measure, __doc__)
