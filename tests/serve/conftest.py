"""Fixtures of the server's tests: a small real model in a real release, a real server as a process, raw sockets."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import pytest
import uvloop
from onnx import TensorProto, helper, numpy_helper

from lightship.bundle.arrays import npy_from_array
from lightship.bundle.build import build_bundle
from lightship.bundle.manifest import Expected, Golden, TaskRef, Variant
from lightship.bundle.release import Release, sign_release
from lightship.bundle.signing import PrivateKey, TrustStore
from lightship.bundle.store import BlobStore
from lightship.data.home import Home
from lightship.engine.runner import Runner, load_runner
from lightship.registry.database import open_database
from lightship.serve.access import KeyFile, Role
from lightship.tasks.image_classification import ImageClassification
from lightship.types import Interface, ValueRange

DEADLINE_S = 30.0


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run on uvloop, as the product does; the front's tests on asyncio's own loop too."""
    if item.path.name == "test_front.py":
        return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
    return {"uvloop": uvloop.new_event_loop}


PROVEN_BATCH = 8


def tiny_cnn() -> bytes:
    """Return an untrained network 1x28x28 -> 10 (convolution, rectifier, pooling, dense) of fixed weights."""
    rng = np.random.default_rng(7)
    weights = {
        "conv": rng.normal(0, 0.3, (8, 1, 5, 5)).astype(np.float32),
        "dense": rng.normal(0, 0.05, (8 * 6 * 6, 10)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["image", "conv"], ["c"]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("MaxPool", ["r"], ["p"], kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("Flatten", ["p"], ["f"], axis=1),
        helper.make_node("MatMul", ["f", "dense"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 28, 28])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def digits_task(mean: str = "0.1307") -> ImageClassification:
    """Return the task of the small model."""
    labels = tuple(str(digit) for digit in range(10))
    return ImageClassification(labels=labels, channels=1, height=28, width=28, mean=(mean,), std=("0.3081",))


def digit_image(seed: int) -> np.ndarray:
    """Return a grey image, uint8 (28, 28), of blocks: it compresses, and its logits differ from seed to seed."""
    blocks = np.random.default_rng(seed).integers(0, 256, (7, 7), dtype=np.uint8)
    return np.kron(blocks, np.ones((4, 4), dtype=np.uint8))


def release(
    home: Home,
    name: str,
    *,
    mean: str = "0.1307",
    golden_mean: str = "0.1307",
    graph: bytes | None = None,
    proposed: Variant | None = None,
    proposed_off: float = 0.0,
    values: Mapping[str, ValueRange] | None = None,
) -> int:
    """Put the small model into a home, signed, and return its version.

    With ``mean != golden_mean`` the golden outputs are those of another preprocessing than the bundle's own. A variant
    that is proposed is the default, of the same graph; ``proposed_off`` is how far its golden outputs are off.
    ``values`` are those that were proven.
    """
    graph = graph or tiny_cnn()
    runner = load_runner(graph)
    images = [digits_task().golden(digit_image(seed))[1] for seed in range(3)]
    rows = [
        runner.run({"image": digits_task(golden_mean).encode(image)["image"][None]})["logits"][0] for image in images
    ]
    task = digits_task(mean)
    contents = {"variants/reference/model.onnx": graph, "golden/expected/logits.npy": npy_from_array(np.stack(rows))}
    contents |= {f"golden/inputs/{index}.png": image for index, image in enumerate(images)}
    expected = {"reference": Expected({"logits": "golden/expected/logits.npy"}, "0.0001")}
    variants = [Variant("reference", "onnxruntime", "variants/reference/model.onnx", "fp32")]
    if proposed is not None:
        variants.append(proposed)
        contents |= {proposed.graph: graph, "golden/proposed.npy": npy_from_array(np.stack(rows) + proposed_off)}
        expected[proposed.name] = Expected({"logits": "golden/proposed.npy"}, "0.0001")
    store, key = BlobStore(home.store), PrivateKey.load_or_create(home.keys)
    TrustStore(home.trust).add_local(key)
    manifest = build_bundle(
        store,
        task=TaskRef(task.name, task.codec_version, task.config()),
        interface=Interface(task.inputs, task.outputs, proven={"batch": (1, PROVEN_BATCH)}, values=values or {}),
        variants=variants,
        default=variants[-1].name,
        golden=Golden(tuple(f"golden/inputs/{index}.png" for index in range(3)), expected),
        lineage={"source": "test"},
        contents=contents,
    )

    def record(version: int) -> str:
        made = Release(name, version, manifest.digest, (), {}, "2026-01-01T00:00:00+00:00", "structural")
        return store.put(sign_release(made, key=key))

    with open_database(home) as registry:
        return registry.add_version(
            name, bundle=manifest.digest, release=record, who="test", accept_unproven=True
        ).version


@dataclass
class RunningServer:
    """A server process and how to reach it."""

    process: subprocess.Popen[str]
    url: str
    control_url: str
    keys: dict[str, str] = field(default_factory=dict)
    log: Path = Path()
    grpc_url: str = ""

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of the data plane."""
        host, _, port = self.url.partition("://")[2].partition(":")
        return host, int(port)

    def headers(self, role: str = "infer") -> dict[str, str]:
        """Return the headers with the key of a role; none without keys."""
        return {"authorization": f"Bearer {self.keys[role]}"} if self.keys else {}


def start_server(home: Home, *arguments: str, log: Path) -> subprocess.Popen[str]:
    """Start ``lightship serve`` with the arguments, on free ports."""
    command = [sys.executable, "-m", "lightship.cli.main", "serve", *arguments, "--port", "0", "--json"]
    with log.open("w") as stderr:
        return subprocess.Popen(
            command,
            env={**os.environ, "LIGHTSHIP_HOME": str(home.root), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """Return a home with ``digits:1`` released and one key of each role."""
    made = Home(tmp_path_factory.mktemp("home") / "lightship").ensure()
    release(made, "digits")
    return made


@pytest.fixture(scope="session")
def runner() -> Runner:
    """Return the engine with the small model, called directly: what a server's answers are held against."""
    return load_runner(tiny_cnn())


@pytest.fixture(scope="session")
def task() -> ImageClassification:
    """Return the task of the small model."""
    return digits_task()


@pytest.fixture(scope="session")
def image() -> Callable[[int], np.ndarray]:
    """Return the function that draws an image by seed."""
    return digit_image


@pytest.fixture(scope="session")
def release_model() -> Callable[..., int]:
    """Return the function that puts the small model into a home."""
    return release


@pytest.fixture(scope="session")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., RunningServer]]:
    """Return a function that starts a server and waits until it is ready; all are killed at the end."""
    started: list[subprocess.Popen[str]] = []

    def go(home: Home, *arguments: str) -> RunningServer:
        log = tmp_path_factory.mktemp("serve") / "stderr.log"
        process = start_server(home, *arguments, log=log)
        started.append(process)
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, f"the server did not start: {log.read_text()}"
        said = json.loads(line)
        return RunningServer(process, said["url"], said["control_url"], log=log, grpc_url=said.get("grpc_url", ""))

    yield go
    for process in started:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait(DEADLINE_S)
        assert process.stdout is not None
        process.stdout.close()


@pytest.fixture(scope="session")
def server(home: Home, launch: Callable[..., RunningServer]) -> RunningServer:
    """Return a server of ``digits`` without keys, shared by all tests that leave it as it is."""
    return launch(home, "digits", "--auth", "none")


@pytest.fixture(scope="session")
def locked_server(home: Home, launch: Callable[..., RunningServer]) -> RunningServer:
    """Return a server of ``digits`` that asks for keys, with one key of each role."""
    keys = {str(role): KeyFile(home.keys).create(role)[1] for role in Role}
    running = launch(home, "digits", "--grpc-port", "0")
    running.keys = keys
    return running


@pytest.fixture
def connect() -> Iterator[Callable[[tuple[str, int]], socket.socket]]:
    """Return a function that opens a raw connection with a deadline."""
    opened: list[socket.socket] = []

    def go(address: tuple[str, int]) -> socket.socket:
        sock = socket.create_connection(address, timeout=DEADLINE_S)
        opened.append(sock)
        return sock

    yield go
    for sock in opened:
        sock.close()
