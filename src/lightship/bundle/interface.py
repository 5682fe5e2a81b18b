"""The interface of a graph as JSON: names, dtypes, symbolic shapes, proven ranges of free dimensions and of values."""

from __future__ import annotations

import math
import re

from lightship.bundle.document import take_int, take_list, take_mapping, take_object, take_text
from lightship.errors import BundleRefused
from lightship.types import DTYPES, Dim, Interface, Json, TensorSpec, ValueRange

__all__ = ["interface_from_json", "interface_to_json"]

_MAX_TENSORS = 256
_MAX_RANK = 16
_MAX_SIZE = 2**31 - 1
_WITHOUT_VALUES = {"BOOL", "BYTES"}
_NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,19})(\.[0-9]{1,17})?(e[+-][0-9]{2,3})?")


def interface_to_json(interface: Interface) -> dict[str, Json]:
    """Return the JSON form: ``{"inputs": [...], "outputs": [...], "proven": {"batch": [1, 33]}}``.

    With ranges of values, if some were proven: ``"values": {"x": {"low": "-100.0", "high": "100.0", "nan": false,
    "infinite": false}}``.
    """
    values: dict[str, Json] = {name: _values_to_json(found) for name, found in interface.values.items()}
    return {
        "inputs": [_tensor_to_json(tensor) for tensor in interface.inputs],
        "outputs": [_tensor_to_json(tensor) for tensor in interface.outputs],
        "proven": {name: [low, high] for name, (low, high) in interface.proven.items()},
        **({"values": values} if values else {}),
    }


def interface_from_json(value: Json, *, at: str, with_values: bool) -> Interface:
    """Return the interface that ``value`` describes.

    Args:
        value: the JSON form.
        at: where it stands, for messages.
        with_values: it has ranges of values, as from format version 2 on.

    Raises:
        BundleRefused: an unknown key, dtype or size, a name twice, a proven range of a dimension that is not free, or
            of the values of what is no input of numbers.
    """
    members = take_object(value, ("inputs", "outputs", "proven", *(("values",) if with_values else ())), at=at)
    inputs = _tensors(members["inputs"], at=f"{at}.inputs")
    outputs = _tensors(members["outputs"], at=f"{at}.outputs")
    free = {dim for tensor in (*inputs, *outputs) for dim in tensor.shape if isinstance(dim, str)}
    proven = {}
    for name, bounds in take_mapping(members["proven"], at=f"{at}.proven").items():
        if name not in free:
            raise BundleRefused(f"{at}.proven names {name[:100]!r}, which is no free dimension.")
        proven[name] = _range(bounds, at=f"{at}.proven.{name}")
    values = {}
    if with_values:
        numbers = {tensor.name: tensor.dtype for tensor in inputs if tensor.dtype not in _WITHOUT_VALUES}
        for name, found in take_mapping(members["values"], at=f"{at}.values").items():
            if name not in numbers:
                raise BundleRefused(f"{at}.values names {name[:100]!r}, which is no input of numbers.")
            values[name] = _values(found, whole="INT" in numbers[name], at=f"{at}.values.{name[:100]}")
        if not values:
            raise BundleRefused(f"{at}.values must have at least one member; without any it is left out.")
    return Interface(inputs=inputs, outputs=outputs, proven=proven, values=values)


def _values_to_json(values: ValueRange) -> dict[str, Json]:
    return {"low": repr(values.low), "high": repr(values.high), "nan": values.nan, "infinite": values.infinite}


def _values(value: Json, *, whole: bool, at: str) -> ValueRange:
    members = take_object(value, ("low", "high", "nan", "infinite"), at=at)
    low, high = (_number(members[key], whole=whole, at=f"{at}.{key}") for key in ("low", "high"))
    others = [members[key] for key in ("nan", "infinite")]
    if not all(isinstance(other, bool) for other in others) or (whole and any(others)):
        raise BundleRefused(f"{at}: nan and infinite must be true or false, and false for whole numbers.")
    if low > high:
        raise BundleRefused(f"{at} must be a range from low to high. Got {low!r} to {high!r}.")
    return ValueRange(low, high, nan=bool(others[0]), infinite=bool(others[1]))


def _number(value: Json, *, whole: bool, at: str) -> float:
    """Return a number written as Python's ``repr`` writes it: digits for whole ones, else the shortest decimal."""
    text = take_text(value, at=at, max_chars=64)
    if _NUMBER.fullmatch(text):
        try:
            number: float = int(text) if whole else float(text)
        except ValueError:
            number = math.nan  # digits with a fraction
        if math.isfinite(number) and repr(number) == text:
            return number
    kind = "a whole number such as '30521'" if whole else "the shortest decimal of a double such as '-100.0' or '1e+30'"
    raise BundleRefused(f"{at} must be {kind}, as text. Got {text!r}.")


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
