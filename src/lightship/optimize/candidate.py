"""What a search is about: rows to try a variant on, the variant, and what was found of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from lightship.engine.measure import PairedTiming
from lightship.engine.runner import LONGEST_RUN_S, EngineOptions, Runner, load_runner
from lightship.types import Interval, Json
from lightship.validate.meters import Kind

__all__ = ["NOT_BEGUN", "ONNX_RUNTIME", "Candidate", "Quality", "Rows", "Speed", "limited_runner"]

ONNX_RUNTIME = "onnxruntime"
"""The engine of the reference."""

NOT_BEGUN = "not tried"
"""How the reason begins why a candidate is not proposed that nobody looked at: the time was over."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Encoded rows of a graph.

    Attributes:
        inputs: arrays by the name of the input; the first axis are rows.
        labels: int64 classes, shape (rows,); tags or numbers, (rows, ...); None when nobody labeled them.
        output: the output that holds class scores or an embedding, shape (rows, n).
        batched: False for a graph without a batch dimension: each row is run alone, without that axis.
        kind: what the labels are.
    """

    inputs: Mapping[str, np.ndarray]
    labels: np.ndarray | None
    output: str
    batched: bool = True
    kind: Kind = "classes"

    @property
    def count(self) -> int:
        """How many rows there are."""
        return len(next(iter(self.inputs.values())))

    def batches(self, size: int) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """Yield (first row, inputs) of consecutive batches of at most ``size`` rows."""
        step = size if self.batched else 1
        for start in range(0, self.count, step):
            if self.batched:
                yield start, {name: array[start : start + step] for name, array in self.inputs.items()}
            else:
                yield start, {name: array[start, ...] for name, array in self.inputs.items()}

    def first(self, count: int) -> Rows:
        """Return at most the first ``count`` rows."""
        inputs = {name: array[:count] for name, array in self.inputs.items()}
        return replace(self, inputs=inputs, labels=None if self.labels is None else self.labels[:count])

    def repeated(self, count: int) -> dict[str, np.ndarray]:
        """Return the inputs of one batch of exactly ``count`` rows: these rows, again from the start if need be."""
        if not self.batched:
            return {name: array[0, ...].copy() for name, array in self.inputs.items()}  # a scalar keeps its rank
        order = np.arange(count) % self.count
        return {name: np.ascontiguousarray(array[order]) for name, array in self.inputs.items()}


@dataclass(frozen=True, slots=True)
class Quality:
    """How a variant answers the selection rows.

    Attributes:
        rows: how many there are.
        nonfinite_rows: how many of them it answers with NaN or infinity where the reference does not.
        correct: right answers, of rows with classes; NaN or infinity is no answer.
        loss: mean loss of rows with numbers or tags, see ``validate.row_losses``; None also where it is not finite.
        agreement: share of rows with the reference's class.
        cosine: mean over rows, to the reference's answer.
        snr_db: power of the reference's answers over that of the difference, in decibels.
        broken: share of rows that are broken, see ``validate.fidelity``.
    """

    rows: int
    nonfinite_rows: int = 0
    correct: int | None = None
    agreement: Interval | None = None
    cosine: Interval | None = None
    snr_db: Interval | None = None
    broken: Interval | None = None
    loss: float | None = None

    def to_json(self) -> dict[str, Json]:
        """Return the JSON form, which ``from_json`` reads back."""
        return {
            "rows": self.rows,
            "nonfinite_rows": self.nonfinite_rows,
            "correct": self.correct,
            "loss": self.loss,
            **{name: value.to_json() if value else None for name, value in self._intervals()},
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Quality:
        """Return the quality that ``to_json`` wrote."""
        names = ("agreement", "cosine", "snr_db", "broken")
        intervals = {name: Interval(**found[name]) if found.get(name) else None for name in names}
        return cls(found["rows"], found["nonfinite_rows"], found["correct"], **intervals, loss=found["loss"])

    def _intervals(self) -> tuple[tuple[str, Interval | None], ...]:
        return (
            ("agreement", self.agreement),
            ("cosine", self.cosine),
            ("snr_db", self.snr_db),
            ("broken", self.broken),
        )


@dataclass(frozen=True, slots=True)
class Speed:
    """What a row costs at one way of running, against the reference at its own best way.

    Attributes:
        timing: milliseconds a *row*: of the reference (side a) and of the variant (side b), and the ratio.
        threads: of the variant's engine.
        batch: rows in one of its calls.
        reference_threads: of the reference's engine.
        reference_batch: rows in one of its calls.
    """

    timing: PairedTiming
    threads: int
    batch: int
    reference_threads: int
    reference_batch: int

    @property
    def rows_per_s(self) -> float:
        """Rows a second of the variant."""
        return 1000 / self.timing.b_ms.p50

    def to_json(self) -> dict[str, Json]:
        """Return the JSON form, which ``from_json`` reads back; a few figures stand there twice, for readers."""
        return {
            "ratio": self.timing.ratio.to_json(),
            "p50_ms": self.timing.b_ms.p50 * self.batch,
            "rows_per_s": self.rows_per_s,
            "threads": self.threads,
            "batch": self.batch,
            "reference_threads": self.reference_threads,
            "reference_batch": self.reference_batch,
            "processes": self.timing.processes,
            "timing": self.timing.to_json(),
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Speed:
        """Return the speed that ``to_json`` wrote."""
        keys = ("threads", "batch", "reference_threads", "reference_batch")
        return cls(PairedTiming.from_json(found["timing"]), **{key: found[key] for key in keys})


@dataclass(frozen=True, slots=True)
class Candidate:
    """A variant that was tried.

    Attributes:
        passes: that made its graph of the reference's, in order; none for another way to run the reference.
        engine: that runs it.
        options: for the engine, as a bundle records them.
        precision: for people: ``fp32``, ``bf16``, ``int8`` ...
        graph: ONNX bytes; empty when it could not be made or is not proposed.
        size_bytes: of the graph, whether or not it is here.
        sha256: of the graph, likewise; empty when it could not be made.
        quality: on the selection rows.
        latency: of one call, against the reference.
        throughput: at the batch that serves most rows a second, against the reference at its own.
        memory_bytes: most memory that a process which does nothing else had in use beyond an idle one.
        on_front: no other candidate, nor the reference, is as good in everything and better in something.
        notes: what the passes say about their work, e.g. which layers were left in float.
        dropped: why it is not proposed; empty for a proposed one.
    """

    name: str
    passes: tuple[str, ...] = ()
    engine: str = ONNX_RUNTIME
    options: Mapping[str, Json] = field(default_factory=dict)
    precision: str = "fp32"
    graph: bytes = b""
    size_bytes: int = 0
    sha256: str = ""
    quality: Quality | None = None
    latency: Speed | None = None
    throughput: Speed | None = None
    memory_bytes: int | None = None
    on_front: bool = False
    notes: tuple[str, ...] = ()
    dropped: str = ""

    def runner(self, *, threads: int = 1, batched: bool = True, limited: bool = False) -> Runner:
        """Load the graph as it would serve; ``limited`` stops a batch that takes longer than ``LONGEST_RUN_S``."""
        options = replace(
            EngineOptions.from_json(self.options, threads=threads),
            batched=batched,
            limit_s=LONGEST_RUN_S if limited else None,
        )
        return load_runner(self.graph, engine=self.engine, options=options)

    def to_json(self) -> dict[str, Json]:
        """Return all but the graph's bytes."""
        return {
            "name": self.name,
            "passes": list(self.passes),
            "engine": self.engine,
            "options": dict(self.options),
            "precision": self.precision,
            "quality": self.quality.to_json() if self.quality else None,
            "latency": self.latency.to_json() if self.latency else None,
            "throughput": self.throughput.to_json() if self.throughput else None,
            "size_bytes": self.size_bytes,
            "sha256": self.sha256,
            "memory_bytes": self.memory_bytes,
            "on_front": self.on_front,
            "notes": list(self.notes),
            "dropped": self.dropped,
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any], graph: bytes) -> Candidate:
        """Return the candidate that ``to_json`` wrote, with its graph."""
        same = ("name", "engine", "options", "precision", "size_bytes", "sha256", "memory_bytes", "on_front", "dropped")
        rest = {key: found[key] for key in same}
        return cls(
            **rest,
            passes=tuple(found["passes"]),
            graph=graph,
            quality=Quality.from_json(found["quality"]) if found["quality"] else None,
            latency=Speed.from_json(found["latency"]) if found["latency"] else None,
            throughput=Speed.from_json(found["throughput"]) if found["throughput"] else None,
            notes=tuple(found["notes"]),
        )


def limited_runner(graph: bytes, *, threads: int = 1) -> Runner:
    """Return a runner of a reference graph for answers: a batch longer than ``LONGEST_RUN_S`` is stopped."""
    return Candidate("", graph=graph).runner(threads=threads, limited=True)
