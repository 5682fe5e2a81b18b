"""The interface as JSON, both ways."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from lightship.bundle.interface import interface_from_json, interface_to_json
from lightship.errors import BundleRefused
from lightship.types import Interface, TensorSpec, ValueRange

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
    assert interface_from_json(GOOD, at="i", with_values=False) == interface


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
        interface_from_json(changed(place, value), at="i", with_values=False)


VALUES = {"image": {"low": "-100.0", "high": "1e+30", "nan": False, "infinite": True}}


def test_ranges_of_values_round_trip():
    """Doubles are written as text, and come back to the bit."""
    interface = interface_from_json({**GOOD, "values": VALUES}, at="i", with_values=True)

    assert interface.values == {"image": ValueRange(-100.0, 1e30, infinite=True)}
    assert interface_to_json(interface) == {**GOOD, "values": VALUES}


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({}, "at least one member"),
        ({"logits": VALUES["image"]}, "'logits', which is no input of numbers"),
        ({"image": {**VALUES["image"], "low": "-100"}}, "must be the shortest decimal"),
        ({"image": {**VALUES["image"], "low": "nan"}}, "must be the shortest decimal"),
        ({"image": {**VALUES["image"], "high": "1e+400"}}, "must be the shortest decimal"),
        ({"image": {**VALUES["image"], "high": "-200.0"}}, "a range from low to high"),
        ({"image": {**VALUES["image"], "nan": 0}}, "must be true or false"),
        ({"image": {"low": "0.0", "high": "1.0"}}, "lacks the key 'infinite'"),
    ],
)
def test_wrong_ranges_of_values_are_refused(values, reason):
    """One spelling for one range, so that one bundle has one name."""
    with pytest.raises(BundleRefused, match=reason):
        interface_from_json({**GOOD, "values": values}, at="i", with_values=True)


def test_a_bundle_without_ranges_is_read_and_one_with_them_is_newer():
    """Old bundles stay readable; where there are no values the key is not there."""
    with pytest.raises(BundleRefused, match="unknown key 'values'"):
        interface_from_json({**GOOD, "values": VALUES}, at="i", with_values=False)
    with pytest.raises(BundleRefused, match="lacks the key 'values'"):
        interface_from_json(GOOD, at="i", with_values=True)
