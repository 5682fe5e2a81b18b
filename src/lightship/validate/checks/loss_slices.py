"""Slices by the loss of each row, where answers are numbers, tags, or classes without scores.

As ``slices`` does for classes with scores: found on selection rows, told and tested on gate rows. The model's own
slices are reported; harm that a variant does to a slice refuses it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lightship.bundle.statement import Evidence
from lightship.types import Interval, Json, Verdict
from lightship.validate.checks.slices import FINDER, short
from lightship.validate.meters import Kind, mean_interval
from lightship.validate.paired_losses import Growth, growth_of
from lightship.validate.row_losses import LOSS_NAMES
from lightship.validate.slices import Features, Slice, find_slices, least_rows
from lightship.validate.statistics import holm

__all__ = ["LossRows", "check_loss_slice_harm", "check_loss_slices", "p_larger"]

_DRAWS = 1999
_UNDECIDED = 5.0  # times the margin: growth of a slice by this much is told where it is not ruled out


@dataclass(frozen=True, slots=True)
class LossRows:
    """Rows of one part: features, and the loss of each row by what answered."""

    features: Features
    loss: np.ndarray
    """Of the model that is judged: the variant, where one is."""
    reference: np.ndarray | None = None
    """Of the reference, where a variant is judged."""


def p_larger(values: np.ndarray, inside: np.ndarray, *, seed: int = 0) -> float:
    """Return the one-sided p-value that the mean inside is larger than elsewhere, by 1,999 random permutations.

    Exact where membership has nothing to do with the values, whatever their distribution; 1 without other rows.
    """
    rows, count = len(values), int(inside.sum())
    if not 0 < count < rows:
        return 1.0
    random = np.random.default_rng(seed)
    few = min(count, rows - count)  # the sum of the smaller side tells that of the other
    total, seen = float(values.sum()), float(values[inside].sum())
    sums = np.array([values[random.choice(rows, few, replace=False, shuffle=False)].sum() for _ in range(_DRAWS)])
    drawn = sums if few == count else total - sums
    return float((1 + (drawn >= seen - 1e-12 * abs(total)).sum()) / (1 + _DRAWS))


def check_loss_slices(
    kind: Kind, selection: LossRows, gate: LossRows, *, subjects: Mapping[str, str], alpha: float = 0.05
) -> Evidence:
    """Find the slices with the largest losses, and tell their mean losses on the gate rows.

    ``PASSED`` whatever is found: it is shown, and no budget applies. ``UNPROVEN`` with too few selection rows to look,
    or rows without a finite answer.

    Args:
        kind: what the labels are.
        selection: rows that the slices are found on.
        gate: other rows, that they are told on.
        subjects: what was judged, with its SHA-256.
        alpha: probability that any slice is called worse than the other rows and is not; and of the intervals.
    """
    few, broken = _too_few(selection), not (np.isfinite(gate.loss).all() and np.isfinite(selection.loss).all())
    found = () if few or broken else find_slices(selection.features, selection.loss)
    there = [(each, each.holds(gate.features)) for each in found]
    there = [(each, here) for each, here in there if here.any()]
    p_values = [p_larger(gate.loss, here) for _, here in there]
    overall = None if broken else _mean(gate.loss, kind, 1 - alpha)
    told: list[_Told] = []
    for (each, here), p, adjusted in zip(there, p_values, holm(p_values), strict=True):
        before = each.holds(selection.features)
        told.append(
            _Told(
                found=each,
                before=(int(before.sum()), float(selection.loss[before].mean())),
                share=float(here.mean()),
                loss=_mean(gate.loss[here], kind, 1 - alpha / len(there)),
                p=p,
                p_adjusted=adjusted,
                worse=adjusted <= alpha,
            )
        )
    told.sort(key=lambda each: -each.loss.estimate)
    return Evidence(
        check="slices",
        verdict=Verdict.UNPROVEN if few or broken else Verdict.PASSED,
        subjects=subjects,
        summary=_summary(told, kind, overall, rows=len(selection.loss), few=few, broken=broken),
        measured={
            "kind": kind,
            "loss": LOSS_NAMES[kind],
            "rows": len(gate.loss),
            "selection_rows": len(selection.loss),
            "overall": overall.to_json() if overall else None,
            "slices": [each.to_json() for each in told],
            "worse": [each.found.words for each in told if each.worse],
        },
        method={
            "alpha": alpha,
            "found": FINDER,
            "features": [*selection.features.numbers, *selection.features.classes],
            "interval": "Student's t on gate rows, Bonferroni over the slices",
            "test": f"one-sided permutation test against the other gate rows ({_DRAWS} draws), Holm",
        },
    )


def check_loss_slice_harm(
    kind: Kind,
    selection: LossRows,
    gate: LossRows,
    *,
    subjects: Mapping[str, str],
    alpha: float = 0.05,
    margin: float = 0.02,
) -> Evidence:
    """Find the slices whose losses the variant lets grow most, and test them for harm on the gate rows.

    ``FAILED`` when for some slice losses are shown to have grown by more than the margin. In numbers that is a share of
    the slice's own loss, and the growth must be that share of the mean loss of all rows too: who errs by next to
    nothing somewhere may err by a little more there.

    Args:
        kind: what the labels are.
        selection: rows that the slices are found on, with the reference's losses.
        gate: other rows, that they are tested on.
        subjects: reference and variant, with their SHA-256.
        alpha: probability of a false alarm over all slices.
        margin: of the gate: what it allows overall it cannot forbid to a part.
    """
    assert selection.reference is not None  # noqa: S101 - a variant is judged beside its reference
    assert gate.reference is not None  # noqa: S101
    few, bounded = _too_few(selection), kind != "numbers"
    target = np.minimum(selection.loss, 1e30) - selection.reference
    found = () if few else find_slices(selection.features, target)
    there = [(each, each.holds(gate.features)) for each in found]
    there = [(each, here) for each, here in there if here.any()]
    usual = float(gate.reference.mean())
    told: list[_Harm] = []
    for each, here in there:
        growth = growth_of(
            gate.reference[here], gate.loss[here], bounded=bounded, margin=margin, alpha=alpha / len(there)
        )
        material = bounded or growth.variant - growth.reference > margin * usual
        told.append(_Harm(each, growth, harmed=growth.shown and material, margin=margin))
    told.sort(key=lambda each: -(each.growth.variant - each.growth.reference))
    harmed = [each for each in told if each.harmed]
    return Evidence(
        check="slice_harm",
        verdict=Verdict.FAILED if harmed else Verdict.PASSED,
        subjects=subjects,
        summary=_harm_summary(harmed, told, kind, few=few),
        measured={
            "kind": kind,
            "loss": LOSS_NAMES[kind],
            "rows": len(gate.loss),
            "selection_rows": len(selection.loss),
            "usual": usual,
            "slices": [each.to_json() for each in told],
            "harmed": [each.found.words for each in harmed],
            "lost_most": harmed[0].found.words if harmed else None,
        },
        method={
            "alpha": alpha,
            "margin": margin,
            "relative": not bounded,
            "found": FINDER,
            "features": [*selection.features.numbers, *selection.features.classes],
            "test": (
                "betting bound of the mean growth on the gate rows of each slice, Bonferroni"
                if bounded
                else "the larger p of Student's t and Hall's transformation, paired over the gate rows of each slice, "
                "Bonferroni"
            ),
        },
    )


@dataclass(frozen=True, slots=True)
class _Told:
    found: Slice
    before: tuple[int, float]
    share: float
    loss: Interval
    p: float
    p_adjusted: float
    worse: bool

    def to_json(self) -> dict[str, Json]:
        return {
            "words": self.found.words,
            "conditions": self.found.to_json(),
            "selection": {"rows": self.before[0], "loss": self.before[1]},
            "gate": {"rows": self.loss.n},
            "share": self.share,
            "loss": self.loss.to_json(),
            "p": self.p,
            "p_adjusted": self.p_adjusted,
            "worse": self.worse,
        }


@dataclass(frozen=True, slots=True)
class _Harm:
    found: Slice
    growth: Growth
    harmed: bool
    margin: float

    @property
    def undecided(self) -> bool:
        return not self.harmed and self.growth.high > _UNDECIDED * self.margin

    def to_json(self) -> dict[str, Json]:
        return {
            "words": self.found.words,
            "conditions": self.found.to_json(),
            "gate": {"rows": self.growth.rows},
            "reference": self.growth.reference,
            "variant": self.growth.variant if math.isfinite(self.growth.variant) else None,
            "high": self.growth.high if math.isfinite(self.growth.high) else None,
            "harmed": self.harmed,
            "undecided": self.undecided,
        }


def _mean(values: np.ndarray, kind: Kind, confidence: float) -> Interval:
    found = mean_interval(values, confidence, low=0.0, high=math.inf if kind == "numbers" else 1.0)
    assert found is not None  # noqa: S101 - there are rows
    return found


def _too_few(selection: LossRows) -> bool:
    return len(selection.loss) < 2 * least_rows(len(selection.loss))


def _summary(told: Sequence[_Told], kind: Kind, overall: Interval | None, *, rows: int, few: bool, broken: bool) -> str:
    if broken or overall is None:
        return "Slices need finite answers; some rows have none"
    if few:
        return f"{rows} selection rows are too few to look for slices"
    if not told:
        return "No slice of the selection rows stands out"
    worst, worse = told[0], sum(each.worse for each in told)
    return (
        f"Worst slice: {short(worst.found.words)}, {LOSS_NAMES[kind]} {worst.loss.estimate:.4g} on {worst.loss.n} gate "
        f"rows (all rows {overall.estimate:.4g}); "
        f"{worse or 'none'} of {len(told)} slices shown to be worse than the other rows"
    )


def _harm_summary(harmed: Sequence[_Harm], told: Sequence[_Harm], kind: Kind, *, few: bool) -> str:
    if few:
        return "Too few selection rows to look for slices that are harmed"
    if not harmed:
        undecided = sum(each.undecided for each in told)
        return f"No harm to a slice is shown; {undecided} of {len(told)} slices have too few rows to rule it out"
    worst = harmed[0]
    return (
        f"The slice {short(worst.found.words)} lost most: its {LOSS_NAMES[kind]} is {worst.growth.variant:.4g}, of "
        f"the reference {worst.growth.reference:.4g} on the same {worst.growth.rows} rows; harm is shown for "
        f"{len(harmed)} of {len(told)} slices"
    )
