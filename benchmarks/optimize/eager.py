"""The benchmark's networks in PyTorch, with the weights of their ONNX files: what eager mode takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import torch
from onnx import numpy_helper
from torch import nn
from torch.nn import functional

__all__ = ["Interpreted"]


class Interpreted(nn.Module):
    """An ONNX graph run operator by operator in eager PyTorch, which is what the module it came from would do."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        graph = onnx.load(path).graph
        self.names = [value.name for value in graph.input]
        self.result = graph.output[0].name
        self.steps = [(_step(node), list(node.input), node.output[0]) for node in graph.node]
        self.weights = {w.name: torch.from_numpy(numpy_helper.to_array(w).copy()) for w in graph.initializer}

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Return the graph's first output."""
        values = {**self.weights, **dict(zip(self.names, inputs, strict=True))}
        for run, names, output in self.steps:
            values[output] = run(*(values[name] for name in names))
        return values[self.result]


def _step(node: onnx.NodeProto) -> Callable[..., torch.Tensor]:
    given = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
    return _OPERATORS[node.op_type](given)


def _conv(given: dict) -> Callable[..., torch.Tensor]:
    pads, strides = given.get("pads", [0, 0, 0, 0])[:2], given.get("strides", [1, 1])
    return lambda x, w, b=None: functional.conv2d(x, w, b, strides, pads, groups=given.get("group", 1))


def _pool(given: dict) -> Callable[..., torch.Tensor]:
    size, pads = given["kernel_shape"], given.get("pads", [0, 0, 0, 0])[:2]
    return lambda x: functional.max_pool2d(x, size, given.get("strides", [1, 1]), pads)


def _gemm(given: dict) -> Callable[..., torch.Tensor]:
    turned = bool(given.get("transB"))
    return lambda x, w, b: functional.linear(x, w if turned else w.T, b)


def _slice(_: dict) -> Callable[..., torch.Tensor]:
    return lambda x, start, end, axis: x.narrow(int(axis[0]), int(start[0]), int(end[0]) - int(start[0]))


def _reshape(_: dict) -> Callable[..., torch.Tensor]:
    return lambda x, shape: x.reshape([x.shape[i] if n == 0 else int(n) for i, n in enumerate(shape.tolist())])


_DTYPES = {onnx.TensorProto.FLOAT: torch.float32, onnx.TensorProto.INT64: torch.int64}
_OPERATORS: dict[str, Callable[[dict], Callable[..., torch.Tensor]]] = {
    "Conv": _conv,
    "MaxPool": _pool,
    "Gemm": _gemm,
    "Slice": _slice,
    "Reshape": _reshape,
    "Relu": lambda _: functional.relu,
    "GlobalAveragePool": lambda _: lambda x: functional.adaptive_avg_pool2d(x, 1),
    "Flatten": lambda _: lambda x: x.flatten(1),
    "Add": lambda _: torch.add,
    "Sub": lambda _: torch.sub,
    "Mul": lambda _: torch.mul,
    "Div": lambda _: torch.div,
    "MatMul": lambda _: torch.matmul,
    "Gather": lambda _: lambda table, index: functional.embedding(index, table),
    "Shape": lambda given: lambda x: torch.tensor(x.shape[given.get("start", 0) : given.get("end")]),
    "Cast": lambda given: lambda x: x.to(_DTYPES[given["to"]]),
    "Unsqueeze": lambda _: _unsqueezed,
    "Transpose": lambda given: lambda x: x.permute(*given["perm"]),
    "Softmax": lambda given: lambda x: functional.softmax(x, given.get("axis", -1)),
    "Gelu": lambda _: functional.gelu,
    "LayerNormalization": lambda given: lambda x, w, b: functional.layer_norm(x, w.shape, w, b, given["epsilon"]),
    "ReduceSum": lambda given: lambda x, axis: x.sum(dim=int(axis[0]), keepdim=bool(given.get("keepdims", 1))),
    "LpNormalization": lambda given: lambda x: functional.normalize(x, dim=given.get("axis", -1)),
}


def _unsqueezed(x: torch.Tensor, axes: torch.Tensor) -> torch.Tensor:
    for axis in sorted(axes.tolist()):
        x = x.unsqueeze(axis)
    return x
