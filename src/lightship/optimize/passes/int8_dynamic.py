"""Dynamic int8: weights are stored as int8, activations are quantized while the graph runs.

Needs no rows. On CPUs it pays for large matrix products (transformers) and often loses on convolutions, which become
``ConvInteger`` without a fast kernel: the search measures, and drops it where it is slower than the reference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from lightship.optimize.quantization import quantize_dynamic

__all__ = ["Int8Dynamic", "Int8DynamicChannel"]


class Int8Dynamic:
    """One scale for each weight tensor: the fastest form, and the least faithful."""

    name: ClassVar[str] = "int8-dynamic"
    precision: ClassVar[str] = "int8"
    needs_calibration: ClassVar[bool] = False
    lossless: ClassVar[bool] = False
    default: ClassVar[bool] = True
    engines: ClassVar[tuple[str, ...]] = ("onnxruntime",)

    def apply(self, graph: bytes, *, calibration: Sequence[Mapping[str, np.ndarray]]) -> bytes:  # noqa: ARG002 - the contract
        """Return the graph with dynamically quantized products and convolutions."""
        return quantize_dynamic(graph, per_channel=False, name=self.name)


class Int8DynamicChannel:
    """One scale for each output channel of a weight: nearer to the reference, a little slower."""

    name: ClassVar[str] = "int8-dynamic-channel"
    precision: ClassVar[str] = "int8"
    needs_calibration: ClassVar[bool] = False
    lossless: ClassVar[bool] = False
    default: ClassVar[bool] = True
    engines: ClassVar[tuple[str, ...]] = ("onnxruntime",)

    def apply(self, graph: bytes, *, calibration: Sequence[Mapping[str, np.ndarray]]) -> bytes:  # noqa: ARG002 - the contract
        """Return the graph with dynamically quantized products and convolutions, weights per channel."""
        return quantize_dynamic(graph, per_channel=True, name=self.name)
