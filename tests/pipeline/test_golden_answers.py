"""What is recorded of golden answers, and how far they may be off elsewhere."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest

from lightship.bundle.arrays import array_from_npy
from lightship.bundle.store import BlobStore, StoredBundle
from lightship.data.home import Home
from lightship.engine.runner import EngineOptions, load_runner
from lightship.optimize.candidate import Candidate
from lightship.pipeline.golden_answers import decimal_text, golden_of, recorded


@pytest.mark.parametrize("value", [0.0, 1.0, 4.21e-05, 0.1, 12.34, 999.0, 9.2e-44])
def test_decimals_are_rounded_up_and_written_with_two_digits(value):
    """A tolerance never shrinks by being written, however small it is."""
    text = decimal_text(value)

    assert value <= float(text) <= value * 1.1
    assert len(text.partition("e")[0]) <= 3


def test_answers_of_every_way_to_run_are_within_the_tolerance(shipped):
    """One row alone and all rows together, optimized or not: all lie within what is recorded."""
    graph = (shipped.stage("optimize") / "int8-static.onnx").read_bytes()
    images = np.random.default_rng(1).normal(size=(9, 1, 8, 8)).astype(np.float32)

    found = golden_of(Candidate("int8-static", graph=graph), [{"image": image} for image in images], batched=True)

    plain = load_runner(graph, options=EngineOptions(optimization="none"))
    alone = np.concatenate([plain.run({"image": images[i : i + 1]})["logits"] for i in range(9)])
    together = plain.run({"image": images})["logits"]
    for answers in (alone, together):
        assert np.abs(found.answers["logits"] - answers).max() <= found.tolerance()
    assert onnx.load_from_string(graph).graph.output[0].name == "logits"


def test_a_release_has_at_least_the_tolerance_of_its_export(shipped):
    """A graph without any spread still differs from the trained model by rounding."""
    manifest = StoredBundle(BlobStore(Home(shipped.home).store), shipped.answer["bundle"]).manifest

    floor = json.loads((shipped.stage("validate") / "validated.json").read_bytes())["tolerance"]
    assert set(manifest.golden.expected) == {"reference", "int8-static"}
    assert all(float(each.tolerance) >= floor for each in manifest.golden.expected.values())


def test_another_engine_and_tensors_of_any_name_are_recorded_as_they_run():
    """Two inputs, two outputs, in OpenVINO, which has no optimization levels: what it answers within the tolerance."""
    shape = ["batch", 64]
    infos = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in ("a", "b", "/s", "p")]
    nodes = [onnx.helper.make_node("Add", ["a", "b"], ["/s"]), onnx.helper.make_node("Softmax", ["/s"], ["p"])]
    body = onnx.helper.make_graph(nodes, "g", infos[:2], infos[2:])
    graph = onnx.helper.make_model(body, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    noise = np.random.default_rng(2)
    inputs = {name: noise.normal(size=(5, 64)).astype(np.float32) for name in ("a", "b")}
    rows = [{name: array[row] for name, array in inputs.items()} for row in range(5)]
    contents: dict[str, bytes] = {}

    found = golden_of(Candidate("v", engine="openvino", graph=graph.SerializeToString()), rows, batched=True)
    expected = recorded("v", found.answers, found.tolerance(), contents=contents)

    exact = inputs["a"].astype(np.float64) + inputs["b"]
    sums, shares = (array_from_npy(contents[expected.outputs[name]], what=name) for name in ("/s", "p"))
    np.testing.assert_allclose(sums, exact, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(shares, np.exp(exact) / np.exp(exact).sum(1, keepdims=True), rtol=1e-4)
    assert set(contents) == {"golden/v/000.npy", "golden/v/001.npy"}
    assert 1e-6 <= float(expected.tolerance) < 1e-3
