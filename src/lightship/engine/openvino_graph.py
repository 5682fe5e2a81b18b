"""What OpenVINO would get wrong without a word: found in the graph as OpenVINO has read it, before it is compiled.

Its CPU plugin computes 64-bit and unsigned 32-bit integers in 32 bits and float64 in float32, does not check indices
(a gather outside of its table reads, and a scatter writes, whatever lies there), and takes a reshape to a fixed size
at its word. ONNX Runtime computes the first and refuses the others while it runs. What can be seen beforehand is
refused here, and the values that a graph may be given are bounded; ``docs/engines.md`` names what is left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from lightship.engine.onnx_wire import Operator
from lightship.errors import InvalidInput
from lightship.types import Interface

__all__ = ["outside", "refuse_operators", "refuse_wrong", "value_bounds"]

_INT32 = np.iinfo(np.int32)
_WIDE = {"i64", "u64", "u32"}
_NARROWED = {"INT64": _INT32.min, "UINT64": 0, "UINT32": 0}
_ENDS = frozenset({2**63 - 1, -(2**63), 1 - 2**63, 2**64 - 1})
"""Integers that exporters write for "up to the end" and "no bound"; cut to 32 bits they mean the same."""

# Operators of ONNX that it answers otherwise than the standard, with no word: all of a type, or with an attribute so.
_MISREAD = {
    **dict.fromkeys(
        ("SequenceAt", "SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceLength",
         "SequenceMap", "SplitToSequence", "ConcatFromSequence"), "its positions are taken as fixed",
    ),
    **dict.fromkeys(
        ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"),
        "it draws random numbers, and no seed makes them the same",
    ),
    "Attention": "masks and windows are read in another way",
    "BitShift": "it saturates and takes no negative numbers",
    "DFT": "its axis is another one",
}  # fmt: skip


def _recurrent(operator: Operator) -> bool:
    return operator.integers("layout") == [1]


def _resize(operator: Operator) -> bool:
    policy = operator.text("keep_aspect_ratio_policy")
    return policy not in ("", "stretch") or any(operator.integers(name) == [1] for name in ("antialias", _EXCLUDE))


def _pool(operator: Operator) -> bool:
    """Tell whether a last window may begin in the padding: then its output has another size."""
    window, steps = operator.integers("kernel_shape"), operator.integers("strides")
    beyond = any(step > size for step, size in zip(steps, window, strict=False))
    padded = any(operator.integers("pads")) or operator.text("auto_pad") not in ("", "NOTSET")
    return operator.integers("ceil_mode") == [1] and (beyond or padded)


_EXCLUDE = "exclude_outside"
_MISREAD_SO: Mapping[str, tuple[Callable[[Operator], bool], str]] = {
    **dict.fromkeys(("GRU", "LSTM", "RNN"), (_recurrent, "`layout` 1 is not followed")),
    "Resize": (_resize, "`antialias`, `exclude_outside` and `keep_aspect_ratio_policy` are not followed"),
    **dict.fromkeys(("MaxPool", "AveragePool", "LpPool"), (_pool, "`ceil_mode` with padding gives another size")),
    "SpaceToDepth": (lambda operator: operator.text("mode") == "CRD", "`mode` CRD is not followed"),
}

# Inputs of operators that hold positions and are not checked: by type, the number of the input.
_UNCHECKED = {
    "GatherND": 1, "GatherElements": 1, "ScatterUpdate": 1, "ScatterElementsUpdate": 1, "ScatterNDUpdate": 1,
    "ReverseSequence": 1, "ROIAlign": 2, "LSTMSequence": 3, "GRUSequence": 2, "RNNSequence": 2,
    "Tile": 1,
}  # fmt: skip
_SAFE_SOURCES = {"Constant", "ShapeOf", "NonZero", "TopK"}  # what they give lies inside of what they look at
_PASSES_ON = {"Convert", "Reshape", "Squeeze", "Unsqueeze", "Transpose"}


def refuse_operators(operators: Iterable[Operator]) -> None:
    """Refuse operators of the file that OpenVINO turns into something else.

    Raises:
        InvalidInput: names the operator.
    """
    for operator in operators:
        reason = _MISREAD.get(operator.kind, "")
        if operator.kind in _MISREAD_SO:
            is_wrong, why = _MISREAD_SO[operator.kind]
            reason = why if is_wrong(operator) else ""
        if reason:
            raise _refusal(
                f"of the operator {operator.kind} {reason}" if "`" in reason else f"{operator.kind}: {reason}"
            )


def refuse_wrong(model: Any, *, limited: bool = False) -> None:
    """Refuse a model whose answers could be wrong, or another's memory, without an error.

    Args:
        model: ``openvino.Model``, as it was read.
        limited: a run may take so long and no longer, which OpenVINO does not look at inside of a loop.

    Raises:
        InvalidInput: names the operator.
    """
    for node in _nodes(model):
        kind = node.get_type_name()
        if kind == "Constant":
            _check_constant(node)
            _check_turned(node)
        elif kind == "Loop" and limited:
            raise _refusal(f"Loop ({_name(node)}) cannot be stopped, and it is to be run with a limit (`limit_s`)")
        elif kind == "Reshape":
            _check_reshape(node)
        elif kind in _UNCHECKED and _comes_from_outside(node, _UNCHECKED[kind]):
            raise _refusal(
                f"{kind} ({_name(node)}) takes positions or sizes from the inputs, which OpenVINO does not check"
            )


def value_bounds(model: Any, interface: Interface) -> dict[str, tuple[int, int]]:
    """Return, by the name of an integer input, the least and the greatest value that OpenVINO computes right.

    64 bits are cut to 32; and a row of a table that is not there would be a row of zeros.
    """
    bounds = {
        spec.name: (int(_NARROWED[spec.dtype]), int(_INT32.max)) for spec in interface.inputs if spec.dtype in _NARROWED
    }
    for node in _nodes(model):
        if node.get_type_name() == "Gather":
            _narrow(node, bounds, {spec.name for spec in interface.inputs if spec.dtype.startswith(("INT", "UINT"))})
    return bounds


def _narrow(node: Any, bounds: dict[str, tuple[int, int]], integers: set[str]) -> None:
    axis = node.input_value(2).get_node()
    table = node.input_value(0).get_partial_shape()
    if axis.get_type_name() != "Constant" or table.rank.is_dynamic:
        return
    rows = table[int(axis.data.ravel()[0])]
    source = node.input_value(1).get_node()
    while source.get_type_name() in _PASSES_ON:
        source = source.input_value(0).get_node()
    if rows.is_dynamic or source.get_type_name() != "Parameter":
        return
    for name in source.output(0).get_names() & integers:
        low, high = bounds.get(name, (int(_INT32.min), int(_INT32.max)))
        bounds[name] = (max(low, -rows.get_length()), min(high, rows.get_length() - 1))


def outside(bounds: Mapping[str, tuple[int, int]], name: str, array: np.ndarray) -> bool:
    """Tell whether an array holds a value beyond the bounds of its input."""
    if name not in bounds or not array.size:
        return False
    low, high = bounds[name]
    return int(array.min()) < low or int(array.max()) > high


def _nodes(model: Any) -> Iterator[Any]:
    """Yield all operators, those of graphs inside of the graph as well."""
    waiting = [model]
    while waiting:
        for node in waiting.pop().get_ordered_ops():
            yield node
            kind = node.get_type_name()
            if kind in {"Loop", "TensorIterator"}:
                waiting.append(node.get_function())
            elif kind == "If":
                waiting += [node.get_function(branch) for branch in (0, 1)]


def _check_constant(node: Any) -> None:
    if node.get_output_element_type(0).to_string() not in _WIDE or not node.data.size:
        return
    for value in (int(node.data.min()), int(node.data.max())):
        if not _INT32.min <= value <= _INT32.max and value not in _ENDS:
            raise _refusal(f"constant {_name(node)} holds {value}; OpenVINO computes with integers of 32 bits")


def _check_turned(node: Any) -> None:
    """Refuse a square weight that one product takes as it is and another one turned: both would get the same packed."""
    sizes = node.get_output_shape(0)
    if len(sizes) < 2 or sizes[-1] != sizes[-2]:
        return
    takers = [each.get_node() for each in node.output(0).get_target_inputs() if each.get_index() == 1]
    products = [taker for taker in takers if taker.get_type_name() == "MatMul"]
    if len({bool(product.get_attributes()["transpose_b"]) for product in products}) > 1:
        names = " and ".join(_name(product) for product in products[:2])
        raise _refusal(f"the products {names} take one square weight in two ways; OpenVINO turns it for both or none")


def _check_reshape(node: Any) -> None:
    if node.get_input_partial_shape(0).is_dynamic and node.get_output_partial_shape(0).is_static:
        raise _refusal(
            f"Reshape ({_name(node)}) makes a fixed size of one that is free; OpenVINO does not check that it fits"
        )


def _comes_from_outside(node: Any, number: int) -> bool:
    """Tell whether the values of an input are computed from those that a graph is given."""
    waiting, seen = [node.input_value(number).get_node()], set[str]()
    while waiting:
        source = waiting.pop()
        kind, name = source.get_type_name(), source.get_name()
        if kind == "Parameter":
            return True
        if name in seen or kind in _SAFE_SOURCES:
            continue
        seen.add(name)
        waiting += [value.get_node() for value in source.input_values()]
    return False


def _name(node: Any) -> str:
    return ascii(node.get_friendly_name()[:80])


def _refusal(reason: str) -> InvalidInput:
    return InvalidInput(f"The engine 'openvino' would not run this graph right: {reason}. ONNX Runtime does.")
