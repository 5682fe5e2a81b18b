"""A released model of a few weights, and a server whose answers a test writes down beforehand."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lightship.bundle.arrays import npy_from_array
from lightship.bundle.build import build_bundle
from lightship.bundle.manifest import Expected, Golden, TaskRef, Variant
from lightship.bundle.release import Release, sign_release
from lightship.bundle.signing import PrivateKey, TrustStore
from lightship.bundle.statement import Evidence, sign_evidence
from lightship.bundle.store import BlobStore
from lightship.data.files import sha256_hex
from lightship.data.home import Home
from lightship.registry.database import open_database
from lightship.registry.records import EvidenceRow
from lightship.tasks.image_classification import ImageClassification
from lightship.types import Interface, Verdict

CREATED = "2026-03-01T12:00:00Z"
SIDE = 8
TASK = ImageClassification(("dark", "middle", "light"), 1, SIDE, SIDE, mean=("0.5",), std=("0.5",))


def graph() -> bytes:
    """Return a graph whose logits are -4, 0 and 4 times the mean of the tensor: dark, middle or light."""
    weight = np.outer(np.full(SIDE * SIDE, 1 / SIDE**2), [-4.0, 0.0, 4.0]).astype(np.float32)
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "weight"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["logits"]),
    ]
    shapes = [("image", ["batch", 1, SIDE, SIDE]), ("logits", ["batch", 3])]
    image, logits = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes)
    constants = [
        numpy_helper.from_array(weight, "weight"),
        numpy_helper.from_array(np.array([0, 0.5, 0], np.float32), "bias"),
    ]
    model = helper.make_model(
        helper.make_graph(nodes, "brightness", [image], [logits], constants),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    return onnx.ModelProto.SerializeToString(model)


def logits_of(images: list[np.ndarray]) -> np.ndarray:
    """Return what the graph gives, computed by hand."""
    means = np.stack([TASK.encode(image)["image"] for image in images]).mean(axis=(1, 2, 3))
    return (means[:, None] * [-4.0, 0.0, 4.0] + [0, 0.5, 0]).astype(np.float32)


def gray(value: int) -> np.ndarray:
    """Return an image of one shade."""
    return np.full((SIDE, SIDE), value, np.uint8)


def release(
    home: Home,
    *,
    name: str = "shades",
    config: dict | None = None,
    golden: np.ndarray | None = None,
    proposed: Variant | None = None,
) -> None:
    """Release the model into ``home``: bundle, signed evidence, signed record, version.

    Args:
        home: where to.
        name: in the registry.
        config: the task's configuration, if another than ``TASK``'s.
        golden: recorded logits, if others than the right ones.
        proposed: a variant that is the default, of the same graph; then ``golden`` is its own.
    """
    store, key = BlobStore(home.ensure().store), PrivateKey.load_or_create(home.keys)
    TrustStore(home.trust).add_local(key)
    examples = [gray(value) for value in (0, 120, 255)]
    contents = {f"golden/{index}.png": TASK.golden(image)[1] for index, image in enumerate(examples)}
    inputs = tuple(contents)
    contents["variants/reference/model.onnx"] = graph()
    recorded = logits_of(examples) if golden is None else golden
    contents["golden/logits.npy"] = npy_from_array(logits_of(examples) if proposed is not None else recorded)
    variants = [Variant("reference", "onnxruntime", "variants/reference/model.onnx", "fp32", {"threads": 1}, ())]
    expected = {"reference": Expected({"logits": "golden/logits.npy"}, "0.0001")}
    if proposed is not None:
        contents |= {proposed.graph: graph(), "golden/proposed.npy": npy_from_array(recorded)}
        variants.append(proposed)
        expected[proposed.name] = Expected({"logits": "golden/proposed.npy"}, "0.0001")
    manifest = build_bundle(
        store,
        task=TaskRef(TASK.name, TASK.codec_version, config or TASK.config()),
        interface=Interface(TASK.inputs, TASK.outputs, proven={"batch": (1, 5)}),
        variants=sorted(variants, key=lambda variant: variant.name),
        default=variants[-1].name,
        golden=Golden(inputs, expected),
        lineage={},
        contents=contents,
    )
    evidence = Evidence("accuracy", Verdict.PASSED, {"reference": sha256_hex(graph())}, "all right", {}, {})
    proof = store.put(sign_evidence(evidence, key=key, created=CREATED, machine={}))

    def record(version: int) -> str:
        signed = Release(name, version, manifest.digest, (("accuracy", proof),), {}, CREATED, "passed")
        return store.put(sign_release(signed, key=key))

    with open_database(home) as registry:
        registry.add_version(
            name,
            bundle=manifest.digest,
            release=record,
            who="ada",
            evidence=[EvidenceRow("accuracy", Verdict.PASSED, "all right", proof)],
        )


@pytest.fixture(scope="session")
def shared_home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """Return a home with the model ``shades:1``; tests must not change it."""
    home = Home(tmp_path_factory.mktemp("apply") / "home")
    release(home)
    return home


@dataclass
class Request:
    """What the server got."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Script:
    """A server's answers in order, the last one again and again, and the requests that it got.

    An answer is (status, headers, body); ``"reset"`` cuts the connection, ``"hang"`` waits until the test ends, and
    ``"drip"`` sends a header and then a byte at a time.
    """

    answers: list[object]
    url: str = ""
    requests: list[Request] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def next(self) -> object:
        """Return the answer to the next request."""
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def json_answer(value: object, status: int = 200, **headers: str) -> tuple[int, dict[str, str], bytes]:
    """Return an answer in JSON; ``retry_after="1"`` becomes the header ``retry-after``."""
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    return status, {"content-type": "application/json", **named}, json.dumps(value).encode()


GOOD = json_answer(
    {"label": "7", "probability": 0.9, "probabilities": {"7": 0.9, "1": 0.1}, "model": "digits", "version": 3},
    x_request_id="abc",
)


def _handler(script: Script) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            script.requests.append(Request(self.command, self.path, headers, body))
            answer = script.next()
            if callable(answer):
                answer = answer(script.requests[-1])
            if answer == "reset":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
                self.close_connection = True
            elif answer == "hang":
                script.over.wait(20)
                self.close_connection = True
            elif answer == "drip":
                self._drip()
            else:
                self._send(*answer)

        do_GET = do_POST = _answer  # noqa: N815 - the names that http.server calls

        def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _drip(self) -> None:
            self.send_response(200)
            self.send_header("content-length", "1000")
            self.end_headers()
            self.close_connection = True
            while not script.over.wait(0.02):
                try:
                    self.wfile.write(b" ")
                except OSError:
                    return

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name that http.server gives
            """Say nothing."""

    return Handler


class _Server(ThreadingHTTPServer):
    request_queue_size = 128  # the default, 5, resets connections of a client that opens 20 at once


@contextmanager
def _serving(script: Script) -> Iterator[Script]:
    with _Server(("127.0.0.1", 0), _handler(script)) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        script.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield script
        finally:
            script.over.set()
            server.shutdown()
            thread.join()


@pytest.fixture
def serve() -> Iterator[Callable[..., Script]]:
    """Return a function that starts a server with these answers and returns its script."""
    from contextlib import ExitStack

    with ExitStack() as stack:
        yield lambda *answers: stack.enter_context(_serving(Script(list(answers))))


@pytest.fixture
def png(tmp_path: Path) -> Path:
    """Return the path of a light PNG."""
    path = tmp_path / "light.png"
    path.write_bytes(TASK.golden(gray(250))[1])
    return path


@pytest.fixture
def free_url() -> str:
    """Return an address at which nothing listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


@contextmanager
def start_server(home: Home, name: str, *, log: Path, grpc: bool = False) -> Iterator[tuple[str, Path]]:
    """Serve a model as its own process; give (address, file with a key); the address is that of HTTP or of gRPC."""
    environment = {**os.environ, "LIGHTSHIP_HOME": str(home.root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "lightship.cli.main", "serve", name, "--port", "0", "--json"]
    command += ["--grpc-port", "0"] if grpc else []
    with (
        log.open("w") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment) as process,
    ):
        try:
            said = process.stdout.readline()
            assert said, log.read_text()
            found = json.loads(said)
            yield f"grpc://{found['grpc_url']}" if grpc else found["url"], home.keys / "default.key"
        finally:
            process.terminate()
            process.wait(timeout=20)
