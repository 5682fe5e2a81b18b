"""The exported graph: the network's numbers, any batch, nothing of this machine."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from lightship.engine.runner import load_runner
from lightship.errors import InvalidTensor, LightshipError
from lightship.train import export
from lightship.train.export import export_onnx, torch_outputs
from lightship.validate.checks.parity import parity_tolerance


@pytest.fixture(scope="module")
def graph(trained) -> bytes:
    """The graph of the shared model; the exporter takes seconds."""
    return export_onnx(trained)


@pytest.mark.parametrize("batch", [1, 2, 7, 32, 33])
def test_graph_gives_the_networks_logits_for_any_batch(graph, trained, validation, batch):
    """Within the rounding that float32 itself shows on these rows."""
    images = np.concatenate([validation.images, validation.images])[:batch]

    found = load_runner(graph).run({"image": images})["logits"]

    single, double = torch_outputs(trained.module(), images)
    assert found.shape == (batch, 3)
    assert np.abs(found - single).max() <= parity_tolerance(single, double)


def test_one_row_is_enough_to_compare_on(trained, graph, validation):
    """A small data set may have fewer rows than the batches that are tried; the graph is the same."""
    assert export_onnx(trained, rows=validation.images[:1]) == graph


def test_graph_has_the_tasks_interface(graph):
    """Names, dtypes, a free batch dimension, opset 20, weights inside."""
    interface = load_runner(graph).interface
    model = onnx.load_from_string(graph)

    (image,), (logits,) = interface.inputs, interface.outputs
    assert (image.name, image.dtype, image.shape) == ("image", "FP32", ("batch", 1, 8, 8))
    assert (logits.name, logits.dtype, logits.shape) == ("logits", "FP32", ("batch", 3))
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 20)]
    assert all(tensor.data_location != onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer)


def test_graph_holds_no_trace_of_this_machine(graph):
    """No path, no stack trace, no exporter version, no inferred shapes that a quantizer trips over."""
    model = onnx.load_from_string(graph)

    for mark in (b"/", b".py", b"site-packages", b"pkg.torch", b"Traceback", torch.__version__.encode()):
        assert mark not in b"".join(_texts(model)), mark
    assert not model.graph.value_info
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    assert (model.producer_name, model.producer_version) == ("lightship", "")
    onnx.checker.check_model(model, full_check=True)


def _texts(model: onnx.ModelProto) -> list[bytes]:
    """Return everything in a graph that is text: the weights' bytes may hold any pattern."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    for tensor in bare.graph.initializer:
        tensor.ClearField("raw_data")
    return [bare.SerializeToString()]


def test_export_is_silent(trained, capfd):
    """Neither stdout nor stderr nor a warning, whatever the exporter would like to say."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")

        export_onnx(trained)

    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_same_weights_give_the_same_bytes_in_fresh_processes(tmp_path, trained, graph):
    """Two processes with other hash seeds, another folder, and this one."""
    trained.save(tmp_path / "model")
    code = (
        "import sys, hashlib; from pathlib import Path\n"
        "from lightship.train.trained import TrainedModel; from lightship.train.export import export_onnx\n"
        "print(hashlib.sha256(export_onnx(TrainedModel.load(Path(sys.argv[1])))).hexdigest())"
    )
    digests = set()
    for seed, folder in (("1", tmp_path), ("2", Path("/"))):
        command = [sys.executable, "-c", code, str(tmp_path / "model")]
        environment = {"PYTHONHASHSEED": seed, "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder, env=environment)
        digests.add(done.stdout.strip())

    assert digests == {hashlib.sha256(graph).hexdigest()}


def test_a_graph_that_differs_from_the_network_is_refused(trained, validation, graph):
    """One weight off by a thousandth is not rounding."""
    network = trained.module()
    with torch.no_grad():
        network[-1].weight[0, 0] += 1e-3

    with pytest.raises(LightshipError, match=r"differs from the network by .* on a batch of 1"):
        export._check_graph(graph, network, validation.images)


def test_torch_outputs_are_float32_and_float64(trained, validation):
    """The network itself stays as it was; batches do not change the numbers beyond rounding."""
    network = trained.module()

    single, double = torch_outputs(network, validation.images)

    assert (single.dtype, double.dtype, single.shape) == (np.float32, np.float64, (32, 3))
    assert 0 < np.abs(single - double).max() < 1e-4
    assert next(network.parameters()).dtype == torch.float32


@pytest.mark.parametrize("images", [np.zeros((2, 1, 8, 8)), np.zeros((1, 8, 8), np.float32)])
def test_torch_outputs_need_a_float32_batch(trained, images):
    """Another dtype or rank is named."""
    with pytest.raises(InvalidTensor, match="must be float32"):
        torch_outputs(trained.module(), images)
