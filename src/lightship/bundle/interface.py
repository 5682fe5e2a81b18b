"""The interface of a graph as JSON: names, dtypes, symbolic shapes, and the proven range of each free dimension."""

from __future__ import annotations

from lightship.bundle.document import take_int, take_list, take_mapping, take_object, take_text
from lightship.errors import BundleRefused
from lightship.types import DTYPES, Dim, Interface, Json, TensorSpec

__all__ = ["interface_from_json", "interface_to_json"]

_MAX_TENSORS = 256
_MAX_RANK = 16
_MAX_SIZE = 2**31 - 1


def interface_to_json(interface: Interface) -> dict[str, Json]:
    """Return the JSON form: ``{"inputs": [...], "outputs": [...], "proven": {"batch": [1, 33]}}``."""
    return {
        "inputs": [_tensor_to_json(tensor) for tensor in interface.inputs],
        "outputs": [_tensor_to_json(tensor) for tensor in interface.outputs],
        "proven": {name: [low, high] for name, (low, high) in interface.proven.items()},
    }


def interface_from_json(value: Json, *, at: str) -> Interface:
    """Return the interface that ``value`` describes.

    Raises:
        BundleRefused: an unknown key, dtype or size, a name twice, or a proven range of a dimension that is not free.
    """
    members = take_object(value, ("inputs", "outputs", "proven"), at=at)
    inputs = _tensors(members["inputs"], at=f"{at}.inputs")
    outputs = _tensors(members["outputs"], at=f"{at}.outputs")
    free = {dim for tensor in (*inputs, *outputs) for dim in tensor.shape if isinstance(dim, str)}
    proven = {}
    for name, bounds in take_mapping(members["proven"], at=f"{at}.proven").items():
        if name not in free:
            raise BundleRefused(f"{at}.proven names {name[:100]!r}, which is no free dimension.")
        proven[name] = _range(bounds, at=f"{at}.proven.{name}")
    return Interface(inputs=inputs, outputs=outputs, proven=proven)


def _tensor_to_json(tensor: TensorSpec) -> dict[str, Json]:
    return {"name": tensor.name, "dtype": tensor.dtype, "shape": list(tensor.shape)}


def _tensors(value: Json, *, at: str) -> tuple[TensorSpec, ...]:
    items = take_list(value, at=at, min_items=1, max_items=_MAX_TENSORS)
    tensors = tuple(_tensor(item, at=f"{at}[{index}]") for index, item in enumerate(items))
    if len({tensor.name for tensor in tensors}) != len(tensors):
        raise BundleRefused(f"{at} has two tensors of one name.")
    return tensors


def _tensor(value: Json, *, at: str) -> TensorSpec:
    members = take_object(value, ("name", "dtype", "shape"), at=at)
    dtype = take_text(members["dtype"], at=f"{at}.dtype")
    if dtype not in DTYPES:
        raise BundleRefused(f"{at}.dtype must be one of {', '.join(DTYPES)}. Got {dtype[:100]!r}.")
    shape = take_list(members["shape"], at=f"{at}.shape", max_items=_MAX_RANK)
    return TensorSpec(
        name=take_text(members["name"], at=f"{at}.name", max_chars=255),
        dtype=dtype,
        shape=tuple(_dim(dim, at=f"{at}.shape[{index}]") for index, dim in enumerate(shape)),
    )


def _dim(value: Json, *, at: str) -> Dim:
    if isinstance(value, str):
        return take_text(value, at=at, max_chars=64)
    return take_int(value, at=at, low=1, high=_MAX_SIZE)


def _range(value: Json, *, at: str) -> tuple[int, int]:
    bounds = take_list(value, at=at, min_items=2, max_items=2)
    low = take_int(bounds[0], at=f"{at}[0]", low=1, high=_MAX_SIZE)
    return low, take_int(bounds[1], at=f"{at}[1]", low=low, high=_MAX_SIZE)
