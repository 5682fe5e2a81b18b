"""How much of the machine's speed the server passes on: answers a second over samples a second of the bare engine.

    python benchmarks/serve/share_of_floor.py --model tiny --wire binary
    python benchmarks/serve/share_of_floor.py --quick --wire json        # about 15 s

The floor is a loop of ONNX Runtime without any server, at its best batch size, on the core that the server has; its
windows and the server's take turns, so that a machine that gets slower makes both slower. All processes of the server
are pinned on one core, the load generator on another. Each figure is the median of all pairs with a 95 % interval
(order statistics, no assumption on the distribution). "by CPU" divides by CPU time instead of the wall clock: it stays
true when other programs run beside, and leaves out what the server waits.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from floor import Floor, FloorWindow, bare_session
from graphs import SUBJECTS, Subject, build_subject
from load import Generator, Load
from server import Server, release
from wires import WIRES, check_answers, question

from lightship.data.home import Home
from lightship.engine.machine import fingerprint

_SWEEP_S = {"tiny": 0.2, "middle": 0.3, "minilm": 1.0, "resnet18": 2.0}  # a window long enough for batch 64
CACHE = Path.home() / ".cache" / "lightship-benchmarks"


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure."""

    wires: tuple[str, ...]
    connections: tuple[int, ...]
    pairs: int
    seconds: float
    server_core: int | None
    load_core: int | None


@dataclass(frozen=True, slots=True)
class Target:
    """A running server and the request that it gets. ``cpu_s`` is what all of its processes used so far."""

    name: str
    address: tuple[str, int]
    request: Path
    cpu_s: Callable[[], float]


@dataclass(frozen=True, slots=True)
class Pair:
    """A floor window of each contending batch size, and the server window after it."""

    floors: tuple[FloorWindow, ...]
    load: Load


@dataclass(frozen=True, slots=True)
class Middle:
    """A median with the interval that holds the true one with at least 95 %, where there are enough values."""

    median: float
    low: float
    high: float


def middle(values: Sequence[float]) -> Middle:
    """Return median and interval; below six values the interval is the whole range, which holds less than 95 %."""
    ordered = sorted(values)
    count, skip, outside = len(ordered), 0, 0.0
    while (outside := outside + math.comb(count, skip) / 2**count) <= 0.025:
        skip += 1
    cut = max(0, skip - 1)
    return Middle(float(np.median(ordered)), ordered[cut], ordered[count - 1 - cut])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(SUBJECTS), default="tiny")
    parser.add_argument("--wire", choices=WIRES, action="append", help="default: both")
    parser.add_argument("--connections", help="default: 1,8,16,32,64; 1,8,32 for minilm and 1,8 for resnet18")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3.0, help="length of each window")
    parser.add_argument("--quick", action="store_true", help="32 connections, 3 pairs, windows of 1.5 s")
    parser.add_argument("--server-core", default="1", help="core of server and floor; none: unpinned, all cores")
    parser.add_argument("--load-core", default="0", help="core of the generator; none: unpinned")
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder of what is compiled or downloaded once")
    parser.add_argument("--json", type=Path, help="write all windows to this file")
    arguments = parser.parse_args()
    plan = Plan(
        wires=tuple(arguments.wire or WIRES),
        connections=_connections(arguments),
        pairs=3 if arguments.quick else arguments.pairs,
        seconds=1.5 if arguments.quick else arguments.seconds,
        server_core=_core(arguments.server_core),
        load_core=_core(arguments.load_core),
    )
    if plan.load_core is not None:
        os.sched_setaffinity(0, {plan.load_core})  # this program too stays off the server's core
    subject = build_subject(arguments.model, cache=arguments.cache)
    with tempfile.TemporaryDirectory(prefix="lightship-bench-") as scratch:
        rows = measure(subject, plan, Path(scratch), cache=arguments.cache)
    if arguments.json:
        report = {"plan": asdict(plan), "machine": fingerprint(), "rows": rows}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


def _connections(arguments: argparse.Namespace) -> tuple[int, ...]:
    usual = {"minilm": "1,8,32", "resnet18": "1,8"}.get(arguments.model, "1,8,16,32,64")
    quick = {"minilm": "32", "resnet18": "8"}.get(arguments.model, "32")
    text = arguments.connections or (quick if arguments.quick else usual)
    return tuple(int(part) for part in text.split(","))


def _core(text: str) -> int | None:
    return None if text == "none" else int(text)


def measure(subject: Subject, plan: Plan, scratch: Path, *, cache: Path) -> list[dict[str, Any]]:
    """Release, start, check, measure; print a line for each row and return them."""
    home = Home(scratch / "home").ensure()
    release(home, subject)
    graph, inputs = scratch / "graph.onnx", scratch / "inputs.npz"
    graph.write_bytes(subject.graph)
    np.savez(inputs, **subject.row(0))
    generator = Generator(cache, core=plan.load_core)
    rows = []
    with (
        Floor(graph, inputs, core=plan.server_core) as floor,
        Server(home, subject.name, core=plan.server_core, log=scratch / "serve.log") as server,
    ):
        worst = {wire: _check(subject, wire, server.address) for wire in plan.wires}
        batches = best_batches(floor, subject, plan)
        say(f"# floor at batch {batches}; worst difference to the engine {max(worst.values()):.1e}")
        say(HEADER)
        for wire in plan.wires:
            request = scratch / f"{wire}.request"
            request.write_bytes(question(subject.name, subject.row(0), wire).bytes("127.0.0.1"))
            target = Target("lightship", server.address, request, server.tree.cpu_s)
            rows += take_turns(subject.name, wire, [target], plan, floor, batches, generator)
        for complaint in server.complaints():
            say(f"# server: {complaint}")
        say(f"# memory of the server after it: {server.tree.memory_mb():.0f} MB (proportional set size)")
    return rows


def best_batches(floor: Floor, subject: Subject, plan: Plan) -> tuple[int, ...]:
    """Return the two batch sizes that contend for the floor."""
    return floor.best_batches(_SWEEP_S[subject.name], rounds=1 if plan.pairs < 5 else 3)


def take_turns(
    model: str,
    wire: str,
    targets: Sequence[Target],
    plan: Plan,
    floor: Floor,
    batches: tuple[int, ...],
    generator: Generator,
) -> list[dict[str, Any]]:
    """Measure floor and server in turns, for each server and number of connections; print and return the rows."""
    cells = [(target, count) for target in targets for count in plan.connections]
    pairs: list[list[Pair]] = [[] for _ in cells]
    for _ in range(plan.pairs):
        for (target, count), found in zip(cells, pairs, strict=True):
            floors = tuple(floor.run(batch, plan.seconds / len(batches)) for batch in batches)
            load = generator.run(
                target.address, target.request, cpu_s=target.cpu_s, connections=count, seconds=plan.seconds
            )
            found.append(Pair(floors, load))
    rows = []
    for (target, count), found in zip(cells, pairs, strict=True):
        rows.append({"server": target.name, "model": model, "wire": wire, "connections": count} | summary(found))
        say(line(rows[-1]))
    return rows


def _check(subject: Subject, wire: str, address: tuple[str, int]) -> float:
    """Ask different rows at once and compare each answer with the bare engine's."""
    session = bare_session(subject.graph)
    inputs = [subject.row(seed) for seed in range(32)]
    return check_answers(address, [(question(subject.name, row, wire), session.run(None, row)[0]) for row in inputs])


def summary(pairs: list[Pair]) -> dict[str, Any]:
    """Return what one row of the table says: shares, rates, times, statuses, and every window."""
    batches = [window.batch for window in pairs[0].floors]
    place = max(range(len(batches)), key=lambda at: float(np.median([pair.floors[at].per_s for pair in pairs])))
    by_cpu = max(range(len(batches)), key=lambda at: float(np.median([pair.floors[at].per_cpu_s for pair in pairs])))
    cpu_s = [pair.load.server_cpu_s / max(1, pair.load.statuses["ok"]) for pair in pairs]
    times = [pair.load.accepted for pair in pairs if pair.load.accepted is not None]
    statuses: dict[str, int] = {}
    for pair in pairs:
        for name, count in pair.load.statuses.items():
            statuses[name] = statuses.get(name, 0) + count
    return {
        "share": asdict(middle([pair.load.ok_per_s / pair.floors[place].per_s for pair in pairs])),
        "share_by_cpu": asdict(
            middle(
                [
                    1 / (each * pair.floors[by_cpu].per_cpu_s)
                    for each, pair in zip(cpu_s, pairs, strict=True)
                    if each > 0
                ]
                or [math.nan]
            )
        ),
        "rate": asdict(middle([pair.load.ok_per_s for pair in pairs])),
        "floor": asdict(middle([pair.floors[place].per_s for pair in pairs])) | {"batch": batches[place]},
        "floor_us_cpu": 1e6 / float(np.median([pair.floors[by_cpu].per_cpu_s for pair in pairs])),
        "server_us_cpu": 1e6 * float(np.median(cpu_s)),
        "p50_ms": float(np.median([one.p50 for one in times])),
        "p99_ms": float(np.median([one.p99 for one in times])),
        "generator_cpu": max(pair.load.generator_cpu for pair in pairs),
        "statuses": statuses,
        "all_ok": all(pair.load.all_ok for pair in pairs),
        "windows": [asdict(pair) for pair in pairs],
    }


HEADER = (
    "server     model     wire    conn   share [interval]       by CPU [interval]      "
    "answers/s   floor/s   us CPU (floor)   p50 ms   p99 ms  gen.  statuses"
)


def line(row: dict[str, Any]) -> str:
    """Return the row as text."""

    def interval(name: str) -> str:
        value = row[name]
        return f"{value['median']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"

    answers = {name: count for name, count in row["statuses"].items() if count}
    return (
        f"{row['server']:10} {row['model']:9} {row['wire']:7} {row['connections']:4}   {interval('share')}   "
        f"{interval('share_by_cpu')} {row['rate']['median']:10.1f} {row['floor']['median']:9.1f} "
        f"{row['server_us_cpu']:8.1f} ({row['floor_us_cpu']:6.1f}) {row['p50_ms']:8.3f} {row['p99_ms']:8.3f}  "
        f"{row['generator_cpu']:.2f}  {answers}"
    )


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
