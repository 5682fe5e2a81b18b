"""Graphs for the tests of the engine, built node by node."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

Dims = Sequence["int | str | None"]


def build(
    nodes: Sequence[onnx.NodeProto],
    *,
    weights: dict[str, np.ndarray] | None = None,
    in_shape: Dims = ("batch", 3),
    out_shape: Dims = ("batch", 2),
    in_type: int = TensorProto.FLOAT,
    out_type: int = TensorProto.FLOAT,
    domains: Sequence[str] = (),
) -> onnx.ModelProto:
    """Return a model with one input ``x`` and one output ``y``."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", in_type, in_shape)],
        [helper.make_tensor_value_info("y", out_type, out_shape)],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    opsets = [helper.make_opsetid("", 18), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


WEIGHTS = {"w": np.arange(6, dtype=np.float32).reshape(3, 2)}


def linear(**options: object) -> onnx.ModelProto:
    """Return ``y = x @ w`` with w = [[0, 1], [2, 3], [4, 5]]."""
    return build([helper.make_node("MatMul", ["x", "w"], ["y"])], weights=WEIGHTS, **options)  # type: ignore[arg-type]


@pytest.fixture
def model() -> Callable[..., onnx.ModelProto]:
    """Build any model, see ``build``."""
    return build


@pytest.fixture
def linear_graph() -> bytes:
    """The bytes of ``y = x @ w``."""
    return linear().SerializeToString()


@pytest.fixture
def looping(model: Callable[..., onnx.ModelProto]) -> Callable[[int | None], onnx.ModelProto]:
    """Build ``y = cos(cos(... x))`` with so many rounds of a Loop; ``None``: as many as the largest ``x`` says."""

    def build_loop(rounds: int | None) -> onnx.ModelProto:
        scalars = [
            helper.make_tensor_value_info("round", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
        ]
        body = helper.make_graph(
            [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Cos", ["before"], ["after"])],
            "body",
            [*scalars, helper.make_tensor_value_info("before", TensorProto.FLOAT, None)],
            [
                helper.make_tensor_value_info("on", TensorProto.BOOL, []),
                helper.make_tensor_value_info("after", TensorProto.FLOAT, None),
            ],
        )
        loop = helper.make_node("Loop", ["rounds", "start", "x"], ["y"], body=body)
        constants = {"start": np.array(True)}
        if rounds is not None:
            constants["rounds"] = np.array(rounds, dtype=np.int64)
            return model([loop], weights=constants, out_shape=("batch", 3))
        largest = helper.make_node("ReduceMax", ["x"], ["largest"], keepdims=0)
        count = helper.make_node("Cast", ["largest"], ["rounds"], to=TensorProto.INT64)
        return model([largest, count, loop], weights=constants, out_shape=("batch", 3))

    return build_loop
