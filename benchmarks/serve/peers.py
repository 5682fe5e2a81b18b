"""Other servers on the same graph, core and floor, in turns with ours: mosec and a lean FastAPI.

    python benchmarks/serve/peers.py --model tiny --wire json

Each speaks its own format: an object of flat lists in JSON, or the bytes of the tensor; ours speaks V2, which says
names, shapes and dtypes as well. They are installed, in fixed versions, into an environment of their own.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from floor import Floor, bare_session
from graphs import Subject, build_subject
from load import Generator
from server import ProcessTree, Server, release
from share_of_floor import CACHE, HEADER, Plan, Target, best_batches, say, take_turns
from wires import WIRES, Question, check_answers, question

from lightship.data.home import Home
from lightship.engine.machine import fingerprint

PACKAGES = (
    "mosec==0.9.8",
    "fastapi==0.165.0",
    "uvicorn==0.54.0",
    "uvloop==0.23.0",
    "httptools==0.9.0",
    "orjson==3.13.0",
)
SHARED = ("onnxruntime", "numpy")  # in the versions that run here
PEERS = ("mosec", "fastapi")
START_S = 60.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["tiny", "minilm", "resnet18"], default="tiny")
    parser.add_argument("--wire", choices=WIRES, action="append", help="default: both; json only for minilm")
    parser.add_argument("--connections", default="8,32")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--server-core", type=int, default=1)
    parser.add_argument("--load-core", type=int, default=0)
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {arguments.load_core})
    plan = Plan(
        wires=("json",) if arguments.model == "minilm" else tuple(arguments.wire or WIRES),
        connections=tuple(int(part) for part in arguments.connections.split(",")),
        pairs=arguments.pairs,
        seconds=arguments.seconds,
        server_core=arguments.server_core,
        load_core=arguments.load_core,
    )
    python = environment(arguments.cache)
    subject = build_subject(arguments.model, cache=arguments.cache)
    with tempfile.TemporaryDirectory(prefix="lightship-bench-") as scratch:
        rows = measure(subject, plan, python, Path(scratch), cache=arguments.cache)
    if arguments.json:
        report = {"plan": asdict(plan), "machine": fingerprint(), "packages": PACKAGES, "rows": rows}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


def environment(cache: Path) -> Path:
    """Return the interpreter of the peers' environment; make it the first time."""
    from importlib.metadata import version

    packages = (*PACKAGES, *(f"{name}=={version(name)}" for name in SHARED))
    folder = cache / "peers"
    python, done = folder / "bin" / "python", folder / "packages"
    if not done.exists() or done.read_text() != "\n".join(packages):
        subprocess.run((sys.executable, "-m", "venv", "--clear", str(folder)), check=True)
        subprocess.run((str(python), "-m", "pip", "install", "-qq", *packages), check=True)
        done.write_text("\n".join(packages))
    return python


def measure(subject: Subject, plan: Plan, python: Path, scratch: Path, *, cache: Path) -> list[dict[str, Any]]:
    """Start all servers, check their answers, measure them in turns."""
    home = Home(scratch / "home").ensure()
    release(home, subject)
    graph, inputs = scratch / "graph.onnx", scratch / "inputs.npz"
    graph.write_bytes(subject.graph)
    np.savez(inputs, **subject.row(0))
    generator = Generator(cache, core=plan.load_core)
    rows: list[dict[str, Any]] = []
    with (
        Floor(graph, inputs, core=plan.server_core) as floor,
        Server(home, subject.name, core=plan.server_core, log=scratch / "serve.log") as server,
    ):
        batches = best_batches(floor, subject, plan)
        say(HEADER)
        for wire in plan.wires:
            with ExitStack() as stack:
                ours = scratch / f"{wire}.lightship"
                ours.write_bytes(question(subject.name, subject.row(0), wire).bytes("127.0.0.1"))
                targets = [Target("lightship", server.address, ours, server.tree.cpu_s)]
                check(subject, server.address, lambda row, wire=wire: question(subject.name, row, wire))
                for name in PEERS:
                    address, tree = stack.enter_context(peer(name, python, graph, wire, plan, scratch))
                    check(subject, address, lambda row, wire=wire: peer_question(row, wire))
                    request = scratch / f"{wire}.{name}"
                    request.write_bytes(peer_question(subject.row(0), wire).bytes("127.0.0.1"))
                    targets.append(Target(name, address, request, tree.cpu_s))
                rows += take_turns(subject.name, wire, targets, plan, floor, batches, generator)
    return rows


class PeerQuestion(Question):
    """A request to a peer: the answer is a flat list or the bytes."""

    def read(self, headers: Mapping[str, str], body: bytes) -> np.ndarray:  # noqa: ARG002 - the wire names no shape
        """Return one row."""
        if "octet" in self.headers["Content-Type"]:
            return np.frombuffer(body, np.float32)[None]
        return np.array(json.loads(body)["data"], np.float32)[None]


def peer_question(row: Mapping[str, np.ndarray], wire: str) -> Question:
    """Return one row in a peer's own format."""
    if wire == "binary":
        (value,) = row.values()
        return PeerQuestion("/inference", {"Content-Type": "application/octet-stream"}, value.tobytes())
    flat = {
        name: [round(number, 4) for number in value.ravel().tolist()] if value.dtype.kind == "f" else value[0].tolist()
        for name, value in row.items()
    }
    body = json.dumps(flat, separators=(",", ":")).encode()
    return PeerQuestion("/inference", {"Content-Type": "application/json"}, body)


def check(subject: Subject, address: tuple[str, int], ask: Any) -> None:
    """Hold 16 answers against the engine's."""
    session = bare_session(subject.graph)
    inputs = [subject.row(seed) for seed in range(16)]
    check_answers(address, [(ask(row), session.run(None, row)[0]) for row in inputs])


@contextmanager
def peer(
    name: str, python: Path, graph: Path, wire: str, plan: Plan, scratch: Path
) -> Iterator[tuple[tuple[str, int], ProcessTree]]:
    """Start a peer on the server's core and wait until it answers."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    script = str(Path(__file__).parent / "peers" / f"{name}_peer.py")
    arguments = ("--port", str(port), "--address", "127.0.0.1") if name == "mosec" else (str(port),)
    log = (scratch / f"{name}.log").open("w")
    process = subprocess.Popen(
        ("taskset", "-c", str(plan.server_core), str(python), script, *arguments),
        env={**os.environ, "PEER_GRAPH": str(graph), "PEER_WIRE": wire},
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    try:
        wait_for(("127.0.0.1", port), process)
        yield ("127.0.0.1", port), ProcessTree(process.pid)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)
        log.close()


def wait_for(address: tuple[str, int], process: subprocess.Popen[bytes]) -> None:
    """Wait until something answers any HTTP request there."""
    until = time.monotonic() + START_S
    while time.monotonic() < until and process.poll() is None:
        connection = http.client.HTTPConnection(*address, timeout=5)
        try:
            connection.request("GET", "/")
            connection.getresponse().read()
        except OSError:
            time.sleep(0.1)
        else:
            time.sleep(1)  # mosec listens before its worker has loaded
            return
        finally:
            connection.close()
    raise RuntimeError(f"The peer does not answer at {address}.")


if __name__ == "__main__":
    main()
