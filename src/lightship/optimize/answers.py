"""How a variant answers the selection rows, beside the reference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from lightship.engine.runner import Runner
from lightship.errors import InvalidInput
from lightship.optimize.candidate import Quality, Rows
from lightship.types import Interface
from lightship.validate.fidelity import FidelityMeter
from lightship.validate.logits import nonfinite_rows

__all__ = ["answers_of", "count_correct", "quality_of", "require_same_interface", "scores_of"]

_BATCH_ROWS = 64


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


def answers_of(runner: Runner, rows: Rows, *, most_bytes: int) -> list[dict[str, np.ndarray]]:
    """Return what the graph answers, batch by batch, until the rows or ``most_bytes`` are used up."""
    found, size = [], 0
    for _, outputs in _run(runner, rows):
        found.append(outputs)
        size += sum(array.nbytes for array in outputs.values())
        if size >= most_bytes:
            break
    return found


def quality_of(runner: Runner, expected: Sequence[Mapping[str, np.ndarray]], rows: Rows) -> Quality:
    """Return how the graph answers the rows beside the reference, in all of its outputs.

    Args:
        runner: the variant.
        expected: what the reference answers, batch by batch, as ``answers_of`` gives it for the same rows.
        rows: at least those.
    """
    meter = FidelityMeter()
    correct = None if rows.labels is None else 0
    for (start, found), wanted in zip(_run(runner, rows), expected, strict=False):
        meter.add(wanted, found)
        if rows.labels is not None and correct is not None:
            correct += _right(found[rows.output], rows.labels[start : start + len(found[rows.output])])
    fidelity = meter.result()
    return Quality(
        rows=fidelity.rows,
        nonfinite_rows=fidelity.nonfinite_rows,
        correct=correct,
        agreement=fidelity.agreement,
        cosine=fidelity.cosine,
        snr_db=fidelity.snr_db,
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


def _run(runner: Runner, rows: Rows) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    for start, inputs in rows.batches(_BATCH_ROWS):
        yield start, _as_rows(runner.run(inputs), rows)


def _as_rows(outputs: dict[str, np.ndarray], rows: Rows) -> dict[str, np.ndarray]:
    """Return outputs with a first axis of rows, also those of a graph that treats one row at a time."""
    return outputs if rows.batched else {name: array[np.newaxis] for name, array in outputs.items()}


def _right(scores: np.ndarray, labels: np.ndarray) -> int:
    right = scores.argmax(axis=1) == labels
    right[nonfinite_rows(scores)] = False
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
