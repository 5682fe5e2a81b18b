"""From the stages' values to the facts of the report, and the report on disk."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lightship.bundle.manifest import REFERENCE
from lightship.data.files import write_atomic
from lightship.engine.machine import fingerprint
from lightship.pipeline.bench import Bench
from lightship.types import Interface, Json
from lightship.validate.logits import labels_of
from lightship.validate.report.facts import CurveFacts, ExampleFacts, ReportFacts, render_json
from lightship.validate.report.from_evidence import Given, facts_of

if TYPE_CHECKING:
    from lightship.pipeline.stages.prepare import Prepared
    from lightship.pipeline.stages.release import Released
    from lightship.pipeline.stages.train import Trained
    from lightship.pipeline.stages.validate import Validated

__all__ = ["interface_facts", "machine_facts", "report_facts", "write_report"]

_WORST = 12


def write_report(
    bench: Bench,
    prepared: Prepared,
    trained: Trained,
    validated: Validated,
    released: Released | None,
) -> Path:
    """Write the page and its JSON twin: ``report`` for a release, ``decision`` for a decision alone. Return the page.

    Beside the report of a release stands its model card.

    A decision, above all a refusal, must not take the place of the report of what is released.
    """
    from lightship.pipeline.release_card import card_of
    from lightship.validate.report.page import render_page

    folder = bench.home.runs / bench.recipe.name
    _show_held_out(validated, folder / "held-out")
    facts = report_facts(bench, prepared, trained, validated, released)
    page = folder / ("report.html" if released else "decision.html")
    write_atomic(page, render_page(facts).encode())
    write_atomic(page.with_suffix(".json"), render_json(facts).encode())
    if released:
        write_atomic(page.with_name("card.md"), card_of(bench.home, f"{facts.name}:{facts.version}").encode())
    return page


def _show_held_out(validated: Validated, folder: Path) -> None:
    """Put the held-out images at a path that stays the same from run to run."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(validated.held_out, folder)


def report_facts(
    bench: Bench,
    prepared: Prepared,
    trained: Trained,
    validated: Validated,
    released: Released | None,
) -> ReportFacts:
    """Return what the report says. Nothing is measured here; numbers are those of the evidence."""
    found = facts_of(
        validated.evidence,
        Given(
            name=bench.recipe.name,
            version=released.version if released else None,
            created=validated.created,
            released=validated.decision.released,
            headline=validated.headlines[0],
            reasons=validated.decision.reasons or _reasons(validated),
            task=prepared.task.name,
            chosen=validated.chosen,
            digests={row.check: row.digest for row in released.evidence} if released else {},
            required=tuple(check for check, _ in validated.decision.required),
            outcomes={each.name: (each.verdict, each.reason) for each in validated.outcomes},
            source=prepared.dataset.source,
            fingerprint=prepared.split.fingerprint,
            size_bytes={REFERENCE: len(trained.reference), validated.chosen: len(validated.graph)},
            lineage=_lineage(prepared, trained, validated, released),
            machine=machine_facts(fingerprint()),
            interface=interface_facts(
                Interface(
                    prepared.task.inputs,
                    prepared.task.outputs,
                    proven={"batch": validated.proven_batch},
                    values=validated.proven_values,
                )
            ),
            commands=_commands(bench, released),
            signer=released.signer if released else "",
        ),
    )
    return replace(found, curves=_curves(trained), worst=_worst(prepared, validated, prepared.labels("gate")))


def _reasons(validated: Validated) -> tuple[str, ...]:
    """Return why it was released; of the search only how much was tried, as the front shows the rest."""
    tried = next(each.summary for each in validated.evidence if each.check == "search")
    return tuple(tried.partition("; ")[0] if line == tried else line for line in validated.headlines[1:])


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


def machine_facts(machine: Mapping[str, Json]) -> tuple[tuple[str, str], ...]:
    """Return a machine's fingerprint as lines to show, libraries last."""
    rest = {name: value for name, value in machine.items() if name != "libraries"}
    libraries = machine.get("libraries")
    named = libraries.items() if isinstance(libraries, dict) else ()
    return tuple((str(name), str(value)) for name, value in (*rest.items(), *named))


def interface_facts(interface: Interface) -> tuple[tuple[str, str], ...]:
    """Return what goes in and comes out, and the sizes and values that were proven, as lines to show."""
    tensors = [("input", spec) for spec in interface.inputs] + [("output", spec) for spec in interface.outputs]
    lines = [(f"{side} {spec.name}", f"{spec.dtype} [{', '.join(map(str, spec.shape))}]") for side, spec in tensors]
    proven = [(f"proven {name}", f"{low} to {high}") for name, (low, high) in sorted(interface.proven.items())]
    ranges = interface.values
    values = [
        (f"values of {spec.name}", str(ranges[spec.name]) if spec.name in ranges else "unproven; none is refused")
        for spec in interface.inputs
        if spec.dtype not in ("BOOL", "BYTES")
    ]
    return (*lines, *proven, *values)


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
