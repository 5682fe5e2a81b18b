"""Static int8: weights and activations are int8 with ranges that were fixed by calibration (QDQ form).

uint8 activations with int8 weights per channel (U8S8), the form with fast kernels on CPUs with VNNI; S8S8 gives the
same answers at a third of the speed there. Ranges are the smallest and largest values seen on *training* rows: rows
that later judge the variant must not have shaped it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from lightship.optimize.quantization import quantize
from lightship.optimize.variant_pass import PassFailed

__all__ = ["Int8Static"]


class Int8Static:
    """ONNX Runtime's ``quantize_static``: QDQ, U8S8, weights per channel, min-max calibration."""

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
            calibration: batches of training rows; some hundreds of rows suffice for min-max.

        Raises:
            PassFailed: there are no calibration rows, or the quantizer cannot treat the graph.
        """
        from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

        if not calibration:
            raise PassFailed(f"{self.name} needs calibration rows and got none. Give training data.")

        def run(source: Path, destination: Path) -> None:
            quantize_static(
                source,
                destination,
                _Batches(calibration),
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=True,
                calibrate_method=CalibrationMethod.MinMax,
            )

        return quantize(graph, run, name=self.name)


class _Batches:
    """ONNX Runtime's ``CalibrationDataReader`` protocol over batches in memory."""

    def __init__(self, batches: Sequence[Mapping[str, np.ndarray]]) -> None:
        self._rest: Iterator[Mapping[str, np.ndarray]] = iter(batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self._rest, None)
        return None if batch is None else dict(batch)
