"""Static int8 where it does no harm: the layers that it hurts are found by measurement and stay in float.

Transformers have activations with a few huge channels, and masks of minus ten thousand; one 8-bit range for such a
tensor leaves nothing of the rest. Quantized throughout, such a model answers nonsense without an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from lightship.optimize.calibration import activation_ranges, first_rows, row_batches
from lightship.optimize.qdq import float_where_int8_misleads, pairs_of, without_pairs
from lightship.optimize.quantization import quantize, quantized_with
from lightship.optimize.sensitivity import PRODUCTS, Cost, costs, noise, run_rows
from lightship.optimize.variant_pass import PassFailed, write_note

if TYPE_CHECKING:
    import onnx

__all__ = ["Int8Mixed"]

_MOST_ROWS = 128
_MEASURED_ROWS = 4
_CHECKED_ROWS = 16
_WANTED_DB = 20.0  # signal to noise of the outputs: a cosine of .995
_MOST_NAMED = 40


class Int8Mixed:
    """``int8-static``, and floats where its noise comes from."""

    name: ClassVar[str] = "int8-mixed"
    precision: ClassVar[str] = "int8"
    needs_calibration: ClassVar[bool] = True
    lossless: ClassVar[bool] = False
    default: ClassVar[bool] = True
    engines: ClassVar[tuple[str, ...]] = ("onnxruntime", "openvino")

    def apply(self, graph: bytes, *, calibration: Sequence[Mapping[str, np.ndarray]]) -> bytes:
        """Return the quantized graph; its note names the layers in float, the worst first.

        Args:
            graph: the reference, ONNX.
            calibration: batches of training rows. Ranges are of the first 128; costs are measured on 4 of them, and the
                result is checked on the last 16.

        Raises:
            PassFailed: there are no rows, the graph cannot be treated, or floats everywhere would not be enough.
        """
        if not calibration:
            raise PassFailed(f"{self.name} needs calibration rows and got none. Give training data.")

        def run(model: onnx.ModelProto) -> onnx.ModelProto:
            rows = first_rows(calibration, _MOST_ROWS)
            pieces = list(row_batches(model, rows, _MEASURED_ROWS))
            checked = pieces[-(_CHECKED_ROWS // _MEASURED_ROWS) :]
            quantized = float_where_int8_misleads(
                quantized_with(model, activation_ranges(model, rows)), reference=model
            )
            wanted = run_rows(model, checked)
            if _db(noise(wanted, run_rows(quantized, checked))) >= _WANTED_DB:
                return quantized
            return self._rescued(model, quantized, costs(model, quantized, pieces[:1]), wanted, checked)

        return quantize(graph, run, name=self.name)

    def _rescued(
        self,
        model: onnx.ModelProto,
        quantized: onnx.ModelProto,
        dearest: Sequence[Cost],
        wanted: Sequence[np.ndarray],
        checked: Sequence[Mapping[str, np.ndarray]],
    ) -> onnx.ModelProto:
        """Leave the dearest activations in float, more and more of them, until the outputs are near enough."""
        count = _first_guess([cost.noise for cost in dearest])
        reached = float("-inf")
        while count <= len(dearest):
            left = dearest[:count]
            edges = {edge for cost in left for edge in cost.edges}
            mixed = without_pairs(quantized, edges, reference=model)
            if not _has_int8_products(mixed):
                break
            reached = _db(noise(wanted, run_rows(mixed, checked)))
            if reached >= _WANTED_DB:
                write_note(mixed, _note(left))
                return mixed
            count += max(1, count // 4)
        worst = ", ".join(dearest[0].layers) if dearest else "none"
        raise PassFailed(
            f"{self.name} finds no mix for this graph: outputs reach {reached:.1f} dB of the {_WANTED_DB:g} that are "
            f"wanted. What suffers most is {worst}. Keep it in float, or quantize its weights alone."
        )


def _has_int8_products(model: onnx.ModelProto) -> bool:
    products = {node.name for node in model.graph.node if node.op_type in PRODUCTS}
    return any(consumer in products for pair in pairs_of(model) for consumer in pair.consumers)


def _first_guess(noises: Sequence[float]) -> int:
    """Return how many of the dearest to leave out: the rest, added up, is half of what is allowed. At least 1."""
    allowed = 10 ** (-_WANTED_DB / 10) / 2
    rest = np.cumsum(np.asarray(noises, np.float64)[::-1])[::-1]  # rest[i]: noise of i and all cheaper ones
    return max(1, int((rest > allowed).sum()))


def _db(noise_share: float) -> float:
    return float("inf") if noise_share <= 0 else float(-10 * np.log10(noise_share))


def _note(left: Sequence[Cost]) -> str:
    worst: dict[str, float] = {}
    for cost in left:
        for layer in cost.layers:
            worst[layer] = max(worst.get(layer, 0.0), cost.noise)
    names = [f"{layer} ({_db(share):.0f} dB)" for layer, share in worst.items()]
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return f"in float: {', '.join(names[:_MOST_NAMED])}{more}"
