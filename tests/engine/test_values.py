"""Values outside of what was proven: seen at a glance, and named with their place."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lightship.engine.onnx_lookups import table_rows
from lightship.engine.values import are_proven, require_proven
from lightship.errors import InvalidTensor
from lightship.types import ValueRange

RANGE = {"x": ValueRange(-2.0, 3.0)}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3.0000002, -2.5, np.finfo(np.float32).max])
def test_what_is_outside_is_refused_with_its_place(value):
    """A NaN is neither least nor greatest of an array: a comparison the wrong way round lets it pass."""
    rows = np.zeros((2, 3), np.float32)
    rows[1, 2] = value

    assert not are_proven({"x": rows}, RANGE)
    with pytest.raises(InvalidTensor, match=r"input 'x' must be -2 to 3, .* at \[1, 2\]\.$"):
        require_proven({"x": rows}, RANGE)


@pytest.mark.parametrize("rows", [[], [-2.0, 3.0], [0.0]], ids=["none", "ends", "zero"])
def test_what_was_proven_passes(rows):
    """Both ends are in, and no value is none that is wrong."""
    array = np.array(rows, np.float32)

    assert are_proven({"x": array}, RANGE)
    require_proven({"x": array}, RANGE)


def test_nan_and_infinities_pass_where_they_were_proven():
    """A table with missing values is the kind of row that such a model was judged on; infinities are another thing."""
    holes = {"x": ValueRange(-2.0, 3.0, nan=True)}

    assert are_proven({"x": np.array([np.nan, 1.0])}, holes)
    assert not are_proven({"x": np.array([np.nan, 4.0])}, holes)
    assert not are_proven({"x": np.array([np.inf, 1.0])}, holes)
    assert are_proven({"x": np.array([np.nan, -np.inf])}, {"x": ValueRange(0.0, 1.0, nan=True, infinite=True)})
    assert are_proven({"x": np.array([np.nan])}, {})


def table(*nodes, inputs, rows=10, extra=()):
    """Return a graph with a table of so many rows of 4 numbers."""
    words = numpy_helper.from_array(np.ones((rows, 4), np.float32), "words")
    graph = helper.make_graph(
        list(nodes),
        "tables",
        [helper.make_tensor_value_info(name, kind, ["batch", 3]) for name, kind in inputs.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [words, *extra],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return onnx.ModelProto.SerializeToString(model)


IDS = {"ids": TensorProto.INT64}
GATHER = helper.make_node("Gather", ["words", "ids"], ["y"])


@pytest.mark.parametrize(
    ("graph", "expected"),
    [
        (table(GATHER, inputs=IDS), {"ids": 10}),
        (table(helper.make_node("Gather", ["words", "ids"], ["y"], axis=-1), inputs=IDS), {"ids": 4}),
        (
            table(
                helper.make_node("Cast", ["ids"], ["narrow"], to=TensorProto.INT32),
                helper.make_node("Unsqueeze", ["narrow", "axis"], ["wide"]),
                helper.make_node("Identity", ["words"], ["same"]),
                helper.make_node("Gather", ["same", "wide"], ["y"]),
                inputs=IDS,
                extra=[numpy_helper.from_array(np.array([1]), "axis")],
            ),
            {"ids": 10},
        ),
        (
            table(
                helper.make_node("Clip", ["ids", "low", "high"], ["clipped"]),
                helper.make_node("Gather", ["words", "clipped"], ["y"]),
                inputs=IDS,
                extra=[numpy_helper.from_array(np.array(each), name) for name, each in (("low", 0), ("high", 9))],
            ),
            {},
        ),
        (
            table(
                helper.make_node("Slice", ["ids", "start", "stop"], ["few"]),
                helper.make_node("Gather", ["words", "few"], ["y"]),
                inputs=IDS,
                extra=[numpy_helper.from_array(np.array([each]), name) for name, each in (("start", 0), ("stop", 1))],
            ),
            {},
        ),
        (
            table(
                helper.make_node("Constant", [], ["small"], value=numpy_helper.from_array(np.ones((3, 4), np.float32))),
                helper.make_node("Gather", ["small", "ids"], ["a"]),
                helper.make_node("Gather", ["words", "ids"], ["b"]),
                helper.make_node("Add", ["a", "b"], ["y"]),
                inputs=IDS,
            ),
            {"ids": 3},
        ),
        (table(helper.make_node("Cast", ["ids"], ["y"], to=TensorProto.FLOAT), inputs=IDS), {}),
    ],
    ids=["plain", "last-axis", "moved", "clipped", "sliced", "two-tables", "no-table"],
)
def test_row_numbers_of_tables_are_found(graph, expected):
    """Only where each number is certain to be looked up: what is clipped or cut off first may be anything."""
    assert table_rows(graph) == expected
