"""What has broken quantizers before, one test a trap."""

from __future__ import annotations

import logging
import os
import random
import subprocess
import sys
import tempfile
import warnings
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.optimize.test_passes_zoo import ENGINES, NAMES, NNCF, answers, cosine, each_pass
from tests.optimize.zoo import model_of

from lightship.engine.runner import load_runner
from lightship.optimize import calibration as ranges_of
from lightship.optimize import onnx_model, quantization
from lightship.optimize.calibration import activation_ranges
from lightship.optimize.nncf import is_transformer
from lightship.optimize.onnx_model import ready_to_quantize
from lightship.optimize.qdq import pairs_of, without_pairs
from lightship.optimize.quantization import quantized_with
from lightship.optimize.sensitivity import Yardstick, costs
from lightship.optimize.variant_pass import PassFailed, load_pass, read_note

needs_nncf = pytest.mark.skipif(not NNCF, reason="nncf is not installed")


def made(name: str, graph: bytes, kind: str) -> bytes:
    """Return what the pass makes of the graph, calibrated on rows of that kind."""
    return load_pass(name).apply(graph, calibration=[model_of(kind).rows(16, 2)])


@each_pass
def test_shapes_that_the_exporter_noted_wrongly_do_no_harm(name):
    """Torch's exporter leaves shapes in the middle that contradict what is inferred again."""
    model = onnx.load_from_string(model_of("encoder").graph)
    for node in model.graph.node:
        model.graph.value_info.append(helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, [1, 7, 3, 3]))

    if name == "fused":
        with pytest.raises(PassFailed, match="fused found nothing in this graph"):
            made(name, model.SerializeToString(), "encoder")
        return
    graph = made(name, model.SerializeToString(), "encoder")
    rows = model_of("encoder").rows(8, 1)
    assert cosine(answers(model_of("encoder").graph, rows)["logits"], answers(graph, rows)["logits"]) > 0.9


@pytest.mark.parametrize("beta", [1.0, 3.0])
@pytest.mark.parametrize("shape", [(6,), (1, 6), (1,), (), (1, 1), (3, 6)], ids=str)
@pytest.mark.parametrize("name", ["int8-static", "int8-products", "int8-dynamic-channel", "int8-mixed"])
def test_biases_of_other_shapes_than_one_a_column_are_taken(name, shape, beta):
    """ONNX Runtime's quantizer gave up on a row of numbers, and took a bias without its factor for the bias."""
    rng = np.random.default_rng(3)
    weight = numpy_helper.from_array(rng.normal(size=(4, 6)).astype(np.float32), "weight")
    bias = numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), "bias")
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "weight", "bias"], ["y"], name="product", beta=beta)],
        "biased",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3, 6])],
        [weight, bias],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    rows = {"x": rng.normal(size=(3, 4)).astype(np.float32)}

    quantized = load_pass(name).apply(model, calibration=[rows])

    assert cosine(answers(model, rows)["y"], answers(quantized, rows)["y"]) > 0.99


@pytest.mark.parametrize("name", ["int8-static", "int8-products", "int8-dynamic-channel", "int8-mixed"])
def test_a_bias_that_convolutions_share_is_taken(name):
    """A copy of it must have a name that no weight and no result has; ONNX Runtime's quantizer took one of these."""
    rng = np.random.default_rng(3)
    kernel = numpy_helper.from_array(rng.normal(size=(4, 4, 3)).astype(np.float32), "kernel")
    bias = numpy_helper.from_array(rng.normal(size=4).astype(np.float32), "bias")
    other = numpy_helper.from_array(rng.normal(scale=9.0, size=4).astype(np.float32), "layer0/bias")
    steps = ["x", "bias0", "bias1", "bias2", "y"]
    graph = helper.make_graph(
        [
            helper.make_node("Conv", [steps[place], "kernel", bias], [steps[place + 1]], name=f"layer{place}")
            for place, bias in enumerate(("bias", "bias", "bias", "layer0/bias"))
        ],
        "shared",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 4, 8])],
        [kernel, bias, other],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    rows = {"x": rng.normal(size=(2, 4, 16)).astype(np.float32)}

    quantized = load_pass(name).apply(model, calibration=[rows])

    assert cosine(answers(model, rows)["y"], answers(quantized, rows)["y"]) > 0.99


@pytest.mark.parametrize("name", ["int8-static", "int8-products", "int8-dynamic-channel", "int8-mixed"])
@pytest.mark.parametrize("columns", [12, 20])
def test_a_table_that_is_also_turned_into_a_product_is_taken(name, columns):
    """Embeddings tied to the last layer: quantizers turned the table in place, or gave one axis of scales to both."""
    rng = np.random.default_rng(5)
    table = numpy_helper.from_array(rng.normal(size=(columns, 12)).astype(np.float32), "table")
    middle = numpy_helper.from_array(rng.normal(size=(12, 12)).astype(np.float32), "middle")
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "ids"], ["rows"]),
            helper.make_node("MatMul", ["rows", "middle"], ["mixed"]),
            helper.make_node("Gemm", ["mixed", "table"], ["y"], transB=1),
        ],
        "tied",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", columns])],
        [table, middle],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    rows = {"ids": rng.integers(0, columns, 40)}

    quantized = load_pass(name).apply(model, calibration=[rows])

    assert cosine(answers(model, rows)["y"], answers(quantized, rows)["y"]) > 0.99


def test_products_alone_leave_their_results_and_attention_in_float():
    """Which is why they answer nearer: only weights and what is multiplied with them have 8 bits."""
    nodes = onnx.load_from_string(made("int8-products", model_of("encoder").graph, "encoder")).graph.node
    widened = {node.output[0] for node in nodes if node.op_type == "DequantizeLinear"}
    narrowed = {node.input[0] for node in nodes if node.op_type == "QuantizeLinear"}
    products = [node for node in nodes if node.op_type in ("MatMul", "Gemm")]

    assert {len(widened.intersection(node.input[:2])) for node in products} == {0, 2}  # attention, and all others
    assert not narrowed.intersection(node.output[0] for node in products)
    assert not any(node.op_type in ("Add", "Mul", "Softmax") and widened.intersection(node.input) for node in nodes)


def test_costs_are_measured_on_the_rows_that_suffer():
    """Not on those that come first, nor on one whose answer is zero: of nothing, any error is infinitely much."""
    weight = numpy_helper.from_array(np.float32([[1.0], [1.0]]), "weight")
    rough = numpy_helper.from_array(np.float32([[1.1], [1.0]]), "weight")

    def model(tensor: onnx.TensorProto) -> onnx.ModelProto:
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["x", "weight"], ["h"]), helper.make_node("Relu", ["h"], ["y"])],
            "near",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1])],
            [tensor],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    rows = [[0.0, 5.0], [1.0, -1.0], [30.0, 0.0], [np.nan, 0.0], [2.0, 2.0]]
    yardstick = Yardstick(model(weight), [{"x": np.float32([row])} for row in rows])

    hardest = yardstick.hardest(model(rough), 3)

    assert [piece["x"].tolist() for piece in hardest] == [[[30.0, 0.0]], [[2.0, 2.0]], [[1.0, -1.0]]]
    assert 10 < yardstick.decibels(model(rough)) < 30


def test_weights_behind_operators_of_the_engine_are_found(tmp_path):
    """ONNX Runtime's own fused graph: no shape is known behind its operators, and the quantizer gave up on them."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "fused.onnx")
    options.log_severity_level = 4
    ort.InferenceSession(model_of("embedder").graph, options, providers=["CPUExecutionProvider"])
    fused = (tmp_path / "fused.onnx").read_bytes()
    assert any(node.domain == "com.microsoft" for node in onnx.load_from_string(fused).graph.node)

    rows = model_of("embedder").rows(16, 1)
    wanted = answers(model_of("embedder").graph, rows)["embedding"]
    for name in ("int8-dynamic", "int8-dynamic-channel", "int8-products", "int8-mixed"):
        assert cosine(wanted, answers(made(name, fused, "embedder"), rows)["embedding"]) > 0.98, name
    narrowed = [each.input[0] for each in onnx.load_from_string(made("int8-products", fused, "embedder")).graph.node
                if each.op_type == "QuantizeLinear"]  # fmt: skip
    assert len(narrowed) > 6  # activations too, also those that the engine's own operators make


def test_model_that_static_int8_wrecks_is_rescued_and_the_layers_are_named(monkeypatch):
    """Static int8 over everything answers nonsense without an error; mixed precision does not, and says what it did."""
    from lightship.optimize import sensitivity
    from lightship.optimize.passes import int8_mixed

    model = model_of("outliers")
    rows = model.rows(64, 1)
    wanted = answers(model.graph, rows)["embedding"]
    static, products = made("int8-static", model.graph, "outliers"), made("int8-products", model.graph, "outliers")
    assert cosine(wanted, answers(static, rows)["embedding"]) < 0.95
    found = answers(products, rows)["embedding"]
    reached = cosine(wanted, found)
    assert reached > 0.99

    reached_db = 10 * np.log10((wanted**2).sum() / ((wanted - found) ** 2).sum())
    for module in (int8_mixed, sensitivity):  # more than products alone reach, which is more where weights have 8 bits
        monkeypatch.setattr(module, "WANTED_DB", max(30.0, reached_db + 3))
    mixed = made("int8-mixed", model.graph, "outliers")

    assert cosine(wanted, answers(mixed, rows)["embedding"]) > 0.5 + reached / 2
    assert read_note(static) == read_note(products) == ""
    left = read_note(mixed)
    assert left.startswith("in float: /")
    assert left.count("dB)") < 12  # of forty layers
    assert len(mixed) < 0.6 * len(model.graph)


def test_dynamic_int8_that_is_too_far_off_keeps_some_layers_in_float():
    """One scale a tensor costs the model with outliers its answers; a few products in float bring them back."""
    model = model_of("outliers")
    rows = model.rows(16, 1)
    wanted = answers(model.graph, rows)["embedding"]
    dynamic, mixed = made("int8-dynamic", model.graph, "outliers"), made("int8-dynamic-mixed", model.graph, "outliers")

    assert (
        cosine(wanted, answers(dynamic, rows)["embedding"]) < 0.99 < cosine(wanted, answers(mixed, rows)["embedding"])
    )
    assert read_note(mixed).startswith("in float: ")
    assert len(dynamic) < len(mixed) < 0.7 * len(model.graph)


def test_dynamic_mixed_is_dynamic_where_that_does_no_harm():
    """Nothing is left in float without need: the same bytes, so the search sees that it is the same variant."""
    mixed, whole = (made(f"int8-dynamic-{name}", model_of("encoder").graph, "encoder") for name in ("mixed", "channel"))

    assert mixed == whole


def test_a_stack_of_weights_stays_in_float_where_each_channel_has_a_scale():
    """The engine would not run it, and the whole graph would be given up."""
    rng = np.random.default_rng(3)
    weights = {"stack": rng.normal(size=(3, 12, 8)), "w": rng.normal(size=(8, 5))}
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "stack"], ["h"]), helper.make_node("MatMul", ["h", "w"], ["y"])],
        "stacked",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 4, 12])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3, 4, 5])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()
    rows = {"x": rng.normal(size=(20, 3, 4, 12)).astype(np.float32)}

    quantized = load_pass("int8-dynamic-mixed").apply(model, calibration=[rows])

    wanted, found = answers(model, rows)["y"], answers(quantized, rows)["y"]
    assert len(quantized) != len(model)
    assert cosine(wanted.reshape(20, -1), found.reshape(20, -1)) > 0.999


def test_mixed_is_products_where_these_do_no_harm():
    """No layer is left in float for nothing."""
    graph = made("int8-mixed", model_of("residual").graph, "residual")

    assert graph == made("int8-products", model_of("residual").graph, "residual")
    assert read_note(graph) == ""


def test_mixed_that_no_float_layer_helps_names_what_suffers_most(monkeypatch):
    """A graph that cannot be near enough is declined with the layer, not handed on."""
    from lightship.optimize import sensitivity
    from lightship.optimize.passes import int8_mixed

    for module in (int8_mixed, sensitivity):
        monkeypatch.setattr(module, "WANTED_DB", 90.0)

    with pytest.raises(PassFailed, match=r"int8-mixed finds no mix for this graph: .* What suffers most is /"):
        made("int8-mixed", model_of("cnn").graph, "cnn")


def test_the_dearest_layer_is_the_one_with_the_outlier():
    """A planted outlier of a thousand in one of three equal layers comes out first, by far."""
    random_numbers = np.random.default_rng(3)
    weights = [random_numbers.normal(0, 0.25, (16, 16)).astype(np.float32) for _ in range(3)]
    spread = np.ones(16, np.float32)
    spread[4] = 1000
    weights[1][4] /= 1000
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["a"], name="first"),
        helper.make_node("Mul", ["a", "spread"], ["b"], name="spread"),
        helper.make_node("MatMul", ["b", "w1"], ["c"], name="second"),
        helper.make_node("MatMul", ["c", "w2"], ["y"], name="third"),
    ]
    tensors = [numpy_helper.from_array(each, f"w{index}") for index, each in enumerate(weights)]
    tensors.append(numpy_helper.from_array(spread, "spread"))
    ends = [helper.make_tensor_value_info(end, TensorProto.FLOAT, ["n", 16]) for end in ("x", "y")]
    graph = helper.make_graph(nodes, "three", ends[:1], ends[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    rows = [{"x": random_numbers.normal(size=(32, 16)).astype(np.float32)}]

    quantized = quantized_with(model, activation_ranges(model, rows))
    found = costs(model, quantized, rows)

    assert found[0].layers == ("second",)
    assert found[0].noise > 20 * found[1].noise
    assert all(a.noise >= b.noise for a, b in pairwise(found))


@pytest.mark.skipif("openvino" not in ENGINES, reason="openvino is not installed")
@pytest.mark.parametrize("kind", ["audio", "embedder", "encoder"])
@pytest.mark.parametrize("name", ["int8-static", pytest.param("nncf-int8", marks=needs_nncf)])
def test_a_reduction_gets_no_integers(name, kind):
    """OpenVINO answered otherwise than ONNX Runtime for all but the first rows of a batch."""
    graph = made(name, model_of(kind).graph, kind)
    rows = model_of(kind).rows(32, 1)

    first, second = answers(graph, rows), answers(graph, rows, "openvino")
    for key, values in first.items():
        assert cosine(values, second[key]) > 0.995
    makers = {output: node.op_type for node in onnx.load_from_string(graph).graph.node for output in node.output}
    reductions = [n for n in onnx.load_from_string(graph).graph.node if n.op_type.startswith("Reduce")]
    assert not any(makers.get(each) == "DequantizeLinear" for node in reductions for each in node.input[:1])


def test_mask_stays_in_float():
    """Steps of forty and more in the sum with the scores: one engine loses the scores, the other most of their bits."""
    graph = made("int8-static", model_of("embedder").graph, "embedder")

    model = onnx.load_from_string(graph)
    scales = {t.name: float(numpy_helper.to_array(t).max()) for t in model.graph.initializer}
    assert pairs_of(model)
    assert max(scales[pair.scale] for pair in pairs_of(model)) < 39


def test_tensor_that_loses_its_range_is_what_it_was_before():
    """A ReLU is not swallowed by a range that goes later; the layer behind gets its float weights again."""
    model = ready_to_quantize(model_of("residual").graph, name="test")
    rows = model_of("residual").rows(16, 1)
    quantized = quantized_with(model, activation_ranges(model, [rows]))

    edges = {(pair.widened, consumer) for pair in pairs_of(quantized) for consumer in pair.consumers}
    floats = without_pairs(quantized, edges, reference=model)

    wanted, found = answers(model_of("residual").graph, rows), answers(floats.SerializeToString(), rows)
    np.testing.assert_allclose(found["logits"], wanted["logits"], atol=0.03 * np.abs(wanted["logits"]).max())
    assert not [tensor for tensor in floats.graph.initializer if tensor.data_type == TensorProto.INT8]


@pytest.mark.parametrize(("overflows", "largest"), [(True, 64), (False, 127)])
def test_weights_have_seven_bits_where_products_overflow(overflows, largest, monkeypatch):
    """Without VNNI two neighbors of 255 x 127 do not fit into the 16 bits that they are summed in."""
    monkeypatch.setattr(quantization, "saturates", lambda: overflows)

    for name in ("int8-static", "int8-dynamic-channel"):
        model = onnx.load_from_string(made(name, model_of("cnn").graph, "cnn"))
        int8 = [numpy_helper.to_array(t) for t in model.graph.initializer if t.data_type == TensorProto.INT8]
        assert max(int(np.abs(each.astype(int)).max()) for each in int8 if each.size > 1) == largest


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("weightless", "no product, convolution or table in it has weights"),
        ("half", r"its weights are float16, and only float \(32 bits\) is quantized"),
        ("quantized", r"it is quantized already \(DequantizeLinear, QuantizeLinear\)"),
    ],
)
def test_graph_with_nothing_to_quantize_is_left_with_the_reason(kind, words):
    """Each quantizing pass says why."""
    for name in set(NAMES) - {"fused"} - (set() if NNCF else {"nncf-int8", "nncf-int8-weights"}):
        with pytest.raises(PassFailed, match=f"{name} leaves this graph as it is: {words}"):
            made(name, model_of(kind).graph, kind)


@each_pass
def test_graph_of_over_two_gib_is_declined(name, monkeypatch):
    """An ONNX message has no more bytes than that."""
    monkeypatch.setattr(onnx_model, "_MOST_BYTES", 1000)

    with pytest.raises(PassFailed, match=f"{name} cannot treat this graph: it has .* bytes, and an ONNX message has"):
        made(name, model_of("cnn").graph, "cnn")


@each_pass
def test_weights_in_another_file_are_declined(name):
    """Nothing is fetched from where a graph points."""
    model = onnx.load_from_string(model_of("cnn").graph)
    tensor = model.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.ClearField("raw_data")
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "/etc/passwd"

    with pytest.raises(PassFailed, match=f"{name} cannot treat this graph: its weight 'w0' lies in another file"):
        made(name, model.SerializeToString(), "cnn")


@each_pass
@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_anywhere(name, fails, tmp_path, monkeypatch, capfd):
    """No file, no line, no other random numbers, logging or warnings, whether the quantizer succeeds or fails."""
    (tmp_path / "here").mkdir()
    (tmp_path / "scratch").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    before = set(Path("/tmp").iterdir())
    graph = model_of("towers").graph
    if fails:
        model = onnx.load_from_string(graph)
        model.graph.node[2].input[0] = "nowhere"
        graph = model.SerializeToString()
    random.seed(3)
    np.random.seed(3)
    kept = _state()

    if fails:
        with pytest.raises(PassFailed, match=name):
            made(name, graph, "towers")
    else:
        made(name, graph, "towers")

    assert _state() == kept
    assert not list((tmp_path / "here").iterdir())
    assert not list((tmp_path / "scratch").iterdir())
    ours = [path for path in set(Path("/tmp").iterdir()) - before if path.name.startswith("ort.")]
    assert not ours
    assert capfd.readouterr() == ("", "")


def _state() -> tuple[object, ...]:
    numbers = np.random.get_state()
    return (
        random.getstate(),
        (numbers[0], numbers[1].tobytes(), *numbers[2:]),
        logging.getLoggerClass(),
        *((logging.getLogger(each).level, logging.getLogger(each).propagate) for each in ("", "onnxruntime")),
        tuple(warnings.filters),
        os.getcwd(),  # noqa: PTH109 - the folder itself is the question
        tempfile.gettempdir(),
    )


@needs_nncf
def test_nncf_reports_to_nobody(tmp_path):
    """A fresh process: no socket is opened, nothing is written at home, the package that sends is not loaded."""
    program = (
        "import socket, sys\n"
        "def refused(*_):\n"
        "    raise SystemExit('a socket was opened')\n"
        "socket.socket.connect = refused\n"
        "from tests.optimize.test_passes_traps import made, model_of\n"
        "sys.modules.pop('openvino_telemetry', None)\n"
        "made('nncf-int8-weights', model_of('cnn').graph, 'cnn')\n"
        "print('openvino_telemetry' in sys.modules)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "False\n", "")
    assert not list(tmp_path.rglob("*openvino*"))
    assert not (tmp_path / "intel").exists()


@needs_nncf
def test_nncf_that_is_not_there_names_the_line_to_run(monkeypatch):
    """A missing package is reported at use."""
    monkeypatch.setitem(sys.modules, "nncf", None)

    with pytest.raises(PassFailed, match=r"nncf-int8 needs the extra 'openvino'. Install it: pip install"):
        made("nncf-int8", model_of("cnn").graph, "cnn")


@pytest.mark.parametrize(
    ("kind", "expected"), [("encoder", True), ("embedder", True), ("cnn", False), ("lstm", False), ("table", False)]
)
def test_attention_is_what_makes_a_transformer(kind, expected):
    """A softmax at the end of a classifier is none."""
    assert is_transformer(onnx.load_from_string(model_of(kind).graph)) is expected


def test_ranges_are_those_of_numpy_however_the_rows_are_cut(monkeypatch):
    """Memory decides how many rows run at once; the ranges do not know."""
    model = onnx.load_from_string(model_of("table").graph)
    rows = model_of("table").rows(40, 1)
    whole = activation_ranges(model, [rows])
    monkeypatch.setattr(ranges_of, "_MOST_BYTES", 1)

    assert activation_ranges(model, [{"features": rows["features"][:13]}, {"features": rows["features"][13:]}]) == whole
    assert whole["features"] == (rows["features"].min(), rows["features"].max())
    assert whole["probabilities"][0] == 0.0  # zero is always inside


def test_rows_run_in_pieces_that_fit_into_memory(monkeypatch):
    """After one row has shown what it costs, no more are run at once than the limit holds."""
    seen = []
    real = ranges_of.row_batches
    monkeypatch.setattr(ranges_of, "_MOST_BYTES", 200_000)

    def noted(model, batches, rows=1):
        for piece in real(model, batches, rows):
            seen.append(len(piece["image"]))
            yield piece

    monkeypatch.setattr(ranges_of, "row_batches", noted)
    activation_ranges(onnx.load_from_string(model_of("cnn").graph), [model_of("cnn").rows(64, 1)])

    assert sum(seen) == 64
    assert seen[0] == 1
    assert 1 <= max(seen) < 16


@pytest.mark.parametrize(("method", "most"), [("min-max", 1000.1), ("percentile", 6.0), ("entropy", 100.0)])
def test_ranges_leave_out_what_is_rare(method, most):
    """One value of a thousand among ten thousand of one: the smallest and largest keep it, the others do not."""
    values = np.random.default_rng(1).normal(size=(20_000, 1)).astype(np.float32)
    values[77] = 1000
    ends = [helper.make_tensor_value_info(end, TensorProto.FLOAT, ["n", 1]) for end in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "neg", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)

    low, high = activation_ranges(model, [{"x": values}], method=method)["x"]

    assert -6 < low <= 0
    assert 0 < high < most
    assert (method == "min-max") is (high > 900)


def test_values_that_are_not_finite_have_no_part_in_a_range():
    """A mask of minus infinity is no range."""
    ends = [helper.make_tensor_value_info(end, TensorProto.FLOAT, ["n", 2]) for end in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "neg", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    rows = np.array([[1, -np.inf], [np.nan, 3]], np.float32)

    assert activation_ranges(model, [{"x": rows}])["y"] == (-3.0, 0.0)


def test_graph_that_fixes_its_rows_is_calibrated_with_as_many():
    """Rows cannot be split where the graph takes four at once."""
    model = onnx.load_from_string(model_of("cnn").graph)
    for end in (*model.graph.input, *model.graph.output):
        end.type.tensor_type.shape.dim[0].dim_value = 4
    rows = model_of("cnn").rows(4, 1)

    graph = load_pass("int8-static").apply(model.SerializeToString(), calibration=[rows, model_of("cnn").rows(4, 2)])
    assert load_runner(graph).run(rows)["logits"].shape == (4, 10)
