"""What must come back: memory, processes, files, threads, places in the queue.

    python benchmarks/reliability/leaks.py --quick     # 30 s
    python benchmarks/reliability/leaks.py             # 5 min

Reloads, clients that go at every moment of a request, and many small requests.
"""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import time
from pathlib import Path

from releases import network, promote, release
from rig import CACHE, Figures, Generator, Rig, ask, binary_request, run_script, scratch_home, tensor_question, until

from lightship.data.home import Home

NAME = "digits"
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing resets the connection


def gauges(rig: Rig) -> tuple[float, float]:
    """Return how many requests wait and run, as the metrics say."""
    text = rig.control("/metrics")[1].decode()
    return tuple(  # type: ignore[return-value]
        sum(map(float, re.findall(rf"^{name}{{[^}}]*}} ([0-9.e+]+)", text, re.M)))
        for name in ("lightship_queue_requests", "lightship_running_requests")
    )


def reloads(home: Home, scratch: Path, figures: Figures, *, cycles: int, width: int = 256) -> None:
    """Each cycle loads a version in a new process and ends another."""
    graphs = {1: network(1, width=width), 2: network(2, width=width)}
    for graph in graphs.values():
        release(home, NAME, graph)
    question = tensor_question(NAME, 1, graphs)
    warm = min(4, cycles // 2 - 1)
    with Rig(home, NAME, "--no-keep-previous", log=scratch / "reloads.log") as rig:
        until(lambda: rig.control("/readyz")[0] == 200)
        for index in range(cycles):
            version = 2 - index % 2
            promote(home, NAME, version)
            until(lambda v=version: rig.model(NAME)["version"] == v)
            until(lambda: len(rig.workers()) == 1)
            assert ask(rig.address, question.request)[0] == 200
            if index == warm:
                first = settled(rig)
        last = settled(rig)
    figures.add("load and unload: cycles", cycles)
    figures.at_most("load and unload: server's memory grown", last[0] - first[0], 10, "MiB")
    figures.add("load and unload: KiB a cycle", 1024 * (last[0] - first[0]) / (cycles - 1 - warm))
    figures.at_most("load and unload: open files grown", last[1] - first[1], 2)
    figures.at_most("load and unload: threads grown", last[2] - first[2], 4)


def settled(rig: Rig) -> tuple[float, int, int]:
    """Return the least of memory (MiB), open files and threads over a second.

    What a version held goes back to the machine some moments after its process has ended: later on a busy machine.
    """
    looks = []
    for _ in range(20):
        time.sleep(0.05)
        looks.append((rig.rss_mb(), rig.fds(), rig.threads()))
    memory, files, threads = (min(column) for column in zip(*looks, strict=True))
    return memory, files, threads


def disconnects(home: Home, scratch: Path, figures: Figures, *, times: int) -> None:
    """Resets in the middle of the head, of the body, in the queue and while the model runs."""
    small, _ = binary_request("heavy", 1)
    large, _ = binary_request("heavy", 1, rows=64)
    with Rig(home, "heavy", log=scratch / "gone.log") as rig:
        until(lambda: rig.control("/readyz")[0] == 200)
        before = (rig.rss_mb(), rig.fds(), rig.threads())
        worst_s, left = 0.0, (0.0, 0.0)
        moments = {"in the head": small[:40], "in the body": small[: len(small) // 2], "waiting or running": large}
        for name, data in moments.items():
            for _ in range(max(1, times // 300)):
                with contextlib.ExitStack() as stack:
                    socks = []
                    for _ in range(100):
                        sock = stack.enter_context(socket.create_connection(rig.address))
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                        with contextlib.suppress(OSError):
                            sock.sendall(data)
                        socks.append(sock)
                    time.sleep(0.02)
                gone = time.monotonic()
                with contextlib.suppress(TimeoutError):
                    until(lambda: gauges(rig) == (0.0, 0.0), 10)
                worst_s, left = max(worst_s, time.monotonic() - gone), gauges(rig)
                assert left == (0.0, 0.0), f"{name}: {left}"
        # A slot that was lost would make a full queue come early: fill it exactly.
        until(lambda: rig.fds() <= before[1] + 8, 10)
        status, _ = ask(rig.address, small)
        after = (rig.rss_mb(), rig.fds(), rig.threads())
        text = rig.control("/metrics")[1].decode()
        cancelled = sum(map(float, re.findall(r"^lightship_cancelled_requests_total{[^}]*} ([0-9.e+]+)", text, re.M)))
        deaths = rig.model("heavy")["worker_deaths"]
    figures.add(
        "clients gone: resets, of them found in the queue",
        f"{len(moments) * 100 * max(1, times // 300)}, {cancelled:.0f}",
    )
    figures.at_most("clients gone: gauges at 0, worst", worst_s, 1.0, "s")
    figures.exactly("clients gone: answer afterwards", status, 200)
    figures.exactly("clients gone: deaths of the worker", deaths, 0)
    figures.at_most("clients gone: open files, more than before", after[1] - before[1], 8)
    figures.at_most("clients gone: threads, more than before", after[2] - before[2], 2)
    figures.at_most("clients gone: memory grown", after[0] - before[0], 32, "MiB")


def small_requests(home: Home, scratch: Path, figures: Figures, *, count: int) -> None:
    """Many requests over few connections, and over many."""
    request, _ = binary_request("tiny", 1)
    file = scratch / "small.request"
    file.write_bytes(request)
    generator = Generator(CACHE, core=None)
    with Rig(home, "tiny", log=scratch / "small.log") as rig:
        until(lambda: rig.control("/readyz")[0] == 200)
        generator.run(rig.address, file, connections=32, seconds=3)
        worker = rig.workers()[0]
        before = (rig.rss_mb(), rig.rss_mb(worker), rig.fds(), rig.threads())
        done = 0
        while done < count:
            load = generator.run(rig.address, file, connections=32, seconds=4, warm_up=0.1)
            assert load.all_ok, load.statuses
            done += load.statuses["ok"]
        time.sleep(0.5)
        after = (rig.rss_mb(), rig.rss_mb(worker), rig.fds(), rig.threads())
    figures.add("small requests", done)
    figures.at_most("small requests: server's memory grown", after[0] - before[0], 10, "MiB")
    figures.at_most("small requests: worker's memory grown", after[1] - before[1], 10, "MiB")
    figures.at_most("small requests: open files, threads grown", max(after[2] - before[2], after[3] - before[3]), 2)


def measure(quick: bool, figures: Figures) -> None:
    """Run all three."""
    with scratch_home() as (home, scratch):
        release(home, "heavy", network(3, width=1024, layers=6))
        release(home, "tiny", network(4, width=16, layers=1))
        reloads(home, scratch, figures, cycles=8 if quick else 50)
        disconnects(home, scratch, figures, times=300 if quick else 3000)
        small_requests(home, scratch, figures, count=10_000 if quick else 100_000)


if __name__ == "__main__":
    run_script(measure, __doc__)
