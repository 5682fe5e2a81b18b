"""The work of a graph, counted by hand; the floor is never above what a call takes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lightship.optimize.floor import floor_of, work_of


def graph(nodes, inputs, outputs, weights) -> bytes:
    """Return a model of float tensors."""
    return helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
            [numpy_helper.from_array(np.zeros(shape, np.float32), name) for name, shape in weights.items()],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
    ).SerializeToString()


def test_convolution_and_product_are_counted():
    """A grouped, strided convolution, then a dense layer, at batch 2."""
    made = graph(
        [
            helper.make_node("Conv", ["x", "k"], ["c"], group=2, strides=[2, 2], pads=[1, 1, 1, 1]),
            helper.make_node("Flatten", ["c"], ["f"]),
            helper.make_node("Gemm", ["f", "w"], ["y"], transB=1),
        ],
        {"x": ["batch", 4, 8, 8]},
        {"y": ["batch", 3]},
        {"k": (6, 2, 3, 3), "w": (3, 96)},
    )

    found = work_of(made, {"x": np.zeros((2, 4, 8, 8), np.float32)})

    convolution = 2 * (2 * 6 * 4 * 4) * (2 * 3 * 3)
    product = 2 * (2 * 3) * 96
    assert found.flop == convolution + product
    assert found.read_bytes == 4 * (6 * 2 * 9 + 3 * 96 + 2 * 4 * 64 + 2 * 3)


def test_attention_product_is_counted():
    """Two activations multiplied, with leading axes."""
    made = graph(
        [helper.make_node("MatMul", ["a", "b"], ["y"])],
        {"a": ["batch", 2, "tokens", 8], "b": ["batch", 2, 8, "tokens"]},
        {"y": ["batch", 2, "tokens", "tokens"]},
        {},
    )

    found = work_of(made, {"a": np.zeros((3, 2, 5, 8), np.float32), "b": np.zeros((3, 2, 8, 5), np.float32)})

    assert found.flop == 2 * (3 * 2 * 5 * 5) * 8


@pytest.mark.parametrize("call_ms", [1e-6, 1000.0])
def test_floor_is_below_the_call(call_ms):
    """Also of a call that was quicker than the rates measured just now."""
    made = graph(
        [helper.make_node("MatMul", ["a", "w"], ["y"])], {"a": ["batch", 64]}, {"y": ["batch", 64]}, {"w": (64, 64)}
    )

    floor = floor_of(made, {"a": np.zeros((1, 64), np.float32)}, call_ms=call_ms)

    assert floor is not None
    assert 0 < floor.to_json(call_ms=call_ms)["share"] <= 1 + 1e-9


def test_graph_without_products_has_no_floor():
    """Nothing is claimed that cannot be counted."""
    made = graph([helper.make_node("Relu", ["a"], ["y"])], {"a": ["batch", 4]}, {"y": ["batch", 4]}, {})

    assert floor_of(made, {"a": np.zeros((1, 4), np.float32)}, call_ms=1.0) is None
    assert onnx.load_from_string(made).graph.node[0].op_type == "Relu"


def test_an_inner_tensor_of_unknown_rank_costs_nothing():
    """Its shape stands nowhere: it is no scalar, and a search must not end for the estimate."""
    nodes = [
        helper.make_node("Reshape", ["x", "sizes"], ["r"]),  # as many axes as another input says
        helper.make_node("MatMul", ["r", "w"], ["y"]),
    ]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4]),
        helper.make_tensor_value_info("sizes", TensorProto.INT64, ["axes"]),
    ]
    weight = numpy_helper.from_array(np.ones((4, 2), np.float32), "w")
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    made = helper.make_model(helper.make_graph(nodes, "g", inputs, outputs, [weight])).SerializeToString()

    work = work_of(made, {"x": np.ones((3, 4), np.float32), "sizes": np.array([3, 4])})

    assert work.flop == 0
