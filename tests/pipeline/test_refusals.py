"""Variants that must not pass: wrecked, broken, foreign. Each is refused by name, and nothing is registered."""

from __future__ import annotations

import json
import os
import sqlite3
from contextlib import closing

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lightship.data.home import Home
from lightship.errors import GateRefused, InvalidInput, Refused
from lightship.pipeline.ship import ship, validate
from lightship.registry.database import open_database

VICTIM = 1  # the class whose weights are wrecked: "nought"


@pytest.fixture
def reference(site) -> onnx.ModelProto:
    """Return the reference graph of the shipped model."""
    return onnx.load(site.stage("train") / "reference.onnx")


def save(site, model: onnx.ModelProto, name: str = "given.onnx"):
    """Write a graph beside the recipe; return its path."""
    path = site.folder / name
    path.write_bytes(model.SerializeToString())
    return path


def change(model: onnx.ModelProto, name: str, edit) -> None:
    """Replace an initializer by what ``edit`` makes of it."""
    (tensor,) = (each for each in model.graph.initializer if each.name == name)
    tensor.CopyFrom(numpy_helper.from_array(edit(numpy_helper.to_array(tensor)).astype(np.float32), name))


def wreck_class(model: onnx.ModelProto) -> onnx.ModelProto:
    """Wreck one class in the last layer: its weights scaled to nearly nothing, its bias far below the others."""
    last = next(node for node in reversed(model.graph.node) if node.op_type == "Gemm")
    change(model, last.input[1], lambda weights: weights * np.where(np.arange(3) == VICTIM, 0.01, 1)[:, None])
    change(model, last.input[2], lambda bias: bias - np.where(np.arange(3) == VICTIM, 20, 0))
    return model


def nothing_new(site) -> bool:
    """Tell whether the registry holds what it held before: one version, and a history that agrees."""
    with open_database(Home(site.home), read_only=True) as registry:
        return len(registry.versions("shapes")) == 1 and registry.verify_history().ok


def test_wrecked_class_is_refused_by_name(site, reference):
    """The gate names the class that lost most."""
    path = save(site, wreck_class(reference))

    with pytest.raises(GateRefused, match=r"class_harm: failed, Class 'nought' lost most"):
        validate(site.recipe, variant=path, home=site.home)

    assert nothing_new(site)


def test_wrecked_class_ends_the_command_with_6(site, reference, lightship):
    """A refusal is exit code 6, with the report's path and no traceback."""
    ran = lightship("validate", site.recipe, "--variant", save(site, wreck_class(reference)), home=site.home)

    assert ran.code == 6
    assert "Class 'nought' lost most" in ran.err
    assert "decision.html" in ran.err
    assert "Traceback" not in ran.err
    assert nothing_new(site)


def test_a_refusal_tells_programs_what_the_gate_saw(site, reference, lightship):
    """With --json stdout has the decision and its evidence, as of one that is let through, and why there is no more."""
    ran = lightship("validate", site.recipe, "--variant", save(site, wreck_class(reference)), "--json", home=site.home)

    assert ran.code == 6
    found = json.loads(ran.out)
    assert set(found) >= {"verdict", "reasons", "chosen", "candidates", "evidence", "gate_looks", "stages"}
    assert (found["verdict"], found["exit_code"]) == ("failed", 6)
    verdicts = {each["check"]: each["verdict"] for each in found["evidence"]}
    assert verdicts["class_harm"] == "failed"
    assert any("nought" in reason for reason in found["reasons"])


def test_crippled_int8_scale_is_refused(site):
    """A static int8 graph whose weight scales are wrecked is refused, and the class that lost most is named."""
    model = onnx.load(site.stage("optimize") / "int8-static.onnx")
    change(model, "3.weight_scale", lambda scales: scales * np.where(np.arange(len(scales)) < 24, 60, 1))

    with pytest.raises(GateRefused, match=r"class_harm: failed, Class '(nought|a one|二)' lost most"):
        validate(site.recipe, variant=save(site, model), home=site.home)

    assert nothing_new(site)


def test_another_look_is_counted(site, reference):
    """Judging other bytes on the same gate rows is a second look, and the evidence says so."""
    path = save(site, wreck_class(reference))

    with pytest.raises(GateRefused):
        validate(site.recipe, variant=path, home=site.home)

    with closing(sqlite3.connect(Home(site.home).root / "registry.db")) as registry:
        assert registry.execute("SELECT count(*) FROM gate_looks GROUP BY fingerprint").fetchall() == [(2,)]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_answers_that_are_no_numbers_are_refused(site, reference, lightship, value):
    """NaN or infinity is never an answer, even where ``argmax`` makes a class of it."""
    name = next(each.name for each in reference.graph.initializer if each.data_type == TensorProto.FLOAT)
    change(reference, name, lambda values: np.full_like(values, value))

    ran = lightship("validate", site.recipe, "--variant", save(site, reference), home=site.home)

    assert ran.code == 6
    assert "NaN or infinity" in ran.err
    assert "Traceback" not in ran.err
    assert nothing_new(site)


def renamed_output(model: onnx.ModelProto) -> onnx.ModelProto:
    """Call the output ``scores``."""
    for node in model.graph.node:
        for place, name in enumerate(node.output):
            if name == "logits":
                node.output[place] = "scores"
    model.graph.output[0].name = "scores"
    return model


def renamed_input(model: onnx.ModelProto) -> onnx.ModelProto:
    """Call the input ``x``."""
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            if name == "image":
                node.input[place] = "x"
    model.graph.input[0].name = "x"
    return model


def fixed_batch(model: onnx.ModelProto) -> onnx.ModelProto:
    """Take one row at a time."""
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    del model.graph.value_info[:]
    return model


def more_classes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Give each class twice."""
    renamed_output(model)
    model.graph.node.append(helper.make_node("Concat", ["scores", "scores"], ["logits"], axis=1))
    model.graph.output[0].name = "logits"
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 6
    return model


@pytest.mark.parametrize("edit", [renamed_output, renamed_input, fixed_batch, more_classes])
def test_another_interface_is_refused(site, reference, lightship, edit):
    """A graph with other names, sizes or a fixed batch is refused with both interfaces."""
    ran = lightship("validate", site.recipe, "--variant", save(site, edit(reference)), home=site.home)

    assert ran.code == 2
    assert "image FP32 [?, 1, 8, 8] -> logits FP32 [?, 3]" in ran.err
    assert "This graph: " in ran.err
    assert "Traceback" not in ran.err
    assert nothing_new(site)


@pytest.mark.parametrize("data", [b"hello\n", b"", b"\x89PNG\r\n\x1a\n" + bytes(400)])
def test_file_that_is_no_graph_is_refused(site, lightship, data):
    """Text, nothing, or a picture: one clear line."""
    path = site.folder / "given.onnx"
    path.write_bytes(data)

    ran = lightship("validate", site.recipe, "--variant", path, home=site.home)

    assert ran.code == 2
    assert "no ONNX model" in ran.err or "Give the bytes of a .onnx file." in ran.err
    assert "Traceback" not in ran.err


def test_cut_off_graph_is_refused(site, lightship):
    """Half a file, as a broken download leaves it."""
    whole = (site.stage("train") / "reference.onnx").read_bytes()
    path = site.folder / "half.onnx"
    path.write_bytes(whole[: len(whole) // 2])

    ran = lightship("validate", site.recipe, "--variant", path, home=site.home)

    assert ran.code == 2
    assert "Traceback" not in ran.err


@pytest.mark.parametrize("name", ["nowhere.onnx", "."])
def test_file_that_cannot_be_read_is_refused(site, lightship, name):
    """A path that leads nowhere, or to a folder."""
    ran = lightship("validate", site.recipe, "--variant", site.folder / name, home=site.home)

    assert ran.code == 2
    assert "cannot be read" in ran.err


def test_graph_with_weights_elsewhere_is_refused(site, reference):
    """External data is somebody else's file: it is refused, not fetched."""
    path = site.folder / "external.onnx"
    onnx.save_model(reference, path, save_as_external_data=True, location="weights.bin", size_threshold=0)

    with pytest.raises(Refused, match="lies in another file"):
        validate(site.recipe, variant=path, home=site.home)

    assert nothing_new(site)


def test_good_file_passes_and_registers_nothing(site, reference):
    """Judging is not releasing: a graph that passes is said to pass, and that is all."""
    validated = validate(site.recipe, variant=save(site, reference, "mine.onnx"), home=site.home)

    assert validated.decision.released
    assert validated.chosen == "mine"
    assert nothing_new(site)


def _broken_pass(folder) -> None:
    """Install a pass that raises what passes should not, as a stranger's package might."""
    (folder / "raising_pass.py").write_text(
        "class Raising:\n"
        "    name, precision, needs_calibration = 'raising', 'fp32', False\n"
        "    lossless, default, engines = True, True, ('onnxruntime',)\n"
        "    def apply(self, graph, *, calibration):\n"
        "        raise ZeroDivisionError('by zero')\n"
    )
    info = folder / "raising_pass-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: raising-pass\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[lightship.passes]\nraising = raising_pass:Raising\n")


def test_named_variant_that_cannot_be_made_is_refused(site, tmp_path, monkeypatch):
    """The reference does not stand in for a variant that was asked for by name; the reason is in the message."""
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    _broken_pass(plugins)
    monkeypatch.syspath_prepend(plugins)
    monkeypatch.setenv("PYTHONPATH", str(plugins), prepend=os.pathsep)  # the process that makes variants
    recipe = site.write("raising.toml", ("int8-static", "raising"))

    with pytest.raises(GateRefused, match=r"raising failed: ZeroDivisionError: by zero"):
        ship(recipe, home=site.home)

    assert nothing_new(site)


def test_pass_that_raises_costs_only_its_own_variant(site, tmp_path, monkeypatch):
    """With ``auto``, a stranger's broken pass is one dropped line and the rest goes on."""
    from lightship.pipeline.ship import optimize

    plugins = tmp_path / "plugins"
    plugins.mkdir()
    _broken_pass(plugins)
    monkeypatch.syspath_prepend(plugins)
    monkeypatch.setenv("PYTHONPATH", str(plugins), prepend=os.pathsep)  # the process that makes variants
    recipe = site.write("raising.toml", ('"int8-static"', '"auto"\npasses = ["raising", "int8-static"]\npairs = 20'))

    found = {each.name: each.dropped for each in optimize(recipe, home=site.home).candidates}

    assert "ZeroDivisionError" in found["raising"]
    assert set(found) >= {"raising", "int8-static"}


def test_absolute_garbage_has_no_traceback(site):
    """Bytes that parse as protobuf and mean nothing are our own error."""
    path = site.folder / "given.onnx"
    path.write_bytes(onnx.ModelProto(ir_version=10).SerializeToString())

    with pytest.raises(InvalidInput, match=r"Give the bytes of a \.onnx file"):
        validate(site.recipe, variant=path, home=site.home)


def test_graph_that_runs_too_long_is_refused(site, reference, lightship, monkeypatch):
    """A loop of 2^62 rounds ends the command with 6 and one line, not never."""
    monkeypatch.setattr("lightship.optimize.candidate.LONGEST_RUN_S", 0.5)
    scalars = [
        helper.make_tensor_value_info("round", TensorProto.INT64, []),
        helper.make_tensor_value_info("go", TensorProto.BOOL, []),
    ]
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Relu", ["before"], ["after"])],
        "body",
        [*scalars, helper.make_tensor_value_info("before", TensorProto.FLOAT, None)],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("after", TensorProto.FLOAT, None),
        ],
    )
    renamed_output(reference)
    reference.graph.node.append(helper.make_node("Loop", ["rounds", "start", "scores"], ["logits"], body=body))
    reference.graph.output[0].name = "logits"
    reference.graph.initializer.extend(
        numpy_helper.from_array(array, name)
        for name, array in {"rounds": np.array(2**62), "start": np.array(True)}.items()
    )

    ran = lightship("validate", site.recipe, "--variant", save(site, reference), home=site.home)

    assert ran.code == 6
    assert "longer than 0.5 s on a batch of image (1, 1, 8, 8)" in ran.err
    assert "Traceback" not in ran.err
    assert nothing_new(site)


def test_scaled_logits_are_refused_though_every_label_is_right(site, reference):
    """A thousandth of every logit: no row is lost, and every probability is about a third."""
    last = next(node for node in reversed(reference.graph.node) if node.op_type == "Gemm")
    for name in last.input[1:]:
        change(reference, name, lambda values: values * 1e-3)

    with pytest.raises(GateRefused, match=r"probabilities: failed, Probabilities differ by \d+\.\d points") as caught:
        validate(site.recipe, variant=save(site, reference), home=site.home)

    assert "noninferiority" not in str(caught.value)
    assert nothing_new(site)
