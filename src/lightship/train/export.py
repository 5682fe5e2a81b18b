"""The trained network as an ONNX graph, checked at once against the network.

The graph is for opset 20, takes ``image`` (batch, channels, height, width) and gives ``logits`` (batch, classes), with
a free batch dimension and the weights inside. The exporter writes source paths and stack traces into a graph's
metadata; they are taken out, so that the same weights give the same bytes and no path of this machine travels.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from lightship.engine.runner import EngineOptions, load_runner
from lightship.errors import InvalidTensor, LightshipError
from lightship.train.trained import TrainedModel
from lightship.validate.checks.parity import parity_tolerance

if TYPE_CHECKING:
    import onnx

__all__ = ["INPUT", "OPSET", "OUTPUT", "export_onnx", "torch_outputs"]

OPSET = 20
INPUT = "image"
OUTPUT = "logits"

_TRIED_BATCHES = (1, 2, 7)
_PROBE_ROWS = 64
_OUTPUT_BATCH = 256


def export_onnx(model: TrainedModel, *, rows: np.ndarray | None = None) -> bytes:
    """Return the network as an ONNX graph that gives the network's logits.

    Args:
        model: the trained model.
        rows: float32 (rows, channels, height, width) to compare graph and network on, such as validation
            rows; by default normally distributed values.

    Raises:
        LightshipError: graph and network disagree on some batch size.
        InvalidTensor: ``rows`` do not fit the network.
    """
    shape = model.shape
    if rows is None:
        size = (_PROBE_ROWS, shape.channels, shape.height, shape.width)
        rows = np.random.default_rng(0).normal(size=size).astype(np.float32)
    if len(rows) < max(_TRIED_BATCHES):  # a few rows, over and over, still fill a batch
        rows = np.resize(rows, (max(_TRIED_BATCHES), *rows.shape[1:]))
    network = model.module()
    graph = _strip(_exported(network, rows[:2]))
    _check_graph(graph, network, rows[:_PROBE_ROWS])
    return graph


def torch_outputs(model: nn.Module, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the logits of a network in evaluation mode, computed in float32 and in float64.

    Args:
        model: a network, e.g. ``TrainedModel.module()``; it is not changed.
        images: float32 (rows, channels, height, width).

    Returns:
        float32 and float64 arrays of shape (rows, classes). Their difference tells how far rounding alone can go.

    Raises:
        InvalidTensor: the images are no float32 batch.
    """
    if images.dtype != np.float32 or images.ndim != 4 or not len(images):
        raise InvalidTensor(
            f"Images must be float32 (rows, channels, height, width). Got {images.dtype} {images.shape}."
        )
    return _logits(_copy(model, torch.float32), images), _logits(_copy(model, torch.float64), images.astype(np.float64))


def _copy(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    import copy

    return copy.deepcopy(model).to(dtype).eval()


def _logits(model: nn.Module, images: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        parts = [
            model(torch.tensor(images[start : start + _OUTPUT_BATCH])).numpy()
            for start in range(0, len(images), _OUTPUT_BATCH)
        ]
    return np.concatenate(parts)


def _exported(network: nn.Module, example: np.ndarray) -> onnx.ModelProto:
    with _quiet_exporter():
        program = torch.onnx.export(
            network,
            (torch.tensor(example),),
            dynamo=True,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            opset_version=OPSET,
            external_data=False,
            verbose=False,
        )
    if program is None:
        raise LightshipError("torch gave no graph for the network. Report it with the version of torch.")
    return program.model_proto


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keep the exporter's chatter off stdout and out of the logs, and its known warning out of the way."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            # torch's own use of its own deprecated class (torch/utils/_pytree.py)
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
            yield
    finally:
        log.setLevel(level)


def _strip(model: onnx.ModelProto) -> bytes:
    """Return the graph's bytes without names of files, versions and anything else that does not compute."""
    del model.metadata_props[:]
    model.producer_name, model.producer_version, model.doc_string = "lightship", "", ""
    graph = model.graph
    del graph.value_info[:]
    graph.name, graph.doc_string = "main", ""
    for part in _parts(model):
        part.doc_string = ""
        del part.metadata_props[:]
    return bytes(model.SerializeToString(deterministic=True))


def _parts(model: onnx.ModelProto) -> Iterator[Any]:
    graph = model.graph
    yield graph
    for group in (graph.node, graph.initializer, graph.input, graph.output, model.functions):
        yield from group
    for function in model.functions:
        yield from function.node


def _check_graph(graph: bytes, network: nn.Module, rows: np.ndarray) -> None:
    """Compare graph and network on several batch sizes; an exporter may bake one into the graph."""
    single, double = torch_outputs(network, rows)
    tolerance = parity_tolerance(single, double)
    runner = load_runner(graph, engine="onnxruntime", options=EngineOptions(threads=1))
    try:
        for size in _TRIED_BATCHES:
            logits = runner.run({INPUT: rows[:size]})[OUTPUT]
            error = float(np.abs(logits - single[:size]).max()) if logits.shape == single[:size].shape else np.inf
            if not error <= tolerance:
                raise LightshipError(
                    f"The exported graph differs from the network by {error:g} on a batch of {size}; at most "
                    f"{tolerance:g} is rounding. Report it with the versions of torch and onnxscript."
                )
    finally:
        runner.close()
