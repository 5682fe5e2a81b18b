"""What a report says in a line: the verdict's word, what each part found, what was not measured.

The page and the model card say the same, because both take it from here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lightship.types import Interval, Verdict
from lightship.validate.report import numerals
from lightship.validate.report.facts import ClassFacts, ConfusionFacts, ReportFacts

__all__ = [
    "Findings",
    "KeyQuality",
    "Missing",
    "confusion_right",
    "findings_of",
    "front_words",
    "key_quality",
    "missing_of",
    "opened_by",
    "released_word",
    "weakest_class",
]

_OPENED = {
    "accuracy": "classes",
    "class_harm": "classes",
    "slices": "slices",
    "slice_harm": "slices",
    "probabilities": "calibration",
    "fidelity": "fidelity",
    "values": "fidelity",
    "data": "data",
}


def released_word(facts: ReportFacts) -> tuple[str, str]:
    """Return the word of the verdict and the class that colors it."""
    if not facts.released:
        return "Refused", "refused"
    if facts.status == "kept":
        return "The reference stays", "kept-as-is"
    return ("Released", "released") if facts.status == "passed" else ("Released, unproven", "structural")


@dataclass(frozen=True, slots=True)
class KeyQuality:
    """The one figure of quality that comes first.

    Attributes:
        against: what it is measured against, if anything.
    """

    name: str
    unit: str
    value: Interval
    against: str = ""


def key_quality(facts: ReportFacts) -> KeyQuality | None:
    """Return accuracy or errors on the gate rows; without labels how alike the answers are to the reference's."""
    if facts.gate_accuracy is not None:
        return KeyQuality("Accuracy", "share", facts.gate_accuracy)
    if facts.losses is not None:
        unit = "number" if facts.losses.kind == "numbers" else "share"
        return KeyQuality(facts.losses.name, unit, facts.losses.overall)
    if facts.fidelity:
        name, unit, value = facts.fidelity[0]
        return KeyQuality(name, unit, value, against="with the reference")
    return None


def weakest_class(classes: Sequence[ClassFacts]) -> ClassFacts | None:
    """Return the class with the least F1."""
    known = [one for one in classes if math.isfinite(one.f1.estimate)]
    return min(known, key=lambda one: one.f1.estimate, default=None)


def confusion_right(confusion: ConfusionFacts) -> tuple[int, int]:
    """Return how many rows are right, of how many."""
    return sum(row[i] for i, row in enumerate(confusion.counts)), sum(sum(row) for row in confusion.counts)


def front_words(facts: ReportFacts) -> str:
    """Say what the front is about: how it was measured, what was preferred, how long it took."""
    front = facts.front
    tried = sum(1 for one in facts.variants if one.name != "reference")
    if not tried:
        return "No other way to run this model was tried."
    if front is None:
        return "The ways to run this model that are in the release."
    where = f" on {front.rows:,} selection rows" if front.rows else ""
    what = f"{front.measure}{' with the reference' if front.measure != 'Accuracy' else ''}{where} against speed"
    wanted = ", ".join(
        name if weight == 1 else f"{name} x {weight:g}"
        for name, weight in front.objective.items()
        if weight and math.isfinite(weight)
    )
    parts = [f"{what}, for the reference and {tried} {'variant' if tried == 1 else 'variants'}."]
    if wanted:
        took = f" in {front.minutes:.1f} minutes" if front.minutes and math.isfinite(front.minutes) else ""
        parts.append(f"Wanted: {wanted}; searched{took}{f' on {front.cores} cores' if front.cores else ''}.")
    return " ".join(parts)


@dataclass(frozen=True, slots=True)
class Findings:
    """One line a part of the page, to be read without opening it."""

    classes: str = ""
    confusion: str = ""
    losses: str = ""
    slices: str = ""
    calibration: str = ""
    worst: str = ""
    fidelity: str = ""
    training: str = ""
    data: str = ""
    origin: str = ""


def findings_of(facts: ReportFacts) -> Findings:
    """Return what each part found."""
    return Findings(
        classes=_classes(facts),
        confusion=_confusion(facts),
        losses=_losses(facts),
        slices=_slices(facts),
        calibration=_calibration(facts),
        worst=f"{len(facts.worst)} inputs, the most surely wrong first." if facts.worst else "",
        fidelity=_fidelity(facts),
        training=_training(facts),
        data=_data(facts),
        origin="Digests, machine and library versions.",
    )


def _classes(facts: ReportFacts) -> str:
    weakest = weakest_class(facts.per_class)
    if weakest is None:
        return ""
    if len(facts.per_class) == 1:
        return f"One {_class(facts)} with an F1 of {numerals.percent(weakest.f1.estimate)}."
    f1 = numerals.percent(weakest.f1.estimate)
    name = _short(weakest.label) if facts.losses is None else f"tag {_short(weakest.label)}"
    return f"Weakest of {len(facts.per_class)}: {name} with an F1 of {f1}."


def _class(facts: ReportFacts) -> str:
    return "class" if facts.losses is None else "tag"


def _short(label: str) -> str:
    return label if len(label) <= 40 else label[:39] + "…"


def _confusion(facts: ReportFacts) -> str:
    if facts.confusion is None:
        return ""
    right, rows = confusion_right(facts.confusion)
    return f"{right:,} of {rows:,} gate rows are right."


def _losses(facts: ReportFacts) -> str:
    found = facts.losses
    if found is None:
        return ""
    unit = "number" if found.kind == "numbers" else "share"
    explained = f", R² {found.r2:.3f}" if found.r2 is not None else ""
    return f"{found.name} {numerals.quality(found.overall, unit)}{explained} on {found.overall.n:,} gate rows."


def _slices(facts: ReportFacts) -> str:
    harmed = [one.words for one in facts.slice_harm if one.verdict is Verdict.FAILED]
    if harmed:
        return f"The variant harms: {_short(harmed[0])}."
    worse = [one for one in facts.slices if one.worse]
    if worse:
        first = _short(worse[0].words.rstrip(". "))
        end = "" if first.endswith("…") else "."
        return f"Shown to be worse: {len(worse)} of {len(facts.slices)} slices, first {first}{end}"
    if facts.slices:
        looked = "1 slice" if len(facts.slices) == 1 else f"{len(facts.slices)} slices"
        return f"{looked} looked at; none is shown to be worse than the rest."
    return "No harm to a slice is shown." if facts.slice_harm else ""


def _calibration(facts: ReportFacts) -> str:
    found = facts.calibration
    if found is None:
        return ""
    known = [one for one in found.bins if one.rows and math.isfinite(one.confidence)]
    rows = sum(one.rows for one in known) or 1
    gap = sum(one.rows * (one.confidence - one.accuracy.estimate) for one in known) / rows
    lean = "" if abs(gap) < 0.005 else ", too sure of itself" if gap > 0 else ", less sure than right"
    return f"Calibration error {numerals.percent(found.ece.estimate)}{lean}."


def _fidelity(facts: ReportFacts) -> str:
    words = [f"{name} {numerals.quality(value, unit)}" for name, unit, value in facts.fidelity if name != "Broken rows"]
    if facts.divergence:
        words.append(f"first layer that differs: {_short(facts.divergence[0].layer)}")
    bad = [one for one in facts.values if one.problem]
    if facts.values:
        words.append(f"{len(facts.values)} extreme values tried, {len(bad) or 'none'} with a problem")
    text = ", ".join(words)
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def _training(facts: ReportFacts) -> str:
    curves = facts.curves
    if curves is None or not curves.epochs:
        return ""
    return f"{len(curves.epochs)} epochs; the weights of epoch {curves.best_epoch} were kept."


def _data(facts: ReportFacts) -> str:
    data = facts.data
    if data is None:
        return ""
    twins = facts.near_duplicates
    told = f"; {twins.gate_rows:,} gate rows have a near duplicate elsewhere" if twins and twins.gate_rows else ""
    looks = f"look {data.gate_looks} at the gate rows" if data.gate_looks else ""
    return f"{data.rows:,} rows{f', {looks}' if looks else ''}{told}."


def opened_by(facts: ReportFacts) -> set[str]:
    """Return the parts that are shown open: those that say why a release was refused."""
    if facts.released:
        return set()
    failed = [one.check for one in facts.evidence if one.required and one.verdict is not Verdict.PASSED]
    return {_OPENED[check] for check in failed if check in _OPENED}


@dataclass(frozen=True, slots=True)
class Missing:
    """Something that nobody measured.

    Attributes:
        name: as a title.
        short: in a word or two, for a list.
        why: as far as it is known.
    """

    name: str
    short: str
    why: str


def missing_of(facts: ReportFacts) -> list[Missing]:
    """Return what nobody measured: the limits of what this report shows."""
    missing = [
        Missing(one.title, one.check.replace("_", " "), one.summary)
        for one in facts.evidence
        if one.verdict is Verdict.UNPROVEN
    ]
    told = {one.check for one in facts.evidence}
    lacking = (
        ("Quality", "No labeled rows: how often the answers are right is not known.", not key_quality(facts)),
        ("Speed", "No variant was timed.", not any(one.latency_p50_ms for one in facts.variants)),
        (
            "Every class by itself",
            "No labels, or the gate rows were not reached.",
            not (facts.per_class or facts.losses),
        ),
        ("Slices", "Nobody looked for groups of rows where it is weaker.", not (facts.slices or facts.slice_harm)),
        (
            "Calibration",
            "Whether it is as sure as it is right was not looked at.",
            not (facts.calibration or facts.losses),
        ),
        ("Extreme and broken values", "What it makes of broken and of huge numbers was not tried.", not facts.values),
        (
            "Near duplicates",
            "Whether rows of one part are nearly those of another was not looked for.",
            facts.near_duplicates is None,
        ),
        ("Data", "No rows were given.", facts.data is None),
        ("Evidence", "No check was made.", not facts.evidence),
    )
    checks = {"Slices": "slices", "Calibration": "calibration", "Extreme and broken values": "values"}
    for name, why, is_missing in lacking:
        if is_missing and checks.get(name, "") not in told and (name != "Quality" or "accuracy" not in told):
            missing.append(Missing(name, name[:1].lower() + name[1:], why))
    return missing
