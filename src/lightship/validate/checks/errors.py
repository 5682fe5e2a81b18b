"""What the model gets wrong, for people to look at: the most frequent mistakes and the worst rows. Reported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lightship.bundle.statement import Evidence
from lightship.types import Json, Verdict
from lightship.validate.errors_found import find_errors

__all__ = ["check_errors"]

_MOST_CLASSES = 100  # a larger matrix says nothing to a person, and a thousand classes would be a million numbers


def check_errors(
    logits: np.ndarray,
    truth: np.ndarray,
    *,
    labels: Sequence[str],
    rows: Sequence[str],
    subjects: Mapping[str, str],
) -> Evidence:
    """Record the confusion matrix, the most frequent mistakes, and the worst rows by id.

    ``PASSED`` whatever is found: the budget of accuracy is another check's.

    Args:
        logits: on the gate rows, (rows, classes).
        truth: int classes, (rows,).
        labels: of the classes.
        rows: ids of the rows.
        subjects: what was judged, with its SHA-256.
    """
    found = find_errors(logits, truth, labels=labels, rows=rows)
    confusion: list[Json] | None = None
    if len(labels) <= _MOST_CLASSES:
        confusion = [[int(cell) for cell in line] for line in found.confusion]
    summary = f"{found.wrong} of {found.rows} gate rows are answered wrongly"
    if found.mistakes:
        often = found.mistakes[0]
        summary += (
            f"; most often {often.truth!r:.80} is taken for {often.predicted!r:.80}, {often.rows} of {often.of} rows"
        )
    return Evidence(
        check="errors",
        verdict=Verdict.PASSED,
        subjects=subjects,
        summary=summary,
        measured={
            "rows": found.rows,
            "wrong": found.wrong,
            "confusion": confusion,
            "pairs": [each.to_json() for each in found.mistakes],
            "worst": [{**each.to_json(), "row": _utf8(each.row)} for each in found.worst],
        },
        method={"worst": "wrong rows by -log of the probability of the true class", "rows": "by id; none is carried"},
    )


def _utf8(name: str) -> str:
    """Return a file name as text that can be written: one that is not UTF-8 holds halves of surrogate pairs."""
    return name.encode("utf-8", "replace").decode()
