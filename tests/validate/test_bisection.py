"""The first diverging layer: wrecks are planted in one layer of a convolutional network and of a transformer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lightship.engine.runner import EngineOptions
from lightship.errors import InvalidInput
from lightship.optimize.passes.int8_static import Int8Static
from lightship.validate.bisection import first_divergence

MASKED = -1e9
TOKENS, WIDTH, WORDS = 12, 16, 50


def model(nodes, weights, inputs, outputs):
    """Return a checked model of opset 20."""
    graph = helper.make_graph(
        nodes, "small", inputs, outputs, [numpy_helper.from_array(array, name) for name, array in weights.items()]
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(made, full_check=True)
    return made


def convolutions(batch="batch"):
    """Return three convolutions, the second around a residual connection, and a dense layer."""
    random = np.random.default_rng(3)

    def normal(*shape):
        return (random.normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    weights = {
        "stem.weight": normal(8, 1, 3, 3),
        "block.weight": normal(8, 8, 3, 3),
        "last.weight": normal(16, 8, 3, 3),
        "dense.weight": normal(16, 5),
        "dense.bias": normal(5, 1)[:, 0],
    }
    nodes = [
        helper.make_node("Conv", ["image", "stem.weight"], ["stem"], name="stem", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["stem"], ["stem_relu"], name="stem_relu"),
        helper.make_node("Conv", ["stem_relu", "block.weight"], ["block"], name="block", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["block", "stem_relu"], ["sum"], name="sum"),
        helper.make_node("Relu", ["sum"], ["sum_relu"], name="sum_relu"),
        helper.make_node("Conv", ["sum_relu", "last.weight"], ["last"], name="last", strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["last"], ["pooled"], name="pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], name="flat"),
        helper.make_node("Gemm", ["flat", "dense.weight", "dense.bias"], ["logits"], name="dense"),
    ]
    return model(
        nodes,
        weights,
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 1, 16, 16])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 5])],
    )


def transformer(layers=3):
    """Return a masked transformer whose nodes have no names, as some exporters leave them."""
    random = np.random.default_rng(4)

    def normal(*shape):
        return (random.normal(size=shape) / np.sqrt(shape[0])).astype(np.float32)

    weights = {
        "words": normal(WORDS, WIDTH) * 4,
        "one": np.array(1, np.float32),
        "masked": np.array(MASKED, np.float32),
        "axis": np.array([1], np.int64),
        "scale": np.array(1 / np.sqrt(WIDTH), np.float32),
    }
    nodes = [
        helper.make_node("Gather", ["words", "ids"], ["h0"]),
        helper.make_node("Cast", ["mask"], ["mask_f"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["one", "mask_f"], ["hidden"]),
        helper.make_node("Mul", ["hidden", "masked"], ["penalty_flat"]),
        helper.make_node("Unsqueeze", ["penalty_flat", "axis"], ["penalty"]),
    ]
    for layer in range(layers):
        weights |= {f"{layer}.{part}.weight": normal(WIDTH, WIDTH) for part in ("q", "k", "v", "out")}
        weights |= {f"{layer}.up.weight": normal(WIDTH, 32), f"{layer}.down.weight": normal(32, WIDTH)}
        weights |= {f"{layer}.norm{each}.weight": np.ones(WIDTH, np.float32) for each in (1, 2)}
        weights |= {f"{layer}.norm{each}.bias": np.zeros(WIDTH, np.float32) for each in (1, 2)}

        def node(kind, inputs, output, layer=layer, **attributes):
            shared = {"penalty", "scale", f"h{layer}"}
            inputs = [each if each in shared else f"{layer}.{each}" for each in inputs]
            return helper.make_node(kind, inputs, [output if output[0] == "h" else f"{layer}.{output}"], **attributes)

        nodes += [
            *(node("MatMul", [f"h{layer}", f"{part}.weight"], part) for part in ("q", "k", "v")),
            node("Transpose", ["k"], "kt", perm=[0, 2, 1]),
            node("MatMul", ["q", "kt"], "raw"),
            node("Mul", ["raw", "scale"], "scaled"),
            node("Add", ["scaled", "penalty"], "scores"),
            node("Softmax", ["scores"], "shares", axis=-1),
            node("MatMul", ["shares", "v"], "mixed"),
            node("MatMul", ["mixed", "out.weight"], "out"),
            node("Add", [f"h{layer}", "out"], "sum1"),
            node("LayerNormalization", ["sum1", "norm1.weight", "norm1.bias"], "n1"),
            node("MatMul", ["n1", "up.weight"], "up"),
            node("Gelu", ["up"], "gelu"),
            node("MatMul", ["gelu", "down.weight"], "down"),
            node("Add", ["n1", "down"], "sum2"),
            node("LayerNormalization", ["sum2", "norm2.weight", "norm2.bias"], f"h{layer + 1}"),
        ]
    nodes.append(helper.make_node("ReduceMean", [f"h{layers}", "axis"], ["embedding"], keepdims=0))
    ints = [helper.make_tensor_value_info(n, TensorProto.INT64, ["batch", "tokens"]) for n in ("ids", "mask")]
    return model(
        nodes, weights, ints, [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", WIDTH])]
    )


def images(rows=8):
    """Return rows for ``convolutions``."""
    return {"image": np.random.default_rng(5).normal(size=(rows, 1, 16, 16)).astype(np.float32)}


def sentences(rows=8):
    """Return rows for ``transformer``, of unequal lengths."""
    random = np.random.default_rng(6)
    mask = (np.arange(TOKENS) < random.integers(4, TOKENS + 1, size=(rows, 1))).astype(np.int64)
    return {"ids": random.integers(1, WORDS, size=(rows, TOKENS)) * mask, "mask": mask}


def wrecked(made, weight, how):
    """Return the bytes of a copy with one weight changed."""
    copy = onnx.ModelProto()
    copy.CopyFrom(made)
    (found,) = (item for item in copy.graph.initializer if item.name == weight)
    array = numpy_helper.to_array(found)
    if how == "swapped":
        array = array[np.random.default_rng(1).permutation(len(array))]
    else:
        array = array * np.float32({"zero": 0, "scaled": 1.5, "NaN": np.nan}[how])
    found.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), weight))
    return copy.SerializeToString()


@pytest.mark.parametrize("how", ["zero", "scaled", "swapped", "NaN"])
@pytest.mark.parametrize("layer", ["stem", "block", "last", "dense"])
def test_wrecked_convolution_is_named(layer, how):
    """Whatever was done to a layer's weights, that layer is named, and its inputs are found right."""
    made = convolutions()

    found = first_divergence(made.SerializeToString(), wrecked(made, f"{layer}.weight", how), images())

    assert found is not None
    assert (found.layer, found.tensor, found.before, found.gradual) == (
        layer,
        "logits" if layer == "dense" else layer,
        0,
        False,
    )
    assert found.after > 0.3
    assert f"the first layer to go wrong is {layer!r}" in found.words
    json.dumps(found.to_json(), allow_nan=False)


@pytest.mark.parametrize(
    ("part", "how"),
    [("q", "swapped"), ("q", "zero"), ("v", "scaled"), ("out", "swapped"), ("up", "scaled"), ("down", "zero"),
     ("norm2", "scaled")],
)  # fmt: skip
@pytest.mark.parametrize("layer", [0, 2])
def test_wrecked_part_of_a_transformer_is_named(layer, part, how):
    """Nodes without names are named by their weights; later normalization hides nothing."""
    made, weight = transformer(), f"{layer}.{part}.weight"

    found = first_divergence(made.SerializeToString(), wrecked(made, weight, how), sentences())

    assert found is not None
    assert (found.layer, found.before) == (weight, 0)


def test_two_wrecks_name_the_first():
    """Everything behind the first wreck is wrong as well."""
    made = convolutions()
    both = wrecked(onnx.load_from_string(wrecked(made, "last.weight", "zero")), "block.weight", "swapped")

    found = first_divergence(made.SerializeToString(), both, images())

    assert found is not None
    assert found.layer == "block"


@pytest.mark.parametrize("made", [convolutions(), transformer()], ids=["convolutions", "transformer"])
def test_same_graph_has_no_divergence(made):
    """Also where the engine fuses on one side and not on the other."""
    graph, rows = made.SerializeToString(), images() if made.graph.input[0].name == "image" else sentences()

    assert first_divergence(graph, graph, rows, threshold=0) is None
    assert (
        first_divergence(graph, graph, rows, variant_options=EngineOptions(optimization="none"), threshold=1e-4) is None
    )


def quantized_throughout(graph: bytes, rows: dict[str, np.ndarray], folder: Path) -> bytes:
    """Return what ONNX Runtime's quantizer makes by itself; our own pass leaves masks in float."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Once(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = [rows]

        def get_next(self) -> dict[str, np.ndarray] | None:
            return self.left.pop() if self.left else None

    source, target = folder / "source.onnx", folder / "target.onnx"
    source.write_bytes(graph)
    quantize_static(source, target, Once(), activation_type=QuantType.QUInt8, per_channel=True)
    return target.read_bytes()


def test_quantized_mask_is_named(tmp_path):
    """Static int8 over all operators: the range of a mask of -1e9 leaves no step for the scores (a known trap)."""
    graph = transformer().SerializeToString()
    variant = quantized_throughout(graph, sentences(32), tmp_path)

    # Unfused, as CPUs with VNNI compute it: elsewhere fused int8 products may saturate before the mask is reached.
    found = first_divergence(graph, variant, sentences(), variant_options=EngineOptions(optimization="none"))

    assert found is not None
    assert (found.layer, found.operator, found.tensor) == ("0.scores", "Add", "0.scores")


def test_wreck_in_a_quantized_graph_is_named():
    """Quantizers fuse and rename what lies around them; the layer with the wrecked weights is still the one."""
    made = convolutions()
    broken = wrecked(made, "last.weight", "swapped")
    variant = Int8Static().apply(broken, calibration=[images(32)])
    healthy = Int8Static().apply(made.SerializeToString(), calibration=[images(32)])

    found = first_divergence(made.SerializeToString(), variant, images())

    assert first_divergence(made.SerializeToString(), healthy, images()) is None
    assert found is not None
    assert found.layer == "last"
    assert 0 < found.before < 0.1


@pytest.mark.parametrize("memory_bytes", [1, 50_000, 1 << 30])
def test_bound_of_memory_changes_no_answer(memory_bytes):
    """One tensor at a time, a few, or all of them."""
    made = transformer()

    found = first_divergence(
        made.SerializeToString(), wrecked(made, "1.up.weight", "scaled"), sentences(), memory_bytes=memory_bytes
    )

    assert found is not None
    assert found.layer == "1.up.weight"


@pytest.mark.parametrize("rows", [1, 3, 7])
def test_graph_of_fixed_size_is_filled_with_rows(rows):
    """Graphs without a free batch dimension take exactly as many rows as they say."""
    made = convolutions(batch=4)

    found = first_divergence(made.SerializeToString(), wrecked(made, "last.weight", "zero"), images(rows))

    assert found is not None
    assert found.layer == "last"


def test_error_that_only_grows_is_told_as_such():
    """No layer stands out: every one adds a little."""
    made = convolutions()
    variant = made.SerializeToString()
    for weight in ("stem.weight", "block.weight", "last.weight", "dense.weight"):
        copy = onnx.load_from_string(variant)
        (found,) = (item for item in copy.graph.initializer if item.name == weight)
        found.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(found) * np.float32(1.06), weight))
        variant = copy.SerializeToString()

    grown = first_divergence(made.SerializeToString(), variant, images())

    assert grown is not None
    assert grown.gradual
    assert grown.words.startswith("the error grows over many layers")


@pytest.mark.parametrize("quantized", [False, True], ids=["float", "int8"])
def test_wreck_is_named_through_another_engine(quantized):
    """OpenVINO runs the variant; where exposing a tensor makes it err in what follows, that tensor is left out."""
    pytest.importorskip("openvino", reason="needs the extra `openvino`")
    made = convolutions()
    variant = wrecked(made, "block.weight", "swapped")
    if quantized:
        variant = Int8Static().apply(variant, calibration=[images(32)])

    healthy = first_divergence(made.SerializeToString(), made.SerializeToString(), images(), variant_engine="openvino")
    found = first_divergence(made.SerializeToString(), variant, images(), variant_engine="openvino")

    assert healthy is None
    assert found is not None
    assert found.layer == "block"


def test_another_graph_is_refused():
    """Its outputs are not those of the reference."""
    with pytest.raises(InvalidInput, match="outputs of the reference"):
        first_divergence(convolutions().SerializeToString(), transformer().SerializeToString(), images())


def test_no_rows_are_refused():
    """Nothing to run."""
    graph = convolutions().SerializeToString()

    with pytest.raises(InvalidInput, match="at least one row"):
        first_divergence(graph, graph, images(0))
