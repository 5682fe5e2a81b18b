"""What the server does with more requests than it can answer: goodput, times, refusals, health, memory, recovery.

    python benchmarks/serve/overload.py --model middle --factors 1,2,10     # about 2 min
    python benchmarks/serve/overload.py --model tiny --factors 2

The peak is measured first, in a closed loop, and around each overload again. Then requests come at a fixed rate, a
multiple of the peak, whether or not earlier ones were answered, and every time counts from when the request was due.
Health is asked 50 times a second on the control port and on the data port, all the time: it costs the peak as much as
the overload. When the overload ends, half the peak goes on at once: "recovered" is when answers are as quick again as
they were at half the peak before it (twice its p99 or less, nothing refused, half a second on end).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from floor import bare_session
from graphs import SUBJECTS, build_subject
from load import Generator, Load, Times, finished
from server import Server, release
from share_of_floor import CACHE, say
from wires import WIRES, check_answers, question

from lightship.data.home import Home
from lightship.engine.machine import fingerprint

HEALTH_PER_S = 50
QUIET = 5  # intervals of 0.1 s


@dataclass(frozen=True, slots=True)
class Peak:
    """What the server can do at most, and how quick it is at half of that."""

    per_s: float
    connections: int
    half: Load


@dataclass(frozen=True, slots=True)
class Overload:
    """One rate."""

    factor: float
    offered_per_s: float
    peak_per_s: float  # the mean of a window before and one after, for the machine's speed drifts
    load: Load
    control_health: Load
    data_health: Load
    memory_mb: float
    recovered_s: float | None


class Bench:
    """One running server, and the generator."""

    def __init__(self, server: Server, generator: Generator, scratch: Path, *, connections: int) -> None:
        self.server = server
        self._generator = generator
        self._request = scratch / "infer.request"
        self._health = scratch / "health.request"
        self._health.write_bytes(b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        self._connections = connections

    def ask_with(self, request: bytes) -> None:
        """Set the request of the load."""
        self._request.write_bytes(request)

    def peak(self, seconds: float) -> Peak:
        """Measure the best of some connection counts, and half of it in an open loop."""
        rates: dict[int, list[float]] = {8: [], 32: [], 64: []}
        for _ in range(3):
            for count, found in rates.items():
                found.append(self.closed_per_s(count, seconds / 2))
        count = max(rates, key=lambda each: float(np.median(rates[each])))
        per_s = float(np.median(rates[count]))
        half = self._generator.run(
            self.server.address, self._request, connections=self._connections, seconds=seconds, rate=per_s / 2
        )
        return Peak(per_s, count, half)

    def closed_per_s(self, connections: int, seconds: float) -> float:
        """Return the rate of a closed loop, with the questions for health beside it."""
        probes = self._probes(seconds)
        load = self._generator.run(self.server.address, self._request, connections=connections, seconds=seconds)
        for probe in probes:
            finished(probe)
        return load.ok_per_s

    def _probes(self, seconds: float) -> list[subprocess.Popen[str]]:
        """Ask for health on both ports: control, data."""
        options = {"connections": 256, "seconds": seconds, "warm_up": 1.0, "rate": HEALTH_PER_S}
        addresses = (self.server.control_address, self.server.address)
        return [self._generator.start(address, self._health, **options) for address in addresses]

    def overload(self, factor: float, peak: Peak, seconds: float) -> Overload:
        """Offer ``factor`` times the peak for ``seconds``, then half of it."""
        before = self.closed_per_s(peak.connections, min(3.0, seconds))
        started = self._generator.start
        options = {"connections": self._connections, "seconds": seconds, "warm_up": 1.0, "drain": 5.0}
        control, data = self._probes(seconds)
        load = started(self.server.address, self._request, rate=factor * peak.per_s, **options)
        assert load.stdout is not None
        load.stdout.readline()
        load.stdout.readline()  # the window is over
        after = started(
            self.server.address,
            self._request,
            rate=peak.per_s / 2,
            connections=self._connections,
            seconds=6,
            warm_up=0,
        )
        loads = [finished(process) for process in (load, control, data, after)]
        quick_ms = 2 * peak.half.accepted.p99 if peak.half.accepted else 0.0
        memory_mb = self.server.tree.memory_mb()
        around = (before + self.closed_per_s(peak.connections, min(3.0, seconds))) / 2
        offered = factor * peak.per_s
        return Overload(factor, offered, around, *loads[:3], memory_mb, recovered_s(loads[3], quick_ms))


def recovered_s(load: Load, quick_ms: float) -> float | None:
    """Return the start of the first half second in which nothing was refused and no answer was slower, or None."""
    good = [
        ok > 0 and refused == 0 and other == 0 and worst <= quick_ms for ok, refused, other, worst in load.intervals
    ]
    for place in range(len(good) - QUIET + 1):
        if all(good[place : place + QUIET]):
            return round(place * load.interval_s, 1)
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(SUBJECTS), default="middle")
    parser.add_argument("--wire", choices=WIRES, default="binary")
    parser.add_argument("--factors", default="1,2,10", help="multiples of the peak")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of each overload")
    parser.add_argument("--rounds", type=int, default=1, help="how often all factors are gone through")
    parser.add_argument("--connections", type=int, default=1024, help="most connections of the generator")
    parser.add_argument("--server-core", type=int, default=1)
    parser.add_argument("--load-core", type=int, default=0)
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--json", type=Path, help="write everything to this file")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {arguments.load_core})
    factors = [float(part) for part in arguments.factors.split(",")]
    with tempfile.TemporaryDirectory(prefix="lightship-bench-") as scratch:
        report = measure(arguments, factors, Path(scratch))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


def measure(arguments: argparse.Namespace, factors: list[float], scratch: Path) -> dict[str, Any]:
    """Start the server, find its peak, overload it; print and return what came out."""
    subject = build_subject(arguments.model, cache=arguments.cache)
    home = Home(scratch / "home").ensure()
    release(home, subject)
    generator = Generator(arguments.cache, core=arguments.load_core)
    with Server(home, subject.name, core=arguments.server_core, log=scratch / "serve.log") as server:
        row = subject.row(0)
        asked = question(subject.name, row, arguments.wire)
        expected = bare_session(subject.graph).run(None, row)[0]
        check_answers(server.address, [(asked, expected)])
        bench = Bench(server, generator, scratch, connections=arguments.connections)
        bench.ask_with(asked.bytes("127.0.0.1"))
        peak = bench.peak(min(4.0, arguments.seconds))
        before = server.tree.memory_mb()
        say(f"# {subject.name}, {arguments.wire}: peak {peak.per_s:.1f}/s at {peak.connections} connections")
        say(f"# at half of it: p50 / p99 {_pair(peak.half.accepted)} ms; memory {before:.0f} MB")
        results = [bench.overload(factor, peak, arguments.seconds) for factor in factors * arguments.rounds]
        check_answers(server.address, [(asked, expected)])
        for result in results:
            for name, value in described(result).items():
                say(f"{result.factor:g}x  {name:32} {value}")
        for complaint in server.complaints():
            say(f"# server: {complaint}")
    return {
        "machine": fingerprint(),
        "model": arguments.model,
        "wire": arguments.wire,
        "memory_before_mb": before,
        "peak": asdict(peak),
        "overload": [asdict(result) | {"figures": described(result)} for result in results],
    }


def described(result: Overload) -> Mapping[str, Any]:
    """Return the figures of one rate, by name."""
    load = result.load
    refusals = load.statuses["429"] + load.statuses["503"]
    return {
        "offered / peak": round(result.offered_per_s / result.peak_per_s, 2),
        "offered, peak, goodput per s": f"{result.offered_per_s:.0f}, {result.peak_per_s:.0f}, {load.ok_per_s:.0f}",
        "goodput / peak": round(load.ok_per_s / result.peak_per_s, 3),
        "accepted p50 / p99 ms": _pair(load.accepted),
        "refused p50 / p99 ms": _pair(load.refused),
        "generator late p99 ms": load.late.p99 if load.late else None,
        "statuses": {name: count for name, count in load.statuses.items() if count},
        "not answered 200 or refused": sum(load.statuses[name] for name in ("other", "broken", "unanswered")),
        "refusals with Retry-After": round(load.with_retry_after / refusals, 4) if refusals else None,
        "control health p50 / p99 ms": _pair(result.control_health.accepted),
        "control health failed": _failed(result.control_health),
        "data health p50 / p99 ms": _pair(result.data_health.accepted),
        "data health failed": _failed(result.data_health),
        "memory after MB": round(result.memory_mb, 1),
        "recovered after s": result.recovered_s,
        "generator's use of its core": load.generator_cpu,
    }


def _pair(times: Times | None) -> str:
    return f"{times.p50:.2f} / {times.p99:.2f}" if times else "-"


def _failed(load: Load) -> int:
    return sum(count for name, count in load.statuses.items() if name != "ok")


if __name__ == "__main__":
    main()
