"""Clean-up: what the graph computes from constants alone is computed once, and what can be one operator becomes one.

Batch normalization goes into the convolution before it, identities and unused parts go, decomposed normalizations and
activations become their operators. Only standard operators come out, so every engine reads the result. Engines do much
of this when they load a graph; done once, it is loaded sooner, and quantizers see the layers as they will run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from lightship.optimize.cleanup import clean_up
from lightship.optimize.onnx_model import parse, serialize
from lightship.optimize.variant_pass import PassFailed

__all__ = ["Fused"]


class Fused:
    """ONNX Runtime's basic rewrites, written back as ONNX."""

    name: ClassVar[str] = "fused"
    precision: ClassVar[str] = "fp32"
    needs_calibration: ClassVar[bool] = False
    lossless: ClassVar[bool] = True
    default: ClassVar[bool] = True
    engines: ClassVar[tuple[str, ...]] = ("onnxruntime", "openvino")

    def apply(self, graph: bytes, *, calibration: Sequence[Mapping[str, np.ndarray]]) -> bytes:  # noqa: ARG002 - the contract
        """Return the graph with fewer operators.

        Raises:
            PassFailed: the engine cannot read it, or there was nothing to clean up.
        """
        model = parse(graph, name=self.name)
        operators = sorted(node.op_type for node in model.graph.node)
        cleaned = clean_up(model, name=self.name)
        if sorted(node.op_type for node in cleaned.graph.node) == operators:
            raise PassFailed(f"{self.name} found nothing in this graph to fold or to fuse.")
        return serialize(cleaned, name=self.name)
