"""Half precision: weights and arithmetic in 16 bits, single precision at the doors.

Halves the file. CPUs mostly have no fast 16-bit arithmetic and convert back and forth, so it is not tried by itself;
it pays where memory or another device decides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from lightship.optimize.onnx_model import sort_nodes
from lightship.optimize.quantization import quantize

if TYPE_CHECKING:
    import onnx

__all__ = ["Fp16"]


class Fp16:
    """All float tensors but inputs and outputs become float16."""

    name: ClassVar[str] = "fp16"
    precision: ClassVar[str] = "fp16"
    needs_calibration: ClassVar[bool] = False
    lossless: ClassVar[bool] = False
    default: ClassVar[bool] = False
    engines: ClassVar[tuple[str, ...]] = ("onnxruntime", "openvino")

    def apply(self, graph: bytes, *, calibration: Sequence[Mapping[str, np.ndarray]]) -> bytes:  # noqa: ARG002 - the contract
        """Return the graph in half precision.

        Raises:
            PassFailed: there is nothing to convert, or the converter cannot treat the graph.
        """

        def run(model: onnx.ModelProto) -> onnx.ModelProto:
            from onnxruntime.transformers.float16 import convert_float_to_float16

            halved: onnx.ModelProto = convert_float_to_float16(model, keep_io_types=True)
            sort_nodes(halved)
            return halved

        return quantize(graph, run, name=self.name, cleaned=False)
