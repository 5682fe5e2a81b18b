"""A graph's own tensors in this process: what the V2 protocol does with them on a server, without the server."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lightship.engine.runner import Runner
from lightship.engine.values import require_proven
from lightship.errors import InvalidTensor, LightshipError
from lightship.tasks.tensors import BATCH, is_batched
from lightship.types import DTYPES, Interface, TensorSpec

__all__ = ["run_rows"]


def run_rows(runner: Runner, interface: Interface, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run arrays through a graph; more rows than a batch may have run in several.

    Args:
        runner: the graph.
        interface: of the bundle, with the proven ranges; sizes beyond them are refused.
        inputs: by name; with the batch axis, where there is one. Texts may be ``S``, ``U`` or objects.

    Raises:
        InvalidTensor: a name, dtype, shape or value that the model does not take; the message says which.
        LightshipError: the graph failed.
    """
    wanted = {spec.name for spec in interface.inputs}
    if set(inputs) != wanted:
        raise InvalidTensor(
            f"The model takes the inputs {', '.join(map(repr, sorted(wanted)))}. "
            f"Got {', '.join(map(repr, sorted(inputs))) or 'none'}."
        )
    batched = is_batched(interface.inputs, interface.outputs)
    sizes: dict[str, int] = {}
    arrays = {}
    for spec in interface.inputs:
        arrays[spec.name] = _checked(spec, inputs[spec.name], sizes, interface, batched=batched)
    require_proven(arrays, interface.values)
    if not batched:
        return runner.run(arrays)
    least, most = interface.proven.get(BATCH, (1, 1))
    rows = sizes[BATCH]
    parts = [_run(runner, arrays, start, min(start + most, rows), least) for start in range(0, rows, most)]
    shapes = {tuple(array.shape[1:] for array in part.values()) for part in parts}
    if len(shapes) > 1:
        raise LightshipError(
            "The graph gave answers of several shapes, which do not go into one array. Give fewer rows."
        )
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _run(runner: Runner, arrays: Mapping[str, np.ndarray], start: int, stop: int, least: int) -> dict[str, np.ndarray]:
    """Run some rows; a graph that was proven from some number of rows up gets the last row again."""
    missing = max(0, least - (stop - start))
    part = {name: array[start:stop] for name, array in arrays.items()}
    if missing:
        part = {name: np.concatenate([rows, *[rows[-1:]] * missing]) for name, rows in part.items()}
    return {name: array[: stop - start] for name, array in runner.run(part).items()}


def _checked(
    spec: TensorSpec, array: object, sizes: dict[str, int], interface: Interface, *, batched: bool
) -> np.ndarray:
    if not isinstance(array, np.ndarray):
        raise InvalidTensor(f"Input {spec.name!r} must be a numpy array. Got {type(array).__name__}.")
    if spec.dtype == "BYTES" and array.dtype.kind in "SU":
        array = array.astype(object)
    if array.dtype != np.dtype(DTYPES[spec.dtype]):
        raise InvalidTensor(
            f"Input {spec.name!r} must have the dtype {spec.dtype} ({DTYPES[spec.dtype]}). Got {array.dtype}."
        )
    if array.ndim != len(spec.shape):
        raise InvalidTensor(_message(spec, array, f"it must have {len(spec.shape)} dimensions"))
    for axis, (dim, size) in enumerate(zip(spec.shape, array.shape, strict=True)):
        if isinstance(dim, int):
            if size != dim:
                raise InvalidTensor(_message(spec, array, f"axis {axis} must be {dim}"))
        elif sizes.setdefault(dim, size) != size:
            raise InvalidTensor(_message(spec, array, f"axis {axis} ({dim}) is {sizes[dim]} elsewhere"))
        elif dim == BATCH and batched:
            if size < 1:
                raise InvalidTensor(_message(spec, array, "there must be at least one row"))
        else:
            low, high = interface.proven.get(dim, (1, 1))
            if not low <= size <= high:
                raise InvalidTensor(_message(spec, array, f"axis {axis} ({dim}) was proven for {low} to {high}"))
    return array


def _message(spec: TensorSpec, array: np.ndarray, what: str) -> str:
    shape = ", ".join(map(str, spec.shape))
    return f"The shape of input {spec.name!r} must fit [{shape}]: {what}. Got {list(array.shape)}."
