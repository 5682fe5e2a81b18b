"""Whether the variant is as good as the reference, up to the margin. A paired test on the gate rows.

Which test depends on the answers: exact for classes, bounded for tags, Student's and Hall's t for numbers. The evidence
has one name, ``noninferiority``, and ``method["test"]`` says which.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lightship.bundle.statement import Evidence
from lightship.types import Verdict
from lightship.validate.logits import require_same_shape
from lightship.validate.paired_losses import GROWN, MAX_GROWN, NumberNoninferiority, PairedNumbers, PairedTags
from lightship.validate.statistics import Noninferiority, noninferiority

__all__ = [
    "check_noninferiority",
    "check_noninferiority_of_numbers",
    "check_noninferiority_of_tags",
    "evidence_of_nonfinite",
]

METHOD = "exact unconditional test on Tango's score, maximized over the nuisance parameter"
METHOD_OF_NUMBERS = "the larger p of Student's t and Hall's transformation; grown rows: Clopper-Pearson"
METHOD_OF_TAGS = "betting bound of a bounded mean"


def check_noninferiority(
    truth: np.ndarray,
    reference: np.ndarray,
    variant: np.ndarray,
    *,
    margin: float,
    subjects: Mapping[str, str],
    alpha: float = 0.05,
) -> Evidence:
    """Test the variant's labels against the reference's on the same rows. See ``statistics.noninferiority``.

    Args:
        truth: int classes, shape (n,).
        reference: labels of the reference variant, shape (n,).
        variant: labels of the candidate, shape (n,).
        margin: a drop in accuracy of this much is too much.
        subjects: reference and variant, with their SHA-256.
        alpha: probability of releasing a variant that lost the margin; candidates share it.
    """
    require_same_shape(truth=truth, reference=reference, variant=variant)
    right, right_too = reference == truth, variant == truth
    result = noninferiority(
        int((right & ~right_too).sum()), int((~right & right_too).sum()), len(truth), margin=margin, alpha=alpha
    )
    return Evidence(
        check="noninferiority",
        verdict=result.verdict,
        subjects=subjects,
        summary=_summary(result),
        measured={
            "losses": result.losses,
            "gains": result.gains,
            "rows": result.n,
            "difference": result.difference.to_json(),
            "p_noninferior": result.p_noninferior,
            "p_inferior": result.p_inferior,
            "rows_needed": result.rows_needed,
        },
        method={"margin": margin, "alpha": alpha, "test": METHOD},
    )


def _summary(result: Noninferiority) -> str:
    counts = (
        f"{result.losses} rows lost, {result.gains} gained of {result.n}: "
        f"accuracy {100 * result.difference.estimate:+.2f} points (at least {100 * result.difference.low:+.2f})"
    )
    margin = f"{100 * result.margin:g} point{'' if result.margin == 0.01 else 's'}"
    if result.verdict is Verdict.PASSED:
        return f"{counts}; a drop of {margin} is ruled out"
    if result.verdict is Verdict.FAILED:
        return f"{counts}; a drop of more than {margin} is shown"
    return f"{counts}; a drop of {margin} is neither shown nor ruled out. {_more_rows(result)}"


def _more_rows(result: Noninferiority) -> str:
    if result.rows_needed is None or result.rows_needed <= result.n:
        return f"{result.n} rows suffice for a variant without a drop, so this one has probably a real one"
    return f"{result.rows_needed} gate rows would decide it for a variant without a drop"


def evidence_of_nonfinite(rows: np.ndarray, *, total: int, margin: float, subjects: Mapping[str, str]) -> Evidence:
    """Return the evidence against a variant that gives NaN or infinity: there are no labels to compare."""
    return Evidence(
        check="noninferiority",
        verdict=Verdict.FAILED,
        subjects=subjects,
        summary=f"{rows.size} of {total} rows give NaN or infinite logits, the first is gate row {int(rows[0])}",
        measured={"nonfinite_rows": int(rows.size), "first_nonfinite_row": int(rows[0]), "rows": total},
        method={"margin": margin, "test": "every logit must be finite"},
    )


def check_noninferiority_of_numbers(
    losses: PairedNumbers, *, margin: float, subjects: Mapping[str, str], alpha: float = 0.05
) -> Evidence:
    """Test the variant's mean absolute and root mean squared error against the reference's. See ``paired_losses``.

    Args:
        losses: was given all gate rows.
        margin: relative: 0.02 allows errors that are 2 % larger.
        subjects: reference and variant, with their SHA-256.
        alpha: probability of releasing a variant whose errors are larger by the margin; candidates share it.
    """
    found = losses.test(margin=margin, alpha=alpha)
    return Evidence(
        check="noninferiority",
        verdict=found.verdict,
        subjects=subjects,
        summary=_summary_of_numbers(found),
        measured={
            "rows": found.rows,
            "nonfinite_rows": found.nonfinite_rows,
            "mae": found.mae.to_json(),
            "rmse": found.rmse.to_json(),
            "grown": found.grown.to_json(),
            "rows_needed": found.rows_needed,
        },
        method={
            "margin": margin,
            "alpha": alpha,
            "test": METHOD_OF_NUMBERS,
            "grown": f"the error exceeds the reference's by {GROWN:g} of its mean errors",
            "max_grown": MAX_GROWN,
        },
    )


def _summary_of_numbers(found: NumberNoninferiority) -> str:
    if found.nonfinite_rows:
        return f"{found.nonfinite_rows} of {found.rows} rows give NaN or infinity"
    worst = max(
        (("mean absolute error", found.mae), ("root mean squared error", found.rmse)), key=lambda each: each[1].ratio
    )
    name, figure = worst
    counts = (
        f"The {name} is {figure.variant:.4g}, the reference's {figure.reference:.4g} "
        f"({100 * (figure.ratio - 1):+.2f} %) on {found.rows} rows"
    )
    margin = f"{100 * found.margin:g} %"
    if found.verdict is Verdict.PASSED:
        return f"{counts}; growth of {margin} is ruled out"
    if found.grown.high > MAX_GROWN and max(found.mae.p_noninferior, found.rmse.p_noninferior) <= found.alpha:
        grown = round(found.grown.estimate * found.rows)
        counts = (
            f"{grown} of {found.rows} rows err much more than before, at most {100 * found.grown.high:.2g} % in truth; "
            f"{100 * MAX_GROWN:g} % are allowed"
        )
    elif found.verdict is Verdict.FAILED:
        return f"{counts}; growth of more than {margin} is shown"
    else:
        counts = f"{counts}; growth of {margin} is neither shown nor ruled out"
    if found.rows_needed is not None and found.rows_needed > found.rows:
        return f"{counts}. {found.rows_needed} gate rows would decide it for a variant that errs as the reference does"
    return counts


def check_noninferiority_of_tags(
    losses: PairedTags, *, margin: float, subjects: Mapping[str, str], alpha: float = 0.05
) -> Evidence:
    """Test the variant's share of wrong tags against the reference's.

    Args:
        losses: was given all gate rows.
        margin: absolute: 0.01 allows one more wrong tag in a hundred.
        subjects: reference and variant, with their SHA-256.
        alpha: as in ``check_noninferiority``.
    """
    found = losses.test(margin=margin, alpha=alpha)
    summary = (
        f"{100 * found.variant:.2f} % of the tags are wrong, of the reference {100 * found.reference:.2f} %: "
        f"at most {100 * found.difference.high:+.2f} points on {found.rows} rows; {100 * margin:g} are too much"
    )
    if found.nonfinite_rows:
        summary = f"{found.nonfinite_rows} of {found.rows} rows give NaN or infinity"
    elif found.rows_needed is not None:
        summary = f"{summary}. About {found.rows_needed} rows would decide it"
    return Evidence(
        check="noninferiority",
        verdict=found.verdict,
        subjects=subjects,
        summary=summary,
        measured={
            "rows": found.rows,
            "nonfinite_rows": found.nonfinite_rows,
            "reference": found.reference,
            "variant": found.variant,
            "difference": found.difference.to_json(),
            "rows_needed": found.rows_needed,
        },
        method={"margin": margin, "alpha": alpha, "test": METHOD_OF_TAGS},
    )
