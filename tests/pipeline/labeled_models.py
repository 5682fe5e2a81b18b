"""Small models with labels of every kind, trained in closed form on scikit-learn's data; good and wrecked variants."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_diabetes, load_digits

HIDDEN = 128


@dataclass(frozen=True)
class Labeled:
    """A perceptron ``x`` [N, columns] -> ``y``, and rows that it never saw, with their labels."""

    weights: dict[str, np.ndarray]
    rows: np.ndarray
    truth: np.ndarray
    end: str = ""
    batch: int | str = "N"

    def graph(self, change: Callable[[dict[str, np.ndarray]], None] | None = None) -> bytes:
        """Return the network; ``change`` may spoil its weights."""
        weights = {name: array.copy() for name, array in self.weights.items()}
        if change is not None:
            change(weights)
        last = "s" if self.end else "y"
        nodes = [
            helper.make_node("Gemm", ["x", "w1", "b1"], ["h"], name="first"),
            helper.make_node("Relu", ["h"], ["a"]),
            helper.make_node("Gemm", ["a", "w2", "b2"], [last], name="second"),
        ]
        width, kind = weights["w2"].shape[1], TensorProto.FLOAT
        shape: list[int | str] = [self.batch, width]
        if self.end == "ArgMax":
            nodes.append(helper.make_node("ArgMax", ["s"], ["y"], axis=1, keepdims=0))
            shape, kind = [self.batch], TensorProto.INT64
        elif self.end:
            nodes.append(helper.make_node(self.end, ["s"], ["y"]))
        graph = helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [self.batch, self.rows.shape[1]])],
            [helper.make_tensor_value_info("y", kind, shape)],
            [numpy_helper.from_array(array, name) for name, array in weights.items()],
        )
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10
        ).SerializeToString(deterministic=True)  # fmt: skip


def _trained(rows: np.ndarray, target: np.ndarray, truth: np.ndarray, *, train: int, ridge: float, **end) -> Labeled:
    """Random features and a ridge on the first rows; the others are kept to judge."""
    random = np.random.default_rng(1)
    columns = rows.shape[1]
    w1 = random.normal(size=(columns, HIDDEN)) / np.sqrt(columns) * 2
    b1 = random.normal(size=HIDDEN) / 4
    hidden = np.maximum(rows[:train] @ w1 + b1, 0)
    hidden = np.hstack([hidden, np.ones((train, 1))])
    solved = np.linalg.solve(hidden.T @ hidden + ridge * np.eye(HIDDEN + 1), hidden.T @ target[:train])
    weights = {"w1": w1, "b1": b1, "w2": solved[:-1], "b2": solved[-1]}
    return Labeled({k: v.astype(np.float32) for k, v in weights.items()}, rows[train:], truth[train:], **end)


def _digits() -> tuple[np.ndarray, np.ndarray]:
    data = load_digits()
    order = np.random.default_rng(3).permutation(len(data.data))
    return (data.data / 16).astype(np.float32)[order], data.target.astype(np.int64)[order]


@lru_cache(maxsize=1)
def ages() -> Labeled:
    """One number a row, of patients: how far their disease has gone after a year, from nine other figures."""
    data = load_diabetes()
    order = np.random.default_rng(4).permutation(len(data.data))
    rows, truth = (data.data * 20).astype(np.float32)[order], data.target[order]
    return _trained(rows, truth[:, None], truth, train=110, ridge=300.0)


@lru_cache(maxsize=1)
def lower_halves() -> Labeled:
    """Eight numbers a row: the fifth line of an image of a digit, from the lines above it."""
    rows, _ = _digits()
    return _trained(rows[:, :32], rows[:, 32:40], rows[:, 32:40].astype(np.float64), train=600, ridge=0.3)


@lru_cache(maxsize=1)
def traits() -> Labeled:
    """Four tags a row: whether a digit is odd, above four, round somewhere, a prime."""
    rows, digits = _digits()
    tags = np.stack([digits % 2, digits > 4, np.isin(digits, (0, 6, 8, 9)), np.isin(digits, (2, 3, 5, 7))], axis=1)
    tags = tags.astype(np.int64)
    return _trained(rows, 10.0 * tags - 5, tags, train=600, ridge=0.3)


@lru_cache(maxsize=1)
def halves() -> Labeled:
    """One probability a row: whether a digit is above four."""
    rows, digits = _digits()
    return _trained(rows, 20.0 * (digits > 4)[:, None] - 10, (digits > 4).astype(np.int64), train=600, ridge=0.3,
                    end="Sigmoid")  # fmt: skip


@lru_cache(maxsize=2)
def classes(*, end: str = "", batch: int | str = "N") -> Labeled:
    """Ten scores a row, or with ``ArgMax`` the class alone."""
    rows, digits = _digits()
    return _trained(rows, 10.0 * np.eye(10)[digits], digits, train=600, ridge=0.3, end=end, batch=batch)


KINDS: dict[str, Callable[[], Labeled]] = {
    "one number": ages,
    "numbers": lower_halves,
    "tags": traits,
    "one probability": halves,
    "classes without scores": lambda: classes(end="ArgMax"),
    "one row at a time": lambda: classes(batch=1),
}


def rounded(weights: dict[str, np.ndarray], steps: int = 127) -> None:
    """Round the weights to 8 bits, as a good quantizer does."""
    for name in ("w1", "w2"):
        scale = np.abs(weights[name]).max() / steps
        weights[name][:] = np.round(weights[name] / scale) * scale


def noise(weights: dict[str, np.ndarray]) -> None:
    """Blur the first layer."""
    weights["w1"] += np.random.default_rng(1).normal(scale=weights["w1"].std(), size=weights["w1"].shape).astype("f4")


def shrunk(weights: dict[str, np.ndarray]) -> None:
    """Give nine tenths of every answer."""
    weights["w2"] *= 0.9
    weights["b2"] *= 0.9


def halved(weights: dict[str, np.ndarray]) -> None:
    """Give half of every answer."""
    weights["w2"] *= 0.5
    weights["b2"] *= 0.5


def first_lost(weights: dict[str, np.ndarray]) -> None:
    """Say the most wrong thing about the first output, and keep the others."""
    weights["w2"][:, 0] *= -1
    weights["b2"][0] *= -1


def moved_where_bright(off: float) -> Callable[[onnx.GraphProto], None]:
    """Return a change of the graph that moves all answers to rows whose third pixel is bright: one row in fourteen."""

    def change(graph: onnx.GraphProto) -> None:
        for name, value in (("third", np.array([2])), ("bright", np.float32(0.8)), ("off", np.float32(off))):
            graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        graph.node[-1].output[0] = "clean"
        graph.node.extend(
            [
                helper.make_node("Gather", ["x", "third"], ["pixel"], axis=1),
                helper.make_node("Greater", ["pixel", "bright"], ["is"]),
                helper.make_node("Cast", ["is"], ["one"], to=TensorProto.FLOAT),
                helper.make_node("Mul", ["one", "off"], ["moved"]),
                helper.make_node("Add", ["clean", "moved"], ["y"]),
            ]
        )

    return change


def constant(weights: dict[str, np.ndarray]) -> None:
    """Answer the same whatever the row."""
    weights["w2"][:] = 0
