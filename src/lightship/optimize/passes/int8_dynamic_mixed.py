"""Dynamic int8 where it does no harm: the layers that it hurts are found by measurement and stay in float.

One scale for each channel of the weights is about as fast as one for all of them, and nearer to the truth; in a
transformer a few products then make most of the error that is left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from lightship.optimize.calibration import first_rows, row_batches
from lightship.optimize.quantization import dynamic_of, quantize, saturates
from lightship.optimize.sensitivity import WANTED_DB, Cost, decibels, noise, product_costs, rescued, run_rows
from lightship.optimize.variant_pass import PassFailed

if TYPE_CHECKING:
    import onnx

__all__ = ["Int8DynamicMixed"]

_MEASURED_ROWS = 4
_CHECKED_ROWS = 16
_INTEGER = frozenset({"MatMulInteger", "ConvInteger", "DynamicQuantizeLSTM", "QAttention"})


class Int8DynamicMixed:
    """``int8-dynamic-channel``, and floats where its noise comes from."""

    name: ClassVar[str] = "int8-dynamic-mixed"
    precision: ClassVar[str] = "int8"
    needs_calibration: ClassVar[bool] = True
    lossless: ClassVar[bool] = False
    default: ClassVar[bool] = True
    rescues: ClassVar[str] = "int8-dynamic-channel"
    engines: ClassVar[tuple[str, ...]] = ("onnxruntime",)

    def apply(self, graph: bytes, *, calibration: Sequence[Mapping[str, np.ndarray]]) -> bytes:
        """Return the quantized graph; its note names the layers in float, the worst first.

        Args:
            graph: the reference, ONNX.
            calibration: batches of training rows. Costs are measured on the first 4, the result on the next 16.

        Raises:
            PassFailed: there are no rows, the graph cannot be treated, or nothing would be left in int8.
        """
        if not calibration:
            raise PassFailed(f"{self.name} needs calibration rows and got none. Give training data.")

        def run(model: onnx.ModelProto) -> onnx.ModelProto:
            rows = first_rows(calibration, _MEASURED_ROWS + _CHECKED_ROWS)
            pieces = list(row_batches(model, rows, _MEASURED_ROWS))
            checked = pieces[1:] or pieces
            wanted = run_rows(model, checked)

            def reached(made: onnx.ModelProto) -> float:
                return decibels(noise(wanted, run_rows(made, checked)))

            def without(left: Sequence[Cost]) -> onnx.ModelProto | None:
                made = dynamic_of(model, per_channel=True, in_float=[layer for cost in left for layer in cost.layers])
                return made if any(node.op_type in _INTEGER for node in made.graph.node) else None

            quantized = dynamic_of(model, per_channel=True)
            if reached(quantized) >= WANTED_DB:
                return quantized
            dearest = product_costs(model, pieces[:1], levels=63 if saturates() else 127)
            return rescued(dearest, without, reached=reached, name=self.name)

        return quantize(graph, run, name=self.name)
