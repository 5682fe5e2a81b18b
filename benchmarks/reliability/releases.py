"""Releases for the reliability scripts: small image models of different weights, good, broken, and traps."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from lightship.bundle.arrays import npy_from_array
from lightship.bundle.build import build_bundle
from lightship.bundle.manifest import Expected, Golden, TaskRef, Variant
from lightship.bundle.release import Release, sign_release
from lightship.bundle.signing import PrivateKey, TrustStore
from lightship.bundle.store import BlobStore
from lightship.data.home import Home
from lightship.engine.runner import load_runner
from lightship.registry.database import open_database
from lightship.tasks.image_classification import ImageClassification
from lightship.tasks.image_pixels import png_bytes
from lightship.types import Interface

__all__ = [
    "BLACK",
    "PROVEN_BATCH",
    "TASK",
    "deadly",
    "endless",
    "gray",
    "greedy",
    "hungry",
    "image",
    "import_graph",
    "network",
    "promote",
    "release",
    "release_tensors",
    "rollback",
]

PROVEN_BATCH = 16
TASK = ImageClassification(
    labels=tuple("0123456789"), channels=1, height=28, width=28, mean=("0.1307",), std=("0.3081",)
)
BLACK = (0 - 0.1307) / 0.3081


def _graph(nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray]) -> bytes:
    made = helper.make_graph(
        nodes,
        "reliability",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 28, 28])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def network(seed: int, *, width: int = 256, layers: int = 2) -> bytes:
    """Return a dense network 1x28x28 -> 10; its seed makes its weights, its width and layers its cost."""
    rng = np.random.default_rng(seed)
    nodes, x, size = [helper.make_node("Flatten", ["image"], ["x0"], axis=1)], "x0", 784
    weights = {}
    for layer in range(layers):
        weights[f"w{layer}"] = rng.normal(0, (2 / size) ** 0.5, (size, width)).astype(np.float32)
        nodes.append(helper.make_node("MatMul", [x, f"w{layer}"], [f"m{layer}"]))
        nodes.append(helper.make_node("Relu", [f"m{layer}"], [f"x{layer + 1}"]))
        x, size = f"x{layer + 1}", width
    weights["last"] = rng.normal(0, (2 / size) ** 0.5, (size, 10)).astype(np.float32)
    nodes.append(helper.make_node("MatMul", [x, "last"], ["logits"]))
    return _graph(nodes, weights)


_HEAD = (
    helper.make_node("Flatten", ["image"], ["flat"], axis=1),
    helper.make_node("MatMul", ["flat", "dense"], ["plain"]),
    helper.make_node("ReduceMax", ["image"], ["top"], axes=[1, 2, 3], keepdims=0),
    helper.make_node("Sub", ["top", "black"], ["off"]),
)


def _trap(nodes: Sequence[onnx.NodeProto], constants: dict[str, np.ndarray]) -> bytes:
    common = {
        "dense": np.random.default_rng(7).normal(0, 0.05, (784, 10)).astype(np.float32),
        "black": np.float32(BLACK),
        "zero": np.float32(0),
        "column": np.array([1], np.int64),
    }
    return _graph([*_HEAD, *nodes], common | constants)


def deadly() -> bytes:
    """Return a graph whose process ends on a black image: the least int32 modulo -1 is the processor's own trap."""
    return _trap(
        [
            helper.make_node("Mul", ["off", "hundred"], ["scaled"]),
            helper.make_node("Cast", ["scaled"], ["whole"], to=TensorProto.INT32),
            helper.make_node("Mul", ["whole", "two"], ["even"]),
            helper.make_node("Sub", ["even", "one"], ["odd"]),
            helper.make_node("Mod", ["least_int", "odd"], ["parts"]),
            helper.make_node("Cast", ["parts"], ["float"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["float", "zero"], ["nothing"]),
            helper.make_node("Unsqueeze", ["nothing", "column"], ["wide"]),
            helper.make_node("Add", ["plain", "wide"], ["logits"]),
        ],
        {
            "hundred": np.float32(100),
            "one": np.int32(1),
            "two": np.int32(2),
            "least_int": np.int32(-(2**31)),
        },
    )


def hungry(size_bytes: int = 3 << 30) -> bytes:
    """Return a graph that needs that much memory for any input: it does not fit beside others."""
    return _trap(
        [
            helper.make_node("Expand", ["cell", "size"], ["filled"]),
            helper.make_node("Add", ["filled", "top"], ["own"]),  # so that it is not folded away when it is loaded
            helper.make_node("ReduceMin", ["own"], ["least"], keepdims=0),
            helper.make_node("Mul", ["least", "zero"], ["nothing"]),
            helper.make_node("Add", ["plain", "nothing"], ["logits"]),
        ],
        {"size": np.array([size_bytes // 4, 1], np.int64), "cell": np.ones((1, 1), np.float32)},
    )


def endless() -> bytes:
    """Return a graph that loops for minutes on a black image."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Cos", ["x"], ["y"])],
        "body",
        [
            helper.make_tensor_value_info("round", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, []),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, []),
        ],
    )
    return _trap(
        [
            helper.make_node("ReduceMin", ["off"], ["least"], keepdims=0),
            helper.make_node("Less", ["least", "little"], ["is_black"]),
            helper.make_node("Where", ["is_black", "long", "short"], ["rounds"]),
            helper.make_node("Loop", ["rounds", "yes", "zero"], ["turned"], body=body),
            helper.make_node("Mul", ["turned", "zero"], ["nothing"]),
            helper.make_node("Add", ["plain", "nothing"], ["logits"]),
        ],
        {"little": np.float32(0.01), "long": np.int64(1 << 62), "short": np.int64(1), "yes": np.bool_(True)},
    )


def greedy() -> bytes:
    """Return a graph that wants 400 GB for a black image."""
    return _trap(
        [
            helper.make_node("ReduceMin", ["off"], ["least"], keepdims=0),
            helper.make_node("Less", ["least", "little"], ["is_black"]),
            helper.make_node("Where", ["is_black", "huge", "column"], ["size"]),
            helper.make_node("Expand", ["cell", "size"], ["filled"]),
            helper.make_node("ReduceMax", ["filled"], ["most"], keepdims=0),
            helper.make_node("Mul", ["most", "zero"], ["nothing"]),
            helper.make_node("Add", ["plain", "nothing"], ["logits"]),
        ],
        {"little": np.float32(0.01), "huge": np.array([10**11], np.int64), "cell": np.ones(1, np.float32)},
    )


def image(seed: int) -> np.ndarray:
    """Return a gray image of blocks, uint8 (28, 28, 1)."""
    blocks = np.random.default_rng(seed).integers(1, 256, (7, 7), dtype=np.uint8)
    return np.kron(blocks, np.ones((4, 4), dtype=np.uint8))[:, :, None]


def gray(value: int) -> np.ndarray:
    """Return an image of one gray."""
    return np.full((28, 28, 1), value, np.uint8)


def release(home: Home, name: str, graph: bytes, *, expected_of: bytes | None = None) -> int:
    """Put a signed release into a home and return its version.

    Args:
        expected_of: the graph whose answers are written down as golden. Another one than ``graph`` makes a release
            that verifies and fails its self-test.
    """
    files = [png_bytes(image(seed)) for seed in range(3)]
    judge = load_runner(expected_of or graph)
    rows = [judge.run({"image": TASK.encode(file)["image"][None]})["logits"][0] for file in files]
    contents = {"variants/reference/model.onnx": graph, "golden/expected/logits.npy": npy_from_array(np.stack(rows))}
    contents |= {f"golden/inputs/{index}.png": file for index, file in enumerate(files)}
    store, key = BlobStore(home.store), PrivateKey.load_or_create(home.keys)
    TrustStore(home.trust).add_local(key)
    manifest = build_bundle(
        store,
        task=TaskRef(TASK.name, TASK.codec_version, TASK.config()),
        interface=Interface(TASK.inputs, TASK.outputs, proven={"batch": (1, PROVEN_BATCH)}),
        variants=[Variant("reference", "onnxruntime", "variants/reference/model.onnx", "fp32")],
        default="reference",
        golden=Golden(
            tuple(f"golden/inputs/{index}.png" for index in range(3)),
            {"reference": Expected({"logits": "golden/expected/logits.npy"}, "0.0001")},
        ),
        lineage={"source": "reliability"},
        contents=contents,
    )

    def record(version: int) -> str:
        made = Release(name, version, manifest.digest, (), {}, "2026-01-01T00:00:00+00:00", "structural")
        return store.put(sign_release(made, key=key))

    with open_database(home) as registry:
        return registry.add_version(
            name, bundle=manifest.digest, release=record, who="reliability", accept_unproven=True
        ).version


def release_tensors(home: Home, scratch: Path) -> None:
    """Import ``pair`` (INT64 and FP32 in), ``texts`` (BYTES in) and ``table`` (rows by number), as a user does."""
    axis = numpy_helper.from_array(np.array([1], np.int64), "axis")
    fp32, int64, text = TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING
    info = helper.make_tensor_value_info
    pair = helper.make_graph(
        [
            helper.make_node("Cast", ["a"], ["af"], to=fp32),
            helper.make_node("ReduceSum", ["af", "axis"], ["sum"], keepdims=1),
            helper.make_node("Div", ["b", "sum"], ["y"]),
        ],
        "pair",
        [info("a", int64, ["N", 3]), info("b", fp32, ["N", 2])],
        [info("y", fp32, ["N", 2])],
        [axis],
    )
    texts = helper.make_graph(
        [
            helper.make_node(
                "LabelEncoder",
                ["city"],
                ["group"],
                domain="ai.onnx.ml",
                keys_strings=["a", "b"],
                values_int64s=[1, 2],
                default_int64=3,
            )
        ],
        "texts",
        [info("city", text, ["N"])],
        [info("group", int64, ["N"])],
    )
    table = helper.make_graph(
        [helper.make_node("Gather", ["rows", "at"], ["y"])],
        "table",
        [info("at", int64, ["N", 2])],
        [info("y", fp32, ["N", 2])],
        [numpy_helper.from_array(np.arange(100, dtype=np.float32), "rows")],
    )
    golden = {
        "table": {"at": np.arange(8).reshape(4, 2)},
        "pair": {"a": np.arange(1, 13).reshape(4, 3), "b": np.linspace(0, 1, 8, dtype=np.float32).reshape(4, 2)},
        "texts": {"city": np.array(["a", "b", "c", "d"])},
    }
    graphs = {"pair": pair, "texts": texts, "table": table}
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda name: import_graph(home, scratch, name, graphs[name], golden[name]), graphs))


def import_graph(
    home: Home, scratch: Path, name: str, graph: onnx.GraphProto, golden: Mapping[str, np.ndarray], *, upto: int = 16
) -> None:
    """Run ``lightship import`` on a graph."""
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
    file, rows = scratch / f"{name}.onnx", scratch / f"{name}.npz"
    file.write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString())
    np.savez(rows, **golden)
    command = (sys.executable, "-m", "lightship.cli.main", "import", str(file), "--name", name)
    options = ("--golden", str(rows), f"--upto=batch={upto}", "--accept-unproven", "--quiet")
    environment = {**os.environ, "LIGHTSHIP_HOME": str(home.root)}
    subprocess.run(command + options, env=environment, check=True, stdout=subprocess.DEVNULL)


def promote(home: Home, name: str, version: int, alias: str = "production") -> None:
    """Move an alias, as ``lightship promote`` does."""
    with open_database(home) as registry:
        registry.promote(name, version, alias, who="reliability", why="test", accept_unproven=True)


def rollback(home: Home, name: str) -> None:
    """Move the alias back, as ``lightship rollback`` does."""
    with open_database(home) as registry:
        registry.rollback(name, who="reliability", why="test")
