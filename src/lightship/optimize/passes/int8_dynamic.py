"""Dynamic int8: weights are stored as int8, activations are quantized while the graph runs.

Needs no rows. On CPUs it pays for large matrix products (transformers) and often loses on convolutions, which become
``ConvInteger`` without a fast kernel: the search measures, and drops it where it is slower than the reference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from lightship.optimize.quantization import quantize

__all__ = ["Int8Dynamic"]


class Int8Dynamic:
    """ONNX Runtime's ``quantize_dynamic``: int8 weights per tensor, uint8 activations."""

    name: ClassVar[str] = "int8-dynamic"
    precision: ClassVar[str] = "int8"
    needs_calibration: ClassVar[bool] = False
    lossless: ClassVar[bool] = False
    default: ClassVar[bool] = True
    engines: ClassVar[tuple[str, ...]] = ("onnxruntime",)

    def apply(self, graph: bytes, *, calibration: Sequence[Mapping[str, np.ndarray]]) -> bytes:  # noqa: ARG002 - the contract
        """Return the graph with dynamically quantized products and convolutions."""
        from onnxruntime.quantization import QuantType, quantize_dynamic

        def run(source: Path, destination: Path) -> None:
            quantize_dynamic(source, destination, weight_type=QuantType.QInt8)

        return quantize(graph, run, name=self.name)
