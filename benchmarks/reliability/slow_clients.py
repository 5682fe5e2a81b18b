"""Ten thousand connections that send nothing, a head or a body at a byte a second, beside good traffic.

    python benchmarks/reliability/slow_clients.py --quick     # 1,500 of them, 30 s
    python benchmarks/reliability/slow_clients.py             # 10,000, 1 min

The slow clients live in a process of their own (20,000 open files at most). Good traffic is 50 requests a second, half
of them on new connections, so that a server that is merely full does not look well.
"""

from __future__ import annotations

import json
import resource
import selectors
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

from releases import network, release
from rig import Figures, ask, peak_per_s, run_script, scratch_home, tensor_question, until
from rig import Rig as _Rig
from traffic import Traffic

NAME = "digits"
KINDS = ("silent", "head", "body")
CLOSED_S = 15.0
GONE_S = 40.0
LIVE = b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n"


class Slow:
    """The slow clients; runs in a process of its own."""

    def __init__(self, address: tuple[str, int], count: int, opening_s: float) -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(20_000, resource.getrlimit(resource.RLIMIT_NOFILE)[1]),) * 2)
        self._address, self._count, self._opening_s = address, count, opening_s
        self._selector = selectors.EpollSelector()
        self._open: dict[socket.socket, list[float | str | int]] = {}
        self.lived: dict[str, list[float]] = {kind: [] for kind in KINDS}
        self.answers: Counter[str] = Counter()
        self.refused = 0

    def run(self) -> None:
        """Open them in about five seconds, trickle until all are closed."""
        started, opened, trickled = time.monotonic(), 0, time.monotonic()
        while (opened < self._count or self._open) and time.monotonic() < started + GONE_S:
            now = time.monotonic()
            while opened < min(self._count, (now - started) * self._count / self._opening_s):
                self._connect(KINDS[opened % 3])
                opened += 1
            self._read(0.02)
            if now - trickled >= 1.0:
                trickled = now
                for sock, (kind, _, _) in list(self._open.items()):
                    if kind != "silent":
                        self._send(sock, b"x")
        for sock in list(self._open):
            self._lost(sock, "never closed")

    def _connect(self, kind: str) -> None:
        sock = socket.socket()
        sock.setblocking(False)
        try:
            sock.connect(self._address)
        except BlockingIOError:
            pass
        except OSError:
            self.refused += 1
            return
        self._open[sock] = [kind, 0.0, 0]
        self._selector.register(sock, selectors.EVENT_WRITE)

    def _read(self, wait_s: float) -> None:
        for key, events in self._selector.select(wait_s):
            sock: socket.socket = key.fileobj  # type: ignore[assignment]
            if events & selectors.EVENT_WRITE:
                self._made(sock)
            elif events & selectors.EVENT_READ:
                try:
                    piece = sock.recv(4096)
                except OSError:
                    piece = b""
                if piece.startswith(b"HTTP/1.1 "):
                    self.answers[f"{self._open[sock][0]} {piece[9:12].decode()}"] += 1
                if not piece:
                    self._lost(sock, "")

    def _made(self, sock: socket.socket) -> None:
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._lost(sock, "not connected")
            return
        self._open[sock][1] = time.monotonic()
        self._selector.modify(sock, selectors.EVENT_READ)
        kind = self._open[sock][0]
        if kind == "head":
            self._send(sock, b"POST /predict/digits HTTP/1.1\r\nHost: a\r\nX-Slow: ")
        elif kind == "body":
            self._send(sock, b"POST /predict/digits HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\nx")

    def _send(self, sock: socket.socket, data: bytes) -> None:
        if self._open[sock][1]:
            try:
                sock.send(data)
            except BlockingIOError:
                return
            except OSError:
                self._lost(sock, "")

    def _lost(self, sock: socket.socket, why: str) -> None:
        kind, since, _ = self._open.pop(sock)
        self._selector.unregister(sock)
        sock.close()
        if why:
            self.answers[f"{kind} {why}"] += 1
        if since:
            self.lived[str(kind)].append(time.monotonic() - float(since))


class Health(threading.Thread):
    """Asks for health on both ports ten times a second."""

    def __init__(self, rig: _Rig) -> None:
        super().__init__()
        self._rig, self._ended = rig, threading.Event()
        self.failed: list[str] = []
        self.worst_s = {"control": 0.0, "data": 0.0}

    def run(self) -> None:
        """Ask until stopped."""
        while not self._ended.wait(0.1):
            for name, address in (("control", self._rig.control_address), ("data", self._rig.address)):
                began = time.monotonic()
                try:
                    status, _ = ask(address, LIVE, 3.0)
                except OSError as exc:
                    status = -1
                    self.failed.append(f"{name} {type(exc).__name__}")
                else:
                    if status != 200:
                        self.failed.append(f"{name} {status}")
                self.worst_s[name] = max(self.worst_s[name], time.monotonic() - began)

    def stop(self) -> None:
        """Stop and wait."""
        self._ended.set()
        self.join()


def slow(
    figures: Figures, *, count: int, options: tuple[str, ...] = (), steady_s: float = 5.0, opening_s: float = 5.0
) -> None:
    """Open them all beside good traffic; look at memory, time, health. ``options``: of the server."""
    graphs = {1: network(1, width=512, layers=4)}
    with scratch_home() as (home, scratch):
        release(home, NAME, graphs[1])
        questions = [tensor_question(NAME, seed, graphs) for seed in range(4)]
        with _Rig(home, NAME, *options, log=scratch / "slow.log") as rig:
            until(lambda: rig.control("/readyz")[0] == 200)
            peak_per_s(rig, questions[0], scratch, seconds=1.0)  # as warm as it gets
            before_mb, fds = rig.rss_mb(), rig.fds()
            most_mb = before_mb
            with Traffic(rig.address, questions, rate=50, connections=8, fresh=0.5) as traffic:
                time.sleep(steady_s)
                health = Health(rig)
                health.start()
                begun = time.monotonic()
                out = scratch / "slow.json"
                clients = subprocess.Popen(
                    (sys.executable, __file__, "--clients", json.dumps([rig.address, count, opening_s]), str(out))
                )
                while clients.poll() is None:
                    most_mb = max(most_mb, rig.rss_mb())
                    time.sleep(0.1)
                ended = time.monotonic()
                health.stop()
            said = json.loads(out.read_text())
            until(lambda: rig.fds() <= fds + 8, 20)
            fds_after = rig.fds()
    steady, during = traffic.result.between(0, begun), traffic.result.between(begun, ended)
    lived = said["lived"]
    figures.add("slow connections", ", ".join(f"{kind} {len(times)}" for kind, times in lived.items()))
    figures.add("what they were told", json.dumps(said["answers"]))
    for kind, times in lived.items():
        figures.at_most(f"{kind}: closed after, worst", max(times, default=float("inf")), CLOSED_S, "s")
    figures.exactly("never accepted or refused by the kernel", said["refused"], 0)
    figures.exactly(f"good requests failed of {len(during.records)} {during.why or ''}", len(during.failed), 0)
    steady_ms = steady.ms(0.99)
    figures.add("good steady p50 / p99 ms", f"{steady.ms(0.5):.1f} / {steady_ms:.1f}")
    opening, there = during.between(0, begun + opening_s + 1), during.between(begun + opening_s + 1, ended)
    figures.add(
        f"good p50 / p99 ms while {count / opening_s:.0f} a second open",
        f"{opening.ms(0.5):.1f} / {opening.ms(0.99):.1f}",
    )
    figures.at_most("good p99 beside them", there.ms(0.99), max(2 * steady_ms, 20), "ms")
    figures.at_most("server's memory grown by", most_mb - before_mb, 256, "MiB")
    figures.exactly(f"health failed {dict(Counter(health.failed)) or ''}", len(health.failed), 0)
    figures.at_most("health, worst", max(health.worst_s.values()), 1.0, "s")
    figures.at_most("open files afterwards", fds_after, fds + 8)


def measure(quick: bool, figures: Figures) -> None:
    """Run it."""
    slow(figures, count=3_000 if quick else 10_000)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--clients"]:
        where, how_many, within_s = json.loads(sys.argv[2])
        clients = Slow(tuple(where), how_many, within_s)
        clients.run()
        found = {"lived": clients.lived, "answers": dict(clients.answers), "refused": clients.refused}
        Path(sys.argv[3]).write_text(json.dumps(found))
    else:
        run_script(measure, __doc__)
