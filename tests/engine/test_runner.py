"""Loading and running graphs, on real engines: what every engine must do."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from lightship.engine import runner
from lightship.engine.runner import EngineOptions
from lightship.errors import (
    BundleRefused,
    CannotRun,
    InvalidInput,
    InvalidTensor,
    LightshipError,
    NotFound,
    OutOfMemory,
    Refused,
)
from lightship.types import Interface, TensorSpec

BATCH = np.ones((4, 3), dtype=np.float32)


ONNX_RUNTIME = pytest.mark.parametrize("engine", ["onnxruntime"], indirect=True)


@pytest.fixture(params=["onnxruntime", "openvino"], autouse=True)
def engine(request):
    """The engine that ``load_runner`` takes in this module."""
    _engine.append(request.param)
    yield request.param
    _engine.pop()


_engine = ["onnxruntime"]


def load_runner(graph: bytes, *, engine: str | None = None, options: EngineOptions | None = None) -> runner.Runner:
    """Load a graph into the engine of the test."""
    return runner.load_runner(graph, engine=engine or _engine[-1], options=options)


def load(model: onnx.ModelProto, **options):
    """Load a model with these options."""
    return load_runner(model.SerializeToString(), options=EngineOptions(**options))


def test_graph_gives_the_product_it_is_made_of(linear_graph):
    """The numbers are those of numpy."""
    x = np.random.default_rng(3).normal(size=(5, 3)).astype(np.float32)

    y = load_runner(linear_graph).run({"x": x})["y"]

    np.testing.assert_allclose(y, x @ np.arange(6, dtype=np.float32).reshape(3, 2), rtol=1e-6)


def test_interface_names_dtypes_and_free_dimensions(linear_graph):
    """The interface is read from the graph."""
    interface = load_runner(linear_graph).interface

    assert interface == Interface(
        inputs=(TensorSpec("x", "FP32", ("batch", 3)),), outputs=(TensorSpec("y", "FP32", ("batch", 2)),)
    )


@ONNX_RUNTIME
def test_anonymous_dimensions_get_names_that_are_free(model):
    """A free dimension without a name gets one that no other dimension has."""
    graph = model([helper.make_node("Identity", ["x"], ["y"])], in_shape=(None, "d0", None), out_shape=(None, None, 4))

    interface = load(graph).interface

    assert interface.inputs[0].shape == ("d1", "d0", "d2")
    assert interface.outputs[0].shape == ("d3", "d0", 4)  # the engine itself found that axis 1 is the input's


@pytest.mark.parametrize("options", [{"threads": 2}, {"spin": True}, {"optimization": "none"}, {"limit_s": 60}])
def test_options_do_not_change_the_answer(linear_graph, options, engine):
    """Threads, spinning, optimization and a limit that is not reached change speed only."""
    if engine == "openvino" and "optimization" in options:
        pytest.skip("OpenVINO has no levels of optimization")
    x = np.random.default_rng(3).normal(size=(5, 3)).astype(np.float32)

    y = load_runner(linear_graph, options=EngineOptions(**options)).run({"x": x})["y"]

    np.testing.assert_allclose(y, load_runner(linear_graph).run({"x": x})["y"], rtol=1e-6)


def test_unknown_engine_is_refused_with_the_known_names(linear_graph):
    """A typing error is answered with what there is."""
    with pytest.raises(NotFound, match=r"'onyx' is among the engines.*onnxruntime"):
        load_runner(linear_graph, engine="onyx")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": 0}, "threads.*Got 0"),
        ({"optimization": "max"}, "all, extended.*'max'"),
        ({"precision": "int8"}, "f32, bf16, f16.*'int8'"),
        ({"dynamic_quantization": "int4"}, "none, int8.*'int4'"),
        ({"limit_s": 0}, "limit_s.*above 0.*Got 0"),
        ({"limit_s": float("nan")}, "limit_s.*Got nan"),
        ({"limit_s": float("inf")}, "limit_s.*Got inf"),
    ],
)
def test_impossible_options_are_refused(options, message):
    """Options are checked when they are made."""
    with pytest.raises(InvalidInput, match=message):
        EngineOptions(**options)


@ONNX_RUNTIME
@pytest.mark.parametrize("precision", ["bf16", "f16"])
def test_onnx_runtime_takes_no_other_precision(linear_graph, precision):
    """It would compute in f32 and be believed to have done otherwise."""
    with pytest.raises(InvalidInput, match=f"must be f32. Got '{precision}'"):
        load_runner(linear_graph, options=EngineOptions(precision=precision))


@ONNX_RUNTIME
def test_onnx_runtime_quantizes_nothing_by_itself(linear_graph):
    """What it quantizes stands in the graph."""
    with pytest.raises(InvalidInput, match=r"must be none\. Got 'int8'"):
        load_runner(linear_graph, options=EngineOptions(dynamic_quantization="int8"))


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, {}),
        ({"threads": 2, "spin": True, "limit_s": 3.0, "batched": False}, {}),  # a machine's affair, or a caller's
        ({"precision": "bf16", "optimization": "basic"}, {"precision": "bf16", "optimization": "basic"}),
        ({"dynamic_quantization": "int8"}, {"dynamic_quantization": "int8"}),
    ],
    ids=["default", "machine", "bundle", "dynamic"],
)
def test_a_bundle_keeps_the_options_that_decide_answers(options, kept):
    """What is written is what differs from the default, and it is read back, with this machine's threads."""
    written = EngineOptions(**options).options_json()

    assert written == kept
    assert EngineOptions.from_json(written, threads=5) == EngineOptions(threads=5, **kept)


def test_threads_in_a_bundle_of_an_early_version_are_the_machines_affair():
    """They were written once, and mean nothing elsewhere."""
    assert EngineOptions.from_json({"threads": 2, "spin": True}, threads=3) == EngineOptions(threads=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": "2"}, "option 'threads' = '2' .*Known: precision, optimization"),
        ({"precison": "bf16"}, "option 'precison' = 'bf16'"),
        ({"precision": True}, "option 'precision' = True"),
        ({"precision": "f8"}, "f32, bf16, f16. Got 'f8'"),
        ({"optimization": "max"}, "all, extended.*'max'"),
    ],
    ids=["threads", "typo", "truth", "precision", "optimization"],
)
def test_unknown_options_of_a_bundle_are_refused(options, message):
    """To pass over one would run the variant in another way than it was proven."""
    with pytest.raises(BundleRefused, match=message):
        EngineOptions.from_json(options)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"image": BATCH}, r"takes the inputs 'x'\. Got 'image'"),
        ({}, "Got none"),
        ({"x": BATCH, "z": BATCH}, "Got 'x', 'z'"),
        ({"x": BATCH.astype(np.float64)}, r"dtype FP32 \(float32\)\. Got float64"),
        ({"x": BATCH[0]}, r"must have 2 dimensions, \[batch, 3\]\. Got \(3,\)"),
        ({"x": BATCH[:, :2]}, r"axis 1 \(3\) is 3 here\. Got \(4, 2\)"),
        ({"x": BATCH[:0]}, r"axis 0 \(batch\) must be at least 1"),
        ({"x": BATCH.tolist()}, "numpy array. Got list"),
    ],
)
def test_wrong_inputs_are_named(linear_graph, inputs, message):
    """The message says which input, what was allowed and what came."""
    with pytest.raises(InvalidTensor, match=message):
        load_runner(linear_graph).run(inputs)


def test_two_inputs_must_agree_on_a_free_dimension():
    """A dimension with one name has one size."""
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3]) for name in ("a", "b", "y")]
    graph = helper.make_graph([helper.make_node("Add", ["a", "b"], ["y"])], "g", infos[:2], infos[2:])
    runner = load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9))

    with pytest.raises(InvalidTensor, match=r"Input 'b'.*axis 0 \(batch\) is 4 here. Got \(1, 3\)"):
        runner.run({"a": BATCH, "b": BATCH[:1]})


def test_graph_that_drops_a_row_is_an_error(model):
    """Answers are matched by position: one row less would give people each other's answers."""
    ends = {"from": np.array([0]), "to": np.array([-1]), "axis": np.array([0])}
    graph = model([helper.make_node("Slice", ["x", "from", "to", "axis"], ["y"])], weights=ends, out_shape=("rest", 3))

    with pytest.raises(LightshipError, match=r"one row for each of the 4 input rows. Got shape \(3, 3\)"):
        load(graph).run({"x": BATCH})


def test_graph_that_merges_the_batch_is_an_error(model):
    """A mean over the batch has no row axis."""
    graph = model([helper.make_node("ReduceMean", ["x"], ["y"], keepdims=0)], out_shape=())

    with pytest.raises(LightshipError, match=r"Got shape \(\)"):
        load(graph).run({"x": BATCH})


@ONNX_RUNTIME
def test_failure_inside_the_engine_is_told_without_its_insides(model, capfd):
    """The message names the sizes, not nodes, files or functions of the engine; and stderr stays quiet."""
    graph = model(
        [helper.make_node("Reshape", ["x", "shape"], ["y"], name="secret_node")],
        weights={"shape": np.array([2, 3])},
        out_shape=("batch", 3),
    )

    with pytest.raises(CannotRun, match=r"cannot be run on this input: x \(4, 3\)") as caught:
        load(graph).run({"x": BATCH})

    assert "secret_node" not in str(caught.value)
    assert "secret_node" not in capfd.readouterr().err


@pytest.mark.parametrize("limit_s", [None, 60.0])
def test_row_number_beyond_the_table_is_the_inputs_fault(model, limit_s):
    """The interface allows any INT64, the table has three rows; the next input is answered."""
    table = {"table": np.arange(3, dtype=np.float32)}
    graph = model([helper.make_node("Gather", ["table", "x"], ["y"])], weights=table, in_type=TensorProto.INT64,
                  in_shape=("batch", 1), out_shape=("batch", 1))  # fmt: skip
    runner = load(graph, limit_s=limit_s)

    with pytest.raises(CannotRun, match=r"x \(1, 1\)") as caught:
        runner.run({"x": np.array([[10**12]])})

    assert not isinstance(caught.value, OutOfMemory)
    assert "Gather" not in str(caught.value)
    assert runner.run({"x": np.array([[2]])})["y"].tolist() == [[2.0]]


_ASKS_FOR_TOO_MUCH = """
import sys
import numpy as np
from lightship.engine.runner import EngineOptions, load_runner
from lightship.errors import OutOfMemory
from lightship.serve.worker import _limit_memory
runner = load_runner(sys.stdin.buffer.read(), options=EngineOptions(audited=True, batched=False))
_limit_memory(1 << 29)
try:
    runner.run({"x": np.array([int(sys.argv[1])])})
except OutOfMemory as exc:
    print(exc, "Because:", exc.__cause__)
print("then", runner.run({"x": np.array([5])})["y"].size)
"""


@pytest.mark.parametrize(("size", "words"), [(10**11, b"Failed to allocate"), (10**8, b"bad_alloc")])
def test_failed_allocation_has_an_error_of_its_own(model, size, words):
    """The arena of the engine and the C++ library (a list of 10^8 places) say it in different words."""
    nodes = [helper.make_node("Expand", ["one", "x"], ["ones"]), helper.make_node("NonZero", ["ones"], ["y"])]
    weights = {"one": np.ones(1, np.uint8)}
    graph = model(nodes, weights=weights, in_type=TensorProto.INT64, in_shape=(1,), out_shape=(1, None),
                  out_type=TensorProto.INT64)  # fmt: skip

    done = subprocess.run(
        [sys.executable, "-c", _ASKS_FOR_TOO_MUCH, str(size)],
        input=graph.SerializeToString(),
        capture_output=True,
        check=False,
    )

    said, _, rest = done.stdout.partition(b"Because:")
    assert b"x (1,) needs more memory than there is" in said, done.stderr
    assert words in rest
    assert b"then 5" in rest, done.stderr


@ONNX_RUNTIME
def test_endless_loop_is_stopped_at_the_limit(looping):
    """A trip count of 2^62 would keep the process for ever; the message says how long and on what, and what to do."""
    runner = load(looping(2**62), limit_s=0.5)
    start = time.monotonic()

    with pytest.raises(LightshipError, match=r"longer than 0\.5 s on a batch of x \(4, 3\).*Look for a loop"):
        runner.run({"x": BATCH})

    assert time.monotonic() - start < 5


@ONNX_RUNTIME
def test_loop_that_ends_within_the_limit_gives_its_answer(looping):
    """The limit costs nothing but time: same numbers, and no timer stays behind."""
    found = load(looping(3), limit_s=60).run({"x": BATCH})["y"]

    np.testing.assert_array_equal(found, load(looping(3)).run({"x": BATCH})["y"])
    np.testing.assert_allclose(found, np.cos(np.cos(np.cos(BATCH))), rtol=1e-6)
    timers = [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]
    assert all(timer.finished.is_set() for timer in timers)


@ONNX_RUNTIME
def test_runner_can_be_used_again_after_a_stop(looping):
    """The first batch asks for 10^15 rounds, the next for two: only the first is an error."""
    runner = load(looping(None), limit_s=0.5)

    with pytest.raises(LightshipError, match=r"longer than 0\.5 s"):
        runner.run({"x": np.full((1, 3), 1e15, dtype=np.float32)})

    twos = np.full((1, 3), 2, dtype=np.float32)
    np.testing.assert_allclose(runner.run({"x": twos})["y"], np.cos(np.cos(twos)), rtol=1e-6)


@ONNX_RUNTIME
def test_failure_under_a_limit_is_not_called_too_long(model):
    """Only what the timer stopped was too slow."""
    graph = model(
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        weights={"shape": np.array([2, 3])},
        out_shape=("batch", 3),
    )

    with pytest.raises(CannotRun, match=r"cannot be run on this input: x \(4, 3\)"):
        load(graph, limit_s=60).run({"x": BATCH})


def test_closed_graph_does_not_run(linear_graph):
    """A run after close is an error of ours, not of the engine."""
    runner = load_runner(linear_graph)
    runner.close()

    with pytest.raises(LightshipError, match="was closed"):
        runner.run({"x": BATCH})


@pytest.mark.parametrize("graph", [b"", b"not a model", b"\x08\x07"])
def test_bytes_that_are_no_model_are_refused(graph):
    """Rubbish is named as such."""
    with pytest.raises(InvalidInput, match=r"hold no graph|no ONNX model"):
        load_runner(graph)


def test_model_that_the_engine_does_not_know_is_refused(model):
    """An operator that does not exist is an input error."""
    with pytest.raises(InvalidInput, match="cannot load this graph"):
        load(model([helper.make_node("NoSuchOperator", ["x"], ["y"])]))


def test_external_data_is_refused_before_the_engine_reads_it(model):
    """A weight that names a file on this machine is never fetched."""
    graph = model([helper.make_node("Identity", ["x"], ["y"])], weights={"w": np.ones(1, np.float32)})
    weight = graph.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="../../etc/passwd")

    with pytest.raises(Refused, match="Tensor 'w' of the graph lies in another file"):
        load(graph)


def test_external_data_inside_a_branch_is_refused(model):
    """Subgraphs and constants inside of them are looked through as well."""
    value = helper.make_tensor("hidden", TensorProto.FLOAT, [1], [1.0])
    value.ClearField("float_data")
    value.data_location = TensorProto.EXTERNAL
    value.external_data.add(key="location", value="weights.bin")
    out = helper.make_tensor_value_info("branch_out", TensorProto.FLOAT, [1])
    branch = helper.make_graph([helper.make_node("Constant", [], ["branch_out"], value=value)], "branch", [], [out])
    node = helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)

    with pytest.raises(Refused, match="'hidden'"):
        load(model([node], in_type=TensorProto.BOOL, in_shape=(1,), out_shape=(1,)))


def test_operators_of_unknown_domains_are_refused(model):
    """An operator from a shared library would be somebody's code."""
    graph = model([helper.make_node("Evil", ["x"], ["y"], domain="com.evil")], domains=["com.evil"])

    with pytest.raises(Refused, match=r"'Evil'.*domain 'com.evil'.*Allowed"):
        load(graph)


@ONNX_RUNTIME
def test_functions_inside_the_file_are_allowed(model):
    """A function that the file itself defines is made of operators that are looked at too."""
    body = [helper.make_node("Add", ["a", "a"], ["b"])]
    function = helper.make_function("local", "Twice", ["a"], ["b"], body, [helper.make_opsetid("", 18)])
    graph = model([helper.make_node("Twice", ["x"], ["y"], domain="local")], out_shape=("batch", 3), domains=["local"])
    graph.functions.append(function)

    assert (load(graph).run({"x": BATCH})["y"] == 2).all()


@ONNX_RUNTIME
def test_only_tensors_pass(model):
    """A list of maps, as scikit-learn's exporter makes it, is refused with the way out."""
    node = helper.make_node("ZipMap", ["x"], ["y"], domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2])
    graph = model([node], domains=["ai.onnx.ml"])
    graph.graph.output[0].CopyFrom(onnx.ValueInfoProto(name="y"))
    sequence = graph.graph.output[0].type.sequence_type.elem_type.map_type
    sequence.key_type = TensorProto.INT64
    sequence.value_type.tensor_type.elem_type = TensorProto.FLOAT

    with pytest.raises(InvalidInput, match=r"'y' of the graph has the type seq\(map"):
        load(graph)


@ONNX_RUNTIME
def test_runner_module_loads_no_engine():
    """Asking for the module costs no onnxruntime, openvino, onnx or torch."""
    code = (
        "import sys, lightship.engine.runner, lightship.engine.machine, lightship.engine.measure;"
        "print([name for name in ('onnxruntime', 'openvino', 'onnx', 'torch') if name in sys.modules])"
    )

    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert found.stdout.strip() == "[]"
