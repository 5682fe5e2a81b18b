"""int8 by NNCF for OpenVINO: products and convolutions in int8 with calibrated ranges, or weights alone.

The static form knows which operators OpenVINO fuses, moves the scale of outliers from activations into weights
(transformers) and corrects the mean error of each layer. The weights-only form needs no rows and is nearly lossless: it
saves memory, and time where reading weights is what takes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from lightship.optimize.calibration import first_rows, row_batches
from lightship.optimize.nncf import flat_scales, is_transformer, load_nncf
from lightship.optimize.onnx_model import weights
from lightship.optimize.qdq import float_where_int8_misleads
from lightship.optimize.quantization import quantize, saturates
from lightship.optimize.variant_pass import PassFailed, write_note

if TYPE_CHECKING:
    import onnx

__all__ = ["NncfInt8", "NncfInt8Weights"]

_MOST_ROWS = 64


class NncfInt8:
    """``nncf.quantize``: weights and activations, calibrated."""

    name: ClassVar[str] = "nncf-int8"
    precision: ClassVar[str] = "int8"
    needs_calibration: ClassVar[bool] = True
    lossless: ClassVar[bool] = False
    default: ClassVar[bool] = True
    engines: ClassVar[tuple[str, ...]] = ("openvino", "onnxruntime")

    def apply(self, graph: bytes, *, calibration: Sequence[Mapping[str, np.ndarray]]) -> bytes:
        """Return the quantized graph.

        Args:
            graph: the reference, ONNX.
            calibration: batches of training rows; the first 64 rows are used, one at a time.

        Raises:
            PassFailed: no rows, NNCF is not installed, or it cannot treat the graph.
        """
        if not calibration:
            raise PassFailed(f"{self.name} needs calibration rows and got none. Give training data.")

        def run(model: onnx.ModelProto) -> onnx.ModelProto:
            nncf = load_nncf(name=self.name)
            rows = list(row_batches(model, first_rows(calibration, _MOST_ROWS)))
            quantized: onnx.ModelProto = nncf.quantize(
                model,
                nncf.Dataset(rows),
                subset_size=len(rows),
                model_type=nncf.ModelType.TRANSFORMER if is_transformer(model) else None,
                target_device=nncf.TargetDevice.CPU,
                advanced_parameters=_parameters(nncf),
            )
            flat_scales(quantized)
            return float_where_int8_misleads(quantized, reference=None)

        return quantize(graph, run, name=self.name)


def _parameters(nncf: Any) -> Any:
    """Weights get 7 bits in every layer where 8-bit products overflow; else only in the first, as NNCF does."""
    fix = nncf.OverflowFix.ENABLE if saturates() else nncf.OverflowFix.FIRST_LAYER
    return nncf.AdvancedQuantizationParameters(overflow_fix=fix)


class NncfInt8Weights:
    """``nncf.compress_weights``: weights alone, one scale and zero point per channel."""

    name: ClassVar[str] = "nncf-int8-weights"
    precision: ClassVar[str] = "int8-weights"
    needs_calibration: ClassVar[bool] = False
    lossless: ClassVar[bool] = False
    default: ClassVar[bool] = True
    engines: ClassVar[tuple[str, ...]] = ("openvino",)

    def apply(self, graph: bytes, *, calibration: Sequence[Mapping[str, np.ndarray]]) -> bytes:  # noqa: ARG002 - the contract
        """Return the graph with int8 weights that are widened as they are read; activations stay float.

        Raises:
            PassFailed: NNCF is not installed, or it cannot treat the graph.
        """

        def run(model: onnx.ModelProto) -> onnx.ModelProto:
            nncf = load_nncf(name=self.name)
            # With a zero point: on a sentence model as quick as without, and .2 of the error.
            left = _unread(model)
            compressed: onnx.ModelProto = nncf.compress_weights(
                model,
                mode=nncf.CompressWeightsMode.INT8_ASYM,
                ignored_scope=nncf.IgnoredScope(names=left) if left else None,
            )
            flat_scales(compressed)
            write_note(compressed, f"in float: {', '.join(left)}" if left else "")
            return compressed

        return quantize(graph, run, name=self.name)


def _unread(model: onnx.ModelProto) -> list[str]:
    """Return the convolutions of one dimension: NNCF gives them scales per channel and input, which nobody reads."""
    return [
        node.name
        for node, _, tensor in weights(model)
        if node.op_type in ("Conv", "ConvTranspose") and len(tensor.dims) == 3
    ]
