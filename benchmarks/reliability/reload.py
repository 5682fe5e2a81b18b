"""Versions change under load: nothing is lost, nothing is mixed up, what fails changes nothing.

    python benchmarks/reliability/reload.py --quick     # half a minute
    python benchmarks/reliability/reload.py             # 6 min

Two versions of different weights, each question's answer of each version known beforehand from the bare engine. HTTP on
kept and on new connections, and gRPC.
"""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from releases import hungry, network, promote, release, rollback
from rig import (
    CACHE,
    Figures,
    Generator,
    Rig,
    binary_request,
    finished,
    peak_per_s,
    run_script,
    scratch_home,
    tensor_question,
    until,
)
from traffic import Traffic

from lightship.data.home import Home

NAME = "digits"
WIDTH, LAYERS = 512, 4
_LOAD = 0.7  # of the peak
_CHECKED_PER_S = 600.0
_RELOAD_S = 0.35  # about what one takes here


@dataclass
class GrpcTraffic:
    """Calls in a thread, twenty a second, each answer held against the version that it names."""

    address: str
    seed: int
    expected: dict[int, list[float]]
    failed: list[str] = field(default_factory=list)
    answered: int = 0

    def __enter__(self) -> GrpcTraffic:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        import tritonclient.grpc as triton

        _, tensor = binary_request(NAME, self.seed)
        asked = triton.InferInput("image", list(tensor.shape), "FP32")
        asked.set_data_from_numpy(tensor)
        client = triton.InferenceServerClient(self.address)
        while not self._stop.wait(0.05):
            try:
                answer = client.infer(NAME, [asked], client_timeout=10)
            except Exception as exc:  # noqa: BLE001 - whatever it is, it is a failed request
                self.failed.append(str(exc))
                continue
            version = int(answer.get_response().model_version)
            if not np.allclose(answer.as_numpy("logits").ravel(), self.expected[version], rtol=1e-3, atol=1e-3):
                self.failed.append(f"wrong for version {version}")
            self.answered += 1
        client.close()


def good_reloads(
    home: Home,
    scratch: Path,
    figures: Figures,
    *,
    reloads: int,
    graphs: dict[int, bytes],
    keep: bool,
    rate: float | None,
    steady_s: float = 4.0,
) -> None:
    """A -> B -> A under load. ``keep``: the version before stays warm, so a change is a switch; else each one loads."""
    kind = "warm" if keep else "loading"
    promote(home, NAME, 1)
    options = () if keep else ("--no-keep-previous",)
    questions = [tensor_question(NAME, seed, graphs) for seed in range(8)]
    with ExitStack() as stack:
        rig = stack.enter_context(Rig(home, NAME, "--grpc-port", "0", *options, log=scratch / f"{kind}.log"))
        bulk = None  # what the program that checks each answer cannot offer: answers are counted by their status
        if rate is None:
            peak = peak_per_s(rig, questions[0], scratch).ok_per_s
            rate = min(_LOAD * peak, _CHECKED_PER_S)
            seconds = steady_s + _RELOAD_S * reloads
            bulk_per_s = max(1.0, _LOAD * peak - rate)
            options_of = {"rate": bulk_per_s, "connections": 32, "seconds": seconds, "warm_up": 0.0, "drain": 10.0}
            bulk = Generator(CACHE, core=None).start(rig.address, scratch / "peak.request", **options_of)
        with (
            Traffic(rig.address, questions, rate=rate, connections=32, fresh=0.05) as traffic,
            GrpcTraffic(rig.grpc_address, 0, dict(questions[0].expected)) as grpc,
        ):
            time.sleep(1.0)
            started = time.monotonic()
            time.sleep(steady_s)
            begun, before_mb, before_fds = time.monotonic(), tree_mb(rig), rig.fds()
            took = []
            for index in range(reloads):
                version = 2 - index % 2
                promote(home, NAME, version)
                took.append(until(lambda v=version: rig.model(NAME)["version"] == v, every_s=0.02))
            ended = time.monotonic()
            # The old version's memory: back once it has drained and its process is gone.
            most = 2 if keep else 1
            back_s = until(lambda: len(rig.workers()) <= most, 10.0)
            time.sleep(1.0)
            after_mb, after_fds = tree_mb(rig), rig.fds()
        load = None if bulk is None else finished(bulk)
        complaints = [one for one in rig.complaints() if "root" not in one and "structural" not in one]
    during, steady = traffic.result.between(begun, ended), traffic.result.between(started, begun)
    figures.add(f"{kind}: reloads, seconds each (median, worst)", f"{reloads}, {np.median(took):.2f}, {max(took):.2f}")
    figures.add(
        f"{kind}: offered per s, requests HTTP + gRPC", f"{rate:.0f}, {len(traffic.result.records)} + {grpc.answered}"
    )
    if load is not None:
        ok, late = load.statuses["ok"], load.statuses["never_sent"]  # late: its connections were all waiting
        failed = sum(load.statuses.values()) - ok - late
        figures.add(
            f"{kind}: peak, offered beside these, answered per s", f"{peak:.0f}, {bulk_per_s:.0f}, {ok / seconds:.0f}"
        )
        figures.exactly(f"{kind}: failed of {ok + failed} beside these", failed, 0)
    figures.exactly(f"{kind}: failed HTTP requests {traffic.result.why or ''}", len(traffic.result.failed), 0)
    figures.exactly(f"{kind}: failed gRPC calls {grpc.failed[:2] or ''}", len(grpc.failed), 0)
    figures.add(
        f"{kind}: right answers by version", str(traffic.result.versions), met=len(traffic.result.versions) == 2
    )
    steady_ms, during_ms = steady.ms(0.99), during.ms(0.99)
    figures.add(f"{kind}: steady p50 / p99 ms", f"{steady.ms(0.5):.1f} / {steady_ms:.1f}")
    figures.at_most(f"{kind}: p99 during", during_ms, max(2 * steady_ms, steady_ms + 20), "ms")
    figures.at_most(f"{kind}: old process gone after the last", back_s, 5.0, "s")
    figures.add(
        f"{kind}: memory before, after (MiB), files", f"{before_mb:.0f}, {after_mb:.0f}, {before_fds} -> {after_fds}"
    )
    figures.at_most(f"{kind}: memory grown", after_mb - before_mb, 20 + (110 if keep else 0), "MiB")
    figures.exactly(f"{kind}: log complaints {complaints[:2] or ''}", len(complaints), 0)


def tree_mb(rig: Rig) -> float:
    """Return the resident memory of the server and its workers."""
    return rig.tree.memory_mb()


def failed_reloads(
    home: Home, scratch: Path, figures: Figures, *, times: int, graphs: dict[int, bytes], rate: float
) -> None:
    """Versions that must not be taken over: a flipped bit, no graph, wrong answers, too large. The old one goes on."""
    bad = {"flipped bit": release(home, NAME, network(50, width=64))}
    flip(home, network(50, width=64))
    bad["golden mismatch"] = release(home, NAME, network(51, width=64), expected_of=network(52, width=64))
    bad["does not fit"] = release(home, NAME, hungry(), expected_of=network(51, width=64))
    broken = release(home, NAME, network(53, width=64))
    truncate(home, network(53, width=64))
    bad["half a graph"] = broken
    promote(home, NAME, 1)
    questions = [tensor_question(NAME, seed, {1: graphs[1]}) for seed in range(4)]
    seen: dict[str, list[float]] = {kind: [] for kind in bad}
    reasons: dict[str, str] = {}
    with Rig(home, NAME, "--worker-memory", "1g", log=scratch / "failed.log") as rig:  # noqa: SIM117 - it outlives it
        with Traffic(rig.address, questions, rate=rate, fresh=0.05) as traffic:
            for index in range(times):
                kind = list(bad)[index % len(bad)]
                promote(home, NAME, bad[kind])
                asked = time.time()
                until(lambda v=bad[kind]: (rig.state()["references"][0]["failure"] or {}).get("version") == v)
                # Shown when the failure is known, so from that moment on.
                failure = rig.state()["references"][0]["failure"]
                seen[kind].append(time.time() - failure["at"])
                reasons[kind] = failure["reason"]
                assert time.time() - asked < 30
            promote(home, NAME, 1)
            until(lambda: rig.state()["references"][0]["failure"] is None)
            workers = len(rig.workers())
    figures.add("failed reloads", times)
    figures.exactly(f"failed: failed requests {traffic.result.why or ''}", len(traffic.result.failed), 0)
    figures.exactly("failed: versions that answered", list(traffic.result.versions), [1])
    figures.at_most("failed: reason in /models, after the failure", max(max(one) for one in seen.values()), 1.0, "s")
    for kind, reason in reasons.items():
        figures.add(f"failed: {kind}", reason[:150], met="LightshipError" not in reason and bool(reason))
    figures.exactly("failed: processes left besides the server", workers, 1)


def blob_of(home: Home, data: bytes) -> Path:
    """Return the file of some bytes in the store."""
    import hashlib

    digest = hashlib.sha256(data).hexdigest()
    return next(
        path for path in (home.store / "blobs").rglob("*") if path.is_file() and digest in str(path).replace("/", "")
    )


def flip(home: Home, graph: bytes) -> None:
    """Flip a bit of a stored graph."""
    path = blob_of(home, graph)
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(home: Home, graph: bytes) -> None:
    """Cut a stored graph in half."""
    path = blob_of(home, graph)
    path.chmod(0o644)
    path.write_bytes(graph[: len(graph) // 2])


def rollbacks(
    home: Home, scratch: Path, figures: Figures, *, times: int, graphs: dict[int, bytes], rate: float
) -> None:
    """From the command to the first answer of the old version."""
    promote(home, NAME, 1)
    questions = [tensor_question(NAME, seed, graphs) for seed in range(4)]
    moments, refs = [], []
    with Rig(home, NAME, log=scratch / "rollback.log") as rig:  # noqa: SIM117 - it outlives it
        with Traffic(rig.address, questions, rate=rate) as traffic:
            for _ in range(times):
                promote(home, NAME, 2)
                until(lambda: rig.model(NAME)["version"] == 2)
                until(lambda: any(one["state"] == "parked" for one in rig.state()["models"]))
                time.sleep(0.2)
                moments.append(time.monotonic())
                rollback(home, NAME)
                refs.append(until(lambda: rig.model(NAME)["version"] == 1))
    waits = [(traffic.result.first(1, moment) or float("inf")) - moment for moment in moments]
    figures.exactly(f"rollback: failed requests {traffic.result.why or ''}", len(traffic.result.failed), 0)
    figures.at_most(f"rollback: {times} times, worst to the first old answer", max(waits), 1.0, "s")


def measure(quick: bool, figures: Figures) -> None:
    """Run all three."""
    graphs = {1: network(1, width=WIDTH, layers=LAYERS), 2: network(2, width=WIDTH, layers=LAYERS)}
    with scratch_home() as (home, scratch):
        for graph in graphs.values():
            release(home, NAME, graph)
        rate = 100.0 if quick else None
        good_reloads(home, scratch, figures, reloads=6 if quick else 140, graphs=graphs, keep=True, rate=rate)
        good_reloads(home, scratch, figures, reloads=2 if quick else 60, graphs=graphs, keep=False, rate=rate)
        rollbacks(home, scratch, figures, times=2 if quick else 10, graphs=graphs, rate=100)
        failed_reloads(home, scratch, figures, times=4 if quick else 100, graphs=graphs, rate=100)


if __name__ == "__main__":
    run_script(measure, __doc__)
