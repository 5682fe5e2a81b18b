"""What OpenVINO does otherwise than ONNX says: refused, bounded or told, and everything else right."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lightship.engine import openvino as openvino_engine
from lightship.engine.machine import has_vnni
from lightship.engine.openvino_library import load_openvino
from lightship.engine.runner import EngineOptions, load_runner
from lightship.errors import CannotRun, InvalidInput, LightshipError, Refused

CASES = Path(onnx.__file__).parent / "backend/test/data"
BATCH = np.ones((4, 3), dtype=np.float32)


def load(model: onnx.ModelProto, **options):
    """Load a model with these options."""
    return load_runner(model.SerializeToString(), engine="openvino", options=EngineOptions(**options))


def tensors(folder: Path, kind: str, infos) -> dict[str, np.ndarray] | None:
    """Return the tensors of a case by name; nothing where one is no tensor."""
    found = {}
    for index, info in enumerate(infos):
        path = folder / f"{kind}_{index}.pb"
        if info.type.WhichOneof("value") != "tensor_type" or not path.exists():
            return None
        found[info.name] = numpy_helper.to_array(onnx.load_tensor(path))
    return found


def test_the_standards_own_models_are_answered_right_or_refused():
    """Each model that ONNX ships with inputs and outputs: the same names, dtypes, shapes and numbers, or an error."""
    seen: Counter[str] = Counter()
    wrong = []
    for folder in sorted(CASES.glob("*/*/")):
        if not (folder / "model.onnx").exists():
            continue
        model = onnx.load(folder / "model.onnx")
        stored = {tensor.name for tensor in model.graph.initializer}
        given = tensors(
            folder / "test_data_set_0", "input", [one for one in model.graph.input if one.name not in stored]
        )
        expected = tensors(folder / "test_data_set_0", "output", model.graph.output)
        if given is None or expected is None:
            continue
        try:
            found = load(model, batched=False).run(given)
        except (InvalidInput, CannotRun, Refused):
            seen["refused"] += 1
            continue
        seen["answered"] += 1
        for name, array in expected.items():
            same = array.dtype == found[name].dtype and array.shape == found[name].shape
            if not (same and np.allclose(found[name], array, rtol=1e-3, atol=1e-4, equal_nan=True)):
                wrong.append((folder.name, name))

    assert not wrong
    assert seen["answered"] > 100
    assert seen["refused"] < 40


MISREAD = {
    "antialias": ("Resize", {"antialias": 1, "mode": "linear"}, r"Resize `antialias`"),
    "attention": ("Attention", {}, "Attention: masks"),
    "ceil-with-pads": ("MaxPool", {"ceil_mode": 1, "kernel_shape": [2, 2], "pads": [1, 1, 1, 1]}, "`ceil_mode`"),
    "ceil-with-steps": ("MaxPool", {"ceil_mode": 1, "kernel_shape": [1, 1], "strides": [2, 2]}, "`ceil_mode`"),
    "layout": ("LSTM", {"layout": 1, "hidden_size": 3}, "`layout` 1"),
    "random": ("RandomNormalLike", {"seed": 1.0}, "random numbers"),
    "sequence": ("SequenceAt", {}, "positions are taken as fixed"),
    "aspect": ("Resize", {"keep_aspect_ratio_policy": "not_larger"}, "keep_aspect_ratio_policy"),
}


@pytest.mark.parametrize("case", sorted(MISREAD))
@pytest.mark.parametrize("inside", [False, True], ids=["outside", "in-a-branch"])
def test_operators_that_are_answered_otherwise_are_refused(model, case, inside):
    """By type or attribute, wherever they stand; the message names what it is."""
    kind, attributes, message = MISREAD[case]
    node = helper.make_node(kind, ["x"], ["y"], **attributes)
    if inside:
        out = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
        branch = helper.make_graph([node], "branch", [], [out])
        node = helper.make_node("If", ["yes"], ["y"], then_branch=branch, else_branch=branch)

    with pytest.raises(InvalidInput, match=message):
        load(model([node], weights={"yes": np.array(True)}))


@pytest.mark.parametrize(
    ("kind", "attributes"),
    [
        ("MaxPool", {"ceil_mode": 1, "kernel_shape": [3], "strides": [2]}),
        ("Resize", {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}),
        ("Resize", {"keep_aspect_ratio_policy": "stretch", "antialias": 0}),
    ],
    ids=["ceil", "resize", "defaults-written-out"],
)
def test_what_is_answered_right_is_not_refused(model, kind, attributes):
    """Nets are full of these."""
    more = ["", "scales"] if kind == "Resize" else []
    graph = model(
        [helper.make_node(kind, ["x", *more], ["y"], **attributes)],
        weights={"scales": np.array([1, 1, 2], np.float32)} if more else {},
        in_shape=("batch", 2, 8),
        out_shape=("batch", 2, None),
    )
    x = np.random.default_rng(4).normal(size=(3, 2, 8)).astype(np.float32)

    found = load(graph).run({"x": x})["y"]

    np.testing.assert_allclose(found, load_runner(graph.SerializeToString()).run({"x": x})["y"], atol=1e-6)


INTEGERS = {"in_type": TensorProto.INT64, "out_type": TensorProto.INT64}


@pytest.mark.parametrize("value", [2**31, -(2**31) - 1, 2**62])
def test_integers_beyond_32_bits_are_refused_where_they_come_in(model, value):
    """OpenVINO would cut them and go on: 2**40 + 5 would become 5."""
    runner = load(model([helper.make_node("Abs", ["x"], ["y"])], in_shape=("batch", 1), out_shape=("batch", 1),
                        **INTEGERS))  # fmt: skip

    with pytest.raises(CannotRun, match=r"x \(2, 1\) has a value outside of -2147483648 to 2147483647"):
        runner.run({"x": np.array([[1], [value]])})

    assert runner.run({"x": np.array([[-(2**31) + 1]])})["y"].tolist() == [[2**31 - 1]]


def test_constants_beyond_32_bits_are_refused_but_for_those_that_mean_the_end(model):
    """Exporters write 2**63 - 1 for a slice up to the end; a hash's multiplier is another matter."""
    add = helper.make_node("Add", ["x", "c"], ["y"])
    ends = {"from": np.array([1]), "to": np.array([2**63 - 1]), "axis": np.array([1])}
    cut = model([helper.make_node("Slice", ["x", "from", "to", "axis"], ["y"])], weights=ends)

    with pytest.raises(InvalidInput, match="holds 1099511627776; OpenVINO computes with integers of 32 bits"):
        load(model([add], weights={"c": np.array(2**40)}, **INTEGERS))
    assert load(cut).run({"x": BATCH})["y"].shape == (4, 2)


def test_float64_is_refused_at_the_door(model):
    """It would be computed in float32, and infinities would become its largest number."""
    graph = model([helper.make_node("Relu", ["x"], ["y"])], in_type=TensorProto.DOUBLE, out_type=TensorProto.DOUBLE)

    with pytest.raises(InvalidInput, match="'x' of the graph has the dtype FP64; OpenVINO computes it in float32"):
        load(graph)


@pytest.mark.parametrize(
    ("kind", "inputs", "shape"),
    [
        ("GatherND", ["t", "x"], ("batch", 1)),
        ("GatherElements", ["t", "x"], ("batch", 3)),
        ("ScatterElements", ["t", "x", "u"], (1, 3)),
        ("ScatterND", ["t", "x", "u"], (1, 1)),
    ],
)
def test_positions_that_a_client_sends_are_refused_where_nobody_checks_them(model, kind, inputs, shape):
    """A scatter beyond its table writes into what lies behind it; a gather of rows reads it."""
    table = {"t": np.zeros((4, 3), np.float32), "u": np.ones((1, 3), np.float32)}
    graph = model([helper.make_node(kind, inputs, ["y"])], weights=table, in_type=TensorProto.INT64, in_shape=shape)

    with pytest.raises(InvalidInput, match=r"takes positions or sizes from the inputs"):
        load(graph)


def test_a_reshape_to_a_fixed_size_is_refused_where_the_size_is_free(model):
    """It would give the memory that lies behind, or drop the rest."""
    graph = model([helper.make_node("Reshape", ["x", "s"], ["y"])], weights={"s": np.array([2, 3])}, out_shape=(2, 3))

    with pytest.raises(InvalidInput, match="makes a fixed size of one that is free"):
        load(graph)


@pytest.mark.parametrize(("size", "refused"), [(3, True), (4, False)], ids=["square", "oblong"])
def test_a_square_weight_that_is_used_in_two_ways_is_refused(model, size, refused):
    """Both products got the one that was packed first; an oblong one has another shape for each."""
    weights = {"w": np.random.default_rng(1).normal(size=(size, 3)).astype(np.float32)}
    nodes = [helper.make_node("Gemm", ["x", "w"], ["h"], transB=1), helper.make_node("MatMul", ["h", "w"], ["y"])]
    graph = model(nodes, weights=weights, in_shape=(2, 3), out_shape=(2, 3))

    if refused:
        with pytest.raises(InvalidInput, match="take one square weight in two ways"):
            load(graph)
        return
    x = np.float32([[1, 2, 3], [4, 5, 6]])
    np.testing.assert_allclose(load(graph).run({"x": x})["y"], x @ weights["w"].T @ weights["w"], rtol=1e-4)


def test_a_loop_is_not_loaded_with_a_limit_that_could_not_be_kept(looping):
    """OpenVINO looks whether it should stop between operators, and a loop is one."""
    with pytest.raises(InvalidInput, match=r"Loop .* cannot be stopped"):
        load(looping(3), limit_s=60)

    np.testing.assert_allclose(load(looping(2)).run({"x": BATCH})["y"], np.cos(np.cos(BATCH)), rtol=1e-6)


@pytest.mark.parametrize("precision", ["bf16", "f16"])
def test_a_precision_is_what_was_asked_for_or_an_error(linear_graph, precision):
    """On a CPU without it OpenVINO would compute in float32 and say nothing."""
    can = load_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    options = EngineOptions(precision=precision)

    if {"bf16": "BF16", "f16": "FP16"}[precision] in can:
        found = load_runner(linear_graph, engine="openvino", options=options).run({"x": BATCH})["y"]
        np.testing.assert_allclose(found, [[6, 9]] * 4, rtol=0.01)
    else:
        with pytest.raises(InvalidInput, match=f"does not compute in {precision}"):
            load_runner(linear_graph, engine="openvino", options=options)


def narrow(model) -> onnx.ModelProto:
    """Return a product whose weights, int8, are widened as they are read."""
    rng = np.random.default_rng(8)
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "scale"], ["wide"], axis=1),
        helper.make_node("MatMul", ["x", "wide"], ["y"]),
    ]
    weights = {"w": rng.integers(-127, 128, (64, 32)).astype(np.int8), "scale": np.full(32, 0.01, np.float32)}
    return model(nodes, weights=weights, in_shape=("batch", 64), out_shape=("batch", 32))


@pytest.mark.skipif(not has_vnni(), reason="activations stay in float without VNNI")
def test_activations_are_quantized_as_they_come_if_asked_for(model):
    """Near the answer in float, not it; and a row's answer is that of the row alone."""
    x = np.random.default_rng(7).normal(size=(2, 64)).astype(np.float32)
    exact = load(narrow(model)).run({"x": x})["y"]
    runner = load(narrow(model), dynamic_quantization="int8")

    found = runner.run({"x": x})["y"]

    error = np.linalg.norm(found - exact) / np.linalg.norm(exact)
    assert 1e-4 < error < 0.02
    np.testing.assert_array_equal(runner.run({"x": x[1:]})["y"], found[1:])


def test_without_vnni_activations_are_not_said_to_be_quantized(model, monkeypatch):
    """OpenVINO would leave them in float and say nothing."""
    monkeypatch.setattr(openvino_engine, "has_vnni", lambda: False)

    with pytest.raises(InvalidInput, match="no VNNI"):
        load(narrow(model), dynamic_quantization="int8")


def slow(model) -> onnx.ModelProto:
    """Return a graph of two thousand operators that are not joined into one."""
    nodes = [helper.make_node("CumSum", [f"h{i}", "axis"], [f"h{i + 1}"]) for i in range(2000)]
    nodes[0].input[0], nodes[-1].output[0] = "x", "y"
    return model(nodes, weights={"axis": np.array(1)}, out_shape=("batch", 3))


def test_a_long_run_is_stopped_at_its_limit_and_the_next_is_answered(model):
    """Between two operators."""
    runner = load(slow(model), limit_s=0.2)

    with pytest.raises(LightshipError, match=r"longer than 0\.2 s on a batch of x \(400000, 3\)"):
        runner.run({"x": np.zeros((400_000, 3), np.float32)})

    assert runner.run({"x": np.zeros((1, 3), np.float32)})["y"].tolist() == [[0, 0, 0]]


def test_stop_ends_what_runs_and_nothing_later(model):
    """From another thread, as a server does it when nobody waits any more."""
    runner = load(slow(model))
    failed = []

    def run() -> None:
        try:
            runner.run({"x": np.zeros((400_000, 3), np.float32)})
        except LightshipError as exc:
            failed.append(str(exc))

    thread = threading.Thread(target=run)
    thread.start()
    until = time.monotonic() + 60
    while thread.is_alive() and time.monotonic() < until:
        runner.stop()
        time.sleep(0.01)
    thread.join(60)

    assert failed == ["The run was stopped."]
    assert runner.run({"x": np.zeros((1, 3), np.float32)})["y"].tolist() == [[0, 0, 0]]


def test_threads_that_run_at_once_get_their_own_answers(linear_graph):
    """Requests are not shared, and outputs are not overwritten by the next run."""
    runner = load_runner(linear_graph, engine="openvino", options=EngineOptions(threads=2))
    wrong = []

    def work(number: int) -> None:
        kept = []
        for step in range(200):
            x = np.full((1 + step % 3, 3), number * 1000 + step, np.float32)
            kept.append((x, runner.run({"x": x})["y"]))
        wrong.extend(x for x, y in kept if not np.allclose(y, x @ np.arange(6, dtype=np.float32).reshape(3, 2)))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert not wrong


def test_inputs_that_nothing_reads_and_outputs_that_are_inputs(model):
    """Both are given by name as the file says, though OpenVINO drops the first."""
    graph = model([helper.make_node("Identity", ["x"], ["y"])], out_shape=("batch", 3))
    graph.graph.input.append(helper.make_tensor_value_info("unused", TensorProto.INT64, ["batch"]))
    graph.graph.output.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3]))

    found = load(graph).run({"x": BATCH, "unused": np.zeros(4, np.int64)})

    assert list(found) == ["y", "x"]
    np.testing.assert_array_equal(found["y"], found["x"])


def test_read_only_and_scattered_arrays_are_taken(linear_graph):
    """What arrives over a socket is read-only."""
    runner = load_runner(linear_graph, engine="openvino")
    x = np.random.default_rng(5).normal(size=(4, 6)).astype(np.float32)[:, ::2]
    x.flags.writeable = False

    np.testing.assert_allclose(runner.run({"x": x})["y"], x @ np.arange(6, dtype=np.float32).reshape(3, 2), rtol=1e-5)


_ASKS_FOR_TOO_MUCH = """
import sys
import numpy as np
from lightship.engine.runner import EngineOptions, load_runner
from lightship.errors import OutOfMemory
from lightship.serve.worker import _limit_memory
runner = load_runner(sys.stdin.buffer.read(), engine="openvino", options=EngineOptions(audited=True, batched=False))
_limit_memory(1 << 29)
try:
    runner.run({"x": np.array([int(sys.argv[1])])})
except OutOfMemory as exc:
    print(exc)
print("then", runner.run({"x": np.array([5])})["y"].size)
"""


def test_failed_allocation_has_an_error_of_its_own(model):
    """A worker's limit of memory fails one request, not the process."""
    graph = model([helper.make_node("Expand", ["one", "x"], ["y"])], weights={"one": np.ones(1, np.float32)},
                  in_type=TensorProto.INT64, in_shape=(1,), out_shape=(None,))  # fmt: skip

    done = subprocess.run(
        [sys.executable, "-c", _ASKS_FOR_TOO_MUCH, str(10**9)],
        input=graph.SerializeToString(),
        capture_output=True,
        check=False,
    )

    assert b"x (1,) needs more memory than there is" in done.stdout, done.stderr
    assert b"then 5" in done.stdout, done.stderr


def test_a_worker_of_onnx_runtime_loads_no_openvino(linear_graph):
    """Nor does `import lightship`."""
    code = (
        "import sys, lightship; from lightship.engine.runner import load_runner;"
        "import lightship.serve.worker, lightship.apply.model; load_runner(sys.stdin.buffer.read());"
        "print([name for name in ('openvino', 'nncf') if name in sys.modules])"
    )

    found = subprocess.run([sys.executable, "-c", code], input=linear_graph, capture_output=True, check=True)

    assert found.stdout.strip() == b"[]"


def test_ctrl_c_reaches_python_after_a_graph_was_closed(linear_graph, tmp_path):
    """OpenVINO leaves the thread a signal stack whose memory is gone: a signal to Python's handler would kill it."""
    (tmp_path / "graph.onnx").write_bytes(linear_graph)
    code = """
import ctypes, os, signal, sys
from lightship.engine.runner import load_runner
for _ in range(3):
    load_runner(open(sys.argv[1], "rb").read(), engine="openvino").close()
stack = (ctypes.c_size_t * 3)()
ctypes.CDLL(None).sigaltstack(None, stack)
try:
    os.kill(os.getpid(), signal.SIGINT)
    signal.sigtimedwait([], 5)
except KeyboardInterrupt:
    print("interrupted", stack[0])
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "graph.onnx")],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip

    assert (done.returncode, done.stdout.strip()) == (0, "interrupted 0"), done.stderr
