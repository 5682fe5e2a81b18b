"""What a release says of the model's errors, and that a refusal names the layer to blame."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from lightship.errors import GateRefused
from lightship.pipeline.ship import validate


def measured(report, check):
    """Return what a report's evidence of one check measured."""
    return next(each["measured"] for each in report["evidence"] if each["check"] == check)


def test_release_tells_what_the_model_gets_wrong(shipped):
    """Slices, calibration, errors, odd values and near-duplicates stand in the release and in the report's JSON."""
    report = json.loads((shipped.run / "report.json").read_bytes())
    signed = {each["check"] for each in shipped.answer["evidence"]} if "evidence" in shipped.answer else None

    checks = {each["check"] for each in report["evidence"]}
    assert {"slices", "slice_harm", "calibration", "errors", "values"} <= checks
    assert signed is None or {"slices", "calibration", "errors", "values"} <= signed
    assert measured(report, "calibration")["temperature"] > 0
    assert measured(report, "errors")["rows"] == measured(report, "slices")["rows"]
    assert measured(report, "values")["contaminated"] == []
    assert measured(report, "data")["near_duplicates"]["rows"] == measured(report, "data")["rows"]


def test_refusal_names_the_layer_that_went_wrong(site):
    """The weights of the second convolution are in another order; the first is as it was."""
    model = onnx.load(site.stage("train") / "reference.onnx")
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    blamed = convolutions[1]
    (weights,) = (each for each in model.graph.initializer if each.name == blamed.input[1])
    array = numpy_helper.to_array(weights)
    weights.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array[::-1]), weights.name))
    path = site.folder / "given.onnx"
    path.write_bytes(model.SerializeToString())

    with pytest.raises(GateRefused, match="the first layer to go wrong is") as refused:
        validate(site.recipe, variant=path, home=site.home)

    assert repr(blamed.name or weights.name) in str(refused.value)


def test_row_that_changes_its_neighbors_is_refused(site):
    """A graph that is right on every row and subtracts what the batch has in common from all."""
    model = onnx.load(site.stage("train") / "reference.onnx")
    model.graph.node[-1].output[0] = "own"
    model.graph.initializer.append(numpy_helper.from_array(np.array([0, 1], np.int64), "all"))
    model.graph.node.extend(
        [
            helper.make_node("ReduceMax", ["own", "all"], ["top"]),
            helper.make_node("Mul", ["top", "tiny"], ["share"]),
            helper.make_node("Sub", ["own", "share"], ["logits"]),
        ]
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array(1e-12, np.float32), "tiny"))
    path = site.folder / "given.onnx"
    path.write_bytes(model.SerializeToString())

    with pytest.raises(GateRefused, match=r"values: failed, .* in image: the other rows of the batch move"):
        validate(site.recipe, variant=path, home=site.home)
