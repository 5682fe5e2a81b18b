"""Slices that were found on selection rows, told on gate rows: of the model itself, and of a variant.

The model's own slices are reported: some group is always the worst. Harm that a variant does to a slice refuses it, as
harm to a class does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lightship.bundle.statement import Evidence
from lightship.types import Interval, Json, Verdict
from lightship.validate.logits import labels_of, nonfinite_rows, probabilities_of, require_same_shape
from lightship.validate.slices import Features, Slice, find_slices, least_rows, p_worse
from lightship.validate.statistics import holm, mcnemar_one_sided, wilson

__all__ = ["FINDER", "Judged", "check_slice_harm", "check_slices", "short"]

FINDER = (
    "regression tree of depth 3 on the selection rows, grown again outside of the worst node; at most 5 slices of at "
    "least 2 % of the selection rows and 15"
)


@dataclass(frozen=True, slots=True)
class Judged:
    """Rows of one part: features, true classes (n,), and logits (n, classes) by what gave them."""

    features: Features
    truth: np.ndarray
    logits: np.ndarray
    """Of the model that is judged: the variant, where one is."""
    reference: np.ndarray | None = None
    """Of the reference, where a variant is judged."""


@dataclass(frozen=True, slots=True)
class _Accuracy:
    """How a slice fares."""

    found: Slice
    before: tuple[int, int]
    rows: int
    correct: int
    of: int
    interval: Interval
    p: float
    p_adjusted: float
    worse: bool

    def to_json(self) -> dict[str, Json]:
        return {
            "words": self.found.words,
            "conditions": self.found.to_json(),
            "selection": {"rows": self.before[0], "correct": self.before[1]},
            "gate": {"rows": self.rows, "correct": self.correct},
            "share": self.rows / self.of,
            "accuracy": self.interval.to_json(),
            "p": self.p,
            "p_adjusted": self.p_adjusted,
            "worse": self.worse,
        }


def check_slices(selection: Judged, gate: Judged, *, subjects: Mapping[str, str], alpha: float = 0.05) -> Evidence:
    """Find the slices in which the model errs most, and tell their accuracy on the gate rows.

    ``PASSED`` whatever is found: it is shown, and no budget applies. ``UNPROVEN`` with too few selection rows to look.

    Args:
        selection: rows that the slices are found on.
        gate: other rows, that they are told on.
        subjects: what was judged, with its SHA-256.
        alpha: probability that any slice is called worse than the other rows and is not (Fisher's exact test, Holm);
            and that any of the intervals misses.
    """
    few = _too_few(selection)
    wrong, wrong_before = _wrong(gate), _wrong(selection)
    found = () if few else find_slices(selection.features, wrong_before.astype(np.float64))
    told = _accuracies(found, selection.features, wrong_before, gate.features, wrong, alpha)
    overall = wilson(int((~wrong).sum()), len(wrong), 1 - alpha)
    return Evidence(
        check="slices",
        verdict=Verdict.UNPROVEN if few else Verdict.PASSED,
        subjects=subjects,
        summary=_own_summary(told, len(selection.truth), few=few, overall=overall.estimate),
        measured={
            "rows": len(wrong),
            "selection_rows": len(selection.truth),
            "accuracy": overall.to_json(),
            "slices": [each.to_json() for each in told],
            "worse": [each.found.words for each in told if each.worse],
        },
        method={
            "alpha": alpha,
            "found": FINDER,
            "features": [*_names(selection.features)],
            "interval": "Wilson on gate rows, Bonferroni over the slices",
            "test": "Fisher's exact one-sided test against the other gate rows, Holm",
        },
    )


def _accuracies(
    found: Sequence[Slice],
    features_before: Features,
    wrong_before: np.ndarray,
    features: Features,
    wrong: np.ndarray,
    alpha: float,
) -> list[_Accuracy]:
    """Return the slices that have gate rows, the least accurate first."""
    there = [(each, each.holds(features)) for each in found]
    there = [(each, here) for each, here in there if here.any()]
    p_values = [
        p_worse(int(wrong[here].sum()), int(here.sum()), int(wrong[~here].sum()), int((~here).sum()))
        for _, here in there
    ]
    told = []
    for (each, here), p, p_adjusted in zip(there, p_values, holm(p_values), strict=True):
        before, rows, correct = each.holds(features_before), int(here.sum()), int((~wrong[here]).sum())
        told.append(
            _Accuracy(
                found=each,
                before=(int(before.sum()), int((~wrong_before[before]).sum())),
                rows=rows,
                correct=correct,
                of=len(wrong),
                interval=wilson(correct, rows, 1 - alpha / len(there)),
                p=p,
                p_adjusted=p_adjusted,
                worse=p_adjusted <= alpha,
            )
        )
    return sorted(told, key=lambda each: each.interval.estimate)


@dataclass(frozen=True, slots=True)
class _Harm:
    """What a variant does to a slice."""

    found: Slice
    before: tuple[int, int, int]
    rows: int
    losses: int
    gains: int
    p: float
    p_adjusted: float
    harmed: bool
    undecided: bool

    @property
    def drop(self) -> float:
        return (self.losses - self.gains) / self.rows

    def to_json(self) -> dict[str, Json]:
        rows, losses, gains = self.before
        return {
            "words": self.found.words,
            "conditions": self.found.to_json(),
            "selection": {"rows": rows, "losses": losses, "gains": gains},
            "gate": {"rows": self.rows, "losses": self.losses, "gains": self.gains},
            "drop": self.drop,
            "p": self.p,
            "p_adjusted": self.p_adjusted,
            "harmed": self.harmed,
            "undecided": self.undecided,
        }


def check_slice_harm(
    selection: Judged,
    gate: Judged,
    *,
    subjects: Mapping[str, str],
    alpha: float = 0.05,
    margin: float = 0.01,
    undecided_margin: float = 0.05,
) -> Evidence:
    """Find the slices in which the variant loses most against the reference, and test them for harm on the gate rows.

    Slices are looked for by lost rows and by lost probability of the true class, which tells more than the few rows
    whose label changes. ``FAILED`` when for some slice more losses than gains are shown (exact one-sided McNemar, Holm
    over the slices), and its drop is the gate's margin or more.

    Args:
        selection: rows that the slices are found on.
        gate: other rows, that they are tested on.
        subjects: reference and variant, with their SHA-256.
        alpha: probability of a false alarm over all slices.
        margin: a smaller drop is no harm, however surely it is shown: a gate that allows it overall cannot forbid it
            to a part.
        undecided_margin: a slice of which a larger drop is not ruled out is reported as undecided.

    Raises:
        InvalidTensor: logits of unequal shapes.
    """
    few = _too_few(selection)
    lost, gained = _paired(gate)
    lost_before, gained_before = _paired(selection)
    target = lost_before.astype(np.float64) - gained_before + _lost_probability(selection)
    found = () if few else find_slices(selection.features, target)
    there = [(each, each.holds(gate.features)) for each in found]
    there = [(each, here) for each, here in there if here.any()]
    p_values = [mcnemar_one_sided(int(lost[here].sum()), int(gained[here].sum())) for _, here in there]
    told = []
    for (each, here), p, p_adjusted in zip(there, p_values, holm(p_values), strict=True):
        before, rows = each.holds(selection.features), int(here.sum())
        losses, gains = int(lost[here].sum()), int(gained[here].sum())
        harmed = p_adjusted <= alpha and losses - gains >= margin * rows
        told.append(
            _Harm(
                found=each,
                before=(int(before.sum()), int(lost_before[before].sum()), int(gained_before[before].sum())),
                rows=rows,
                losses=losses,
                gains=gains,
                p=p,
                p_adjusted=p_adjusted,
                harmed=harmed,
                undecided=not harmed and wilson(losses, rows, 1 - 2 * alpha).high - gains / rows > undecided_margin,
            )
        )
    told.sort(key=lambda each: -each.drop)
    harmed_ones = [each for each in told if each.harmed]
    return Evidence(
        check="slice_harm",
        verdict=Verdict.FAILED if harmed_ones else Verdict.PASSED,
        subjects=subjects,
        summary=_harm_summary(harmed_ones, told, few=few),
        measured={
            "rows": len(gate.truth),
            "selection_rows": len(selection.truth),
            "slices": [each.to_json() for each in told],
            "harmed": [each.found.words for each in harmed_ones],
            "lost_most": harmed_ones[0].found.words if harmed_ones else None,
        },
        method={
            "alpha": alpha,
            "margin": margin,
            "undecided_margin": undecided_margin,
            "found": FINDER,
            "features": [*_names(selection.features)],
            "test": "exact one-sided McNemar on the gate rows of each slice, Holm",
        },
    )


def _too_few(selection: Judged) -> bool:
    return len(selection.truth) < 2 * least_rows(len(selection.truth))


def _wrong(part: Judged) -> np.ndarray:
    wrong = np.asarray(labels_of(part.logits) != part.truth)
    wrong[nonfinite_rows(part.logits)] = True
    return wrong


def _paired(part: Judged) -> tuple[np.ndarray, np.ndarray]:
    """Return which rows only the reference, and which only the variant, got right."""
    right, right_too = labels_of(_reference(part)) == part.truth, ~_wrong(part)
    return np.asarray(right & ~right_too), np.asarray(~right & right_too)


def _lost_probability(part: Judged) -> np.ndarray:
    rows = np.arange(len(part.truth))
    found = probabilities_of(np.nan_to_num(part.logits.astype(np.float64)))
    return np.asarray(probabilities_of(_reference(part))[rows, part.truth] - found[rows, part.truth])


def _reference(part: Judged) -> np.ndarray:
    reference = part.logits if part.reference is None else part.reference
    require_same_shape(reference=reference, variant=part.logits)
    return reference


def _names(features: Features) -> tuple[str, ...]:
    return (*features.numbers, *features.classes)


def _own_summary(told: Sequence[_Accuracy], selection_rows: int, *, few: bool, overall: float) -> str:
    if few:
        return f"{selection_rows} selection rows are too few to look for slices"
    if not told:
        return "No slice of the selection rows stands out"
    worst, worse = told[0], sum(each.worse for each in told)
    return (
        f"Worst slice: {short(worst.found.words)}, accuracy {worst.interval.estimate:.4f} on {worst.rows} gate rows "
        f"(all rows {overall:.4f}); {worse or 'none'} of {len(told)} slices shown to be worse than the other rows"
    )


def _harm_summary(harmed: Sequence[_Harm], told: Sequence[_Harm], *, few: bool) -> str:
    if few:
        return "Too few selection rows to look for slices that are harmed"
    if not harmed:
        undecided = sum(each.undecided for each in told)
        return f"No harm to a slice is shown; {undecided} of {len(told)} slices have too few rows to rule it out"
    worst = harmed[0]
    return (
        f"The slice {short(worst.found.words)} lost most: {worst.losses} of its {worst.rows} rows lost, "
        f"{worst.gains} gained; harm is shown for {len(harmed)} of {len(told)} slices"
    )


def short(words: str) -> str:
    """Return the words of a slice for a summary."""
    return words if len(words) <= 300 else words[:299] + "…"
