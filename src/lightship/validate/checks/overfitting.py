"""Whether the model knows its training rows much better than others, by Newcombe's interval."""

from __future__ import annotations

from collections.abc import Mapping

from lightship.bundle.statement import Evidence
from lightship.types import Verdict
from lightship.validate.statistics import gap_interval

__all__ = ["check_overfitting"]


def check_overfitting(
    *,
    train_right: int,
    train_rows: int,
    validation_right: int,
    validation_rows: int,
    limit: float,
    subjects: Mapping[str, str],
    confidence: float = 0.95,
) -> Evidence:
    """Compare the gap between training and validation accuracy with its limit.

    ``PASSED`` when the whole interval is at most ``limit``, ``FAILED`` when all of it is above, else ``UNDECIDED``.
    Count training rows without augmentation and with dropout off, or the gap is not one.

    Args:
        train_right: training rows that the model gets right.
        train_rows: all of them.
        validation_right: validation rows that the model gets right.
        validation_rows: all of them.
        limit: largest acceptable gap, e.g. 0.05.
        subjects: what was judged, with its SHA-256.
        confidence: of the interval.
    """
    gap = gap_interval(train_right, train_rows, validation_right, validation_rows, confidence)
    verdict = Verdict.UNDECIDED
    if gap.high <= limit:
        verdict = Verdict.PASSED
    elif gap.low > limit:
        verdict = Verdict.FAILED
    return Evidence(
        check="overfitting",
        verdict=verdict,
        subjects=subjects,
        summary=(
            f"Training is {100 * gap.estimate:+.2f} points ahead of validation "
            f"({100 * gap.low:+.2f} to {100 * gap.high:+.2f}); at most {100 * limit:g} points are fine"
        ),
        measured={
            "gap": gap.to_json(),
            "train": {"right": train_right, "rows": train_rows},
            "validation": {"right": validation_right, "rows": validation_rows},
        },
        method={"limit": limit, "confidence": confidence, "interval": "Newcombe's hybrid score (method 10)"},
    )
