"""Make variants, measure them on the machine at hand, and propose at most three to the gate.

Only selection rows are looked at. A variant that cannot be made, answers plainly worse, or is not shown to be faster
(when speed is asked for) is dropped with one line that says why; the reference is always an honest way out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from lightship.engine.measure import PairedTiming, interleaved
from lightship.engine.runner import LONGEST_RUN_S, EngineOptions, Runner, load_runner
from lightship.errors import InvalidInput, LightshipError, Refused
from lightship.optimize.variant_pass import PassFailed, VariantPass
from lightship.types import Interface, Json, Progress
from lightship.validate.logits import nonfinite_rows

__all__ = [
    "MOST_PROPOSED",
    "Candidate",
    "Rows",
    "SearchSettings",
    "count_correct",
    "limited_runner",
    "logits_of",
    "measure_file",
    "search",
]

MOST_PROPOSED = 3
_PLAIN_LOSS = 0.05  # selection accuracy lost beyond which a gate look would be wasted, whatever the margin
_LEAST_GAIN = 0.03  # of the time; a smaller gain is worth no other graph, and timing noise must not choose one
_BATCH_ROWS = 64


@dataclass(frozen=True, slots=True)
class Rows:
    """Encoded rows with their classes: images float32 (rows, channels, height, width), labels int64 (rows,)."""

    images: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True, slots=True)
class SearchSettings:
    """What is preferred and how it is measured.

    Attributes:
        objective: ``latency`` wants a variant that is shown to be faster; ``size`` one whose graph is smaller.
        pairs: interleaved timing pairs per variant.
        batch: rows in a timed call.
        threads: threads of the engine while timing; the bundle records the same number.
    """

    objective: Literal["latency", "size"] = "latency"
    pairs: int = 200
    batch: int = 1
    threads: int = 1


@dataclass(frozen=True, slots=True)
class Candidate:
    """A variant that was tried.

    Attributes:
        graph: ONNX bytes; empty when the pass failed.
        correct: right answers on the selection rows.
        rows: how many selection rows there were.
        timing: against the reference (side a); None when it was not timed.
        dropped: why it is not proposed; empty for a proposed one.
    """

    name: str
    precision: str
    graph: bytes
    correct: int = 0
    rows: int = 0
    timing: PairedTiming | None = None
    dropped: str = ""

    def to_json(self) -> dict[str, Json]:
        """Return all but the graph's bytes."""
        return {
            "name": self.name,
            "precision": self.precision,
            "correct": self.correct,
            "rows": self.rows,
            "timing": self.timing.to_json() if self.timing else None,
            "dropped": self.dropped,
        }

    @classmethod
    def from_json(cls, found: dict[str, Any], graph: bytes) -> Candidate:
        """Return the candidate that ``to_json`` wrote, with its graph."""
        timing = PairedTiming.from_json(found["timing"]) if found["timing"] else None
        return cls(**{**found, "timing": timing}, graph=graph)


def search(
    reference: bytes,
    passes: Sequence[VariantPass],
    *,
    calibration: Sequence[Mapping[str, np.ndarray]],
    selection: Rows,
    settings: SearchSettings,
    named: bool = False,
    progress: Progress,
) -> tuple[Candidate, ...]:
    """Try each pass on ``reference``; return all candidates, the proposed first and best first.

    At most ``MOST_PROPOSED`` have an empty ``dropped``. ``named`` means that a person asked for these passes: then
    what can be made is proposed, however fast it is and however it answers, and the gate alone decides.
    """
    base_correct = _correct_within_limit(reference, selection, settings)
    base = _timed_runner(reference, settings)
    tried = []
    progress.start("Make and measure variants", len(passes))
    for each in passes:
        candidate = _try(each, reference, calibration, base, selection, settings)
        if not candidate.dropped and not named:
            candidate = replace(candidate, dropped=_reason(candidate, len(reference), base_correct, settings))
        tried.append(candidate)
        progress.advance(note=f"{candidate.name}: {candidate.dropped or 'proposed'}")
    base.close()
    ranked = sorted(tried, key=lambda c: (bool(c.dropped), _cost(c, settings)))
    result = [
        replace(c, dropped=f"{MOST_PROPOSED} better ones are proposed") if i >= MOST_PROPOSED and not c.dropped else c
        for i, c in enumerate(ranked)
    ]
    progress.done(f"{sum(not c.dropped for c in result)} of {len(result)} proposed")
    return tuple(result)


def _try(
    each: VariantPass,
    reference: bytes,
    calibration: Sequence[Mapping[str, np.ndarray]],
    base: Runner,
    selection: Rows,
    settings: SearchSettings,
) -> Candidate:
    try:
        graph = _applied(each, reference, calibration)
        return measure(Candidate(each.name, each.precision, graph), base=base, selection=selection, settings=settings)
    except PassFailed as exc:
        return Candidate(each.name, each.precision, b"", dropped=str(exc))
    except LightshipError as exc:
        return Candidate(each.name, each.precision, b"", dropped=f"the engine does not run it: {exc}")


def _applied(each: VariantPass, reference: bytes, calibration: Sequence[Mapping[str, np.ndarray]]) -> bytes:
    try:
        return each.apply(reference, calibration=calibration if each.needs_calibration else ())
    except LightshipError:
        raise
    except Exception as exc:  # a pass may be anybody's code; its failure costs its own variant and no other
        raise PassFailed(f"{each.name} failed: {type(exc).__name__}: {exc}") from exc


def measure_file(name: str, graph: bytes, *, reference: bytes, selection: Rows, settings: SearchSettings) -> Candidate:
    """Return a graph that somebody else made as a measured, proposed candidate.

    Raises:
        InvalidInput: the engine cannot load it, or it has another interface than the reference.
        Refused: it reaches outside of itself, or it fails while it runs, or runs too long.
    """
    base = _timed_runner(reference, settings)
    try:
        return measure(Candidate(name, "as given", graph), base=base, selection=selection, settings=settings)
    except (InvalidInput, Refused):
        raise
    except LightshipError as exc:  # of a graph that somebody gave, a run that fails is the graph's fault, not ours
        raise Refused(f"The variant {name!r} is refused, the engine does not run it: {exc}") from exc
    finally:
        base.close()


def measure(candidate: Candidate, *, base: Runner, selection: Rows, settings: SearchSettings) -> Candidate:
    """Return the candidate with its right answers on the selection rows and its timing against ``base``.

    Raises:
        LightshipError: the engine cannot load or run the graph, a batch takes longer than ``LONGEST_RUN_S``, or the
            interface is not that of ``base``.
    """
    inputs = {"image": np.ascontiguousarray(np.resize(selection.images, (settings.batch, *selection.images.shape[1:])))}
    careful = limited_runner(candidate.graph, threads=settings.threads)
    try:
        _require_same_interface(careful.interface, base.interface)
        correct = count_correct(careful, selection)
        careful.run(inputs)  # the timed runs have no limit, so this one shows that they end
    finally:
        careful.close()
    runner = _timed_runner(candidate.graph, settings)
    timing = interleaved(lambda: base.run(inputs), lambda: runner.run(inputs), pairs=settings.pairs)
    runner.close()
    return replace(candidate, correct=correct, rows=len(selection.labels), timing=timing)


def limited_runner(graph: bytes, *, threads: int = 1) -> Runner:
    """Return a runner for answers: a batch that takes longer than ``LONGEST_RUN_S`` is stopped with an error."""
    return load_runner(graph, options=EngineOptions(threads=threads, limit_s=LONGEST_RUN_S))


def _timed_runner(graph: bytes, settings: SearchSettings) -> Runner:
    """Return a runner for timing: as it will serve, without the cost of a limit."""
    return load_runner(graph, options=EngineOptions(threads=settings.threads))


def _correct_within_limit(graph: bytes, selection: Rows, settings: SearchSettings) -> int:
    runner = limited_runner(graph, threads=settings.threads)
    try:
        return count_correct(runner, selection)
    finally:
        runner.close()


def count_correct(runner: Runner, rows: Rows) -> int:
    """Return how many rows the graph answers rightly; NaN or infinity is no answer."""
    logits = logits_of(runner, rows.images)
    right = logits.argmax(axis=1) == rows.labels
    right[nonfinite_rows(logits)] = False
    return int(right.sum())


def _require_same_interface(found: Interface, wanted: Interface) -> None:
    if _tensors(found) != _tensors(wanted):
        raise InvalidInput(
            f"A variant must take and give what the reference does: {_tensors(wanted)}. This graph: {_tensors(found)}. "
            "Export it with the same names, types and sizes, and a free batch axis."
        )


def _tensors(interface: Interface) -> str:
    """Spell names, types and shapes; a free dimension is a ``?`` whatever it is called."""
    return " -> ".join(
        ", ".join(
            f"{each.name} {each.dtype} [{', '.join('?' if isinstance(dim, str) else str(dim) for dim in each.shape)}]"
            for each in sorted(side, key=lambda spec: spec.name)
        )
        for side in (interface.inputs, interface.outputs)
    )


def logits_of(runner: Runner, images: np.ndarray) -> np.ndarray:
    """Return the logits of all images, float32 (rows, classes), run in batches."""
    parts = [
        runner.run({"image": images[start : start + _BATCH_ROWS]})["logits"]
        for start in range(0, len(images), _BATCH_ROWS)
    ]
    return np.concatenate(parts)


def _reason(candidate: Candidate, reference_bytes: int, base_correct: int, settings: SearchSettings) -> str:
    lost = (base_correct - candidate.correct) / max(candidate.rows, 1)
    if lost > _PLAIN_LOSS:
        return f"loses {lost:.1%} accuracy on the selection rows"
    timing = candidate.timing
    if settings.objective == "latency" and timing is not None and timing.ratio.high > 1 - _LEAST_GAIN:
        return f"not shown to be faster than the reference by {_LEAST_GAIN:.0%}: {timing.words}"
    if settings.objective == "size" and len(candidate.graph) >= reference_bytes:
        return f"not smaller than the reference: {len(candidate.graph)} bytes against {reference_bytes}"
    return ""


def _cost(candidate: Candidate, settings: SearchSettings) -> float:
    if settings.objective == "size":
        return float(len(candidate.graph)) if candidate.graph else float("inf")
    return candidate.timing.ratio.estimate if candidate.timing else float("inf")
