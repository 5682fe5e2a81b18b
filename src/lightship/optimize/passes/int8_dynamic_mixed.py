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
from lightship.optimize.sensitivity import WANTED_DB, Cost, Yardstick, product_costs, rescued
from lightship.optimize.variant_pass import PassFailed

if TYPE_CHECKING:
    import onnx

__all__ = ["Int8DynamicMixed"]

_MEASURED_ROWS = 4
_CHECKED_ROWS = 20
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
            calibration: batches of training rows. The result is checked on the first 20, and costs are measured on
                the 4 of these on which int8 throughout is farthest off.

        Raises:
            PassFailed: there are no rows, the graph cannot be treated, or nothing would be left in int8.
        """
        if not calibration:
            raise PassFailed(f"{self.name} needs calibration rows and got none. Give training data.")

        def run(model: onnx.ModelProto) -> onnx.ModelProto:
            rows = first_rows(calibration, _CHECKED_ROWS)
            pieces = list(row_batches(model, rows, _MEASURED_ROWS))
            yardstick = Yardstick(model, pieces)

            def without(left: Sequence[Cost]) -> onnx.ModelProto | None:
                made = dynamic_of(model, per_channel=True, in_float=[layer for cost in left for layer in cost.layers])
                return made if any(node.op_type in _INTEGER for node in made.graph.node) else None

            quantized = dynamic_of(model, per_channel=True)
            if yardstick.decibels(quantized) >= WANTED_DB:
                return quantized
            hardest = yardstick.hardest(quantized, 1)
            dearest = product_costs(model, hardest, levels=63 if saturates() else 127, power=yardstick.power)
            return rescued(dearest, without, reached=yardstick.decibels, name=self.name)

        return quantize(graph, run, name=self.name)
