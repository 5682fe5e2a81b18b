"""Odd values among usual rows: who is refused, who answers, and whether neighbors keep their answers."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lightship.engine.runner import load_runner
from lightship.errors import InvalidInput
from lightship.optimize.passes.int8_dynamic import Int8Dynamic
from lightship.optimize.passes.int8_static import Int8Static
from lightship.types import ValueRange, Verdict
from lightship.validate.checks.values import Seen, check_values, proven_values

SUBJECTS = {"reference": "0" * 64}
WIDTH = 12


def dense(*between, opset=18):
    """Return the bytes of a dense layer ``x`` [batch, 12] -> ``y`` [batch, 3], with nodes between it and the output."""
    weights = np.random.default_rng(1).normal(size=(WIDTH, 3)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h" if between else "y"]), *between]
    graph = helper.make_graph(
        nodes,
        "dense",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(np.array([0], np.int64), "axis")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def rows(count=6):
    """Return usual rows."""
    return {"x": np.random.default_rng(2).normal(size=(count, WIDTH)).astype(np.float32)}


def check(reference, variant=None, inputs=None, **options):
    """Check graphs as the pipeline does."""
    run = load_runner(reference).run
    other = load_runner(variant).run if variant else None
    return check_values(run, other, inputs or rows(), **{"tolerance": 1e-4, "subjects": SUBJECTS, **options})


def case(found, name):
    """Return one case of the evidence."""
    return next(each for each in found.measured["cases"] if each["case"] == name)


def test_rows_that_do_not_touch_each_other_pass():
    """NaN stays in its row, an empty batch is refused, and the range with finite answers is told."""
    found = check(dense())

    assert found.verdict is Verdict.PASSED
    assert case(found, "NaN") == {
        "case": "NaN", "input": "x", "reference": "not finite", "variant": None, "follows": None, "neighbors": 0.0,
        "problem": None,
    }  # fmt: skip
    assert case(found, "empty")["reference"] == "refused"
    ends = [2 * float(rows()["x"].min()), 2 * float(rows()["x"].max())]
    proven = {"magnitude": 1e30, "stretch": [2.0, 2.0], "stretched": ends, "nan": "not finite"}
    assert found.measured["proven"] == {"x": proven}
    assert found.measured["contaminated"] == []
    json.dumps([dict(found.measured), dict(found.method)], allow_nan=False)


@pytest.mark.parametrize(
    "between",
    [
        [helper.make_node("ReduceMax", ["h", "axis"], ["top"]), helper.make_node("Sub", ["h", "top"], ["y"])],
        [helper.make_node("ReduceMean", ["h", "axis"], ["mean"]), helper.make_node("Sub", ["h", "mean"], ["y"])],
        [helper.make_node("Softmax", ["h"], ["y"], axis=0)],
    ],
    ids=["maximum", "mean", "softmax"],
)
def test_row_that_changes_its_neighbors_fails(between):
    """Whatever goes over the batch axis lets one row ruin all."""
    found = check(dense(*between))

    assert found.verdict is Verdict.FAILED
    assert "NaN in x" in found.measured["contaminated"]
    assert "the other rows of the batch move" in found.summary


def test_dynamic_int8_is_ruined_by_a_neighbor():
    """Its scale is that of the whole batch: one extreme value leaves no step for the others."""
    variant = Int8Dynamic().apply(dense(), calibration=[])

    together, alone = check(dense(), variant), check(dense(), variant, batch=1)

    assert together.verdict is Verdict.FAILED
    assert "largest in x" in together.measured["contaminated"]
    assert alone.verdict is Verdict.PASSED
    assert all(each["neighbors"] is None for each in alone.measured["cases"])


def test_answer_of_int8_to_nan_is_told():
    """The reference says NaN, which no task takes for an answer; int8 says some number."""
    variant = Int8Static().apply(dense(), calibration=[rows(32)])

    found = check(dense(), variant)

    assert found.verdict is Verdict.PASSED
    assert "+infinity in x" in found.measured["masked"]
    assert "the variant answers what the reference does not" in found.summary


def beyond(limit, sign="Abs"):
    """Return the nodes of a variant that is right up to a limit (of both signs, or with Identity of positive values).

    Beyond it answers are of opposite sign.
    """
    return [
        helper.make_node("Constant", [], ["limit"], value_float=limit),
        helper.make_node("Constant", [], ["columns"], value_ints=[1]),
        helper.make_node(sign, ["x"], ["abs"]),
        helper.make_node("ReduceMax", ["abs", "columns"], ["most"], keepdims=1),
        helper.make_node("Greater", ["most", "limit"], ["far"]),
        helper.make_node("Neg", ["h"], ["not_h"]),
        helper.make_node("Where", ["far", "not_h", "h"], ["y"]),
    ]


def served(found, inputs):
    """Return the range of ``x`` that a server would take."""
    seen = Seen()
    seen.add(inputs)
    return proven_values(found, seen)["x"]


def test_static_int8_is_proven_only_near_its_calibration():
    """It cuts off larger values and answers all the same: a server must refuse them, but not the next larger row."""
    usual = rows(32)
    variant = Int8Static().apply(dense(), calibration=[usual])

    alone, quantized = check(dense(), inputs=usual), check(dense(), variant, usual)

    most = float(np.abs(usual["x"]).max())
    assert served(alone, usual) == ValueRange(-1e30, 1e30)
    assert quantized.verdict is Verdict.PASSED
    assert case(quantized, "random up to 100")["follows"] is False
    assert served(quantized, usual).high == pytest.approx(2 * float(usual["x"].max()))
    assert served(quantized, usual).high < 3 * most


def test_variant_that_is_wrong_where_no_row_is_serves_no_such_values():
    """No row could show it: its answers are those of the reference up to 50, and of opposite sign beyond."""
    found = check(dense(), dense(*beyond(50.0)))

    assert found.verdict is Verdict.PASSED
    assert found.summary.endswith("the variant follows the reference for x up to 1")
    assert served(found, rows()).high < 50


@pytest.mark.parametrize("sign", [1, -1])
def test_rows_of_one_number_are_tried_on_both_sides(sign):
    """A draw of one number has one sign, and is seldom the largest that it stands for."""
    usual = {"x": np.linspace(-3, 3, 7, dtype=np.float32).reshape(-1, 1)}

    def variant(batch):
        return {"y": np.where(sign * batch["x"] > 90, -1.0, 1.0)}

    found = check_values(lambda batch: {"y": np.ones(batch["x"].shape)}, variant, usual, tolerance=0, subjects=SUBJECTS)

    values = served(found, usual)
    assert (values.low, values.high) == (-6, 6)


def test_the_row_that_goes_furthest_is_stretched():
    """Twice a small row lies among the values that rows have, and says nothing of those beyond."""
    usual = rows()
    usual["x"][3] *= 40 / np.abs(usual["x"][3]).max()

    found = check(dense(), dense(*beyond(55.0)), usual)

    row = f"row of the {'least' if usual['x'].min() < -39 else 'greatest'} value"
    assert [case(found, f"{row}, {times} times as large")["follows"] for times in ("1.25", "1.5")] == [True, False]
    assert 45 < max(-served(found, usual).low, served(found, usual).high) < 55


def test_each_end_is_proven_by_the_row_that_goes_furthest_there():
    """A row of large negative values says nothing of as large positive ones."""
    usual = {"x": np.abs(rows()["x"])}
    usual["x"][2] *= -3

    found = check(dense(), dense(*beyond(1.1 * float(usual["x"].max()), sign="Identity")), usual)

    allowed = served(found, usual)
    assert allowed.low == pytest.approx(2 * float(usual["x"].min()))
    assert float(usual["x"].max()) <= allowed.high < 1.1 * float(usual["x"].max())


def test_values_are_proven_as_far_as_the_stretched_row_went():
    """Only a few rows are tried: twice the largest value of all others was not."""
    tried = rows()
    most = float(np.abs(tried["x"]).max())
    every = {"x": np.concatenate([tried["x"], np.full((1, WIDTH), 5 * most, np.float32)])}

    found = check(dense(), dense(*beyond(6 * most)), tried)

    assert served(found, tried).high == pytest.approx(2 * float(tried["x"].max()))
    assert served(found, every).high == pytest.approx(5 * most)


def test_labels_alone_must_be_the_same():
    """A classifier may give no scores, and answer otherwise beyond its rows."""
    reference, variant = (load_runner(dense(*nodes)).run for nodes in ((), beyond(50.0)))

    found = check_values(
        lambda inputs: {"label": reference(inputs)["y"].argmax(1)},
        lambda inputs: {"label": variant(inputs)["y"].argmax(1)},
        rows(),
        tolerance=0,
        subjects=SUBJECTS,
    )

    assert found.verdict is Verdict.PASSED
    assert found.measured["proven"]["x"]["magnitude"] == 1
    assert served(found, rows()).high < 50


def test_probabilities_that_are_nearly_zero_follow():
    """Neither their direction nor their length says anything: 64 steps make one of .01 of one of .02."""
    unlikely = [
        helper.make_node("Constant", [], ["eight"], value_float=8.0),
        helper.make_node("Sub", ["h", "eight"], ["far"]),
        helper.make_node("Sigmoid", ["far"], ["p"]),
    ]
    steps = [
        helper.make_node("Constant", [], ["steps"], value_float=64.0),
        helper.make_node("Mul", ["p", "steps"], ["many"]),
        helper.make_node("Round", ["many"], ["whole"]),
        helper.make_node("Div", ["whole", "steps"], ["y"]),
    ]

    found = check(dense(*unlikely, helper.make_node("Identity", ["p"], ["y"])), dense(*unlikely, *steps), rows(32))

    assert found.measured["proven"]["x"]["stretch"] == [2.0, 2.0]
    assert found.measured["proven"]["x"]["magnitude"] >= 1e30


def test_stretched_values_are_numbers_of_their_dtype():
    """Twice the largest is infinite, which no bundle says and no request has."""
    for dtype in (np.float16, np.float32, np.float64):
        usual = {"x": np.ones((2, 3), dtype)}
        usual["x"][1, 1] = np.finfo(dtype).max

        found = check_values(lambda x: {"y": x["x"]}, None, usual, tolerance=0, subjects=SUBJECTS)

        assert found.measured["proven"]["x"]["stretch"] == [2.0, 2.0]
        json.dumps(found.measured["proven"], allow_nan=False)
        assert served(found, usual) == ValueRange(-float(np.finfo(dtype).max), float(np.finfo(dtype).max))


def test_ids_outside_of_the_vocabulary_are_refused():
    """The engine's word for it is no failure."""
    words = numpy_helper.from_array(np.ones((10, 3), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("Gather", ["w", "ids"], ["y"])],
        "words",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
        [words],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)

    found = check(model.SerializeToString(), inputs={"ids": np.arange(5)})

    assert found.verdict is Verdict.PASSED
    assert case(found, "largest")["reference"] == "refused"
    assert case(found, "zeros")["reference"] == "finite"


@pytest.mark.parametrize("dtype", [np.int64, np.int8, np.uint8])
def test_whole_numbers_are_proven_as_far_as_the_variant_follows(dtype):
    """Three is right, four of opposite sign; a range of whole numbers is whole, and what no row tried is not in it."""
    usual = {"x": np.array([[1], [2]], dtype)}

    def reference(batch):
        return {"y": np.cumsum(1 + np.abs(batch["x"].astype(np.float64)), axis=1)}

    def variant(batch):
        right = reference(batch)["y"]
        return {"y": np.where(batch["x"].astype(np.int64).max(axis=1, keepdims=True) > 3, -right, right)}

    found = check_values(reference, variant, usual, tolerance=0, subjects=SUBJECTS)

    values = served(found, usual)
    assert (values.low, values.high) == (1, 3)
    assert (type(values.low), type(values.high)) == (int, int)
    json.dumps([dict(found.measured), dict(found.method)], allow_nan=False)


def test_large_whole_numbers_stay_within_their_dtype():
    """Doubled they would be negative."""
    top = np.iinfo(np.int64).max
    usual = {"x": np.array([[top, -top - 1], [3, 4]])}

    found = check_values(lambda x: {"y": x["x"] / 2.0}, None, usual, tolerance=0, subjects=SUBJECTS)

    assert served(found, usual) == ValueRange(-top - 1, top)
    times = {"x": np.array([[17 * 10**17], [16 * 10**17]])}  # nanoseconds; doubles do not tell them apart
    found = check_values(lambda x: {"y": x["x"] / 2.0}, None, times, tolerance=0, subjects=SUBJECTS)
    assert served(found, times) == ValueRange(16 * 10**17, 17 * 10**17)


def test_engine_that_fails_without_a_refusal_is_a_failure():
    """What is raised here would be raised in a server."""

    def run(inputs):
        if np.isnan(inputs["x"]).any():
            raise ZeroDivisionError
        return {"y": inputs["x"]}

    found = check_values(run, None, rows(), tolerance=0, subjects=SUBJECTS)

    assert found.verdict is Verdict.FAILED
    assert found.summary.endswith("the engine fails: ZeroDivisionError")


def test_lost_rows_are_a_failure():
    """Rows that hold NaN are dropped: answers would go to others."""

    def run(inputs):
        return {"y": inputs["x"][~np.isnan(inputs["x"]).any(axis=1)]}

    found = check_values(run, None, rows(), tolerance=0, subjects=SUBJECTS)

    assert found.verdict is Verdict.FAILED
    assert "4 rows gave 'y' of shape (3, 12)" in found.summary


def test_no_rows_are_refused():
    """Odd values need usual ones."""
    with pytest.raises(InvalidInput, match="Got 0 rows, 4"):
        check(dense(), inputs=rows(0))
