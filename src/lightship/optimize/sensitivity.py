"""Which layers of a graph suffer from int8: found by measurement, one at a time, in one session.

The float graph gets the rounding of the quantized one, each piece behind a switch. With one switch on, the change of
the outputs is what that piece alone costs; the costs of all add up nearly, which gives an order and a first guess, and
the guess is then checked on the quantized graph itself (``rescued``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import TYPE_CHECKING, Any

import numpy as np

from lightship.engine.machine import usable_cores
from lightship.errors import CannotRun
from lightship.optimize.onnx_model import PRODUCTS, sort_nodes
from lightship.optimize.qdq import pairs_of
from lightship.optimize.variant_pass import PassFailed, write_note

if TYPE_CHECKING:
    import onnx

__all__ = ["WANTED_DB", "Cost", "Yardstick", "costs", "product_costs", "rescued"]

WANTED_DB = 20.0
"""Signal to noise of the outputs that a mixed graph must keep on calibration rows: a cosine of .995."""

_SWITCHES = "lightship/switches"
_MOST_SWITCHES = 384  # beyond, neighbors share one: each costs a run
_NEIGHBORS = 8
_FEWER_TRIALS = 3
_MOST_NAMED = 40
_NOTHING = "nothing would be left in int8"
_TABLES = frozenset({"Gather"})
_TABLE_LEVELS = 127

Rows = Sequence[Mapping[str, np.ndarray]]


@dataclass(frozen=True, slots=True)
class Cost:
    """What it costs to quantize one piece of the graph.

    Attributes:
        edges: (tensor, name of the consumer that would see it rounded).
        noise: power of the change of the outputs over the power of the outputs, of the worst output.
    """

    edges: tuple[tuple[str, str], ...]
    noise: float

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the consumers, each once."""
        return tuple(dict.fromkeys(consumer for _, consumer in self.edges))


def costs(
    reference: onnx.ModelProto, quantized: onnx.ModelProto, rows: Rows, *, power: Sequence[float] | None = None
) -> list[Cost]:
    """Return the cost of each activation of ``quantized``, dearest first; equals in the order of the graph.

    Products and other operators that take one activation are told apart: a residual sum may need floats where the
    product beside it does not. ``power``: see ``noise``.

    Raises:
        CannotRun: the engine does not run the graph on these rows.
    """
    units = _units(quantized)
    return _measured(units, _session(_switchboard(reference, quantized, units)), rows, power)


def product_costs(
    model: onnx.ModelProto, rows: Rows, *, levels: int, power: Sequence[float] | None = None
) -> list[Cost]:
    """Return the cost of each product and table whose weights become int8, dearest first.

    Weights are rounded with one scale a channel, those of tables with one for all; activations with the range that they
    have in the call.

    Args:
        model: in float.
        rows: batches to measure on.
        levels: of a product's weights, on one side of zero: 127, or 63 where sums of 8 bits would overflow.
        power: see ``noise``.

    Raises:
        CannotRun: the engine does not run the graph on these rows.
    """
    layers = list(_weighted(model))
    units = [((tensor.name, node.name),) for node, tensor in layers]
    return _measured(units, _session(_product_board(model, layers, levels=levels)), rows, power)


def _measured(
    units: Sequence[tuple[tuple[str, str], ...]], session: Any, rows: Rows, power: Sequence[float] | None
) -> list[Cost]:
    """Return what each switch costs; neighbors that together cost next to nothing are one piece, and one run."""
    plain = _outputs(session, rows, np.zeros(len(units), np.bool_))

    def cost(start: int, stop: int) -> Cost:
        switches = np.zeros(len(units), np.bool_)
        switches[start:stop] = True
        edges = tuple(edge for unit in units[start:stop] for edge in unit)
        return Cost(edges, noise(plain, _outputs(session, rows, switches), power))

    starts = range(0, len(units), _NEIGHBORS)
    little = _allowed() / max(2 * len(starts), 1)
    found: list[Cost] = []
    for start in starts:
        stop = min(start + _NEIGHBORS, len(units))
        together = cost(start, stop)
        if together.noise <= little or stop - start == 1:
            found.append(together)
        else:
            found += [cost(index, index + 1) for index in range(start, stop)]
    return sorted(found, key=lambda cost: -cost.noise)


def rescued(
    dearest: Sequence[Cost],
    without: Callable[[Sequence[Cost]], onnx.ModelProto | None],
    *,
    reached: Callable[[onnx.ModelProto], float],
    name: str,
) -> onnx.ModelProto:
    """Return a graph whose dearest pieces stay in float: as few of them as keep the outputs near enough.

    Args:
        dearest: costs of all pieces, dearest first.
        without: makes the graph with these in float; None when nothing would be left in int8.
        reached: the decibels of a graph on rows that it is checked on.
        name: the pass, for the error message.

    Raises:
        PassFailed: floats everywhere would not be enough, or nothing would be left in int8.
    """
    too_few, count = 0, _first_guess([cost.noise for cost in dearest])
    while count > 1 and without(dearest[:count]) is None:
        count //= 2
    best: float | None = None
    found = None
    while found is None and count <= len(dearest) and (mixed := without(dearest[:count])) is not None:
        best = reached(mixed)
        if best >= WANTED_DB:
            found = mixed
        else:
            too_few, count = count, count + max(1, count // 4)
    if found is None:
        worst = ", ".join(dearest[0].layers) if dearest else "none"
        reach = f"outputs reach {best:.1f} dB of the {WANTED_DB:g} that are wanted" if best is not None else _NOTHING
        raise PassFailed(
            f"{name} finds no mix for this graph: {reach}. "
            f"What suffers most is {worst}. Keep it in float, or quantize its weights alone."
        )
    for _ in range(_FEWER_TRIALS):  # each layer in float costs time
        middle = (too_few + count) // 2
        if middle == too_few:
            break
        mixed = without(dearest[:middle])
        if mixed is not None and reached(mixed) >= WANTED_DB:
            found, count = mixed, middle
        else:
            too_few = middle
    write_note(found, _note(dearest[:count]))
    return found


def decibels(noise_share: float) -> float:
    """Return signal over noise in dB."""
    return float("inf") if noise_share <= 0 else float(-10 * np.log10(noise_share))


def _first_guess(noises: Sequence[float]) -> int:
    """Return how many of the dearest to leave out: the rest, added up, is half of what is allowed. At least 1."""
    rest = np.cumsum(np.asarray(noises, np.float64)[::-1])[::-1]  # rest[i]: noise of i and all cheaper ones
    return max(1, int((rest > _allowed()).sum()))


def _allowed() -> float:
    """Return the noise that all pieces in int8 may have together, by their single costs: half of what is wanted."""
    return float(10 ** (-WANTED_DB / 10) / 2)


def _note(left: Sequence[Cost]) -> str:
    worst: dict[str, float] = {}
    for cost in left:
        for layer in cost.layers:
            worst[layer] = max(worst.get(layer, 0.0), cost.noise)
    names = [f"{layer} ({decibels(share):.0f} dB)" for layer, share in worst.items()]
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return f"in float: {', '.join(names[:_MOST_NAMED])}{more}"


class Yardstick:
    """The answers of a graph in float to some rows, and how near those of another graph come.

    Args:
        reference: in float.
        pieces: the rows, in batches of few.

    Raises:
        CannotRun: the engine does not run it on these rows.
    """

    def __init__(self, reference: onnx.ModelProto, pieces: Rows) -> None:
        self._pieces = list(pieces)
        self._wanted = self._answers(reference)
        finite = [all(np.isfinite(array).all() for array in answers) for answers in self._wanted]
        if any(finite):  # what the reference has no number for tells nothing
            self._pieces, self._wanted = list(compress(self._pieces, finite)), list(compress(self._wanted, finite))

    @property
    def power(self) -> list[float]:
        """Power of each output, of the mean batch."""
        totals = [sum(_power(array) for array in arrays) for arrays in zip(*self._wanted, strict=True)]
        return [total / len(self._pieces) for total in totals]

    def decibels(self, made: onnx.ModelProto) -> float:
        """Return signal over noise of the worst output of ``made``, over all rows."""
        found = self._answers(made)
        return decibels(noise(_joined(self._wanted), _joined(found)))

    def hardest(self, made: onnx.ModelProto, count: int) -> list[Mapping[str, np.ndarray]]:
        """Return the batches on which ``made`` is farthest off, the worst first.

        What a layer costs shows there: on a row that a classifier is sure of, nothing costs anything.
        """
        power = self.power
        noises = [noise(a, b, power) for a, b in zip(self._wanted, self._answers(made), strict=True)]
        return [self._pieces[place] for place in np.argsort(noises, kind="stable")[::-1][:count]]

    def _answers(self, model: onnx.ModelProto) -> list[list[np.ndarray]]:
        session = _session(model, all_rewrites=True)  # as the engine gives them after all of its rewrites
        return [_outputs(session, [piece], None) for piece in self._pieces]


def _joined(parts: Sequence[Sequence[np.ndarray]]) -> list[np.ndarray]:
    return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]


def noise(wanted: Sequence[np.ndarray], found: Sequence[np.ndarray], power: Sequence[float] | None = None) -> float:
    """Return the power of the difference over that of ``wanted``, of the worst output; infinite if not finite.

    Args:
        wanted: each output in float.
        found: each output of the other graph.
        power: what to divide by instead, by output: few rows may have an output of nothing but zeros.
    """
    worst = 0.0
    for place, (a, b) in enumerate(zip(wanted, found, strict=True)):
        difference = _power(a.astype(np.float64) - b)
        if not np.isfinite(difference):
            return float("inf")
        worst = max(worst, difference / max(_power(a) if power is None else power[place], 1e-30))
    return worst


def _power(array: np.ndarray) -> float:
    return float((array.astype(np.float64) ** 2).sum())


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
                rounding = (
                    helper.make_node("QuantizeLinear", [source, *more], [f"{here}/narrow"]),
                    helper.make_node("DequantizeLinear", [f"{here}/narrow", *more], [f"{here}/wide"]),
                )
                board.graph.node.append(_switch(f"{place}/on", source, rounding, here))
                node.input[index] = here
    sort_nodes(board)
    return board


def _weighted(model: onnx.ModelProto) -> Iterator[tuple[onnx.NodeProto, onnx.TensorProto]]:
    """Yield the products with float weights and the tables, each with its weight."""
    from onnx import TensorProto

    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        place = 1 if node.op_type in ("MatMul", "Gemm") else 0 if node.op_type in _TABLES else None
        tensor = None if place is None else tensors.get(node.input[place])
        if tensor is not None and tensor.data_type == TensorProto.FLOAT and len(tensor.dims) > 1:
            yield node, tensor


def _product_board(
    model: onnx.ModelProto, layers: Sequence[tuple[onnx.NodeProto, onnx.TensorProto]], *, levels: int
) -> onnx.ModelProto:
    """Return the float graph where layer ``i`` computes as in int8 if input ``_SWITCHES[i]`` is true."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    board = onnx.ModelProto()
    board.CopyFrom(model)
    nodes = {node.name: node for node in board.graph.node}
    board.graph.input.append(helper.make_tensor_value_info(_SWITCHES, TensorProto.BOOL, [len(layers)]))
    for number, (layer, tensor) in enumerate(layers):
        place, node = f"{_SWITCHES}/{number}", nodes[layer.name]
        board.graph.initializer.append(numpy_helper.from_array(np.array(number, np.int64), place))
        rounded = _rounded(numpy_helper.to_array(tensor), layer, levels=levels)
        board.graph.initializer.append(numpy_helper.from_array(rounded, f"{place}/w"))
        board.graph.node.append(helper.make_node("Gather", [_SWITCHES, place], [f"{place}/on"]))
        other = (helper.make_node("Identity", [f"{place}/w"], [f"{place}/same"]),)
        board.graph.node.append(_switch(f"{place}/on", tensor.name, other, f"{place}/weights"))
        node.input[0 if node.op_type in _TABLES else 1] = f"{place}/weights"
        if node.op_type not in _TABLES:
            narrow = [f"{place}/narrow", f"{place}/scale", f"{place}/zero"]
            rounding = (
                helper.make_node("DynamicQuantizeLinear", [node.input[0]], narrow),
                helper.make_node("DequantizeLinear", narrow, [f"{place}/wide"]),
            )
            board.graph.node.append(_switch(f"{place}/on", node.input[0], rounding, f"{place}/taken"))
            node.input[0] = f"{place}/taken"
    sort_nodes(board)
    return board


def _switch(on: str, source: str, rounding: Sequence[onnx.NodeProto], result: str) -> onnx.NodeProto:
    """Return a node that gives ``source`` rounded or as it is; what is off is not computed."""
    from onnx import TensorProto, helper

    def branch(nodes: Sequence[onnx.NodeProto]) -> onnx.GraphProto:
        last = nodes[-1].output[0]
        return helper.make_graph(nodes, last, [], [helper.make_tensor_value_info(last, TensorProto.FLOAT, None)])

    off = helper.make_node("Identity", [source], [f"{result}/off"])
    return helper.make_node("If", [on], [result], then_branch=branch(rounding), else_branch=branch([off]))


def _rounded(weights: np.ndarray, layer: onnx.NodeProto, *, levels: int) -> np.ndarray:
    """Return weights as they are in int8, with one scale for each output channel of a product."""
    transposed = any(each.name == "transB" and each.i for each in layer.attribute)
    is_table = layer.op_type in _TABLES
    others = None if is_table else -1 if transposed else -2  # a product sums over this axis
    scale = np.abs(weights).max(axis=others, keepdims=True, initial=0.0) / (_TABLE_LEVELS if is_table else levels)
    rounded: np.ndarray = np.round(weights / np.maximum(scale, 1e-30)) * scale
    return rounded.astype(np.float32)


def _session(model: onnx.ModelProto, *, all_rewrites: bool = False) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = usable_cores(), 1
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
