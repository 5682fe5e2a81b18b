"""Graphs as others export them: written down by hand, small, and real to the engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lightship.data.home import Home

Shape = Sequence[int | str | None] | None


def info(name: str, shape: Shape, dtype: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    """Return the declaration of an input or output; a shape of None declares none."""
    return helper.make_tensor_value_info(name, dtype, shape)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    weights: Mapping[str, np.ndarray] | None = None,
    functions: Sequence[onnx.FunctionProto] = (),
    domains: Sequence[str] = (),
) -> bytes:
    """Return the bytes of an ONNX file."""
    tensors = [numpy_helper.from_array(value, name) for name, value in (weights or {}).items()]
    graph = helper.make_graph(list(nodes), "g", list(inputs), list(outputs), tensors)
    opsets = [helper.make_opsetid(domain, 3) for domain in domains]
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18), *opsets], ir_version=10, functions=list(functions)
    ).SerializeToString()


def node(op: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: object) -> onnx.NodeProto:
    """Return one operator."""
    return helper.make_node(op, list(inputs), list(outputs), **attributes)


def linear(batch: str | int | None = "N", *, features: int = 4) -> bytes:
    """Return ``y = x W`` with a first dimension of that name."""
    weight = np.random.default_rng(1).normal(size=(features, 2)).astype(np.float32)
    return model(
        [node("MatMul", ["x", "w"], ["y"])], [info("x", [batch, features])], [info("y", [batch, 2])], {"w": weight}
    )


def attention(batch: str = "batch_size", sequence: str = "seq", *, vocabulary: int = 120) -> bytes:
    """Return a graph of token ids and a mask, with attention over the tokens, as small as such a thing is."""
    rng = np.random.default_rng(3)
    weights = {
        "table": rng.normal(size=(vocabulary, 8)).astype(np.float32),
        "one": np.float32(1),
        "far": np.float32(-1e9),
        "axis": np.array([1], np.int64),
    }
    nodes = [
        node("Gather", ["table", "input_ids"], ["e"]),
        node("Transpose", ["e"], ["et"], perm=[0, 2, 1]),
        node("MatMul", ["e", "et"], ["scores"]),
        node("Cast", ["attention_mask"], ["m"], to=TensorProto.FLOAT),
        node("Sub", ["one", "m"], ["off"]),
        node("Mul", ["off", "far"], ["bias"]),
        node("Unsqueeze", ["bias", "axis"], ["b"]),
        node("Add", ["scores", "b"], ["s"]),
        node("Softmax", ["s"], ["p"], axis=-1),
        node("MatMul", ["p", "e"], ["hidden"]),
        node("ReduceMean", ["hidden", "axis"], ["pooled"], keepdims=0),
    ]
    tokens = [info(name, [batch, sequence], TensorProto.INT64) for name in ("input_ids", "attention_mask")]
    outputs = [info("hidden", [batch, sequence, 8]), info("pooled", [batch, 8])]
    return model(nodes, tokens, outputs, weights)


def texts() -> bytes:
    """Return texts and numbers in, the texts' group and a sum out, as a scikit-learn pipeline looks."""
    nodes = [
        node(
            "LabelEncoder",
            ["city"],
            ["group"],
            domain="ai.onnx.ml",
            keys_strings=["a", "yes"],
            values_strings=["first", "second"],
            default_string="third",
        ),
        node("ReduceSum", ["size", "axis"], ["total"], keepdims=1),
    ]
    return model(
        nodes,
        [info("city", ["N"], TensorProto.STRING), info("size", ["N", 3])],
        [info("group", ["N"], TensorProto.STRING), info("total", ["N", 1])],
        {"axis": np.array([1], np.int64)},
        domains=["ai.onnx.ml"],
    )


@pytest.fixture
def home(tmp_path, monkeypatch) -> Home:
    """Return an empty home, which is the environment's too."""
    made = Home(tmp_path / "home")
    monkeypatch.setenv("LIGHTSHIP_HOME", str(made.root))
    return made


@pytest.fixture
def write(tmp_path) -> Callable[[bytes], object]:
    """Return a function that writes a file and gives its path."""

    def go(data: bytes, name: str = "model.onnx"):
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return go
