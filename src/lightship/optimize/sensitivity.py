"""Which activations of a graph suffer from int8: found by measurement, one at a time, in one session.

The float graph gets every range that the quantized one has, each behind a switch. With one switch on, the change of
the outputs is what that range alone costs; the costs of all add up nearly, which gives an order and a first guess, and
the guess is then checked on the quantized graph itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lightship.errors import CannotRun
from lightship.optimize.onnx_model import sort_nodes
from lightship.optimize.qdq import pairs_of

if TYPE_CHECKING:
    import onnx

__all__ = ["PRODUCTS", "Cost", "costs", "noise", "run_rows"]

_SWITCHES = "lightship/switches"
PRODUCTS = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose"})
_MOST_SWITCHES = 384  # beyond, neighbors share one: each costs a run

Rows = Sequence[Mapping[str, np.ndarray]]


@dataclass(frozen=True, slots=True)
class Cost:
    """What it costs to quantize one activation for some of its consumers.

    Attributes:
        edges: (widened tensor in the quantized graph, name of the consumer).
        noise: power of the change of the outputs over the power of the outputs, of the worst output.
    """

    edges: tuple[tuple[str, str], ...]
    noise: float

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the consumers, each once."""
        return tuple(dict.fromkeys(consumer for _, consumer in self.edges))


def costs(reference: onnx.ModelProto, quantized: onnx.ModelProto, rows: Rows) -> list[Cost]:
    """Return the cost of each activation of ``quantized``, dearest first; equals in the order of the graph.

    Products and other operators that take one activation are told apart: a residual sum may need floats where the
    product beside it does not.

    Raises:
        CannotRun: the engine does not run the graph on these rows.
    """
    units = _units(quantized)
    session = _session(_switchboard(reference, quantized, units))
    off = np.zeros(len(units), np.bool_)
    plain = _outputs(session, rows, off)
    found = []
    for index, edges in enumerate(units):
        switches = off.copy()
        switches[index] = True
        found.append(Cost(edges, noise(plain, _outputs(session, rows, switches))))
    return sorted(found, key=lambda cost: -cost.noise)


def run_rows(model: onnx.ModelProto, rows: Rows) -> list[np.ndarray]:
    """Return each float output for all rows, as the engine gives it after all of its rewrites.

    Raises:
        CannotRun: the engine does not run the graph on these rows.
    """
    return _outputs(_session(model, all_rewrites=True), rows, None)


def noise(wanted: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> float:
    """Return the power of the difference over the power of ``wanted``, of the worst output; infinite if not finite."""
    worst = 0.0
    for a, b in zip(wanted, found, strict=True):
        a64, b64 = a.astype(np.float64), b.astype(np.float64)
        power, difference = float((a64**2).sum()), float(((a64 - b64) ** 2).sum())
        if not np.isfinite(difference):
            return float("inf")
        worst = max(worst, difference / max(power, 1e-30))
    return worst


def _units(quantized: onnx.ModelProto) -> list[tuple[tuple[str, str], ...]]:
    operators = {node.name: node.op_type for node in quantized.graph.node}
    units = []
    for pair in pairs_of(quantized):
        for products in (True, False):
            edges = tuple(
                (pair.widened, consumer)
                for consumer in dict.fromkeys(pair.consumers)
                if consumer in operators
                and (operators[consumer] in PRODUCTS) is products
                # A tensor that passes two pairs in a row is counted at the first.
                and operators[consumer] != "QuantizeLinear"
            )
            if edges:
                units.append(edges)
    step = -(-len(units) // _MOST_SWITCHES)
    return [
        tuple(edge for unit in units[start : start + step] for edge in unit) for start in range(0, len(units), step)
    ]


def _switchboard(
    reference: onnx.ModelProto, quantized: onnx.ModelProto, units: Sequence[Sequence[tuple[str, str]]]
) -> onnx.ModelProto:
    """Return the float graph where unit ``i`` is rounded as in ``quantized`` if input ``_SWITCHES[i]`` is true."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    board = onnx.ModelProto()
    board.CopyFrom(reference)
    held = {tensor.name: tensor for tensor in quantized.graph.initializer}
    pairs = {pair.widened: pair for pair in pairs_of(quantized)}
    seen = {node.name: node for node in quantized.graph.node}
    nodes = {node.name: node for node in board.graph.node}
    board.graph.input.append(helper.make_tensor_value_info(_SWITCHES, TensorProto.BOOL, [len(units)]))
    added = set[str]()
    for number, unit in enumerate(units):
        place = f"{_SWITCHES}/{number}"
        board.graph.initializer.append(numpy_helper.from_array(np.array(number, np.int64), place))
        board.graph.node.append(helper.make_node("Gather", [_SWITCHES, place], [f"{place}/on"]))
        for order, (widened, consumer) in enumerate(unit):
            pair, node = pairs[widened], nodes.get(consumer)
            if node is None:
                continue
            names = [name for name in (pair.scale, pair.zero_point) if name]
            for name in names:
                if name not in added:
                    added.add(name)
                    tensor = board.graph.initializer.add()
                    tensor.CopyFrom(held[name])
                    tensor.name = f"{_SWITCHES}/{name}"
            more = [f"{_SWITCHES}/{name}" for name in names]
            for index, name in enumerate(seen[consumer].input):
                if name != widened or index >= len(node.input):
                    continue
                here, source = f"{place}/{order}/{index}", node.input[index]
                board.graph.node.extend(
                    (
                        helper.make_node("QuantizeLinear", [source, *more], [f"{here}/narrow"]),
                        helper.make_node("DequantizeLinear", [f"{here}/narrow", *more], [f"{here}/wide"]),
                        helper.make_node("Where", [f"{place}/on", f"{here}/wide", source], [here]),
                    )
                )
                node.input[index] = here
    sort_nodes(board)
    return board


def _session(model: onnx.ModelProto, *, all_rewrites: bool = False) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if all_rewrites else level.ORT_ENABLE_BASIC
    if not all_rewrites:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    try:
        return ort.InferenceSession(model.SerializeToString(), sess_options=options, providers=["CPUExecutionProvider"])
    except Exception as exc:  # the engine's errors have no common base
        raise CannotRun(f"the engine does not load the graph: {exc}") from exc


def _outputs(session: Any, rows: Rows, switches: np.ndarray | None) -> list[np.ndarray]:
    names = [each.name for each in session.get_outputs() if each.type == "tensor(float)"]
    more = {} if switches is None else {_SWITCHES: switches}
    try:
        parts = [session.run(names, {**batch, **more}) for batch in rows]
    except Exception as exc:  # as above
        raise CannotRun(f"the engine does not run the graph on the calibration rows: {exc}") from exc
    return [np.concatenate([part[index].reshape(-1) for part in parts]) for index in range(len(names))]
