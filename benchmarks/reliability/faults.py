"""The machine fails: no files left, nobody reads the log, the registry is gone or locked, the disk is full.

    python benchmarks/reliability/faults.py --quick     # 40 s
    python benchmarks/reliability/faults.py             # 2 min

Each fault happens under good traffic whose answers are checked. The full disk is left out where there is no
right to mount, and the table says so.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

from releases import network, promote, release
from rig import Figures, Rig, ask, run_script, scratch_home, tensor_question, until
from traffic import Traffic

from lightship.data.home import Home

NAME = "digits"
LIVE = b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n"


def out_of_files(home: Home, scratch: Path, figures: Figures, *, graphs: dict[int, bytes], seconds: float) -> None:
    """300 clients for a server with 256 files: who is connected is answered, no busy loop, and it recovers."""
    question = tensor_question(NAME, 1, graphs)
    with Rig(home, NAME, log=scratch / "files.log", files=256) as rig:
        until(lambda: rig.control("/readyz")[0] == 200)
        with Traffic(rig.address, [question], rate=50, connections=4) as traffic:
            time.sleep(1)
            idle_cpu = cpu_share(rig, seconds)
            socks = [socket.create_connection(rig.address, timeout=5) for _ in range(300)]
            for sock in socks:  # kept open: a head that does not end
                with contextlib.suppress(OSError):
                    sock.sendall(b"GET /livez HTTP/1.1\r\nX: ")
            time.sleep(0.5)
            full_cpu = cpu_share(rig, seconds)
            files = rig.fds()
            try:
                control = rig.control("/livez", 2.0)[0]
                degraded = rig.state()["degraded"]
            except OSError as exc:
                control = degraded = f"{type(exc).__name__}"
            log_lines = len(rig.log.read_text().splitlines())
            for sock in socks:
                sock.close()
            back_s = until(lambda: ask(rig.address, LIVE, 2.0)[0] == 200, 20)
            reload_ok = ask(rig.address, question.request)[0]
    figures.add("no files left: open files of 256", files)
    figures.exactly(
        f"no files left: failed on kept connections {traffic.result.why or ''}", len(traffic.result.failed), 0
    )
    figures.at_most(f"no files left: processor share more than before ({idle_cpu:.2f})", full_cpu - idle_cpu, 0.2)
    figures.exactly("no files left: health on the control port", control, 200)
    figures.exactly("no files left: the registry is said to be unreadable", degraded, None)
    figures.at_most("no files left: lines logged", log_lines, 60)
    figures.at_most("no files left: recovered after", back_s, 2.0, "s")
    figures.exactly("no files left: answer afterwards", reload_ok, 200)


def cpu_share(rig: Rig, seconds: float) -> float:
    """Return the share of a core that the server's own process takes."""
    before = rig.cpu_s()
    time.sleep(seconds)
    return (rig.cpu_s() - before) / seconds


def log_stalls(  # noqa: PLR0915 - a straight story
    home: Home, scratch: Path, figures: Figures, *, graphs: dict[int, bytes], seconds: float
) -> None:
    """Nobody reads stderr, a line a request and deaths of workers: answers come as before."""
    questions = [tensor_question(NAME, seed, graphs) for seed in range(4)]
    pipe = scratch / "stderr.pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    rig = Rig(home, NAME, "--log-requests", log=pipe)
    drain = threading.Event()
    got: list[bytes] = []

    def read() -> None:
        while not drain.wait(0.02):
            with contextlib.suppress(BlockingIOError):
                got.append(os.read(reader, 1 << 20))

    thread = threading.Thread(target=read)
    thread.start()
    try:
        until(lambda: rig.control("/readyz")[0] == 200)
        with Traffic(rig.address, questions, rate=150, connections=8, fresh=0.1) as traffic:
            time.sleep(seconds)
            drain.set()  # from here on nobody reads; the pipe holds 64 KiB
            thread.join()
            fill(pipe)
            stalled = time.monotonic()
            time.sleep(seconds + 1)
            # Every line of the package's log on the event loop is a chance to stand still: a worker's death makes some.
            os.kill(rig.workers()[0], 9)
            killed = time.monotonic()
            time.sleep(max(seconds, 3.0))  # longer than any new worker takes
            try:
                healthy = rig.control("/readyz", 2.0)[0]
            except OSError as exc:
                healthy = type(exc).__name__
            ended = time.monotonic()
            drain.clear()
            thread = threading.Thread(target=read)
            thread.start()
            time.sleep(1.5)
        before, full = traffic.result.between(0, stalled), traffic.result.between(stalled, killed)
        after = traffic.result.between(killed, ended)
        began = time.monotonic()
        rig.process.terminate()
        try:
            code: int | None = rig.process.wait(10)
        except subprocess.TimeoutExpired:
            rig.process.kill()
            code = None
        stop_s = time.monotonic() - began
    finally:
        drain.set()
        thread.join()
        if rig.process.poll() is None:
            rig.process.kill()
            rig.process.wait(10)
        os.close(reader)
    text = b"".join(got).decode(errors="replace")
    figures.exactly(f"log not read: failed {full.why or ''}", len(full.failed), 0)
    figures.at_most(
        f"log not read: p99 ({before.ms(0.99):.1f} ms before)", full.ms(0.99), max(2 * before.ms(0.99), 20), "ms"
    )
    figures.exactly(f"log not read, worker killed: failed {after.why or ''}", len(after.failed), 0)
    figures.at_most("log not read, worker killed: slowest", after.ms(1.0), 2000, "ms")
    figures.exactly("log not read: health", healthy, 200)
    lines = text.count('"event":"request"')
    figures.add(
        f"log read again: lines of {len(traffic.result.records)} requests",
        lines,
        met="dropped lines" in text or lines >= len(traffic.result.records),
    )
    figures.exactly("log read again: exit code", code, 0)
    figures.at_most("log read again: end after", stop_s, 3, "s")


def fill(pipe: Path) -> None:
    """Fill a pipe to the brim, so that the next line of the server's log does not fit."""
    writer = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
    for size in (4096, 64, 1):
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writer, b"x" * (size - 1) + b"\n")
    os.close(writer)


def stopped_with_full_pipe(home: Home, scratch: Path, figures: Figures) -> None:
    """SIGTERM while nobody reads the log: the process ends all the same."""
    pipe = scratch / "full.pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    rig = Rig(home, NAME, "--log-requests", log=pipe)
    try:
        until(lambda: rig.control("/readyz")[0] == 200)
        fill(pipe)
        ask(rig.address, LIVE)
        began = time.monotonic()
        rig.process.terminate()
        try:
            code: int | None = rig.process.wait(5)
        except subprocess.TimeoutExpired:
            rig.process.kill()
            rig.process.wait(10)
            code = None
        took = time.monotonic() - began
    finally:
        os.close(reader)
    figures.exactly("log not read: exit code after SIGTERM", code, 0)
    figures.at_most("log not read: end after SIGTERM", took, 4, "s")


def registry_faults(home: Home, scratch: Path, figures: Figures, *, graphs: dict[int, bytes]) -> None:
    """Locked, gone, damaged, unreadable, and back: no request notices, the state says so, it follows again."""
    questions = [tensor_question(NAME, seed, graphs) for seed in range(4)]
    promote(home, NAME, 1)
    told, away = {}, home.registry.with_name("away.db")
    with Rig(home, NAME, log=scratch / "registry.log") as rig:
        until(lambda: rig.control("/readyz")[0] == 200)
        with Traffic(rig.address, questions, rate=80, fresh=0.1) as traffic:
            lock = sqlite3.connect(home.registry, isolation_level=None)
            lock.execute("BEGIN EXCLUSIVE")
            time.sleep(17.0)  # it looks every 5 s, and waits twice 5 s for a lock
            told["locked"] = rig.state()["degraded"]
            ready_locked = rig.control("/readyz")[0]
            lock.execute("ROLLBACK")
            lock.close()
            until(lambda: rig.state()["degraded"] is None, 15)
            home.registry.rename(away)
            until(lambda: rig.state()["degraded"], 10)
            told["gone"] = rig.state()["degraded"]
            home.registry.write_bytes(bytes(8192))
            time.sleep(1.0)
            told["zeros"] = rig.state()["degraded"]
            home.registry.unlink()
            home.registry.mkdir()
            time.sleep(1.0)
            told["a folder"] = rig.state()["degraded"]
            home.registry.rmdir()
            away.rename(home.registry)
            back_s = until(lambda: rig.state()["degraded"] is None, 15)
            promote(home, NAME, 2)
            moved_s = until(lambda: rig.model(NAME)["version"] == 2, 10)
            store, hidden = home.store, home.store.with_name("store-away")
            store.rename(hidden)
            promote(home, NAME, 1)
            time.sleep(1.0)
            told["no store"] = json.dumps(rig.state()["references"][0]["failure"])
            hidden.rename(store)
            served = rig.model(NAME)["version"]
    promote(home, NAME, 1)
    figures.exactly(f"registry away: failed {traffic.result.why or ''}", len(traffic.result.failed), 0)
    for kind, text in told.items():
        figures.add(f"registry: {kind}", (text or "")[:140], met=kind == "no store" or bool(text))
    figures.exactly("registry locked: ready all the same", ready_locked, 200)
    figures.at_most("registry: followed again after", back_s, 10, "s")
    figures.at_most("registry: promote works again after", moved_s, 5, "s")
    figures.add("store away, version parked: served version", served)


def full_disk(home: Home, scratch: Path, figures: Figures, *, graphs: dict[int, bytes]) -> None:
    """The log's disk and the home's disk are full: answers come, a reload is refused with a reason or made."""
    disk = scratch / "disk"
    disk.mkdir()
    if subprocess.run(
        ("mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(disk)), check=False, capture_output=True
    ).returncode:
        figures.add("full disk", "not run: no right to mount")
        return
    try:
        shutil.copytree(home.root, disk / "home")
        full = Home(disk / "home")
        questions = [tensor_question(NAME, seed, graphs) for seed in range(4)]
        with Rig(full, NAME, "--log-requests", log=disk / "serve.log") as rig:
            until(lambda: rig.control("/readyz")[0] == 200)
            with Traffic(rig.address, questions, rate=100, fresh=0.1) as traffic:
                time.sleep(1)
                with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as filler:
                    while True:
                        filler.write(bytes(1 << 12))
                time.sleep(2)
                os.kill(rig.workers()[0], 9)  # a new worker needs memory files, not the disk
                time.sleep(1)
                (disk / "filler").unlink()
                promote(full, NAME, 2)
                moved_s = until(lambda: rig.model(NAME)["version"] == 2, 15)
            status = rig.control("/readyz")[0]
        figures.exactly(f"full disk: failed {traffic.result.why or ''}", len(traffic.result.failed), 0)
        figures.at_most("space again: promote works after", moved_s, 5, "s")
        figures.exactly("space again: ready", status, 200)
    finally:
        subprocess.run(("umount", "-l", str(disk)), check=False)


_CLOCK = """
import time
real = time.time
def moved():
    with open({file!r}) as offset:
        return real() + float(offset.read() or 0)
time.time = moved
"""


def moved_clock(home: Home, scratch: Path, figures: Figures, *, graphs: dict[int, bytes]) -> None:
    """The wall clock jumps an hour forth and back and ten years ahead while serving: no deadline may notice.

    Python's own ``time.time`` is moved in the server and its workers. libfaketime cannot be used: preloaded, it makes
    ``time.sleep`` of CPython 3.11 fail, because it moves the monotonic clock of ``clock_nanosleep`` too.
    """
    offset, site = scratch / "offset", scratch / "site"
    offset.write_text("0")
    site.mkdir()
    (site / "sitecustomize.py").write_text(_CLOCK.format(file=str(offset)))
    before = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = f"{site}:{before}" if before else str(site)
    try:
        rig = Rig(home, NAME, "--log-requests", log=scratch / "clock.log")
    finally:
        os.environ["PYTHONPATH"] = before
    questions = [tensor_question(NAME, seed, graphs) for seed in range(4)]
    with rig:
        until(lambda: rig.control("/readyz")[0] == 200)
        with Traffic(rig.address, questions, rate=100, fresh=0.1) as traffic:
            for text in ("3600", "-3600", "315360000", "0"):
                time.sleep(0.7)
                scratch.joinpath("offset.new").write_text(text)
                scratch.joinpath("offset.new").rename(offset)
            time.sleep(1)
        deaths = rig.model(NAME)["worker_deaths"]
        times = [json.loads(line)["time"] for line in rig.log.read_text().splitlines() if line.startswith("{")]
    figures.exactly("moved clock: the log has moved with it", max(times) - min(times) > 300_000_000, True)
    figures.exactly(f"moved clock: failed {traffic.result.why or ''}", len(traffic.result.failed), 0)
    figures.exactly("moved clock: deaths of the worker", deaths, 0)


def storm(home: Home, scratch: Path, figures: Figures, *, seconds: float) -> None:
    """Versions of four references move while eight clients ask for all of them."""
    graphs = {1: network(1, width=512, layers=4), 2: network(2, width=512, layers=4)}
    aliases = ("production", "staging", "canary", "previous")
    for alias in aliases:
        promote(home, NAME, 1, alias)
    questions = [tensor_question(NAME, seed, graphs) for seed in range(8)]
    moved = 0
    with Rig(home, *(f"{NAME}@{alias}" for alias in aliases), log=scratch / "storm.log") as rig:
        until(lambda: rig.control("/readyz")[0] == 200)
        with Traffic(rig.address, questions, rate=150, fresh=0.2) as traffic:
            until_s = time.monotonic() + seconds
            while time.monotonic() < until_s:
                for place, alias in enumerate(aliases):
                    promote(home, NAME, 1 + (moved + place) % 2, alias)
                    time.sleep(0.05)
                moved += 1
            for alias in aliases:
                promote(home, NAME, 2, alias)
            settled_s = until(lambda: all(one["version"] == 2 for one in rig.state()["references"]), 20)
        workers = len(rig.workers())
        statuses = Counter(verdict for _, _, verdict, _ in traffic.result.failed)
    figures.exactly(
        f"storm of {moved * 4} moves: failed of {len(traffic.result.records)} {dict(statuses) or ''}",
        len(traffic.result.failed),
        0,
    )
    figures.at_most("storm: settled after", settled_s, 10, "s")
    figures.at_most("storm: processes afterwards", workers, 2)


def measure(quick: bool, figures: Figures) -> None:
    """One fault after the other."""
    graphs = {1: network(1, width=512, layers=4), 2: network(2, width=512, layers=4)}
    seconds = 1.0 if quick else 3.0
    with scratch_home() as (home, scratch):
        for graph in graphs.values():
            release(home, NAME, graph)
        promote(home, NAME, 1)
        out_of_files(home, scratch, figures, graphs=graphs, seconds=seconds)
        log_stalls(home, scratch, figures, graphs=graphs, seconds=seconds)
        stopped_with_full_pipe(home, scratch, figures)
        registry_faults(home, scratch, figures, graphs=graphs)
        full_disk(home, scratch, figures, graphs=graphs)
        moved_clock(home, scratch, figures, graphs=graphs)
        storm(home, scratch, figures, seconds=5.0 if quick else 30.0)


if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parent))
    run_script(measure, __doc__)
