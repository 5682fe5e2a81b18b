"""What is found out about a graph by running it: rows, names, sizes, tolerance. Real engine, real graphs."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper
from tests.imports.conftest import attention, info, linear, model, node, texts

from lightship.errors import InvalidInput, LightshipError, Refused
from lightship.imports.trial import try_graph
from lightship.imports.tried_graph import Bounds
from lightship.types import TensorSpec


@pytest.mark.parametrize("name", ["N", "batch_size", "batch", None])
def test_the_first_free_axis_becomes_the_batch_whatever_the_file_calls_it(name):
    """A server looks for one name; files have many, or none."""
    found = try_graph(linear(name))

    assert found.interface.inputs == (TensorSpec("x", "FP32", ("batch", 4)),)
    assert found.interface.outputs == (TensorSpec("y", "FP32", ("batch", 2)),)
    assert found.interface.proven == {"batch": (1, 32)}
    assert {tried["size"] for tried in found.shapes["tried"]} == set(range(2, 33))


def test_golden_examples_are_what_the_graph_gives():
    """Row i of the expected answers is that of golden row i, computed here by hand."""
    found = try_graph(linear())

    weight = np.random.default_rng(1).normal(size=(4, 2)).astype(np.float32)
    rows = np.stack([row["x"] for row in found.rows])
    assert rows.shape == (8, 4)
    np.testing.assert_allclose(found.expected["y"], rows @ weight, rtol=1e-5, atol=1e-6)
    assert 0 < found.tolerance < 1e-3


def test_a_trial_of_the_same_bytes_finds_the_same():
    """Nothing in it depends on the clock or on chance."""
    first, second = try_graph(attention()), try_graph(attention())

    assert (first.interface, first.tolerance, first.shapes) == (second.interface, second.tolerance, second.shapes)
    for one, other in zip(first.rows, second.rows, strict=True):
        np.testing.assert_equal(one, other)
    np.testing.assert_equal(dict(first.expected), dict(second.expected))


def test_tokens_get_a_proven_range_and_keep_their_name():
    """Ids stay inside of the vocabulary, a mask lets all tokens count, and 1 to the bound is tried."""
    found = try_graph(attention(), bounds=Bounds(upto={"seq": 40}))

    assert found.interface.proven == {"batch": (1, 32), "seq": (1, 40)}
    assert [spec.shape for spec in found.interface.outputs] == [("batch", "seq", 8), ("batch", 8)]
    assert all((row["attention_mask"] == 1).all() and row["input_ids"].max() < 120 for row in found.rows)


def test_a_range_ends_exactly_where_the_graph_does():
    """A table of 77 positions: 77 tokens run and 78 do not."""
    graph = model(
        [
            node("Shape", ["x"], ["s"], start=1, end=2),
            node("Slice", ["table", "zero", "s", "axis"], ["rows"]),
            node("Add", ["x", "rows"], ["y"]),
        ],
        [info("x", ["N", "T"])],
        [info("y", ["N", "T"])],
        {"table": np.arange(77, dtype=np.float32), "zero": np.array([0]), "axis": np.array([0])},
    )

    assert try_graph(graph).interface.proven["T"] == (1, 77)


def test_ids_are_narrowed_until_they_run():
    """A table of two entries takes 0 and 1 only."""
    found = try_graph(attention(vocabulary=2))

    assert max(row["input_ids"].max() for row in found.rows) == 1
    assert found.golden["values"] == "drawn by seed, style plain"


@pytest.mark.parametrize(
    "inner",
    [
        [node("ReduceMean", ["x", "axis"], ["m"], keepdims=1), node("Sub", ["x", "m"], ["y"])],
        [
            node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"]),
            node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
        ],
    ],
    ids=["mean over the batch", "dynamic quantization"],
)
def test_a_graph_that_mixes_rows_runs_them_one_at_a_time(inner):
    """People must not get answers that depend on who else asks; it says which output and by how much."""
    found = try_graph(model(inner, [info("x", ["N", 4])], [info("y", ["N", 4])], {"axis": np.array([0])}))

    assert found.interface.proven == {"batch": (1, 1)}
    assert found.words[0].startswith("rows run one at a time: output 'y' of a row changes by")


def test_a_graph_that_fails_from_some_batch_on_ends_there():
    """Rows above five cannot be added to a table of five."""
    graph = model(
        [
            node("Shape", ["x"], ["s"], start=0, end=1),
            node("Slice", ["table", "zero", "s", "axis"], ["rows"]),
            node("Mul", ["rows", "none"], ["nothing"]),
            node("Add", ["x", "nothing"], ["y"]),
        ],
        [info("x", ["N", 3])],
        [info("y", ["N", 3])],
        {"table": np.ones((5, 3), np.float32), "none": np.float32(0), "zero": np.array([0]), "axis": np.array([0])},
    )

    found = try_graph(graph)

    assert found.interface.proven == {"batch": (1, 5)}
    assert "batches end at 5 rows: 6 rows fail" in found.words[0]


def test_a_graph_of_fixed_shape_has_no_batch():
    """The first dimension is 1 everywhere: a request runs alone, with the shapes of the file."""
    found = try_graph(linear(1))

    assert found.interface.inputs[0].shape == (1, 4)
    assert found.interface.proven == {}
    assert found.rows[0]["x"].shape == (1, 4)
    assert found.expected["y"].shape == (8, 1, 2)


def test_an_output_without_rows_makes_requests_run_whole():
    """A mean over everything: what looked like a batch is a size with a range, under another name than batch."""
    graph = model([node("ReduceMean", ["x"], ["y"], keepdims=0)], [info("x", ["batch", 3])], [info("y", [])])

    found = try_graph(graph)

    assert found.interface.inputs[0].shape == ("batch", 3)
    assert found.interface.outputs[0].shape == ()
    assert found.interface.proven["batch"][1] > 32
    assert "requests run alone" in found.words[0]


def test_a_file_that_calls_batch_what_are_no_rows_gets_another_name():
    """Reversing along the axis mixes positions, not rows: an output of twice the length says that it is no batch."""
    graph = model([node("Concat", ["x", "x"], ["y"], axis=0)], [info("x", ["batch", 3])], [info("y", ["batch", 3])])

    found = try_graph(graph)

    assert found.interface.inputs[0].shape[0] == "rows" or found.interface.outputs[0].shape[0] != "batch"


def test_sizes_that_only_change_together_get_one_name():
    """Anonymous dimensions of two inputs that must agree: alone each is stuck, together they are free."""
    graph = model(
        [node("Add", ["a", "b"], ["y"]), node("ReduceSum", ["y"], ["z"], keepdims=0)],
        [info("a", [2, None]), info("b", [2, None])],
        [info("z", [])],
    )

    found = try_graph(graph)

    (a,), (b,) = ([dim for dim in spec.shape if isinstance(dim, str)] for spec in found.interface.inputs)
    assert a == b or found.interface.proven[a][0] == 1  # 1 spreads over the other, so the engine may allow both
    assert found.interface.proven[a][1] == 512


def test_scalars_and_several_inputs_work():
    """A scalar has no rows, so the graph runs whole."""
    graph = model(
        [node("Mul", ["x", "k"], ["y"]), node("Cast", ["k"], ["n"], to=TensorProto.INT64)],
        [info("x", ["N", 2]), info("k", [])],
        [info("y", ["N", 2]), info("n", [], TensorProto.INT64)],
    )

    found = try_graph(graph)

    assert [spec.shape for spec in found.interface.inputs] == [("N", 2), ()]
    assert found.rows[0]["k"].shape == ()
    assert found.interface.proven["N"] == (1, 512)


def test_texts_are_tensors_too():
    """BYTES in and out: each text gets its group, and texts have no tolerance."""
    found = try_graph(texts())

    assert [(spec.name, spec.dtype) for spec in found.interface.outputs] == [("group", "BYTES"), ("total", "FP32")]
    assert found.interface.proven == {"batch": (1, 32)}
    cities = [np.asarray(row["city"]).item() for row in found.rows]
    groups = [{b"a": "first", b"yes": "second"}.get(city, "third") for city in cities]
    assert found.expected["group"].tolist() == groups


@pytest.mark.parametrize("dtype", ["BOOL", "UINT8", "INT8", "INT16", "UINT32", "INT64", "FLOAT16", "DOUBLE"])
def test_every_number_type_is_drawn_and_comes_back(dtype):
    """Identity of each type gives what was drawn, exactly."""
    kind = getattr(TensorProto, dtype)
    found = try_graph(model([node("Identity", ["x"], ["y"])], [info("x", ["N", 3], kind)], [info("y", ["N", 3], kind)]))

    np.testing.assert_array_equal(found.expected["y"], np.stack([row["x"] for row in found.rows]))


def test_outputs_that_the_file_does_not_describe_are_described_as_seen():
    """No declared shape: the rank and the fixed sizes are those that came out."""
    found = try_graph(model([node("Softmax", ["x"], ["y"])], [info("x", ["N", "T"])], [info("y", None)]))

    assert found.interface.outputs[0].shape == ("batch", "T")


def test_given_rows_are_the_golden_examples():
    """The first axis are rows; at most eight of them are used."""
    rows = {"x": np.arange(80, dtype=np.float32).reshape(20, 4)}

    found = try_graph(linear(), given=rows)

    np.testing.assert_array_equal(np.stack([row["x"] for row in found.rows]), rows["x"][:8])
    assert found.golden["values"] == "given"


def test_beside_given_rows_only_values_that_run_are_drawn():
    """Ids of 0 and 1 are all that a table of two takes: batches and lengths must not fail for larger ones."""
    rows = {"input_ids": np.eye(8, dtype=np.int64), "attention_mask": np.ones((8, 8), np.int64)}

    found = try_graph(attention(vocabulary=2), given=rows, bounds=Bounds(upto={"seq": 40}))

    assert found.interface.proven == {"batch": (1, 32), "seq": (1, 40)}


@pytest.mark.parametrize("name", ["?", None])
def test_axes_without_a_name_need_not_be_equally_large(name):
    """Paddle's exporter calls every axis that it does not know "?": a picture need not be a square for it."""
    graph = model([node("Relu", ["x"], ["y"])], [info("x", ["N", name, name])], [info("y", ["N", name, name])])

    found = try_graph(graph, given={"x": np.ones((4, 3, 5), np.float32)}, bounds=Bounds(size=8))

    assert found.interface.inputs[0].shape[1] != found.interface.inputs[0].shape[2]
    assert {tuple(each) for each in found.interface.proven.values()} == {(1, 32), (1, 8)}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"y": np.ones((2, 4), np.float32)}, "must hold the arrays 'x'. Got 'y'"),
        ({"x": np.ones((2, 5), np.float32)}, r"Golden row 0 .* axis 1 \(4\)"),
        ({"x": np.ones((2, 4))}, "dtype FP32"),
        ({"x": np.ones((0, 4), np.float32)}, "at least one"),
        ({"x": np.full((2, 4), np.nan, np.float32)}, "Output 'y' is NaN"),
    ],
)
def test_rows_that_do_not_fit_are_refused(given, message):
    """It says which array or row."""
    with pytest.raises(LightshipError, match=message):
        try_graph(linear(), given=given)


def test_a_fixed_graph_takes_given_rows_along_its_one():
    """[5, 4] for an input [1, 4] are five examples."""
    found = try_graph(linear(1), given={"x": np.ones((5, 4), np.float32) * np.arange(5, dtype=np.float32)[:, None]})

    assert [row["x"].shape for row in found.rows] == [(1, 4)] * 5


@pytest.mark.parametrize(
    ("graph", "error", "message"),
    [
        (
            model([node("RandomNormalLike", ["x"], ["r"]), node("Add", ["x", "r"], ["y"])],
                  [info("x", ["N", 3])], [info("y", ["N", 3])]),
            Refused, "other answers to the same input",
        ),
        (
            model([node("Constant", [], ["y"], value_floats=[1.0])], [], [info("y", [1])]),
            InvalidInput, "takes no input",
        ),
        (
            model([node("Relu", ["x"], ["y"])], [info("x", [0, 3])], [info("y", [0, 3])]),
            InvalidInput, r"shape \[0, 3\]",
        ),
        (
            model([node("Relu", ["x"], ["y"])], [info("x", None)], [info("y", None)]),
            InvalidInput, "'x' of the graph does not say how many dimensions it has",
        ),
        (
            model([node("Relu", ["x"], ["y"])], [info("x", [1, 40_000, 40_000])], [info("y", None)]),
            Refused, "6,400,000,000 bytes",
        ),
        (
            model([node("Relu", ["a\nb"], ["y"])], [info("a\nb", ["N", 3])], [info("y", ["N", 3])]),
            InvalidInput, "printable",
        ),
        (
            model([node("Sub", ["x", "x"], ["z"]), node("Div", ["z", "z"], ["y"])],
                  [info("x", ["N", 3])], [info("y", ["N", 3])]),
            InvalidInput, "none of the inputs.*NaN.*--golden",
        ),
        (
            model([node("SequenceConstruct", ["x"], ["s"])], [info("x", ["N", 3])],
                  [helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None)]),
            InvalidInput, "zipmap",
        ),
    ],
    ids=["random", "no input", "size 0", "no shape", "huge", "control character", "NaN", "sequence"],
)  # fmt: skip
def test_what_cannot_be_relied_on_is_refused_with_the_reason(graph, error, message):
    """Each says what is wrong and what to do."""
    with pytest.raises(error, match=message):
        try_graph(graph)


def test_the_engines_words_are_passed_on_to_who_made_the_file():
    """An attribute that no operator of this version has: only the engine knows which."""
    graph = model([node("Relu", ["x"], ["y"], consumed_inputs=[0])], [info("x", ["N"])], [info("y", ["N"])])

    with pytest.raises(InvalidInput, match=r"cannot load this graph.*The engine says: .*consumed_inputs"):
        try_graph(graph)
