"""Run a graph about which nothing is known, and find out what can be relied on: rows, sizes, how far answers spread.

What decides does not look at the wall clock, so that the same file gets the same bundle on the same machine: sizes grow
by fixed ladders until one fails or costs more CPU time than is allowed. This runs in a process of its own
(``trial_process``): a hostile graph may take all memory or never end.

Rows of a batch are tried in two ways. Rows beside a row must not change its answer at all (the same kernels run, so
only a graph that mixes rows can do that: dynamic quantization does). And its answer alone must be its answer in the
batch within the tolerance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lightship.errors import OutOfMemory, Refused
from lightship.imports.trial_interface import named_interface
from lightship.imports.trial_rows import (
    alike,
    drawn_rows,
    given_rows,
    require_same_twice,
    rows_come_back,
    whole_inputs,
    without_batch,
)
from lightship.imports.trial_sizes import Sizes
from lightship.imports.trial_spread import spread_of
from lightship.imports.tried_graph import Bounds, Tell, TriedGraph, engine_says
from lightship.tasks.task import Tensors
from lightship.types import Interface, Json

__all__ = ["Found", "try_graph"]

_GOLDEN_BYTES = 32 << 20
"""Golden examples with their answers in a bundle: they are read at every start of a server."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a trial found.

    Attributes:
        interface: with the names and proven ranges of the bundle.
        rows: golden inputs: one row each, without a batch axis; whole inputs of a graph without a batch dimension.
        expected: by output: row i is the answer to golden input i.
        tolerance: the largest difference between an answer here and on another machine.
        golden, shapes: what was measured, for the evidence.
        words: what people should know, one line each.
    """

    interface: Interface
    rows: tuple[Tensors, ...]
    expected: Mapping[str, np.ndarray]
    tolerance: float
    golden: Mapping[str, Json]
    shapes: Mapping[str, Json]
    words: tuple[str, ...]


def _silent(what: str, runs: int) -> None:
    """Tell nobody."""


def try_graph(
    graph: bytes,
    *,
    given: Mapping[str, np.ndarray] | None = None,
    bounds: Bounds | None = None,
    threads: int = 1,
    tell: Tell | None = None,
) -> Found:
    """Run ``graph`` on drawn or given rows, under several settings and in many sizes.

    Args:
        graph: ONNX bytes that have passed the audit.
        given: arrays by the name of the input, the first axis are rows; None draws them.
        bounds: how far to try.
        threads: of the engine while sizes are tried.
        tell: hears of the progress.

    Raises:
        InvalidInput: the graph cannot be run, or has an interface that no bundle can hold; or the rows do not fit it.
        Refused: its answers are not the same twice, or it needs more memory than there is.
    """
    try:
        tried = TriedGraph(graph, bounds or Bounds(), threads=threads, tell=tell or _silent)
        try:
            return _found(tried, given)
        finally:
            tried.close()
    except OutOfMemory as exc:
        raise Refused(
            "The graph needs more memory than a trial may have. Look in it for "
            f"huge constants and intermediate values, or export it smaller.{engine_says(exc)}"
        ) from exc


def _found(tried: TriedGraph, given: Mapping[str, np.ndarray] | None) -> Found:
    """Go through the whole trial."""
    tried.what = "draw"
    rows = given_rows(tried, given) if given is not None else drawn_rows(tried)
    alone = [tried.run(row, rows=1) for row in rows]
    require_same_twice(tried, rows[0], alone[0])
    if tried.batched and not rows_come_back(tried, rows, alone):
        tried.batched = False
        rows, alone = whole_inputs(tried, given, rows, alone)
    rows, alone = alike(rows, alone)
    few = max(1, _GOLDEN_BYTES // max(1, _size(rows[0]) + _size(alone[0])))
    rows, alone = rows[:few], alone[:few]
    tried.what = "spread"
    spread = spread_of(tried, rows, alone)
    tried.what = "sizes"
    sizes = Sizes(tried, spread.allowed)
    proven = sizes.proven(rows, alone)
    answers = {name: [answer[name] for answer in alone] for name in alone[0]}
    expected = {name: np.concatenate(values) if tried.batched else np.stack(values) for name, values in answers.items()}
    interface, named = named_interface(tried, proven)
    return Found(
        interface=interface,
        rows=tuple(without_batch(row) if tried.batched else row for row in rows),
        expected=expected,
        tolerance=spread.tolerance,
        golden={
            "examples": len(rows),
            "values": "given" if given is not None else f"drawn by seed, style {tried.style}",
            "spread": {name: float(value) for name, value in spread.spread.items()},
            "largest_value": {name: float(value) for name, value in spread.largest.items()},
            "tolerance": float(spread.tolerance),
        },
        shapes={
            "proven": {name: [low, high] for name, (low, high) in interface.proven.items()},
            "start": {named.get(name, name): size for name, size in tried.start.items()},
            "tried": sizes.tried,
        },
        words=tuple("".join(c if c.isprintable() else "?" for c in word) for word in tried.words),
    )


def _size(tensors: Tensors) -> int:
    return sum(array.nbytes for array in tensors.values())
