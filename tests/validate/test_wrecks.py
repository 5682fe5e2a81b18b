"""Trained networks, wrecked in many ways, before both gates: none may pass, and what is only rounded must.

- ``digits``: two convolutions on the scanned digits of scikit-learn, about 98 % right.
- ``words``: attention over sequences of 6 to 24 tokens; the class is the marker that comes most often.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import nn

from lightship.engine.runner import EngineOptions, load_runner
from lightship.types import Verdict
from lightship.validate.fidelity import FidelityBudget, FidelityMeter
from lightship.validate.judge import REFERENCE, Candidate, judge
from lightship.validate.looks import look_at_classes, look_at_fidelity

Weights = dict[str, np.ndarray]
Answers = np.ndarray

TOKENS, WIDTH, LONGEST, MARKERS = 32, 32, 24, 4
BATCH = 16
SUBJECTS = {"reference": "0" * 64}
MARGIN = 0.01


@dataclass(frozen=True)
class Trained:
    """A trained network.

    Attributes:
        weights: by name; ``build`` makes the graph of them.
        inputs: gate rows, by name of the input.
        truth: their classes.
        lengths: of each row; all alike where the rows have none.
    """

    name: str
    weights: Weights
    build: Callable[[Weights], bytes]
    inputs: dict[str, np.ndarray]
    truth: np.ndarray
    lengths: np.ndarray

    def answers(self, weights: Weights | None = None) -> Answers:
        """Run the graph of ``weights`` over the gate rows, in batches: logits, float32 (rows, classes)."""
        runner = load_runner(self.build(weights or self.weights), options=EngineOptions(threads=1))
        try:
            return np.concatenate(
                [
                    runner.run({name: rows[start : start + BATCH] for name, rows in self.inputs.items()})["logits"]
                    for start in range(0, len(self.truth), BATCH)
                ]
            )
        finally:
            runner.close()


def digits() -> Trained:
    """Train the convolutions: 12 epochs of 900 rows, a few seconds."""
    found = load_digits()
    images = (found.images[:, None] / 16).astype(np.float32)
    order = np.random.default_rng(1).permutation(len(images))
    images, truth = images[order], found.target[order].astype(np.int64)
    torch.manual_seed(1)
    network = nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(12, 24, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(96, 10),
    )  # fmt: skip
    _fit(network, torch.from_numpy(images[:900]), torch.from_numpy(truth[:900]), epochs=12)
    tensors = [each.detach().numpy().copy() for each in network.parameters()]
    names = ("conv1.w", "conv1.b", "conv2.w", "conv2.b", "last.w", "last.b")
    weights = dict(zip(names, tensors, strict=True))
    return Trained("digits", weights, _digits_graph, {"image": images[900:]}, truth[900:], np.full(len(truth) - 900, 8))


def _digits_graph(weights: Weights) -> bytes:
    pool = {"kernel_shape": [2, 2], "strides": [2, 2]}
    nodes = [
        helper.make_node("Conv", ["image", "conv1.w", "conv1.b"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MaxPool", ["b"], ["c"], **pool),
        helper.make_node("Conv", ["c", "conv2.w", "conv2.b"], ["d"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["d"], ["e"]),
        helper.make_node("MaxPool", ["e"], ["f"], **pool),
        helper.make_node("Flatten", ["f"], ["g"]),
        helper.make_node("Gemm", ["g", "last.w", "last.b"], ["logits"], transB=1),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 8, 8])
    return _model(nodes, [image], 10, weights)


def words() -> Trained:
    """Draw a layer of attention and train the classes on it: less than a second."""
    rng = np.random.default_rng(2)
    ids, truth, lengths = _sequences(rng, 2_900)
    weights = {"tokens": rng.normal(size=(TOKENS, WIDTH)), "places": 0.2 * rng.normal(size=(LONGEST, WIDTH))}
    for name in ("q", "k", "v", "dense"):
        weights[name] = rng.normal(size=(WIDTH, WIDTH)) / WIDTH**0.5
    weights = {name: array.astype(np.float32) for name, array in {**weights, "last": np.eye(WIDTH)}.items()}
    features = Trained("words", weights, _words_graph, {"ids": ids}, truth, lengths).answers()
    fit = LogisticRegression(C=30, max_iter=2_000).fit(features[:2_000], truth[:2_000])
    coefficients = fit.coef_ - fit.coef_.mean(axis=0)  # the intercept is left out: classes are even
    return Trained(
        "words",
        {**weights, "last": coefficients.T.astype(np.float32)},
        _words_graph,
        {"ids": ids[2_000:]},
        truth[2_000:],
        lengths[2_000:],
    )


def _sequences(rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return padded ids (0 is no token, 1 to 4 are markers), the class of the most frequent marker, and lengths."""
    lengths = rng.integers(6, LONGEST + 1, size=rows)
    truth = rng.integers(0, MARKERS, size=rows)
    ids = rng.integers(MARKERS + 1, TOKENS, size=(rows, LONGEST))
    luck = rng.random((rows, LONGEST))
    ids = np.where(luck < 0.45, truth[:, None] + 1, ids)
    ids = np.where(luck > 0.9, rng.integers(1, MARKERS + 1, size=(rows, LONGEST)), ids)
    ids[np.arange(LONGEST) >= lengths[:, None]] = 0
    return ids.astype(np.int64), truth.astype(np.int64), lengths


def _words_graph(weights: Weights) -> bytes:
    constants = {
        "zero": np.array(0, dtype=np.int64),
        "starts": np.array([0], dtype=np.int64),
        "one": np.array([1], dtype=np.int64),
        "two": np.array([2], dtype=np.int64),
        "unit": np.array(1, dtype=np.float32),
        "far": np.array(1e4, dtype=np.float32),
        "root": np.array(WIDTH**0.5, dtype=np.float32),
    }
    nodes = [
        helper.make_node("Greater", ["ids", "zero"], ["there"]),
        helper.make_node("Cast", ["there"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Gather", ["tokens", "ids"], ["token"]),
        helper.make_node("Shape", ["ids"], ["length"], start=1, end=2),
        helper.make_node("Slice", ["places", "starts", "length", "starts"], ["place"]),
        helper.make_node("Add", ["token", "place"], ["x"]),
        *(helper.make_node("MatMul", ["x", name], [f"x{name}"]) for name in ("q", "k", "v")),
        helper.make_node("Transpose", ["xk"], ["xkt"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["xq", "xkt"], ["raw"]),
        helper.make_node("Div", ["raw", "root"], ["scaled"]),
        helper.make_node("Sub", ["unit", "mask"], ["empty"]),
        helper.make_node("Mul", ["empty", "far"], ["away"]),
        helper.make_node("Unsqueeze", ["away", "one"], ["away1"]),
        helper.make_node("Sub", ["scaled", "away1"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["shares"], axis=-1),
        helper.make_node("MatMul", ["shares", "xv"], ["mixed"]),
        helper.make_node("Add", ["x", "mixed"], ["sum"]),
        helper.make_node("MatMul", ["sum", "dense"], ["wide"]),
        helper.make_node("Relu", ["wide"], ["active"]),
        helper.make_node("Unsqueeze", ["mask", "two"], ["mask2"]),
        helper.make_node("Mul", ["active", "mask2"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "one"], ["total"], keepdims=0),
        helper.make_node("ReduceSum", ["mask", "one"], ["count"], keepdims=1),
        helper.make_node("Div", ["total", "count"], ["pooled"]),
        helper.make_node("MatMul", ["pooled", "last"], ["logits"]),
    ]
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "tokens"])
    return _model(nodes, [ids], weights["last"].shape[1], {**weights, **constants})


def _fit(network: nn.Module, inputs: torch.Tensor, truth: torch.Tensor, *, epochs: int) -> None:
    optimizer = torch.optim.Adam(network.parameters(), lr=4e-3)
    steps = epochs * -(-len(truth) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 8e-3, total_steps=steps)
    random = torch.Generator().manual_seed(3)
    for _ in range(epochs):
        for rows in torch.randperm(len(truth), generator=random).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(inputs[rows]), truth[rows]).backward()
            optimizer.step()
            schedule.step()


def _model(nodes: list[onnx.NodeProto], inputs: list[onnx.ValueInfoProto], classes: int, weights: Weights) -> bytes:
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes])
    tensors = [numpy_helper.from_array(np.asarray(each), name) for name, each in weights.items()]
    graph = helper.make_graph(nodes, "trained", inputs, [logits], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


# -- wrecks -------------------------------------------------------------------------------------------------------


def rounded(weights: Weights, bits: int) -> Weights:
    """Return every matrix rounded to ``bits``, symmetric, one scale for each output."""
    found = {}
    for name, array in weights.items():
        if array.ndim < 2:
            found[name] = array
            continue
        axes = tuple(range(1, array.ndim)) if name.startswith(("conv", "last.")) else (0,)
        if name in ("tokens", "places"):
            axes = (1,)
        scale = np.abs(array).max(axis=axes, keepdims=True) / (2 ** (bits - 1) - 1)
        found[name] = (np.round(array / scale) * scale).astype(np.float32)
    return found


def scaled(weights: Weights, factor: float) -> Weights:
    """Return the last layer, and so the logits, times ``factor``."""
    return {n: (a * np.float32(factor) if n.startswith("last") else a) for n, a in weights.items()}


def with_last(weights: Weights, change: Callable[[np.ndarray], np.ndarray]) -> Weights:
    """Return weights whose last matrix, classes first, was changed."""
    found, name = dict(weights), "last.w" if "last.w" in weights else "last"
    flip = name == "last"
    array = found[name].T.copy() if flip else found[name].copy()
    array = change(array)
    found[name] = np.ascontiguousarray(array.T if flip else array).astype(np.float32)
    return found


def _row(index: int, factor: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array[index] *= factor
        return array

    return change


def _first(weights: Weights) -> str:
    return "conv1.w" if "conv1.w" in weights else "tokens"


def _middle(weights: Weights) -> str:
    return "conv2.w" if "conv2.w" in weights else "dense"


def _channels_zeroed(weights: Weights) -> Weights:
    """Zero the sixth of the middle layer's channels that feeds the last layer most."""
    array = weights[_middle(weights)].copy()
    axis = 0 if array.ndim == 4 else 1
    strength = np.abs(array).sum(axis=tuple(i for i in range(array.ndim) if i != axis))
    worst = np.argsort(strength)[-len(strength) // 6 :]
    if axis == 0:
        array[worst] = 0
    else:
        array[:, worst] = 0
    return {**weights, _middle(weights): array}


BY_WEIGHTS: dict[str, Callable[[Weights], Weights]] = {
    "first layer x 0.2": lambda w: {**w, _first(w): w[_first(w)] * np.float32(0.2)},
    "middle layer x 5": lambda w: {**w, _middle(w): w[_middle(w)] * np.float32(5)},
    "middle layer negated": lambda w: {**w, _middle(w): -w[_middle(w)]},
    "channels zeroed": _channels_zeroed,
    "a class x 0.3": lambda w: with_last(w, _row(2, 0.3)),
    "a class zeroed": lambda w: with_last(w, _row(1, 0.0)),
    "classes permuted": lambda w: with_last(w, lambda a: np.roll(a, 1, axis=0)),
    "two classes swapped": lambda w: with_last(w, lambda a: a[[1, 0, *range(2, len(a))]]),
    "weights of 2 bits": lambda w: rounded(w, 2),
    "logits x 1e30": lambda w: scaled(w, 1e30),
    "logits x 30": lambda w: scaled(w, 30),
    "logits x 1e-3": lambda w: scaled(w, 1e-3),
    "logits x 0.1": lambda w: scaled(w, 0.1),
    "NaN in a weight": lambda w: with_last(w, _row(0, np.nan)),
}


def _long_only(answers: Answers, trained: Trained) -> Answers:
    order = np.argsort(trained.lengths, kind="stable")
    found = answers.copy()
    hit = order[-len(order) // 12 :]  # the longest 8 %
    found[hit] = np.roll(found[hit], 1, axis=1)
    return found


def _every(count: int, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Answers, Trained], Answers]:
    def wreck(answers: Answers, _: Trained) -> Answers:
        found = answers.copy()
        found[count - 1 :: count] = change(found[count - 1 :: count])
        return found

    return wreck


BY_ANSWERS: dict[str, Callable[[Answers, Trained], Answers]] = {
    "constant": lambda a, _: np.broadcast_to(a.mean(axis=0), a.shape).copy(),
    "the majority's answer": lambda a, t: np.broadcast_to(a[np.bincount(t.truth).argmax()], a.shape).copy(),
    "all zero": lambda a, _: np.zeros_like(a),
    "rows shuffled": lambda a, _: a[np.random.default_rng(4).permutation(len(a))],
    "answers of the row before": lambda a, _: np.roll(a, 1, axis=0),
    "last of every batch wrong": _every(BATCH, lambda rows: np.roll(rows, 1, axis=1)),
    "last of every batch zero": _every(BATCH, np.zeros_like),
    "one row in 33 another's": _every(33, lambda rows: np.roll(rows, 1, axis=0) * np.float32(1.01)),
    "one row in 33 wrong": _every(33, lambda rows: np.roll(rows, 1, axis=1)),
    "NaN in one row": lambda a, _: np.where(np.arange(len(a))[:, None] == 77, np.float32(np.nan), a),
    "infinity in one row": lambda a, _: np.where(np.arange(len(a))[:, None] == 77, np.float32(np.inf), a),
    "wrong only for long inputs": _long_only,
    "signs alone": lambda a, _: np.sign(a),
    "rounded to whole tens": lambda a, _: np.round(a / 10) * 10,
    "noise as large as the answers": lambda a, _: (
        a + np.random.default_rng(5).normal(scale=a.std(), size=a.shape).astype(np.float32)
    ),
}


# -- the gates ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[digits, words], ids=["digits", "words"])
def trained(request):
    """A trained network with its answers to the gate rows."""
    network: Trained = request.param()
    return network, network.answers()


def by_fidelity(reference, variant, name="variant"):
    """Compare answers in batches, without labels."""
    meter = FidelityMeter()
    for start in range(0, len(reference), BATCH):
        part = slice(start, start + BATCH)
        meter.add({"logits": reference[part]}, {"logits": variant[part]})
    return Candidate(name, look_at_fidelity(name, meter, budget=FidelityBudget(), subjects=SUBJECTS))


def by_labels(truth, reference, variant, name="variant"):
    """Compare answers with labels."""
    labels = [str(k) for k in range(reference.shape[1])]
    look = look_at_classes(
        name, truth, reference, variant, labels=labels, margin=MARGIN, harm_alpha=0.05, subjects=SUBJECTS
    )
    return Candidate(name, look)


def test_networks_are_worth_judging(trained):
    """Most answers are right."""
    network, answers = trained

    assert (answers.argmax(axis=1) == network.truth).mean() > 0.92


@pytest.mark.parametrize("bits", [8, 7])
@pytest.mark.parametrize("gate", ["fidelity", "labels"])
def test_rounded_weights_pass(trained, bits, gate):
    """A gate that lets nothing through would be no art."""
    network, answers = trained
    variant = network.answers(rounded(network.weights, bits))

    candidate = by_fidelity(answers, variant) if gate == "fidelity" else by_labels(network.truth, answers, variant)

    found = judge([candidate])
    assert found.chosen == "variant", found.outcomes


@pytest.mark.parametrize("wreck", [*BY_WEIGHTS, *BY_ANSWERS])
def test_wrecked_variants_pass_neither_gate(trained, wreck):
    """Whether it is judged alone, with the whole of alpha, or as one of three."""
    network, answers = trained
    variant = (
        network.answers(BY_WEIGHTS[wreck](network.weights))
        if wreck in BY_WEIGHTS
        else BY_ANSWERS[wreck](answers, network)
    )
    candidates = {
        "fidelity": by_fidelity(answers, variant),
        "labels": by_labels(network.truth, answers, variant),
    }

    for gate, candidate in candidates.items():
        assert judge([candidate]).chosen == REFERENCE, gate
        alone = judge([candidate], named="variant")
        assert alone.outcomes[0].verdict is not Verdict.PASSED, gate


def test_wrecks_are_wrecks(trained):
    """Each changes answers; a test of nothing would pass as well."""
    network, answers = trained
    for change in BY_WEIGHTS.values():
        assert not np.allclose(network.answers(change(network.weights)), answers, rtol=0.05, equal_nan=False)
