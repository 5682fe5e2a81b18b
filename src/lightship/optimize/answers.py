"""How a variant answers the selection rows, beside the reference."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from lightship.engine.onnx_wire import operators_of
from lightship.engine.runner import Runner
from lightship.errors import InvalidInput
from lightship.optimize.candidate import Quality, Rows
from lightship.types import Interface
from lightship.validate.fidelity import FidelityMeter
from lightship.validate.logits import nonfinite_rows
from lightship.validate.meters import class_scores
from lightship.validate.row_losses import RowLosses, are_shares

__all__ = [
    "answers_of",
    "count_correct",
    "quality_of",
    "random_operators",
    "require_same_interface",
    "scores_of",
    "up_to",
]

_BATCH_ROWS = 64
_RANDOM = frozenset(
    ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Sampling")
)


def scores_of(runner: Runner, rows: Rows) -> np.ndarray:
    """Return what the graph gives as ``rows.output`` for all rows, shape (rows, n), run in batches."""
    return np.concatenate([outputs[rows.output] for _, outputs in _run(runner, rows)])


def count_correct(runner: Runner, rows: Rows) -> int:
    """Return how many labeled rows the graph answers rightly; NaN or infinity is no answer.

    Raises:
        InvalidInput: the rows have no labels.
    """
    if rows.labels is None:
        raise InvalidInput("Right answers can be counted on labeled rows only. These rows have no labels.")
    return sum(
        _right(outputs[rows.output], rows.labels[start : start + len(outputs[rows.output])])
        for start, outputs in _run(runner, rows)
    )


def answers_of(runner: Runner, rows: Rows) -> Iterator[dict[str, np.ndarray]]:
    """Yield what the graph answers, batch by batch."""
    return (outputs for _, outputs in _run(runner, rows))


def up_to(answers: Iterable[Mapping[str, np.ndarray]], most_bytes: int) -> list[Mapping[str, np.ndarray]]:
    """Return the first of these answers, until they are used up or have ``most_bytes``."""
    found, size = [], 0
    for outputs in answers:
        found.append(outputs)
        size += sum(array.nbytes for array in outputs.values())
        if size >= most_bytes:
            break
    return found


def quality_of(
    answers: Iterable[Mapping[str, np.ndarray]], expected: Iterable[Mapping[str, np.ndarray]], rows: Rows
) -> Quality:
    """Return how a graph answers the rows beside the reference, in all of its outputs.

    Args:
        answers: the variant's, batch by batch, as ``answers_of`` gives them; as many as are expected count.
        expected: what the reference answers to the same batches.
        rows: the rows of these batches, and perhaps more.
    """
    meter, losses = FidelityMeter(), None
    start, correct = 0, None if rows.labels is None or rows.kind != "classes" else 0
    for wanted, found in zip(expected, answers, strict=False):
        meter.add(wanted, found)
        if rows.labels is None:
            continue
        scores = found[rows.output]
        places = range(start, start + len(scores))
        truth, start = rows.labels[start : places.stop], places.stop
        if correct is not None:
            correct += _right(scores, truth)
            continue
        losses = losses or RowLosses(rows.kind, shares=are_shares(wanted[rows.output]))
        losses.add(places, truth, scores)
    mean = None if losses is None else float(losses.values.mean())
    fidelity = meter.result()
    return Quality(
        rows=fidelity.rows,
        nonfinite_rows=fidelity.nonfinite_rows,
        correct=correct,
        agreement=fidelity.agreement,
        cosine=fidelity.cosine,
        snr_db=fidelity.snr_db,
        broken=fidelity.broken,
        loss=mean if mean is not None and math.isfinite(mean) else None,
    )


def require_same_interface(found: Interface, wanted: Interface) -> None:
    """Refuse a graph that could not take the reference's place.

    Raises:
        InvalidInput: names, dtypes or shapes differ; the message shows both.
    """
    if _tensors(found) != _tensors(wanted):
        raise InvalidInput(
            f"A variant must take and give what the reference does: {_tensors(wanted)}. This graph: {_tensors(found)}. "
            "Export it with the same names, types and sizes, and a free batch axis."
        )


def random_operators(graph: bytes) -> Counter[str]:
    """Return how often each operator that draws random numbers stands in a graph that has passed the audit."""
    return Counter(operator.kind for operator in operators_of(graph) if operator.kind in _RANDOM)


def _run(runner: Runner, rows: Rows) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    for start, inputs in rows.batches(_BATCH_ROWS):
        yield start, _as_rows(runner.run(inputs), rows)


def _as_rows(outputs: dict[str, np.ndarray], rows: Rows) -> dict[str, np.ndarray]:
    """Return outputs with a first axis of rows, also those of a graph that treats one row at a time."""
    return outputs if rows.batched else {name: array[np.newaxis] for name, array in outputs.items()}


def _right(answers: np.ndarray, labels: np.ndarray) -> int:
    flat = answers.reshape(len(labels), -1)  # a graph for one row has given it an axis of its own
    right = (flat[:, 0] if flat.dtype.kind in "biu" else class_scores(flat).argmax(axis=1)) == labels
    if flat.dtype.kind == "f":
        right[nonfinite_rows(flat)] = False
    return int(right.sum())


def _tensors(interface: Interface) -> str:
    """Spell names, types and shapes; a free dimension is a ``?`` whatever it is called."""
    return " -> ".join(
        ", ".join(
            f"{each.name} {each.dtype} [{', '.join('?' if isinstance(dim, str) else str(dim) for dim in each.shape)}]"
            for each in sorted(side, key=lambda spec: spec.name)
        )
        for side in (interface.inputs, interface.outputs)
    )
