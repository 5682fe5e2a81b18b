"""Static int8 where it does no harm: the layers that it hurts are found by measurement and stay in float.

Transformers have activations with a few huge channels, and masks of minus ten thousand; one 8-bit range for such a
tensor leaves nothing of the rest. Quantized throughout, such a model answers nonsense without an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from lightship.optimize.calibration import activation_ranges, first_rows, row_batches
from lightship.optimize.onnx_model import PRODUCTS
from lightship.optimize.qdq import float_where_int8_misleads, pairs_of, without_pairs
from lightship.optimize.quantization import quantize, quantized_with
from lightship.optimize.sensitivity import WANTED_DB, Cost, Yardstick, costs, rescued
from lightship.optimize.variant_pass import PassFailed

if TYPE_CHECKING:
    import onnx

__all__ = ["Int8Mixed"]

_MOST_ROWS = 128
_MEASURED_ROWS = 2
_CHECKED_ROWS = 32


class Int8Mixed:
    """``int8-products``, and floats where its noise comes from."""

    name: ClassVar[str] = "int8-mixed"
    precision: ClassVar[str] = "int8"
    needs_calibration: ClassVar[bool] = True
    lossless: ClassVar[bool] = False
    default: ClassVar[bool] = True
    rescues: ClassVar[str] = "int8-products"
    engines: ClassVar[tuple[str, ...]] = ("onnxruntime", "openvino")

    def apply(self, graph: bytes, *, calibration: Sequence[Mapping[str, np.ndarray]]) -> bytes:
        """Return the quantized graph; its note names the layers in float, the worst first.

        Args:
            graph: the reference, ONNX.
            calibration: batches of training rows. Ranges are of the first 128; the result is checked on the last 32 of
                these, and costs are measured on the 2 on which int8 throughout is farthest off.

        Raises:
            PassFailed: there are no rows, the graph cannot be treated, or floats everywhere would not be enough.
        """
        if not calibration:
            raise PassFailed(f"{self.name} needs calibration rows and got none. Give training data.")

        def run(model: onnx.ModelProto) -> onnx.ModelProto:
            rows = first_rows(calibration, _MOST_ROWS)
            pieces = list(row_batches(model, rows, _MEASURED_ROWS))
            yardstick = Yardstick(model, pieces[-(_CHECKED_ROWS // _MEASURED_ROWS) :])
            quantized = float_where_int8_misleads(
                quantized_with(model, activation_ranges(model, rows), products_only=True), reference=model
            )

            def without(left: Sequence[Cost]) -> onnx.ModelProto | None:
                edges = {edge for cost in left for edge in cost.edges}
                mixed = without_pairs(quantized, edges, reference=model)
                return mixed if _has_int8_products(mixed) else None

            if yardstick.decibels(quantized) >= WANTED_DB:
                return quantized
            dearest = costs(model, quantized, yardstick.hardest(quantized, 1), power=yardstick.power)
            return rescued(dearest, without, reached=yardstick.decibels, name=self.name)

        return quantize(graph, run, name=self.name)


def _has_int8_products(model: onnx.ModelProto) -> bool:
    products = {node.name for node in model.graph.node if node.op_type in PRODUCTS}
    return any(consumer in products for pair in pairs_of(model) for consumer in pair.consumers)
