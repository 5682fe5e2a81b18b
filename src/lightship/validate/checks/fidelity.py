"""Whether a variant still gives the reference's answers, where no labels say which of them are right."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from lightship.bundle.statement import Evidence
from lightship.errors import InvalidInput
from lightship.types import Interval, Verdict
from lightship.validate.bounded_mean import share_rows_needed
from lightship.validate.fidelity import Fidelity, FidelityBudget

__all__ = ["check_fidelity"]

METHOD = (
    "share of broken rows and agreement: Clopper-Pearson; cosine: betting bound of the sound rows and the broken ones "
    "seen; snr_db and explained: the larger p of Student's t and Hall's transformation"
)


@dataclass(frozen=True, slots=True)
class _Figure:
    """One budgeted figure; ``interval`` is oriented so that more is better."""

    name: str
    interval: Interval | None
    budget: float
    needed: int | None
    words: str

    @property
    def verdict(self) -> Verdict:
        if self.interval is None:
            return Verdict.UNPROVEN
        if self.interval.low >= self.budget:
            return Verdict.PASSED
        return Verdict.FAILED if self.interval.high < self.budget else Verdict.UNDECIDED


def check_fidelity(
    fidelity: Fidelity, *, budget: FidelityBudget, subjects: Mapping[str, str], alpha: float = 0.05
) -> Evidence:
    """Compare every figure that has a budget with it.

    ``PASSED`` when the bounds of all reach their budgets: a variant that misses any of them passes with a probability
    of at most ``alpha`` (each is tested at alpha, and all must pass). ``FAILED`` when a figure is shown to miss its
    budget, or a row has NaN where the reference has none. Else ``UNDECIDED``, with the rows that would decide it.
    A figure that these answers do not have asks nothing, as long as another one is left.

    Args:
        fidelity: asked for with ``confidence=1 - 2 * alpha``, or more.
        budget: at least one figure.
        subjects: reference and variant, with their SHA-256.
        alpha: in (0, 0.5).

    Raises:
        InvalidInput: intervals that are too narrow for ``alpha``, or nothing budgeted.
    """
    if not 0 < alpha < 0.5 or fidelity.confidence < 1 - 2 * alpha - 1e-9:
        raise InvalidInput(
            f"Fidelity judged at an alpha of {alpha:g} needs intervals with a confidence of {1 - 2 * alpha:g}. "
            f"Got {fidelity.confidence:g}; ask the meter for `result(confidence=1 - 2 * alpha)`."
        )
    figures = [each for each in _figures(fidelity, budget, alpha) if each.interval is not None]
    if not figures:
        raise InvalidInput("The fidelity budget asks for nothing that these answers have. Set one of its figures.")
    verdicts = [each.verdict for each in figures]
    verdict = Verdict.PASSED
    if Verdict.FAILED in verdicts or fidelity.nonfinite_rows:
        verdict = Verdict.FAILED
    elif Verdict.UNDECIDED in verdicts:
        verdict = Verdict.UNDECIDED
    missed = [each for each in figures if each.verdict is not Verdict.PASSED]
    needed = [each.needed for each in missed]
    rows_needed = max((each for each in needed if each is not None), default=None) if None not in needed else None
    return Evidence(
        check="fidelity",
        verdict=verdict,
        subjects=subjects,
        summary=_summary(fidelity, missed, verdict, rows_needed),
        measured={
            **fidelity.to_json(),
            "missed": [each.name for each in missed],
            "rows_needed": rows_needed if verdict is Verdict.UNDECIDED else None,
        },
        method={"budget": budget.to_json(), "alpha": alpha, "test": METHOD},
    )


def _figures(found: Fidelity, budget: FidelityBudget, alpha: float) -> list[_Figure]:
    figures = []
    if budget.max_broken is not None:
        sound = Interval(
            1 - found.broken.estimate, 1 - found.broken.high, 1 - found.broken.low, found.confidence, found.rows
        )
        count = round(found.broken.estimate * found.rows)
        words = (
            f"{count} of {found.rows} rows are broken, at most {_percent(found.broken.high)} in truth; "
            f"{_percent(budget.max_broken)} are allowed"
        )
        needed = share_rows_needed(found.broken.estimate, limit=budget.max_broken, alpha=alpha)
        figures.append(_Figure("broken", sound, 1 - budget.max_broken, needed, words))
    if budget.min_cosine is not None and found.cosine is not None:
        figures.append(_mean("cosine", found.cosine, budget.min_cosine, ""))
    if budget.min_snr_db is not None and found.snr_db is not None:
        figures.append(_mean("snr_db", found.snr_db, budget.min_snr_db, " dB"))
    if budget.min_agreement is not None and found.agreement is not None:
        apart, limit = 1 - found.agreement.estimate, 1 - budget.min_agreement
        words = (
            f"{_percent(found.agreement.estimate)} of the rows agree, at least {_percent(found.agreement.low)} in "
            f"truth; {_percent(budget.min_agreement)} must"
        )
        needed = share_rows_needed(apart, limit=limit, alpha=alpha)
        figures.append(_Figure("agreement", found.agreement, budget.min_agreement, needed, words))
    if budget.min_explained is not None and found.explained is not None:
        figures.append(_mean("explained", found.explained, budget.min_explained, ""))
    return figures


_NOUNS = {
    "cosine": "The mean cosine to the reference's answers",
    "snr_db": "The signal-to-noise ratio",
    "explained": "The share of what tells the reference's answers apart",
}


def _mean(name: str, found: Interval, budget: float, unit: str) -> _Figure:
    words = (
        f"{_NOUNS[name]} is {found.estimate:.4g}{unit}, at least {found.low:.4g}{unit} in truth; "
        f"{budget:g}{unit} must be reached"
    )
    needed = None
    if found.estimate > budget > found.low:  # an interval shrinks as 1/sqrt(n), or faster
        needed = math.ceil(found.n * min(((found.estimate - found.low) / (found.estimate - budget)) ** 2, 1e6))
    return _Figure(name, found, budget, needed, words)


def _summary(found: Fidelity, missed: list[_Figure], verdict: Verdict, needed: int | None) -> str:
    if found.nonfinite_rows:
        return f"{found.nonfinite_rows} of {found.rows} rows give NaN or infinity where the reference gives numbers"
    if missed:
        first = min(missed, key=lambda each: (each.verdict is not Verdict.FAILED, each.name != "broken"))
        more = ""
        if verdict is Verdict.UNDECIDED:
            more = f". About {needed} rows would decide it" if needed else ". No number of such rows would show it"
        return f"{first.words}{more}"
    parts = [f"{round(found.broken.estimate * found.rows)} of {found.rows} rows broken"]
    if found.cosine is not None:
        parts.append(f"mean cosine {found.cosine.estimate:.5f} (at least {found.cosine.low:.5f})")
    if found.snr_db is not None:
        parts.append(f"{found.snr_db.estimate:.1f} dB")
    if found.agreement is not None:
        parts.append(f"agreement {_percent(found.agreement.estimate)}")
    return ", ".join(parts)


def _percent(share: float) -> str:
    return f"{100 * share:.2f}".rstrip("0").rstrip(".") + " %"
