"""From the stages' values to the facts of the report, and the report on disk."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lightship.bundle.manifest import REFERENCE
from lightship.data.files import write_atomic
from lightship.data.split import PARTS
from lightship.engine.machine import fingerprint
from lightship.pipeline.bench import Bench
from lightship.types import Interval, Verdict
from lightship.validate.logits import labels_of
from lightship.validate.metrics import accuracy, class_metrics, confusion_matrix
from lightship.validate.report.facts import (
    ClassFacts,
    ConfusionFacts,
    CurveFacts,
    DataFacts,
    EvidenceFacts,
    ExampleFacts,
    ReportFacts,
    VariantFacts,
    render_json,
)
from lightship.validate.statistics import wilson

if TYPE_CHECKING:
    from lightship.pipeline.stages.optimize import Optimized
    from lightship.pipeline.stages.prepare import Prepared
    from lightship.pipeline.stages.release import Released
    from lightship.pipeline.stages.train import Trained
    from lightship.pipeline.stages.validate import Validated

__all__ = ["report_facts", "write_report"]

_WORST = 12
_TITLES = {
    "data": "The rows",
    "accuracy": "Accuracy on the gate rows",
    "parity": "The graph answers as the trained model does",
    "golden": "Preprocessing is what it was at training",
    "shapes": "Batch sizes",
    "search": "What was tried",
    "overfitting": "Training against validation",
    "noninferiority": "The variant is as accurate as the reference",
    "probabilities": "Probabilities are those of the reference",
    "class_harm": "No class is harmed",
    "latency": "Speed against the reference",
}


def write_report(
    bench: Bench,
    prepared: Prepared,
    trained: Trained,
    optimized: Optimized,
    validated: Validated,
    released: Released | None,
) -> Path:
    """Write the page and its JSON twin: ``report`` for a release, ``decision`` for a decision alone. Return the page.

    A decision, above all a refusal, must not take the place of the report of what is released.
    """
    from lightship.validate.report.page import render_page

    folder = bench.home.runs / bench.recipe.name
    _show_held_out(validated, folder / "held-out")
    facts = report_facts(bench, prepared, trained, optimized, validated, released)
    page = folder / ("report.html" if released else "decision.html")
    write_atomic(page, render_page(facts).encode())
    write_atomic(page.with_suffix(".json"), render_json(facts).encode())
    return page


def _show_held_out(validated: Validated, folder: Path) -> None:
    """Put the held-out images at a path that stays the same from run to run."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(validated.held_out, folder)


def report_facts(
    bench: Bench,
    prepared: Prepared,
    trained: Trained,
    optimized: Optimized,
    validated: Validated,
    released: Released | None,
) -> ReportFacts:
    """Return what the report says. Nothing is measured here; numbers are those of the evidence."""
    truth = prepared.labels("gate")
    matrix = confusion_matrix(truth, labels_of(validated.logits), classes=len(prepared.task.labels))
    confidence = bench.recipe.gate.confidence
    return ReportFacts(
        name=bench.recipe.name,
        version=released.version if released else None,
        created=validated.created,
        released=validated.decision.released,
        headline=validated.headlines[0],
        reasons=validated.decision.reasons or validated.headlines[1:],
        task=prepared.task.name,
        data=_data(prepared, validated),
        variants=_variants(optimized, trained, validated, confidence),
        per_class=tuple(
            ClassFacts(each.label, each.support, each.precision.estimate, each.recall.estimate, each.f1)
            for each in class_metrics(matrix, prepared.task.labels, confidence=confidence)
        ),
        confusion=ConfusionFacts(prepared.task.labels, tuple(tuple(int(n) for n in row) for row in matrix)),
        curves=_curves(trained),
        worst=_worst(prepared, validated, truth),
        evidence=_evidence(validated, released),
        lineage=_lineage(prepared, trained, validated, released),
        machine=_machine(),
        commands=_commands(bench, released),
        signer=released.signer if released else "",
        gate_accuracy=accuracy(matrix, confidence=confidence),
    )


def _data(prepared: Prepared, validated: Validated) -> DataFacts:
    split = prepared.split
    return DataFacts(
        source=prepared.dataset.source,
        rows=sum(len(split.part(part)) for part in PARTS),
        bad_rows=len(prepared.bad),
        duplicates=split.duplicates,
        conflicts=len(split.conflicts),
        parts={part: len(split.part(part)) for part in PARTS},
        class_counts=split.class_counts,
        fingerprint=split.fingerprint,
        gate_looks=validated.gate_looks,
    )


def _variants(
    optimized: Optimized, trained: Trained, validated: Validated, confidence: float
) -> tuple[VariantFacts, ...]:
    timings = [each.timing for each in optimized.candidates if each.timing]
    # Each variant was timed beside the reference in a run of its own, and runs differ; what holds is the ratio within
    # one. So all latencies are brought to one run of the reference: its quickest.
    base_ms = min((timing.a_ms.p50 for timing in timings), default=0.0)
    rows = max((each.rows for each in optimized.candidates), default=0)
    reference = VariantFacts(
        name=REFERENCE,
        precision="fp32",
        size_bytes=len(trained.reference),
        accuracy=wilson(optimized.reference_correct, rows, confidence) if rows else None,
        latency_p50_ms=base_ms if timings else None,
        latency_p99_ms=min(t.a_ms.p99 for t in timings) if timings else None,
        speedup=None,
        chosen=validated.chosen == REFERENCE,
        verdict=validated.decision.verdict if validated.chosen == REFERENCE else Verdict.PASSED,
        reason="The faithful export of the trained model; what the others are measured against.",
    )
    outcomes = {each.name: each for each in validated.outcomes}
    others = []
    for each in optimized.candidates:
        outcome = outcomes.get(each.name)
        others.append(
            VariantFacts(
                name=each.name,
                precision=each.precision,
                size_bytes=len(each.graph),
                accuracy=wilson(each.correct, each.rows, confidence) if each.rows else None,
                latency_p50_ms=base_ms * each.timing.ratio.estimate if each.timing else None,
                latency_p99_ms=each.timing.b_ms.p99 * base_ms / each.timing.a_ms.p50 if each.timing else None,
                speedup=_inverse(each.timing.ratio) if each.timing else None,
                chosen=each.name == validated.chosen,
                verdict=outcome.verdict if outcome else Verdict.UNPROVEN,
                reason=outcome.reason if outcome else each.dropped,
            )
        )
    return (reference, *others)


def _inverse(ratio: Interval) -> Interval:
    """Turn a ratio of times into a speed-up."""
    return Interval(1 / ratio.estimate, 1 / ratio.high, 1 / ratio.low, ratio.confidence, ratio.n)


def _curves(trained: Trained) -> CurveFacts:
    points = trained.model.curves
    return CurveFacts(
        epochs=tuple(point.epoch for point in points),
        train_loss=tuple(point.train_loss for point in points),
        validation_loss=tuple(point.validation_loss for point in points),
        train_accuracy=tuple(point.train_accuracy for point in points),
        validation_accuracy=tuple(point.validation_accuracy for point in points),
        learning_rate=tuple(point.learning_rate for point in points),
        best_epoch=trained.model.best_epoch,
    )


def _worst(prepared: Prepared, validated: Validated, truth: np.ndarray) -> tuple[ExampleFacts, ...]:
    """Return the gate rows whose wrong answer the model was surest of."""
    logits = validated.logits.astype(np.float64)
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    predicted = labels_of(validated.logits)
    wrong = np.flatnonzero(predicted != truth)
    order = wrong[np.argsort(-shares[wrong, predicted[wrong]], kind="stable")][:_WORST]
    found = []
    for position in order:
        row = prepared.dataset.rows[prepared.split.gate[position]]
        found.append(
            ExampleFacts(
                row_id=row.id,
                png=prepared.task.golden(row.raw)[1],
                truth=row.label,
                predicted=prepared.task.labels[predicted[position]],
                probability=float(shares[position, predicted[position]]),
            )
        )
    return tuple(found)


def _evidence(validated: Validated, released: Released | None) -> tuple[EvidenceFacts, ...]:
    required = {check for check, _ in validated.decision.required}
    digests = {row.check: row.digest for row in released.evidence} if released else {}
    return tuple(
        EvidenceFacts(
            check=each.check,
            title=_TITLES.get(each.check, each.check),
            verdict=each.verdict,
            summary=each.summary,
            digest=digests.get(each.check, ""),
            required=each.check in required,
            measured=each.measured,
        )
        for each in validated.evidence
    )


def _lineage(
    prepared: Prepared, trained: Trained, validated: Validated, released: Released | None
) -> tuple[tuple[str, str], ...]:
    subjects = next(each.subjects for each in validated.evidence if each.check == "accuracy")
    rows = [
        ("data", prepared.split.fingerprint),
        ("gate rows", prepared.split.fingerprints["gate"]),
        ("training", trained.finished.key),
        *((name, digest) for name, digest in subjects.items()),
    ]
    if released:
        rows += [("bundle", released.bundle), ("release", released.release)]
    return tuple(rows)


def _machine() -> tuple[tuple[str, str], ...]:
    facts = fingerprint()
    libraries = facts.pop("libraries")
    named = libraries.items() if isinstance(libraries, dict) else ()
    return tuple((str(name), str(value)) for name, value in (*facts.items(), *named))


def _commands(bench: Bench, released: Released | None) -> tuple[tuple[str, str], ...]:
    name = bench.recipe.name
    if released is None:
        return (("Judge again after a change", f"lightship validate {name}/recipe.toml"),)
    image = next(iter(sorted((bench.home.runs / name / "held-out").iterdir())), Path("photo.png"))
    return (
        ("Serve it", f"lightship serve {name} --port 8080"),
        ("Ask in process", f"lightship predict {name} {image}"),
        ("Check every byte", f"lightship verify {name}:{released.version}"),
        ("Write it out", f"lightship deploy {name}:{released.version} --to folder --out {name}-release"),
    )
