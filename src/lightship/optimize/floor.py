"""How fast this machine could run a graph at best: the roofline.

A call takes at least as long as its multiplications at the machine's peak rate, and at least as long as to fetch every
weight, input and output once. Both rates are measured, not read from a data sheet. What is left between this floor and
the time of a call is what other arithmetic (int8, bf16) or fewer operations could win; a call near its floor is done.
Source: Williams, Waterman and Patterson 2009, doi:10.1145/1498765.1498785.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from lightship.types import Json

if TYPE_CHECKING:
    import onnx

__all__ = ["Floor", "Work", "floor_of", "work_of"]

_SIDE = 1024  # of the matrices whose product gives the peak; larger ones are no quicker
_COPIED_BYTES = 64 << 20  # more than the caches hold
_TRIES = 5
_ITEM_BYTES = 4


@dataclass(frozen=True, slots=True)
class Work:
    """What one call must do.

    Attributes:
        flop: multiplications and additions of convolutions and matrix products; 0 if their shapes cannot be told.
        read_bytes: of weights, inputs and outputs, each once.
    """

    flop: int
    read_bytes: int


@dataclass(frozen=True, slots=True)
class Floor:
    """The least time of a call in float32 on this machine.

    Attributes:
        compute_ms: for the arithmetic at the measured peak.
        memory_ms: for fetching everything once at the measured rate.
        gflops: the peak, in thousand million operations a second.
        mib_per_s: the rate of memory.
    """

    work: Work
    compute_ms: float
    memory_ms: float
    gflops: float
    mib_per_s: float

    @property
    def floor_ms(self) -> float:
        """The least time of a call."""
        return max(self.compute_ms, self.memory_ms)

    def to_json(self, *, call_ms: float) -> dict[str, Json]:
        """Return the floor beside what a call takes; ``share`` is how much of that time the floor accounts for."""
        return {
            "floor_ms": self.floor_ms,
            "compute_ms": self.compute_ms,
            "memory_ms": self.memory_ms,
            "gflops": self.gflops,
            "gflop": self.work.flop / 1e9,
            "mib": self.work.read_bytes / 2**20,
            "mib_per_s": self.mib_per_s,
            "share": self.floor_ms / call_ms,
        }


def floor_of(
    graph: bytes,
    inputs: Mapping[str, np.ndarray],
    *,
    call_ms: float,
    clock: Callable[[], float] = time.perf_counter,
) -> Floor | None:
    """Return the floor of one call with these inputs; None when the graph's work cannot be told.

    ``call_ms`` is what the call takes: on a busy machine it may have reached more than the rates measured just now, and
    then it counts.
    """
    work = work_of(graph, inputs)
    if not work.flop:
        return None
    reached = 1000 / call_ms
    flops = max(_peak_flops(clock), work.flop * reached)
    bytes_per_s = max(_copied_per_s(clock), work.read_bytes * reached)
    return Floor(
        work=work,
        compute_ms=1000 * work.flop / flops,
        memory_ms=1000 * work.read_bytes / bytes_per_s,
        gflops=flops / 1e9,
        mib_per_s=bytes_per_s / 2**20,
    )


def work_of(graph: bytes, inputs: Mapping[str, np.ndarray]) -> Work:
    """Return what one call with these inputs must do, by the shapes that ONNX infers."""
    import onnx

    model = onnx.load_from_string(graph)
    shapes = _shapes(model, inputs)
    weights = sum(_ITEM_BYTES * prod(each.dims) for each in model.graph.initializer)
    flop = sum(_flop(node, shapes) for node in model.graph.node)
    moved = sum(array.nbytes for array in inputs.values())
    moved += sum(_ITEM_BYTES * prod(shapes.get(each.name, ())) for each in model.graph.output)
    return Work(flop=flop, read_bytes=weights + moved)


def _shapes(model: onnx.ModelProto, inputs: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor that has one with sizes only."""
    import onnx

    del model.graph.value_info[:]
    for value in model.graph.input:
        if value.name in inputs:
            shape = value.type.tensor_type.shape
            del shape.dim[:]
            for size in inputs[value.name].shape:
                shape.dim.add().dim_value = size
    for value in model.graph.output:  # they may be stated for a free batch, which would stop the inference
        value.type.tensor_type.ClearField("shape")
    try:
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except (onnx.shape_inference.InferenceError, ValueError):
        return {}
    shapes = {each.name: tuple(each.dims) for each in model.graph.initializer}
    for value in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        sizes = tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        # Without a shape the rank is not known either; a scalar has one of no sizes.
        if value.type.tensor_type.HasField("shape") and all(size > 0 for size in sizes):
            shapes[value.name] = sizes
    return shapes


def _flop(node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Count what takes the time: products; everything else is small beside them."""
    known = [shapes.get(name) for name in (*node.input[:2], *node.output[:1])]
    if node.op_type not in ("Conv", "MatMul", "Gemm") or any(shape is None for shape in known):
        return 0
    first, weight, result = (shape or () for shape in known)
    if node.op_type == "Conv":
        return 2 * prod(result) * prod(weight[1:])
    inner = first[-1]
    if node.op_type == "Gemm" and any(each.name == "transA" and each.i for each in node.attribute):
        inner = first[0]
    return 2 * prod(result) * inner


def _peak_flops(clock: Callable[[], float]) -> float:
    one = np.ones((_SIDE, _SIDE), dtype=np.float32)
    out = np.empty_like(one)
    return 2 * _SIDE**3 / _least_s(lambda: np.matmul(one, one, out=out), clock)


def _copied_per_s(clock: Callable[[], float]) -> float:
    source = np.ones(_COPIED_BYTES, dtype=np.uint8)
    target = np.empty_like(source)
    return _COPIED_BYTES / _least_s(lambda: np.copyto(target, source), clock)


def _least_s(work: Callable[[], object], clock: Callable[[], float]) -> float:
    """Return the least time of a few tries: of a peak, the best is the truest."""
    taken = []
    for _ in range(_TRIES):
        started = clock()
        work()
        taken.append(clock() - started)
    return min(taken)
