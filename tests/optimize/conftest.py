"""Small graphs with the interface of an image classifier, and rows that they answer rightly."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lightship.optimize.candidate import Rows

SIDE, CLASSES = 8, 3


def classifier(*, seed: int = 2, channels: int = 8) -> onnx.ModelProto:
    """Return convolution, pooling and a dense layer: ``image`` [batch, 1, 8, 8] -> ``logits`` [batch, 3].

    The dense layer looks at the mean brightness of three bands of rows, so bright bands are classes.
    """
    random = np.random.default_rng(seed)
    kernels = np.zeros((channels, 1, 3, 3), dtype=np.float32)
    kernels[:, 0, 1, 1] = random.uniform(0.5, 1.5, channels)
    bands = random.normal(scale=0.0005, size=(channels, SIDE, SIDE, CLASSES)).astype(np.float32)
    for band, rows in enumerate((slice(0, 3), slice(3, 5), slice(5, 8))):
        # Every other column: two neighbors of the largest int8 weight overflow on CPUs without VNNI.
        bands[:, rows, ::2, band] += 1 / (channels * (rows.stop - rows.start))
    weights = {
        "kernels": kernels,
        "dense": bands.reshape(-1, CLASSES),
        "bias": np.zeros(CLASSES, dtype=np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["image", "kernels"], ["features"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["features"], ["active"]),
        helper.make_node("Flatten", ["active"], ["flat"]),
        helper.make_node("Gemm", ["flat", "dense", "bias"], ["logits"]),
    ]
    return as_model(nodes, weights)


def as_model(nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray]) -> onnx.ModelProto:
    """Return a model of the shared interface."""
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, SIDE, SIDE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return model


def bright_bands(count: int, *, seed: int) -> Rows:
    """Return noisy images of which one band is bright; the band is the class."""
    random = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.int64) % CLASSES
    images = random.uniform(0, 0.2, (count, 1, SIDE, SIDE)).astype(np.float32)
    for band, rows in enumerate((slice(0, 3), slice(3, 5), slice(5, 8))):
        images[labels == band, :, rows, :] += 0.8
    return Rows({"image": images}, labels, "logits")


@pytest.fixture(scope="session")
def reference() -> bytes:
    """The bytes of the reference graph."""
    return classifier().SerializeToString(deterministic=True)


@pytest.fixture(scope="session")
def selection() -> Rows:
    """90 rows that the reference answers rightly."""
    return bright_bands(90, seed=4)


@pytest.fixture(scope="session")
def calibration() -> list[dict[str, np.ndarray]]:
    """Two batches of 32 other rows."""
    images = bright_bands(64, seed=5).inputs["image"]
    return [{"image": images[:32]}, {"image": images[32:]}]
