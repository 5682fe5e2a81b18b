"""Small models of the kinds that people bring, each with rows to run it on; every pass is tried on every one.

They are written node by node, as exporters write them, with seeded weights of the usual scale. Each holds a trap that
has broken a quantizer: batch normalization, residuals, decomposed normalization, free axes, recurrent cells, graphs
inside of graphs, old and new operator sets, odd sizes, half precision, no weights, weights that are int8 already.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["ZOO", "ZooModel", "model_of"]

Rows = dict[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class ZooModel:
    """A graph and how to make rows for it.

    Attributes:
        rows: ``rows(count, seed)`` gives that many rows of each input.
        treatable: False for what a quantizer must decline: nothing to quantize, or quantized before.
    """

    name: str
    graph: bytes
    rows: Callable[[int, int], Rows]
    treatable: bool = True


@dataclass(slots=True)
class _Graph:
    """A graph while it is being written down."""

    seed: int = 7
    loud: tuple[int, float] = (0, 1.0)
    """A channel of products' inputs and how loud it is: training makes its weights as much smaller."""
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)
    random: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)

    def const(self, value: object) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def weight(self, *shape: int, fan_in: int) -> str:
        return self.const(self.random.normal(0, fan_in**-0.5, shape).astype(np.float32))

    def vector(self, size: int, *, low: float = -0.1, high: float = 0.1) -> str:
        return self.const(self.random.uniform(low, high, size).astype(np.float32))

    def add(self, op: str, *inputs: str, to: str = "", **attributes: object) -> str:
        output = to or f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [output], name=f"/{output}", **attributes))
        return output

    def conv(
        self, x: str, size_in: int, size_out: int, kernel: int = 3, *, group: int = 1, rank: int = 2, **more
    ) -> str:
        shape = (size_out, size_in // group, *[kernel] * rank)
        weight = self.weight(*shape, fan_in=int(np.prod(shape[1:])))
        more = {"pads": [kernel // 2] * 2 * rank, "group": group} | more
        return self.add("Conv", x, weight, self.vector(size_out), **more)

    def norm(self, x: str, channels: int) -> str:
        parts = [(0.5, 1.5), (-0.2, 0.2), (-0.2, 0.2), (0.5, 1.5)]
        return self.add("BatchNormalization", x, *(self.vector(channels, low=a, high=b) for a, b in parts))

    def dense(self, x: str, size_in: int, size_out: int, *, to: str = "") -> str:
        """A product and a sum, as exporters write a linear layer of three dimensions."""
        weight = self.random.normal(0, size_in**-0.5, (size_in, size_out)).astype(np.float32)
        weight[self.loud[0]] /= self.loud[1]
        product = self.add("MatMul", x, self.const(weight))
        return self.add("Add", product, self.vector(size_out), to=to)

    def model(self, inputs: list, outputs: list, *, opset: int = 18) -> bytes:
        """Return the bytes; inputs and outputs are (name, type, shape)."""
        graph = helper.make_graph(
            self.nodes,
            "zoo",
            [helper.make_tensor_value_info(*each) for each in inputs],
            [helper.make_tensor_value_info(*each) for each in outputs],
            self.weights,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
        onnx.checker.check_model(model, full_check=True)
        return model.SerializeToString(deterministic=True)


F, I = TensorProto.FLOAT, TensorProto.INT64  # noqa: E741 - as ONNX spells them


def _floats(**shapes: tuple[int, ...]) -> Callable[[int, int], Rows]:
    def rows(count: int, seed: int) -> Rows:
        random = np.random.default_rng(seed)
        return {name: random.normal(size=(count, *shape)).astype(np.float32) for name, shape in shapes.items()}

    return rows


def _cnn() -> ZooModel:
    """Convolutions with batch normalization that was not folded, as some exporters leave it."""
    g = _Graph()
    x = "image"
    for size_in, size_out in ((3, 16), (16, 32)):
        x = g.add("Relu", g.norm(g.conv(x, size_in, size_out), size_out))
        x = g.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = g.add("Flatten", x)
    g.add("Gemm", x, g.weight(10, 32 * 4 * 4, fan_in=512), g.vector(10), transB=1, to="logits")
    return ZooModel(
        "cnn", g.model([("image", F, ["n", 3, 16, 16])], [("logits", F, ["n", 10])]), _floats(image=(3, 16, 16))
    )


def _residual() -> ZooModel:
    g = _Graph(seed=8)
    x = g.add("Relu", g.conv("image", 3, 16))
    for _ in range(2):
        y = g.conv(g.add("Relu", g.conv(x, 16, 16)), 16, 16)
        x = g.add("Relu", g.add("Add", x, y))
    x = g.add("Flatten", g.add("GlobalAveragePool", x))
    g.add("Gemm", x, g.weight(16, 5, fan_in=16), g.vector(5), to="logits")
    graph = g.model([("image", F, ["n", 3, 12, 12])], [("logits", F, ["n", 5])], opset=13)
    return ZooModel("residual", graph, _floats(image=(3, 12, 12)))


def _depthwise() -> ZooModel:
    g = _Graph(seed=9)
    low, high = g.const(np.float32(0)), g.const(np.float32(6))
    x = g.add("Clip", g.norm(g.conv("image", 3, 16, strides=[2, 2]), 16), low, high)
    x = g.add("HardSwish", g.norm(g.conv(x, 16, 16, group=16), 16))
    x = g.add("Clip", g.norm(g.conv(x, 16, 24, 1), 24), low, high)
    x = g.add("Flatten", g.add("GlobalAveragePool", x))
    g.add("Gemm", x, g.weight(24, 6, fan_in=24), g.vector(6), to="logits")
    graph = g.model([("image", F, ["n", 3, 16, 16])], [("logits", F, ["n", 6])], opset=17)
    return ZooModel("depthwise", graph, _floats(image=(3, 16, 16)))


def _audio() -> ZooModel:
    """Convolutions of one dimension, any length."""
    g = _Graph(seed=10)
    x = g.add("Relu", g.conv("wave", 1, 12, 9, rank=1, strides=[2]))
    x = g.add("LeakyRelu", g.conv(x, 12, 12, 3, rank=1, dilations=[2], pads=[2, 2]), alpha=0.1)
    x = g.add("ReduceMean", x, axes=[2], keepdims=0)
    g.add("Gemm", x, g.weight(12, 4, fan_in=12), g.vector(4), to="logits")
    graph = g.model([("wave", F, ["n", 1, "samples"])], [("logits", F, ["n", 4])], opset=16)
    return ZooModel("audio", graph, _floats(wave=(1, 200)))


def _table() -> ZooModel:
    """What a converter makes of a classifier on a table: old operator set, a label and probabilities."""
    g = _Graph(seed=11)
    x = g.add("Relu", g.add("Gemm", "features", g.weight(9, 32, fan_in=9), g.vector(32)))
    x = g.add("Tanh", g.dense(x, 32, 32))
    scores = g.add("Gemm", x, g.weight(32, 3, fan_in=8), g.vector(3))
    g.add("Softmax", scores, axis=1, to="probabilities")
    g.add("ArgMax", scores, axis=1, keepdims=0, to="label")
    graph = g.model([("features", F, ["n", 9])], [("label", I, ["n"]), ("probabilities", F, ["n", 3])], opset=11)
    return ZooModel("table", graph, _floats(features=(9,)))


def _recurrent(cell: str, gates: int) -> ZooModel:
    g = _Graph(seed=12)
    steps = g.add("Transpose", "series", perm=[1, 0, 2])
    w, r = g.weight(1, gates * 16, 6, fan_in=6), g.weight(1, gates * 16, 16, fan_in=16)
    bias = g.const(g.random.uniform(-0.1, 0.1, (1, 2 * gates * 16)).astype(np.float32))
    more = {"linear_before_reset": 1} if cell == "GRU" else {}
    g.nodes.append(
        helper.make_node(cell, [steps, w, r, bias], ["", "last"], name=f"/{cell.lower()}", hidden_size=16, **more)
    )
    x = g.add("Squeeze", "last", g.const(np.array([0], np.int64)))
    g.add("Gemm", x, g.weight(16, 4, fan_in=16), g.vector(4), to="logits")
    graph = g.model([("series", F, ["n", "steps", 6])], [("logits", F, ["n", 4])], opset=14)
    return ZooModel(cell.lower(), graph, _floats(series=(20, 6)))


def _attention(g: _Graph, x: str, width: int, heads: int, shape: str, merged: str, mask: str = "") -> str:
    """Attention as exporters write it: three products, four transposes, a scale that is a division."""
    q, k, v = (g.add("Reshape", g.dense(x, width, width), shape) for _ in range(3))
    q, v = (g.add("Transpose", t, perm=[0, 2, 1, 3]) for t in (q, v))
    k = g.add("Transpose", k, perm=[0, 2, 3, 1])
    scores = g.add("Div", g.add("MatMul", q, k), g.const(np.float32((width / heads) ** 0.5)))
    if mask:
        scores = g.add("Add", scores, mask)
    context = g.add("MatMul", g.add("Softmax", scores, axis=-1), v)
    context = g.add("Reshape", g.add("Transpose", context, perm=[0, 2, 1, 3]), merged)
    return g.dense(context, width, width)


def _decomposed_norm(g: _Graph, x: str, width: int) -> str:
    """Layer normalization as operator sets below 17 must write it."""
    centered = g.add("Sub", x, g.add("ReduceMean", x, axes=[-1]))
    variance = g.add("ReduceMean", g.add("Pow", centered, g.const(np.float32(2))), axes=[-1])
    scale = g.add("Sqrt", g.add("Add", variance, g.const(np.float32(1e-5))))
    x = g.add("Mul", g.add("Div", centered, scale), g.vector(width, low=0.5, high=1.5))
    return g.add("Add", x, g.vector(width))


def _erf_gelu(g: _Graph, x: str) -> str:
    erf = g.add("Erf", g.add("Div", x, g.const(np.float32(2**0.5))))
    half = g.add("Mul", x, g.add("Add", erf, g.const(np.float32(1))))
    return g.add("Mul", half, g.const(np.float32(0.5)))


def _encoder() -> ZooModel:
    """A transformer over patches with everything decomposed; 60 is no multiple of the usual group sizes."""
    g, width = _Graph(seed=13), 60
    x = g.dense("patches", 24, width)
    shape, merged = g.const(np.array([0, 0, 4, 15], np.int64)), g.const(np.array([0, 0, width], np.int64))
    for _ in range(2):
        x = g.add("Add", x, _attention(g, _decomposed_norm(g, x, width), width, 4, shape, merged))
        inner = _erf_gelu(g, g.dense(_decomposed_norm(g, x, width), width, 2 * width))
        x = g.add("Add", x, g.dense(inner, 2 * width, width))
    pooled = g.add("ReduceMean", _decomposed_norm(g, x, width), axes=[1], keepdims=0)
    g.add("Gemm", pooled, g.weight(width, 10, fan_in=width), g.vector(10), to="logits")
    graph = g.model([("patches", F, ["n", 16, 24])], [("logits", F, ["n", 10])], opset=13)
    return ZooModel("encoder", graph, _floats(patches=(16, 24)))


def _embedder(name: str, loud: float) -> ZooModel:
    """A sentence model: int64 tokens of any number, a mask, mean pooling, unit length.

    One channel is huge, as in trained transformers: what is left of the rest in one range for all is noise.
    """
    g, width, vocabulary = _Graph(seed=14, loud=(5, loud)), 64, 300
    table = g.random.normal(size=(vocabulary, width)).astype(np.float32)
    x = g.add("Gather", g.const(table), "input_ids")
    scale, shift = np.ones(width, np.float32), np.zeros(width, np.float32)
    scale[5], shift[5] = loud / 4, loud
    x = g.add("LayerNormalization", x, g.const(scale), g.const(shift), axis=-1)
    seen = g.add("CastLike", "attention_mask", g.const(np.float32(0)))
    free = g.add("Unsqueeze", seen, g.const(np.array([1, 2], np.int64)))
    mask = g.add("Mul", g.add("Sub", g.const(np.float32(1)), free), g.const(np.float32(-1e4)))
    shape, merged = g.const(np.array([0, 0, 4, 16], np.int64)), g.const(np.array([0, 0, width], np.int64))
    for _ in range(2):
        y = _attention(g, x, width, 4, shape, merged, mask)
        x = g.add("LayerNormalization", g.add("Add", x, y), g.const(scale), g.vector(width), axis=-1)
        y = g.dense(g.add("Gelu", g.dense(x, width, 128)), 128, width)
        x = g.add("LayerNormalization", g.add("Add", x, y), g.const(scale), g.vector(width), axis=-1)
    weights = g.add("Unsqueeze", seen, g.const(np.array([2], np.int64)))
    axis = g.const(np.array([1], np.int64))
    pooled = g.add("ReduceSum", g.add("Mul", x, weights), axis, keepdims=0)
    mean = g.add("Div", pooled, g.add("ReduceSum", weights, axis, keepdims=0))
    projected = g.add("MatMul", mean, g.const(_quiet(g.random.normal(0, 0.125, (width, width)), g.loud)))
    g.add("LpNormalization", projected, axis=1, p=2, to="embedding")
    graph = g.model(
        [("input_ids", I, ["n", "tokens"]), ("attention_mask", I, ["n", "tokens"])],
        [("embedding", F, ["n", width])],
        opset=20,
    )

    def rows(count: int, seed: int) -> Rows:
        random = np.random.default_rng(seed)
        ids = random.integers(1, vocabulary, (count, 12))
        mask = (np.arange(12) < random.integers(3, 13, (count, 1))).astype(np.int64)
        return {"input_ids": ids * mask, "attention_mask": mask}

    return ZooModel(name, graph, rows)


def _quiet(weight: np.ndarray, loud: tuple[int, float]) -> np.ndarray:
    weight[loud[0]] /= loud[1]
    return weight.astype(np.float32)


def _branch() -> ZooModel:
    """An ``If`` whose branches hold weights of their own and reach for the outer graph's."""
    g = _Graph(seed=15)
    hidden = g.add("Relu", g.dense("features", 16, 32))
    shared = g.weight(32, 32, fan_in=32)

    def body(name: str, seed: int) -> onnx.GraphProto:
        inner = _Graph(seed=seed)
        x = inner.add("MatMul", inner.add("MatMul", hidden, shared), inner.weight(32, 4, fan_in=32), to=f"{name}_out")
        for tensor in inner.weights:
            tensor.name = f"{name}_{tensor.name}"
        for node in inner.nodes:
            node.input[:] = [f"{name}_{i}" if i.startswith("w") and i != shared else i for i in node.input]
            node.output[:] = [f"{name}_{o}" if not o.startswith(name) else o for o in node.output]
        inner.nodes[1].input[0] = inner.nodes[0].output[0]
        out = helper.make_tensor_value_info(x, F, ["n", 4])
        return helper.make_graph(inner.nodes, name, [], [out], inner.weights)

    mean = g.add("ReduceMean", "features", keepdims=0)
    positive = g.add("Greater", mean, g.const(np.float32(100)))
    g.nodes.append(
        helper.make_node(
            "If", [positive], ["logits"], name="/if", then_branch=body("yes", 1), else_branch=body("no", 2)
        )
    )
    return ZooModel("branch", g.model([("features", F, ["n", 16])], [("logits", F, ["n", 4])]), _floats(features=(16,)))


def _towers() -> ZooModel:
    """Two inputs of different kinds and two outputs, one of them from the middle."""
    g = _Graph(seed=16)
    picture = g.add("Flatten", g.add("Relu", g.conv("image", 1, 8, strides=[2, 2])))
    left = g.dense(picture, 8 * 4 * 4, 24)
    right = g.add("Gemm", "facts", g.weight(7, 24, fan_in=7), g.vector(24), to="facts_embedding")
    joined = g.add("Concat", g.add("Sigmoid", left), right, axis=1)
    g.add("Gemm", joined, g.weight(48, 2, fan_in=48), g.vector(2), to="score")
    graph = g.model(
        [("image", F, ["n", 1, 8, 8]), ("facts", F, ["n", 7])],
        [("score", F, ["n", 2]), ("facts_embedding", F, ["n", 24])],
        opset=21,
    )
    return ZooModel("towers", graph, _floats(image=(1, 8, 8), facts=(7,)))


def _newest() -> ZooModel:
    """The newest operator set that the engines read, with a shape that is computed and constants as nodes."""
    g = _Graph(seed=17)
    g.nodes.append(
        helper.make_node("Constant", [], ["tail"], name="/c", value=numpy_helper.from_array(np.array([-1], np.int64)))
    )
    rows = g.add("Shape", "features", start=0, end=1)
    target = g.add("Concat", rows, "tail", axis=0)
    x = g.add("Reshape", "features", target)
    x = g.add("Identity", g.add("Gelu", g.dense(x, 40, 40), approximate="tanh"))
    x = g.add("LayerNormalization", x, g.vector(40, low=0.5, high=1.5), g.vector(40))
    g.dense(x, 40, 6, to="logits")
    graph = g.model([("features", F, ["n", 5, 8])], [("logits", F, ["n", 6])], opset=23)
    return ZooModel("newest", graph, _floats(features=(5, 8)))


def _weightless() -> ZooModel:
    """Only arithmetic: there is nothing to make lighter."""
    g = _Graph(seed=18)
    x = g.add("Mul", "features", g.const(np.float32(0.5)))
    g.add("Softmax", x, axis=1, to="probabilities")
    graph = g.model([("features", F, ["n", 8])], [("probabilities", F, ["n", 8])])
    return ZooModel("weightless", graph, _floats(features=(8,)), treatable=False)


def _half() -> ZooModel:
    """Half precision inside, single at the doors."""
    g = _Graph(seed=19)
    g.nodes.append(helper.make_node("Cast", ["features"], ["half_in"], name="/in", to=TensorProto.FLOAT16))
    weight = g.const(g.random.normal(0, 0.25, (16, 16)).astype(np.float16))
    product = g.add("Relu", g.add("MatMul", "half_in", weight))
    g.nodes.append(helper.make_node("Cast", [product], ["features_out"], name="/out", to=F))
    graph = g.model([("features", F, ["n", 16])], [("features_out", F, ["n", 16])])
    return ZooModel("half", graph, _floats(features=(16,)), treatable=False)


def _quantized() -> ZooModel:
    """int8 already, in the form that engines fuse."""
    g = _Graph(seed=20)
    scale, zero = g.const(np.float32(0.03)), g.const(np.uint8(128))
    x = g.add("DequantizeLinear", g.add("QuantizeLinear", "features", scale, zero), scale, zero)
    int8 = g.const(g.random.integers(-127, 128, (16, 8)).astype(np.int8))
    w = g.add("DequantizeLinear", int8, g.const(np.full(8, 0.004, np.float32)), g.const(np.zeros(8, np.int8)), axis=1)
    g.add("MatMul", x, w, to="logits")
    graph = g.model([("features", F, ["n", 16])], [("logits", F, ["n", 8])])
    return ZooModel("quantized", graph, _floats(features=(16,)), treatable=False)


_MAKERS: Mapping[str, Callable[[], ZooModel]] = {
    "cnn": _cnn,
    "residual": _residual,
    "depthwise": _depthwise,
    "audio": _audio,
    "table": _table,
    "lstm": lambda: _recurrent("LSTM", 4),
    "gru": lambda: _recurrent("GRU", 3),
    "encoder": _encoder,
    "embedder": lambda: _embedder("embedder", 8.0),
    "outliers": lambda: _embedder("outliers", 60.0),
    "branch": _branch,
    "towers": _towers,
    "newest": _newest,
    "weightless": _weightless,
    "half": _half,
    "quantized": _quantized,
}
ZOO: tuple[str, ...] = tuple(_MAKERS)


@cache
def model_of(name: str) -> ZooModel:
    """Return the model of that name; made once in a process."""
    return _MAKERS[name]()
