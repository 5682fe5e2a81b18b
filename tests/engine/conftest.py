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
