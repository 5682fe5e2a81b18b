"""Static int8: weights and activations are int8 with ranges that were fixed by calibration (QDQ form).

uint8 activations with int8 weights per channel (U8S8), the form with fast kernels on CPUs with VNNI; S8S8 gives the
same answers at a third of the speed there. Ranges come from *training* rows: rows that later judge the variant must not
have shaped it. The three rules for a range differ where activations have outliers; which is best is found by trying.
What lies between two products is quantized too. That spares a residual network the way to float and back, but costs
one with normalizations or smooth activations most of its accuracy and some of its speed; ``int8-products`` is for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from lightship.optimize.quantization import quantize_static

__all__ = ["Int8Products", "Int8Static", "Int8StaticEntropy", "Int8StaticPercentile"]


class Int8Static:
    """Ranges from the smallest to the largest value seen."""

    name: ClassVar[str] = "int8-static"
    precision: ClassVar[str] = "int8"
    needs_calibration: ClassVar[bool] = True
    lossless: ClassVar[bool] = False
    default: ClassVar[bool] = True
    engines: ClassVar[tuple[str, ...]] = ("onnxruntime", "openvino")

    def apply(self, graph: bytes, *, calibration: Sequence[Mapping[str, np.ndarray]]) -> bytes:
        """Return the quantized graph.

        Args:
            graph: the reference, ONNX.
            calibration: batches of training rows; the first 256 rows are used.

        Raises:
            PassFailed: there are no calibration rows, or the quantizer cannot treat the graph.
        """
        return quantize_static(graph, calibration, method="min-max", name=self.name)


class Int8StaticEntropy:
    """Ranges that keep most of the information of each activation's histogram."""

    name: ClassVar[str] = "int8-static-entropy"
    precision: ClassVar[str] = "int8"
    needs_calibration: ClassVar[bool] = True
    lossless: ClassVar[bool] = False
    default: ClassVar[bool] = True
    rescues: ClassVar[str] = "int8-static"
    engines: ClassVar[tuple[str, ...]] = ("onnxruntime", "openvino")

    def apply(self, graph: bytes, *, calibration: Sequence[Mapping[str, np.ndarray]]) -> bytes:
        """Return the quantized graph. See ``Int8Static.apply``; the first 64 rows are used."""
        return quantize_static(graph, calibration, method="entropy", name=self.name)


class Int8StaticPercentile:
    """Ranges without the outermost values of each activation, one in ten thousand at either end."""

    name: ClassVar[str] = "int8-static-percentile"
    precision: ClassVar[str] = "int8"
    needs_calibration: ClassVar[bool] = True
    lossless: ClassVar[bool] = False
    default: ClassVar[bool] = True
    rescues: ClassVar[str] = "int8-static"
    engines: ClassVar[tuple[str, ...]] = ("onnxruntime", "openvino")

    def apply(self, graph: bytes, *, calibration: Sequence[Mapping[str, np.ndarray]]) -> bytes:
        """Return the quantized graph. See ``Int8Static.apply``; the first 64 rows are used."""
        return quantize_static(graph, calibration, method="percentile", name=self.name)


class Int8Products:
    """Products and convolutions alone, ranges from the smallest to the largest value seen."""

    name: ClassVar[str] = "int8-products"
    precision: ClassVar[str] = "int8"
    needs_calibration: ClassVar[bool] = True
    lossless: ClassVar[bool] = False
    default: ClassVar[bool] = True
    engines: ClassVar[tuple[str, ...]] = ("onnxruntime", "openvino")

    def apply(self, graph: bytes, *, calibration: Sequence[Mapping[str, np.ndarray]]) -> bytes:
        """Return the quantized graph. See ``Int8Static.apply``; what lies between products stays in float."""
        return quantize_static(graph, calibration, method="min-max", name=self.name, products_only=True)
