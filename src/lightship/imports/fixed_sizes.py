"""A graph with some of its free dimensions fixed: whoever always asks with one size loses nothing, and an engine gains.

Kernels and memory can be planned for one size, and an engine that cannot run some other size is no longer refused.
"""

from __future__ import annotations

from collections.abc import Mapping

from lightship.engine.onnx_wire import UNNAMED, interface_of, named_dims
from lightship.errors import InvalidInput

__all__ = ["with_fixed_sizes"]


def with_fixed_sizes(graph: bytes, sizes: Mapping[str, int]) -> bytes:
    """Return an audited ONNX graph whose inputs have these sizes.

    Args:
        graph: has passed the audit.
        sizes: of free dimensions of the inputs, by their names; those without a name are called as an engine of ours
            calls them (``d0``, ``d1`` ...).

    Raises:
        InvalidInput: there is no such free dimension.
    """
    if not sizes:
        return graph
    declared = interface_of(graph)
    named = named_dims([spec.shape for spec in (*declared.inputs, *declared.outputs)])
    free = {
        (spec.name, axis): dim
        for spec in declared.inputs
        for axis, dim in enumerate(map(named, spec.shape))
        if isinstance(dim, str)
    }
    if unknown := sizes.keys() - free.values():
        there = ", ".join(f"{dim[:80]!a}" for dim in dict.fromkeys(free.values())) or "none: all shapes are fixed"
        raise InvalidInput(
            f"There is no free dimension {min(unknown)[:80]!a} (--fix) in the inputs of the graph. Free are: {there}."
        )

    import onnx  # late: it is heavy, and most imports fix nothing

    model = onnx.load_from_string(graph)
    parts = model.graph
    for value in (*parts.input, *parts.output, *parts.value_info):
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            own = dim.dim_param if dim.dim_param not in UNNAMED else free.get((value.name, axis), "")
            if own in sizes:
                dim.dim_value = sizes[own]
    return bytes(model.SerializeToString())
