"""The interface of the bundle: a graph's own, with the bundle's names and ranges, and its outputs as they came out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from lightship.errors import InvalidInput
from lightship.imports.tried_graph import Observed, TriedGraph
from lightship.tasks.tensors import BATCH, is_batched
from lightship.types import Dim, Interface, TensorSpec

__all__ = ["named_interface"]


def named_interface(tried: TriedGraph, proven: Mapping[str, tuple[int, int]]) -> tuple[Interface, dict[str, str]]:
    """Return the interface with the bundle's names, and those by the engine's."""
    taken = {BATCH} if tried.batched else set()
    names: dict[str, str] = {}
    everywhere = [d for spec in (*tried.inputs, *tried.interface.outputs) for d in spec.shape if isinstance(d, str)]
    for dim in dict.fromkeys(everywhere):
        if tried.batched and dim in tried.first:
            names[dim] = BATCH
            continue
        if dim not in tried.leader:
            names[dim] = _fresh(dim, taken)
            taken.add(names[dim])
    names |= {dim: names[leader] for dim, leader in tried.leader.items()}
    inputs = tuple(
        TensorSpec(spec.name, spec.dtype, tuple(names[d] if isinstance(d, str) else d for d in spec.shape))
        for spec in tried.inputs
    )
    outputs = tuple(_output(tried, spec, names, taken) for spec in tried.interface.outputs)
    ranges = {names[dim]: proven[dim] for dim in proven}
    if not tried.batched and is_batched(inputs, outputs):
        # A file that says `batch` of what are no rows would have requests run together.
        inputs, outputs = (_renamed(specs, "rows") for specs in (inputs, outputs))
        ranges = {"rows" if dim == BATCH else dim: sizes for dim, sizes in ranges.items()}
    return Interface(inputs, outputs, proven=ranges), names


def _output(tried: TriedGraph, spec: TensorSpec, names: Mapping[str, str], taken: set[str]) -> TensorSpec:
    """Return an output as it was seen: what a file declares of it may be missing or wrong."""
    shapes = [(seen, seen.shapes[spec.name]) for seen in tried.observed]
    if len({len(shape) for _, shape in shapes}) != 1:
        raise InvalidInput(f"Output {spec.name!r} of the graph changes the number of its dimensions. Export it again.")
    rank = len(shapes[0][1])
    declared: list[Dim | None] = [*spec.shape] if len(spec.shape) == rank else [None] * rank
    dims: list[Dim] = []
    for axis in range(rank):
        found = [(seen, shape[axis]) for seen, shape in shapes]
        dims.append(_output_dim(tried, found, declared[axis], names, taken, axis=axis))
    return TensorSpec(spec.name, spec.dtype, tuple(dims))


def _output_dim(
    tried: TriedGraph,
    found: list[tuple[Observed, int]],
    declared: Dim | None,
    names: Mapping[str, str],
    taken: set[str],
    *,
    axis: int,
) -> Dim:
    if tried.batched and axis == 0:
        return BATCH
    sizes = {size for _, size in found}
    if isinstance(declared, int) and sizes == {declared} and declared >= 1:
        return declared
    if declared is None and len(sizes) == 1 and min(sizes) >= 1:
        return next(iter(sizes))
    follows = [dim for dim in tried.start if all(seen.sizes.get(dim) == size for seen, size in found)]
    if isinstance(declared, str) and declared in follows:
        return names[declared]
    if follows and len(sizes) > 1:
        return names[follows[0]]
    if isinstance(declared, str) and declared not in tried.free:
        return names[declared]
    fresh = _fresh("free", taken)
    taken.add(fresh)
    return fresh


def _renamed(specs: Sequence[TensorSpec], name: str) -> tuple[TensorSpec, ...]:
    return tuple(replace(spec, shape=tuple(name if dim == BATCH else dim for dim in spec.shape)) for spec in specs)


def _fresh(name: str, taken: set[str]) -> str:
    """Return a name for a dimension that a bundle may hold and no other dimension has."""
    plain = name if name.isprintable() and 1 <= len(name) <= 48 else "free"
    candidates: Iterator[str] = (f"{plain}_{number}" for number in range(2, 10_000))
    return plain if plain not in taken else next(text for text in candidates if text not in taken)
