"""4-bit weights of matrix products, one scale for a group of inputs; activations stay float.

An eighth of the memory that weights take, which is what decides for language models. On small models it is slower
than int8, so it is not tried by itself. A tail that does not fill its group is padded, so any size will do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from lightship.optimize.onnx_model import weights
from lightship.optimize.quantization import quantize
from lightship.optimize.variant_pass import PassFailed

if TYPE_CHECKING:
    import onnx

__all__ = ["Int4Weights"]

_GROUPS = (64, 32, 16)


class Int4Weights:
    """``MatMulNBits`` of ONNX Runtime, with a zero point in each group."""

    name: ClassVar[str] = "int4-weights"
    precision: ClassVar[str] = "int4-weights"
    needs_calibration: ClassVar[bool] = False
    lossless: ClassVar[bool] = False
    default: ClassVar[bool] = False
    engines: ClassVar[tuple[str, ...]] = ("onnxruntime",)

    def apply(self, graph: bytes, *, calibration: Sequence[Mapping[str, np.ndarray]]) -> bytes:  # noqa: ARG002 - the contract
        """Return the graph with 4-bit weights in its matrix products.

        Raises:
            PassFailed: it has no product with weights, or the quantizer cannot treat the graph.
        """

        def run(model: onnx.ModelProto) -> onnx.ModelProto:
            from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

            quantizer = MatMulNBitsQuantizer(
                model, block_size=_group(model, self.name), is_symmetric=False, accuracy_level=4
            )
            quantizer.process()
            made: onnx.ModelProto = quantizer.model.model
            return made

        return quantize(graph, run, name=self.name, cleaned=False)


def _group(model: onnx.ModelProto, name: str) -> int:
    """Return the largest group that divides the inputs of every product, else the smallest."""
    sizes = {
        tensor.dims[0]
        for node, index, tensor in weights(model)
        if node.op_type == "MatMul" and index == 1 and len(tensor.dims) == 2
    }
    if not sizes:
        raise PassFailed(f"{name} leaves this graph as it is: it has no matrix product with weights (MatMul).")
    return next((group for group in _GROUPS if not any(size % group for size in sizes)), _GROUPS[-1])
