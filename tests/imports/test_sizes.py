"""Another graph of a model at its proven sizes: what stands in for the reference must do so everywhere."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from tests.imports.conftest import attention, info, linear, model, node

from lightship.errors import InvalidInput
from lightship.imports.trial_process import try_sizes_apart
from lightship.types import Interface, TensorSpec

TOKENS = Interface(
    tuple(TensorSpec(name, "INT64", ("batch", "seq")) for name in ("input_ids", "attention_mask")),
    (TensorSpec("hidden", "FP32", ("batch", "seq", 8)), TensorSpec("pooled", "FP32", ("batch", 8))),
    proven={"batch": (1, 16), "seq": (1, 40)},
)
TABLE = Interface(
    (TensorSpec("x", "FP32", ("batch", 4)),), (TensorSpec("y", "FP32", ("batch", 2)),), proven={"batch": (1, 32)}
)
WEIGHT = np.random.default_rng(1).normal(size=(4, 2)).astype(np.float32)


def _tokens(count: int = 3, length: int = 8):
    rng = np.random.default_rng(5)
    return [
        {"input_ids": rng.integers(0, 100, length), "attention_mask": np.ones(length, np.int64)} for _ in range(count)
    ]


def _rows(count: int = 4):
    return [{"x": row} for row in np.random.default_rng(6).normal(size=(count, 4)).astype(np.float32)]


def _try(graph, reference, interface, rows, *, tolerance=1e-5, engine="onnxruntime", given=None):
    return try_sizes_apart(
        graph,
        engine=engine,
        options={},
        reference=reference,
        interface=interface,
        rows=rows,
        tolerance=tolerance,
        given=given,
    )


def _edited(graph: bytes, change) -> bytes:
    loaded = onnx.load_from_string(graph)
    change(loaded.graph)
    return loaded.SerializeToString()


def test_a_graph_that_is_the_same_does_everything():
    """All batches, every length of the ladder, all together."""
    found = _try(attention(), attention(), TOKENS, _tokens())

    assert (found.problem, found.batch, found.mixed, found.words) == ("", 16, 0.0, ())
    lengths = [each["size"] for each in found.tried if each["dimension"] == "seq"]
    assert (lengths[0], lengths[-1]) == (1, 40)
    assert {"dimension": "all together", "size": {"seq": 40, "batch": 16}, "problem": None} in found.tried


def test_a_size_that_was_baked_in_is_found():
    """A pass that folds a shape works at the calibrated length and nowhere else."""

    def bake(graph):
        graph.initializer.append(numpy_helper.from_array(np.array([0, 8], np.int64), "baked"))
        graph.node.insert(0, node("Reshape", ["input_ids", "baked"], ["ids8"]))
        next(each for each in graph.node if each.op_type == "Gather").input[1] = "ids8"

    found = _try(_edited(attention(), bake), attention(), TOKENS, _tokens())

    assert found.problem.startswith("seq 1 fails")


def _only_from(low: int) -> bytes:
    """Return a graph that refuses shorter texts: it asks for the last of so many tokens."""

    def change(graph):
        graph.initializer.append(numpy_helper.from_array(np.array([low - 1], np.int64), "place"))
        graph.node.insert(0, node("Gather", ["input_ids", "place"], ["token"], axis=1))
        graph.node.insert(1, node("Sub", ["token", "token"], ["nothing"]))
        graph.node.insert(2, node("Add", ["input_ids", "nothing"], ["ids"]))
        lookup = next(each for each in graph.node if each.op_type == "Gather" and each.output[0] != "token")
        lookup.input[1] = "ids"

    return _edited(attention(), change)


def test_a_size_at_the_end_that_no_row_has_is_left_out():
    """An engine that cannot run one token would else lose a variant that is right on every row."""
    found = _try(_only_from(2), attention(), TOKENS, _tokens())

    assert found.problem == ""
    assert found.proven == {"seq": (2, 40)}
    assert any(word.startswith("seq goes from 2 to 40: 1 fails") for word in found.words)


def test_a_size_between_those_of_rows_is_never_left_out():
    """Rows of one and of eight tokens: the range must hold both."""
    found = _try(
        _only_from(2),
        attention(),
        TOKENS,
        [*_tokens(2), *_tokens(1, length=1)],
    )

    assert found.problem.startswith("seq 1 fails")


def test_a_size_of_a_row_that_is_not_tried_is_never_left_out():
    """A few rows of one shape are tried; the others, one of them of a single token, count as well."""
    found = _try(_only_from(2), attention(), TOKENS, _tokens(2), given={"seq": (1, 8)})

    assert found.problem.startswith("seq 1 fails")


def test_too_many_sizes_are_not_left_out():
    """What begins at seven tokens of forty was not made for this model, unless somebody says that it was."""
    found = _try(_only_from(7), attention(), TOKENS, _tokens())

    assert found.problem.startswith("seq 1 fails")
    assert found.problem.endswith("; if it is always 8, import the model with --fix seq=8")


def test_zeros_at_other_lengths_are_found():
    """Right at the length that all rows have, and nothing at any other: no row would tell."""
    size = [info("x", ["batch", "len", 4])], [info("y", ["batch", 4])]
    mean = node("ReduceMean", ["x", "axis"], ["y"], keepdims=0)
    only_six = [
        node("ReduceMean", ["x", "axis"], ["m"], keepdims=0),
        node("Shape", ["x"], ["s"], start=1, end=2),
        node("Equal", ["s", "six"], ["is"]),
        node("Cast", ["is"], ["f"], to=TensorProto.FLOAT),
        node("Mul", ["m", "f"], ["y"]),
    ]
    axis = {"axis": np.array([1])}
    interface = Interface(
        (TensorSpec("x", "FP32", ("batch", "len", 4)),), (TensorSpec("y", "FP32", ("batch", 4)),),
        proven={"batch": (1, 8), "len": (1, 12)},
    )  # fmt: skip
    rows = [{"x": row} for row in np.random.default_rng(2).normal(size=(4, 6, 4)).astype(np.float32)]

    found = _try(model(only_six, *size, {**axis, "six": np.array([6])}), model([mean], *size, axis), interface, rows)

    assert found.problem.startswith("len 1 fails: its answers to drawn values are not the reference's")
    assert _try(model([mean], *size, axis), model([mean], *size, axis), interface, rows).problem == ""


def test_rows_that_change_each_other_are_found():
    """A scale taken from the whole batch, as dynamic quantization has it."""
    nodes = [
        node("Abs", ["x"], ["a"]),
        node("ReduceMax", ["a"], ["top"], keepdims=0),
        node("Div", ["x", "top"], ["n"]),
        node("MatMul", ["n", "w"], ["m"]),
        node("Mul", ["m", "top"], ["s"]),
        node("Mul", ["s", "k"], ["r"]),
        node("Round", ["r"], ["i"]),
        node("Div", ["i", "top"], ["y"]),
    ]
    weights = {"w": WEIGHT, "k": np.array(10, np.float32), "zero": np.array(0, np.int64), "ten": np.array(10, np.int64)}
    tensors = [info("x", ["N", 4])], [info("y", ["N", 2])]

    found = _try(model(nodes, *tensors, weights), linear(), TABLE, _rows(), tolerance=1e-4)

    assert found.problem == ""
    assert found.mixed > 1e-3
    assert found.batch == 32

    nodes[-1].output[0] = "right"
    nodes += [
        node("Shape", ["x"], ["shape"]),
        node("Gather", ["shape", "zero"], ["rows"]),
        node("Less", ["rows", "ten"], ["few"]),
        node("Cast", ["few"], ["kept"], to=TensorProto.FLOAT),
        node("Mul", ["right", "kept"], ["y"]),
    ]
    assert _try(model(nodes, *tensors, weights), linear(), TABLE, _rows(), tolerance=1e-4).batch == 9


def test_a_batch_that_gives_other_answers_ends_there():
    """The seventeenth row is wrong; sixteen are proven."""
    nodes = [
        node("MatMul", ["x", "w"], ["m"]),
        node("Shape", ["x"], ["shape"]),
        node("Gather", ["shape", "zero"], ["rows"]),
        node("Greater", ["rows", "sixteen"], ["many"]),
        node("Cast", ["many"], ["wrong"], to=TensorProto.FLOAT),
        node("Add", ["m", "wrong"], ["y"]),
    ]
    weights = {"w": WEIGHT, "zero": np.array(0, np.int64), "sixteen": np.array(16, np.int64)}

    found = _try(model(nodes, [info("x", ["N", 4])], [info("y", ["N", 2])], weights), linear(), TABLE, _rows())

    assert (found.problem, found.batch) == ("", 16)
    assert "17 rows fail, row 0 of 'y' is 1 off its answer alone" in found.words[0]


def test_equal_rows_beside_each_other_are_tried():
    """Whoever asks twice in one batch must not get zeros for the second question."""
    nodes = [
        node("Slice", ["x", "zero", "last", "zero"], ["ahead"]),
        node("Slice", ["x", "one", "end", "zero"], ["behind"]),
        node("Sub", ["behind", "ahead"], ["apart"]),
        node("Abs", ["apart"], ["far"]),
        node("ReduceMax", ["far", "one"], ["off"]),
        node("Greater", ["off", "tiny"], ["other"]),
        node("Concat", ["true", "other"], ["right"], axis=0),
        node("MatMul", ["x", "w"], ["m"]),
        node("Where", ["right", "m", "nothing"], ["y"]),
    ]
    weights = {
        "w": WEIGHT, "zero": np.array([0]), "one": np.array([1]), "last": np.array([-1]), "end": np.array([2**31]),
        "tiny": np.float32(1e-9), "true": np.array([[True]]), "nothing": np.float32(0),
    }  # fmt: skip

    found = _try(model(nodes, [info("x", ["N", 4])], [info("y", ["N", 2])], weights), linear(), TABLE, _rows())

    assert (found.problem, found.batch) == ("", 1)


def test_nan_at_a_size_is_a_problem():
    """Where the reference gives numbers."""

    def spoil(graph):
        for each in graph.node:
            if each.op_type == "ReduceMean":
                each.input[0] = "spoiled"
        graph.initializer.append(numpy_helper.from_array(np.array(30, np.int64), "thirty"))
        graph.initializer.append(numpy_helper.from_array(np.array(np.nan, np.float32), "nan"))
        graph.initializer.append(numpy_helper.from_array(np.array(1, np.int64), "second"))
        at = len(graph.node) - 1
        for added in reversed(
            [
                node("Shape", ["input_ids"], ["sh"]),
                node("Gather", ["sh", "second"], ["len"]),
                node("Greater", ["len", "thirty"], ["long"]),
                node("Where", ["long", "nan", "hidden"], ["spoiled"]),
            ]
        ):
            graph.node.insert(at, added)

    found = _try(_edited(attention(), spoil), attention(), TOKENS, _tokens())

    assert found.problem == "seq 31 fails: 'pooled' is NaN or infinite where the reference is not"


def test_a_graph_that_cannot_be_loaded_is_an_error_here():
    """From the process of the trial to the caller."""
    with pytest.raises(InvalidInput):
        _try(b"no graph", linear(), TABLE, _rows())
