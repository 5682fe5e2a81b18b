"""The rows that a graph is tried with: drawn for it, or given; and whether its first axis holds rows at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from lightship.engine.difference import largest_difference
from lightship.errors import InvalidInput, InvalidTensor, LightshipError, OutOfMemory, RanTooLong, Refused
from lightship.imports.drawn import STYLES
from lightship.imports.tried_graph import TriedGraph, asks_for_memory, engine_says
from lightship.tasks.task import Tensors
from lightship.types import TensorSpec

__all__ = [
    "FEW_ROWS",
    "ROWS",
    "alike",
    "drawn_rows",
    "equal",
    "given_rows",
    "require_same_twice",
    "rows_come_back",
    "stack",
    "whole_inputs",
    "without_batch",
]

ROWS = 8
"""Golden examples that are drawn. Of given rows so many are used."""
FEW_ROWS = 3
"""Of a graph that is slow: every row runs some ten times."""
_QUICK_CPU_S = 0.2
_MOST_STOPPED = 2  # runs that took too long: sizes and values are not why
_START = (8, 16, 32, 64, 128, 224, 4, 3, 2, 1, 256, 512)


def drawn_rows(tried: TriedGraph) -> list[Tensors]:
    """Return rows that the graph runs on, with the first sizes and style for which it does.

    Raises:
        InvalidInput: there are none.
        OutOfMemory: there are none, each time for want of memory.
        Refused: it ran too long on the first of them.
    """
    others = [dim for dim in tried.free if not (tried.batched and dim in tried.first)]
    last: LightshipError | None = None
    always_short, stopped = True, 0
    for sizes in _starts(tried, others):
        for style in STYLES:
            row = tried.draw(sizes, number=0, style=style)
            try:
                tried.run(row, rows=1)
            except (InvalidInput, LightshipError) as exc:
                last = exc
                always_short &= asks_for_memory(exc)
                stopped += isinstance(exc, RanTooLong)
                if stopped >= _MOST_STOPPED:
                    raise Refused(f"{exc} That was so on {stopped} inputs of other values or sizes.") from exc
                continue
            tried.start, tried.style = sizes, style
            tried.observed.clear()
            return _more_rows(tried, row)
    if always_short and last is not None:
        raise OutOfMemory(str(last)) from (last.__cause__ or last)
    raise InvalidInput(
        f"The graph ran on none of the inputs that were drawn for it; the last try: {last}{engine_says(last)} "
        "Give rows that it takes: --golden rows.npz, arrays by the name of the input, the first axis are rows."
    )


def _starts(tried: TriedGraph, others: Sequence[str]) -> Iterator[dict[str, int]]:
    """Yield sizes of the free dimensions to begin with, those that others were fixed to before all."""
    if not others:
        yield {}
        return
    for size in tried.bounds.first:
        sizes = dict.fromkeys(others, size)
        try:
            tried.draw(sizes, number=0, style="zeros")
        except Refused:
            continue  # too large for an input that has nothing to do with it
        yield sizes
    for size in _START:
        yield {dim: min(size, tried.most(dim)) for dim in others}


def _more_rows(tried: TriedGraph, first: Tensors) -> list[Tensors]:
    rows = [first]
    tried.run(first, rows=1)  # the run before it was a first one
    count = ROWS if tried.cpu_s <= _QUICK_CPU_S else FEW_ROWS
    for number in range(1, count):
        row = tried.draw(tried.start, number=number, style=tried.style)
        try:
            tried.run(row, rows=1)
        except LightshipError:
            continue
        if not any(equal(row, other) for other in rows):
            rows.append(row)
    return rows


def given_rows(tried: TriedGraph, given: Mapping[str, np.ndarray]) -> list[Tensors]:
    """Return the first of the given rows, each of which the graph runs on.

    Raises:
        InvalidTensor: they do not fit the inputs.
        LightshipError: one cannot be run; the message has its number.
    """
    wanted = {spec.name for spec in tried.inputs}
    if set(given) != wanted:
        raise InvalidTensor(
            f"The golden rows must hold the arrays {', '.join(map(repr, sorted(wanted)))}. "
            f"Got {', '.join(map(repr, sorted(given))) or 'none'}."
        )
    rows = _split(tried.inputs, given, batched=tried.batched)
    if not rows:
        raise InvalidTensor("The golden rows must be at least one. Got arrays with 0 rows.")
    for number, row in enumerate(rows):
        try:
            tried.run(row, rows=1)
        except LightshipError as exc:
            if asks_for_memory(exc):
                raise OutOfMemory(str(exc)) from (exc.__cause__ or exc)
            raise type(exc)(f"Golden row {number} (counted from 0) cannot be run: {exc}") from exc
    tried.observed.clear()
    for spec in tried.inputs:
        for dim, size in zip(spec.shape, rows[0][spec.name].shape, strict=True):
            if isinstance(dim, str) and not (tried.batched and dim in tried.first):
                tried.start[dim] = size
    tried.style = _style(tried)
    return rows


def _style(tried: TriedGraph) -> str:
    """Return the first style whose rows run at the sizes of the given ones: other sizes, and neighbors, are drawn."""
    for style in STYLES:
        try:
            tried.run(tried.draw(tried.start, number=0, style=style), rows=1)
        except LightshipError:
            continue
        tried.observed.clear()
        return style
    return STYLES[0]


def whole_inputs(
    tried: TriedGraph, given: Mapping[str, np.ndarray] | None, rows: list[Tensors], alone: list[Tensors]
) -> tuple[list[Tensors], list[Tensors]]:
    """The first axis turned out to be no rows: it is one more free dimension, and a request runs as a whole."""
    tried.words.append("an output does not have one row for each input row, so requests run alone, not in batches")
    tried.observed.clear()
    if given is None:
        return (rows, alone) if not tried.first else _redrawn(tried)
    whole = {name: np.ascontiguousarray(array) for name, array in given.items()}
    tried.start |= {
        dim: size
        for spec in tried.inputs
        for dim, size in zip(spec.shape, whole[spec.name].shape, strict=True)
        if isinstance(dim, str)
    }
    return [whole], [tried.run(whole, rows=None)]


def _redrawn(tried: TriedGraph) -> tuple[list[Tensors], list[Tensors]]:
    rows = drawn_rows(tried)
    return rows, [tried.run(row, rows=None) for row in rows]


def require_same_twice(tried: TriedGraph, row: Tensors, first: Tensors) -> None:
    """Refuse a graph that gives another answer to the same row."""
    again = tried.run(row, rows=1)
    for name, array in first.items():
        if (off := largest_difference(again[name], array)) > 0:
            raise Refused(
                f"The graph gives other answers to the same input: {name!r} differed by {off:.3g}. A random "
                "operator in it (RandomNormal, Dropout in training mode …)? Nobody could tell whether it still "
                "works on another machine. Export it for inference, or with its noise as an input."
            )


def rows_come_back(tried: TriedGraph, rows: list[Tensors], alone: list[Tensors]) -> bool:
    """Whether outputs have a row for each input row; where several cannot be run, one at a time is fine."""
    if not all(array.ndim and array.shape[0] == 1 for array in alone[0].values()):
        return False
    try:
        two = tried.run(stack([rows[0], rows[-1]]), rows=2)
    except LightshipError:
        return True
    return all(array.ndim and array.shape[0] == 2 for array in two.values())


def _split(inputs: Sequence[TensorSpec], given: Mapping[str, np.ndarray], *, batched: bool) -> list[Tensors]:
    """Return each row of given arrays as inputs of the graph, at most ``ROWS``.

    Without a batch dimension a row is a whole input: one more axis in front are rows, and where every input starts
    with a fixed 1, that axis holds them.
    """
    if batched:
        counts = {array.shape[0] if array.ndim else 0 for array in given.values()}
        _require_equal_counts(counts)
        return [{name: array[i : i + 1] for name, array in given.items()} for i in range(min(*counts, ROWS))]
    if all(given[spec.name].ndim == len(spec.shape) + 1 for spec in inputs):
        counts = {array.shape[0] for array in given.values()}
        _require_equal_counts(counts)
        return [{name: array[i] for name, array in given.items()} for i in range(min(*counts, ROWS))]
    ones = all(spec.shape[:1] == (1,) and given[spec.name].ndim == len(spec.shape) for spec in inputs)
    if ones and len({array.shape[0] for array in given.values()}) == 1:
        rows = next(iter(given.values())).shape[0]
        return [{name: array[i : i + 1] for name, array in given.items()} for i in range(min(rows, ROWS))]
    return [dict(given)]


def _require_equal_counts(counts: set[int]) -> None:
    if len(counts) != 1:
        raise InvalidTensor(
            f"The golden arrays must have as many rows each. Got {', '.join(map(str, sorted(counts)))}."
        )


def alike(rows: list[Tensors], alone: list[Tensors]) -> tuple[list[Tensors], list[Tensors]]:
    """Return the rows whose answers have the shapes of the first one's: only those stack."""
    first = {name: array.shape for name, array in alone[0].items()}
    kept = [i for i, answer in enumerate(alone) if {name: a.shape for name, a in answer.items()} == first]
    return [rows[i] for i in kept], [alone[i] for i in kept]


def stack(rows: Sequence[Tensors]) -> Tensors:
    """Return rows as one batch."""
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def without_batch(row: Tensors) -> Tensors:
    """Return one row without its batch axis; an array also where nothing is left but one value."""
    return {name: array.reshape(array.shape[1:]) for name, array in row.items()}


def equal(a: Tensors, b: Tensors) -> bool:
    """Return whether two rows hold the same."""
    return all(np.array_equal(a[name], b[name]) for name in a)
