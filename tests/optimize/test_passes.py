"""What the passes make of a graph: nearly the same answers, the same bytes each time, nothing left behind."""

from __future__ import annotations

import logging
import tempfile

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from lightship.engine.runner import load_runner
from lightship.errors import InvalidInput, NotFound
from lightship.extensions import extension_names
from lightship.optimize.passes.int8_dynamic import Int8Dynamic, Int8DynamicChannel
from lightship.optimize.passes.int8_static import Int8Static, Int8StaticEntropy, Int8StaticPercentile
from lightship.optimize.quantization import quantize
from lightship.optimize.variant_pass import PassFailed, load_pass, read_note, write_note

PASSES = [Int8Dynamic(), Int8DynamicChannel(), Int8Static(), Int8StaticEntropy(), Int8StaticPercentile()]


def logits_of(runner, images):
    """Return the logits of all images in one batch."""
    return runner.run({"image": images})["logits"]


named = pytest.mark.parametrize("each", PASSES, ids=lambda each: each.name)


@named
def test_variant_answers_as_the_reference_does(each, reference, selection, calibration):
    """int8 rounds: logits are near those of the reference, and labels are equal on rows that are clear."""
    graph = each.apply(reference, calibration=calibration)

    before = logits_of(load_runner(reference), selection.inputs["image"])
    after = logits_of(load_runner(graph), selection.inputs["image"])
    assert after.shape == before.shape
    assert np.abs(after - before).max() < 0.05 * np.abs(before).max()
    assert (after.argmax(axis=1) == before.argmax(axis=1)).all()
    assert not np.array_equal(after, before)  # it is another graph, not a copy


@named
def test_variant_has_the_interface_of_the_reference(each, reference, calibration):
    """Names, types and the free batch axis stay."""
    found = load_runner(each.apply(reference, calibration=calibration)).interface

    wanted = load_runner(reference).interface
    assert [(spec.name, spec.dtype, spec.shape[1:]) for spec in (*found.inputs, *found.outputs)] == [
        (spec.name, spec.dtype, spec.shape[1:]) for spec in (*wanted.inputs, *wanted.outputs)
    ]
    assert all(isinstance(spec.shape[0], str) for spec in (*found.inputs, *found.outputs))


@named
def test_weights_become_int8(each, reference, calibration):
    """The dense layer's weights are stored in a byte each."""
    model = onnx.load_from_string(each.apply(reference, calibration=calibration))

    int8 = [tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.INT8]
    assert max(np.prod(tensor.dims) for tensor in int8) == 8 * 8 * 8 * 3


@named
def test_same_input_gives_the_same_bytes(each, reference, calibration):
    """A bundle's name is a digest, so a pass must not draw lots or note the time."""
    assert each.apply(reference, calibration=calibration) == each.apply(reference, calibration=calibration)


@named
def test_input_is_not_changed(each, reference, calibration):
    """The calibration rows are as they were."""
    before = [batch["image"].copy() for batch in calibration]

    each.apply(reference, calibration=calibration)

    assert all(np.array_equal(batch["image"], kept) for batch, kept in zip(calibration, before, strict=True))


@named
def test_nothing_is_left_on_the_disk(each, reference, calibration, tmp_path, monkeypatch):
    """The quantizers write side files; they go, from the temporary folder and from where the command was given."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    monkeypatch.chdir(tmp_path / "here")

    each.apply(reference, calibration=calibration)

    assert not list(scratch.iterdir())
    assert not list((tmp_path / "here").iterdir())


@named
def test_variant_tells_nothing_of_where_it_was_made(each, reference, calibration):
    """No temporary path and no program version are in the bytes."""
    graph = each.apply(reference, calibration=calibration)

    model = onnx.load_from_string(graph)
    assert b"lightship-quantize-" not in graph
    assert (model.producer_name, model.producer_version, model.doc_string) == ("lightship", "", "")
    assert not model.graph.value_info


@named
def test_graph_that_cannot_be_treated_is_said_to_be_so(each, calibration):
    """A quantizer's failure is a ``PassFailed`` with its words, and the root logger is as it was."""
    level = logging.getLogger().level
    node = helper.make_node("Conv", ["nowhere", "kernels"], ["logits"])
    broken = onnx.ModelProto(ir_version=9)
    broken.graph.name = "broken"
    broken.graph.node.append(node)
    broken.graph.initializer.append(numpy_helper.from_array(np.ones((1, 1, 3, 3), np.float32), "kernels"))
    broken.opset_import.append(helper.make_opsetid("", 18))

    with pytest.raises(PassFailed, match=f"{each.name} (cannot treat this graph|made no valid graph)"):
        each.apply(broken.SerializeToString(), calibration=calibration)

    assert logging.getLogger().level == level


@named
def test_bytes_that_are_no_graph_fail_the_pass(each, calibration):
    """Garbage is a failed pass as well, not a traceback."""
    with pytest.raises(PassFailed, match=each.name):
        each.apply(b"no graph at all", calibration=calibration)


def test_static_needs_rows(reference):
    """Ranges cannot be guessed."""
    with pytest.raises(PassFailed, match="int8-static needs calibration rows and got none"):
        Int8Static().apply(reference, calibration=[])


def test_static_ranges_come_from_the_rows(reference, calibration):
    """Other rows give other ranges: the calibration is really used."""
    darker = [{"image": batch["image"] * np.float32(0.5)} for batch in calibration]

    assert Int8Static().apply(reference, calibration=darker) != Int8Static().apply(reference, calibration=calibration)


def test_dynamic_needs_no_rows(reference):
    """It quantizes while it runs."""
    assert Int8Dynamic().apply(reference, calibration=())


def test_failed_quantizer_leaves_nothing(reference, tmp_path, monkeypatch):
    """The folder goes when the quantizer raises, too."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def run(model):
        with tempfile.NamedTemporaryFile(delete=False) as file:
            file.write(model.SerializeToString())
        raise RuntimeError("out of memory")

    with pytest.raises(PassFailed, match=r"mine cannot treat this graph: RuntimeError: out of memory"):
        quantize(reference, run, name="mine")

    assert not list(tmp_path.iterdir())


def test_installed_passes_are_found_by_name():
    """What we ship registers as what others write does."""
    assert set(extension_names("passes")) >= {"int8-dynamic", "int8-static"}
    assert load_pass("int8-static").precision == "int8"


def test_unknown_pass_names_the_known_ones():
    """A typo is answered with what there is."""
    with pytest.raises(NotFound, match=r"'int9' .*int8-dynamic, .*int8-static"):
        load_pass("int9")


def test_pass_that_does_not_describe_itself_is_named(tmp_path, monkeypatch):
    """A stranger's pass of an older kind is refused with what it lacks, not with an AttributeError later."""
    (tmp_path / "short_pass.py").write_text("class Short:\n    name, precision = 'short', 'fp32'\n")
    info = tmp_path / "short_pass-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: short-pass\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[lightship.passes]\nshort = short_pass:Short\n")
    monkeypatch.syspath_prepend(tmp_path)

    with pytest.raises(InvalidInput, match="'short' does not say its needs_calibration, lossless, default, engines"):
        load_pass("short")


def test_note_travels_with_the_graph(reference):
    """What a pass has to say stands in the bytes once, beside what others wrote there."""
    model = onnx.load_from_string(reference)
    helper.set_model_props(model, {"author": "somebody"})
    write_note(model, "in float: /a")
    write_note(model, "in float: /b")

    noted = model.SerializeToString()
    write_note(model, "")
    assert (read_note(noted), read_note(model.SerializeToString())) == ("in float: /b", "")
    assert [entry.key for entry in model.metadata_props] == ["author"]
