"""Models that were trained elsewhere, as small as they can be and yet real, and variants of them, good and wrecked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits

from lightship.data.files import sha256_hex
from lightship.engine.machine import usable_cores
from lightship.engine.measure import PairedTiming, Percentiles
from lightship.optimize.candidate import Candidate, Rows, Speed
from lightship.optimize.search import SearchResult
from lightship.types import Interval

HIDDEN = 128


def _model(nodes, inputs, outputs, weights: Mapping[str, np.ndarray]) -> bytes:
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10
    ).SerializeToString(deterministic=True)  # fmt: skip


@lru_cache(maxsize=1)
def digits() -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Return the weights of a network trained on a third of scikit-learn's digits, and the rows it never saw."""
    data = load_digits()
    rows, labels = (data.data / 16).astype(np.float32), data.target.astype(np.int64)
    order = np.random.default_rng(3).permutation(len(rows))
    train, rest = order[:600], order[600:]
    # Random features and a ridge: trained in milliseconds, and right in nineteen of twenty rows.
    random = np.random.default_rng(1)
    w1, b1 = random.normal(size=(64, HIDDEN)) / 4, random.normal(size=HIDDEN) / 4
    hidden = np.maximum(rows[train] @ w1 + b1, 0)
    hidden = np.hstack([hidden, np.ones((len(train), 1))])
    target = 10 * np.eye(10)[labels[train]]
    solved = np.linalg.solve(hidden.T @ hidden + 0.3 * np.eye(HIDDEN + 1), hidden.T @ target)
    weights = {"w1": w1, "b1": b1, "w2": solved[:-1], "b2": solved[-1]}
    return {name: array.astype(np.float32) for name, array in weights.items()}, rows[rest], labels[rest]


def digits_graph(change: Callable[[dict[str, np.ndarray]], None] | None = None) -> bytes:
    """Return ``x`` [N, 64] -> ``logits`` [N, 10]; ``change`` may spoil the weights."""
    weights = {name: array.copy() for name, array in digits()[0].items()}
    if change is not None:
        change(weights)
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"]),
        helper.make_node("Relu", ["h"], ["a"]),
        helper.make_node("Gemm", ["a", "w2", "b2"], ["logits"]),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 64])]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 10])]
    return _model(nodes, inputs, outputs, weights)


def rows_file(path: Path, *, count: int | None = None, labels: bool = True) -> Path:
    """Write rows of digits that the perceptron never saw."""
    _, rows, truth = digits()
    arrays = {"x": rows[:count]} | ({"label": truth[:count]} if labels else {})
    np.savez(path, **arrays)
    return path


def edited(graph: bytes, change: Callable[[onnx.GraphProto], None]) -> bytes:
    """Return the graph after ``change``."""
    loaded = onnx.load_from_string(graph)
    change(loaded.graph)
    return loaded.SerializeToString(deterministic=True)


def _rounded(weights: dict[str, np.ndarray]) -> None:
    """Round the weights to 8 bits, as a good quantizer does."""
    for name in ("w1", "w2"):
        scale = np.abs(weights[name]).max() / 127
        weights[name][:] = np.round(weights[name] / scale) * scale


def _swap_classes(weights: dict[str, np.ndarray]) -> None:
    for name in ("w2", "b2"):
        weights[name][..., [3, 8]] = weights[name][..., [8, 3]]


def _one_class_lost(weights: dict[str, np.ndarray]) -> None:
    weights["b2"][5] -= 100


def _noise(weights: dict[str, np.ndarray]) -> None:
    weights["w1"] += np.random.default_rng(1).normal(scale=0.35, size=weights["w1"].shape).astype(np.float32)


def _scaled(weights: dict[str, np.ndarray]) -> None:
    weights["w2"] *= 0.02
    weights["b2"] *= 0.02


def _zero(weights: dict[str, np.ndarray]) -> None:
    weights["w2"][:] = 0


def _nan_row(graph: onnx.GraphProto) -> None:
    """Give NaN to inputs whose first bright pixel is above one half: some rows."""
    graph.initializer.append(numpy_helper.from_array(np.array(0.9, np.float32), "bright"))
    graph.initializer.append(numpy_helper.from_array(np.array(np.nan, np.float32), "nan"))
    graph.initializer.append(numpy_helper.from_array(np.array([19], np.int64), "pixel"))
    graph.node[-1].output[0] = "clean"
    graph.node.extend(
        [
            helper.make_node("Gather", ["x", "pixel"], ["p"], axis=1),
            helper.make_node("Greater", ["p", "bright"], ["is"]),
            helper.make_node("Where", ["is", "nan", "clean"], ["logits"]),
        ]
    )


def _one_size(graph: onnx.GraphProto) -> None:
    graph.initializer.append(numpy_helper.from_array(np.array([-1, 128], np.int64), "pairs"))
    graph.initializer.append(numpy_helper.from_array(np.array([-1, 64], np.int64), "rows"))
    graph.node[0].input[0] = "back"
    graph.node.insert(0, helper.make_node("Reshape", ["twos", "rows"], ["back"]))
    graph.node.insert(0, helper.make_node("Reshape", ["x", "pairs"], ["twos"]))


def _shifted(graph: onnx.GraphProto) -> None:
    """Give each row the answer to the row before it: right for one row, wrong in a batch."""
    graph.node[-1].output[0] = "clean"
    graph.initializer.append(numpy_helper.from_array(np.array([-1], np.int64), "minus"))
    graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), "zero"))
    graph.initializer.append(numpy_helper.from_array(np.array([2**31], np.int64), "end"))
    graph.node.extend(
        [
            helper.make_node("Slice", ["clean", "minus", "end", "zero"], ["last"]),
            helper.make_node("Slice", ["clean", "zero", "minus", "zero"], ["others"]),
            helper.make_node("Concat", ["last", "others"], ["logits"], axis=0),
        ]
    )


def _random(graph: onnx.GraphProto) -> None:
    graph.node[-1].output[0] = "clean"
    graph.node.extend(
        [
            helper.make_node("RandomNormalLike", ["clean"], ["noise"], scale=0.01),
            helper.make_node("Add", ["clean", "noise"], ["logits"]),
        ]
    )


def good() -> bytes:
    """Return the variant that a good quantizer makes."""
    return digits_graph(_rounded)


WRECKED: dict[str, Callable[[], bytes]] = {
    "swapped classes": lambda: digits_graph(_swap_classes),
    "one class lost": lambda: digits_graph(_one_class_lost),
    "noise": lambda: digits_graph(_noise),
    "scaled": lambda: digits_graph(_scaled),
    "constant": lambda: digits_graph(_zero),
    "nan on some rows": lambda: edited(digits_graph(), _nan_row),
    "pairs only": lambda: edited(digits_graph(), _one_size),
    "shifted rows": lambda: edited(digits_graph(), _shifted),
    "random": lambda: edited(digits_graph(), _random),
}


def with_three_outputs(graph: onnx.GraphProto, *, hidden: str = "Identity", digit: str = "ArgMax") -> None:
    """Give the hidden layer and the digit beside the scores."""
    graph.node.append(helper.make_node(hidden, ["a"], ["hidden"]))
    graph.node.append(helper.make_node(digit, ["logits"], ["digit"], axis=1, keepdims=0))
    graph.output.append(helper.make_tensor_value_info("hidden", TensorProto.FLOAT, ["N", HIDDEN]))
    graph.output.append(helper.make_tensor_value_info("digit", TensorProto.INT64, ["N"]))


OUTPUTS: dict[str, Callable[[], bytes]] = {
    "all right": lambda: edited(digits_graph(_rounded), with_three_outputs),
    "hidden layer": lambda: edited(digits_graph(), partial(with_three_outputs, hidden="Neg")),
    "digit": lambda: edited(digits_graph(), partial(with_three_outputs, digit="ArgMin")),
}
"""Three outputs, of which labels judge one; the names say which of the others is wrecked."""

ENCODER_WIDTH = 16


def encoder(*, seed: int = 4) -> bytes:
    """Return a small transformer: ids and mask [N, T] -> a pooled embedding, with attention over the tokens."""
    rng = np.random.default_rng(seed)
    width = ENCODER_WIDTH

    def weight(*shape: int) -> np.ndarray:
        return (rng.normal(size=shape) / np.sqrt(shape[0])).astype(np.float32)

    weights = {
        "table": rng.normal(size=(200, width)).astype(np.float32),
        "q": weight(width, width), "k": weight(width, width), "v": weight(width, width),
        "up": weight(width, 4 * width), "down": weight(4 * width, width),
        "one": np.float32(1), "far": np.float32(-1e9), "axis": np.array([1], np.int64),
        "last": np.array([2], np.int64),
    }  # fmt: skip
    node = helper.make_node
    nodes = [
        node("Gather", ["table", "input_ids"], ["e"]),
        node("MatMul", ["e", "q"], ["eq"]), node("MatMul", ["e", "k"], ["ek"]), node("MatMul", ["e", "v"], ["ev"]),
        node("Transpose", ["ek"], ["ekt"], perm=[0, 2, 1]),
        node("MatMul", ["eq", "ekt"], ["scores"]),
        node("Cast", ["attention_mask"], ["m"], to=TensorProto.FLOAT),
        node("Sub", ["one", "m"], ["off"]), node("Mul", ["off", "far"], ["bias"]),
        node("Unsqueeze", ["bias", "axis"], ["b"]), node("Add", ["scores", "b"], ["s"]),
        node("Softmax", ["s"], ["p"], axis=-1), node("MatMul", ["p", "ev"], ["mixed"]),
        node("Add", ["e", "mixed"], ["r"]), node("MatMul", ["r", "up"], ["u"]), node("Relu", ["u"], ["a"]),
        node("MatMul", ["a", "down"], ["d"]), node("Add", ["r", "d"], ["h"]),
        node("Unsqueeze", ["m", "last"], ["wide"]), node("Mul", ["h", "wide"], ["hm"]),
        node("ReduceSum", ["hm", "axis"], ["sum"], keepdims=0),
        node("ReduceSum", ["m", "axis"], ["count"], keepdims=1),
        node("Div", ["sum", "count"], ["embedding"]),
    ]  # fmt: skip
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["N", "T"])
              for name in ("input_ids", "attention_mask")]  # fmt: skip
    return _model(nodes, inputs, [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["N", width])], weights)


def sentences(count: int, *, seed: int = 8) -> list[np.ndarray]:
    """Return token ids of several lengths."""
    rng = np.random.default_rng(seed)
    return [rng.integers(1, 200, int(rng.integers(3, 13))) for _ in range(count)]


def speed(ratio: float = 0.5, *, batch: int = 1) -> Speed:
    """Return a measured speed: twice as fast, say."""
    timing = PairedTiming(
        ratio=Interval(ratio, ratio * 0.9, ratio * 1.1, 0.95, 200),
        a_ms=Percentiles(1.0, 2.0),
        b_ms=Percentiles(ratio, 2 * ratio),
        pairs=200,
        warmup=20,
    )
    return Speed(timing, threads=usable_cores(), batch=batch, reference_threads=1, reference_batch=batch)


def found(reference: bytes, graphs: Mapping[str, bytes], *, ratio: float = 0.5, batch: int = 1, **facts: object):
    """Return a stand-in for the search that proposes these graphs, with the figures of a measured one.

    What it was called with stands in its attribute ``calls``.
    """

    def search(given: bytes, plans, *, calibration, selection: Rows, settings, folder, progress, judged=True):
        search.calls.append(
            {"calibration": calibration, "selection": selection, "settings": settings, "plans": plans,
             "judged": judged, "folder": folder}
        )  # fmt: skip
        assert given == reference
        candidates = tuple(
            Candidate(
                name, (name,), precision="int8", graph=graph, size_bytes=len(graph), sha256=sha256_hex(graph),
                latency=speed(ratio), throughput=speed(ratio, batch=batch), memory_bytes=1 << 20, **facts,
            )
            for name, graph in graphs.items()
        )  # fmt: skip
        base = Candidate("reference", size_bytes=len(reference), sha256=sha256_hex(reference), memory_bytes=2 << 20)
        calls = {"latency": {"p50_ms": 1.0, "threads": 1, "batch": 1},
                 "throughput": {"rows_per_s": 1000.0, "threads": 1, "batch": batch}}  # fmt: skip
        return SearchResult(base, candidates, settings.objective, 0.1, calls, None)

    search.calls = []  # type: ignore[attr-defined]
    return search
