"""The interface as JSON, both ways."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from lightship.bundle.interface import interface_from_json, interface_to_json
from lightship.errors import BundleRefused
from lightship.types import Interface, TensorSpec

GOOD: dict[str, Any] = {
    "inputs": [{"name": "image", "dtype": "FP32", "shape": ["batch", 1, 28, 28]}],
    "outputs": [{"name": "logits", "dtype": "FP32", "shape": ["batch", 10]}],
    "proven": {"batch": [1, 33]},
}


def test_interface_round_trip():
    """The JSON is the one in the format, and reads back to the same value."""
    interface = Interface(
        inputs=(TensorSpec("image", "FP32", ("batch", 1, 28, 28)),),
        outputs=(TensorSpec("logits", "FP32", ("batch", 10)),),
        proven={"batch": (1, 33)},
    )

    assert interface_to_json(interface) == GOOD
    assert interface_from_json(GOOD, at="i") == interface


def changed(place: str, value: object) -> dict[str, Any]:
    """Return ``GOOD`` with the value at a dotted place replaced."""
    document = copy.deepcopy(GOOD)
    *parents, last = place.split(".")
    node: Any = document
    for part in parents:
        node = node[int(part) if part.isdigit() else part]
    node[last] = value
    return document


@pytest.mark.parametrize(
    ("place", "value", "reason"),
    [
        ("extra", 1, "unknown key 'extra'"),
        ("inputs", [], "must have 1 to 256 items"),
        ("inputs", GOOD["inputs"] * 2, "two tensors of one name"),
        ("inputs.0.dtype", "float32", "must be one of BOOL, UINT8"),
        ("inputs.0.name", "a\nb", "must be one line"),
        ("inputs.0.shape", [0], "must be an integer in"),
        ("inputs.0.shape", [True], "must be an integer in"),
        ("inputs.0.shape", [1] * 17, "must have 0 to 16 items"),
        ("inputs.0.extra", 1, "unknown key 'extra'"),
        ("proven", {"time": [1, 2]}, "'time', which is no free dimension"),
        ("proven.batch", [2, 1], "must be an integer in"),
        ("proven.batch", [0, 1], "must be an integer in"),
        ("proven.batch", [1], "must have 2 to 2 items"),
    ],
)
def test_wrong_interfaces_are_refused(place, value, reason):
    """Each part of an interface has its rule."""
    with pytest.raises(BundleRefused, match=reason):
        interface_from_json(changed(place, value), at="i")
