"""How far golden answers may be off elsewhere."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from lightship.pipeline.tolerance import decimal_text, golden_answers


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (1.0, "1.0"), (4.21e-05, "0.000043"), (0.1, "0.11"), (12.34, "13"), (999.0, "1000")],
)
def test_decimals_are_rounded_up_and_written_plainly(value, text):
    """A tolerance never shrinks by being written, and never has an exponent."""
    assert float(decimal_text(value)) >= value
    assert "e" not in decimal_text(value).lower()
    assert float(decimal_text(value)) == pytest.approx(float(text), rel=0.2)


def test_answers_of_every_way_to_run_are_within_the_tolerance(shipped):
    """One row alone and all rows together, optimized or not: all lie within what is recorded."""
    graph = (shipped.stage("optimize") / "int8-static.onnx").read_bytes()
    images = np.random.default_rng(1).normal(size=(9, 1, 8, 8)).astype(np.float32)

    answers, tolerance = golden_answers(graph, {"image": images}, floor=1e-6)

    from lightship.engine.runner import EngineOptions, load_runner

    plain = load_runner(graph, options=EngineOptions(optimization="none"))
    alone = np.concatenate([plain.run({"image": images[i : i + 1]})["logits"] for i in range(9)])
    assert np.abs(answers["logits"] - alone).max() <= float(tolerance)
    assert onnx.load_from_string(graph).graph.output[0].name == "logits"


def test_floor_is_kept(shipped):
    """A graph without any spread still has the tolerance of the reference."""
    graph = (shipped.stage("train") / "reference.onnx").read_bytes()
    images = np.zeros((2, 1, 8, 8), dtype=np.float32)

    assert float(golden_answers(graph, {"image": images}, floor=0.5)[1]) >= 0.5


def test_another_engine_and_inputs_of_any_name_are_recorded_as_they_run():
    """Two inputs, two outputs, in OpenVINO, which has no optimization levels: what it answers within the tolerance."""
    shape = ["batch", 64]
    infos = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in ("a", "b", "sum", "p")]
    nodes = [onnx.helper.make_node("Add", ["a", "b"], ["sum"]), onnx.helper.make_node("Softmax", ["sum"], ["p"])]
    body = onnx.helper.make_graph(nodes, "g", infos[:2], infos[2:])
    graph = onnx.helper.make_model(body, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    noise = np.random.default_rng(2)
    inputs = {name: noise.normal(size=(5, 64)).astype(np.float32) for name in ("a", "b")}

    answers, tolerance = golden_answers(graph.SerializeToString(), inputs, floor=1e-6, engine="openvino")

    exact = inputs["a"].astype(np.float64) + inputs["b"]
    np.testing.assert_allclose(answers["sum"], exact, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(answers["p"], np.exp(exact) / np.exp(exact).sum(1, keepdims=True), rtol=1e-4)
    assert 1e-6 <= float(tolerance) < 1e-4
