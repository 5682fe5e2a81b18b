"""Whether the variant is as accurate as the reference, up to the margin. An exact paired test on the gate rows."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lightship.bundle.statement import Evidence
from lightship.types import Verdict
from lightship.validate.logits import require_same_shape
from lightship.validate.statistics import Noninferiority, noninferiority

__all__ = ["check_noninferiority", "evidence_of_nonfinite"]

METHOD = "exact unconditional test on Tango's score, maximized over the nuisance parameter"


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
    margin = f"{100 * result.margin:g} points"
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
