"""Whether the variant harms one class, which an overall figure would hide.

Refused when harm to any class is shown (exact one-sided McNemar, Holm over the classes). A class with too few rows to
tell stays undecided; it is reported, not refused: rare classes would otherwise block every release.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lightship.bundle.statement import Evidence
from lightship.types import Json, Verdict
from lightship.validate.logits import require_same_shape
from lightship.validate.statistics import ClassHarm, harm

__all__ = ["check_class_harm"]


def check_class_harm(
    truth: np.ndarray,
    reference: np.ndarray,
    variant: np.ndarray,
    *,
    labels: Sequence[str],
    subjects: Mapping[str, str],
    alpha: float = 0.05,
    margin: float = 0.05,
) -> Evidence:
    """Test each true class for harm by the variant; ``FAILED`` names the harmed class that lost most.

    Args:
        truth: int classes, shape (n,).
        reference: labels of the reference variant, shape (n,).
        variant: labels of the candidate, shape (n,).
        labels: the task's labels, by class.
        subjects: reference and variant, with their SHA-256.
        alpha: probability of a false alarm over all classes.
        margin: a class of which a larger drop is not ruled out is reported as undecided.
    """
    require_same_shape(truth=truth, reference=reference, variant=variant)
    right, right_too = reference == truth, variant == truth
    count = len(labels)

    def per_class(mask: np.ndarray) -> list[int]:
        return [int(k) for k in np.bincount(truth[mask], minlength=count)]

    classes = harm(
        labels,
        per_class(np.ones(len(truth), dtype=bool)),
        per_class(right & ~right_too),
        per_class(~right & right_too),
        alpha=alpha,
        margin=margin,
    )
    harmed = sorted((item for item in classes if item.harmed), key=lambda item: item.drop, reverse=True)
    undecided = [item.label for item in classes if item.undecided]
    return Evidence(
        check="class_harm",
        verdict=Verdict.FAILED if harmed else Verdict.PASSED,
        subjects=subjects,
        summary=_summary(harmed, undecided, count),
        measured={
            "classes": [_to_json(item) for item in classes],
            "harmed": [item.label for item in harmed],
            "lost_most": harmed[0].label if harmed else None,
            "undecided": [*undecided],
        },
        method={"alpha": alpha, "margin": margin, "test": "exact one-sided McNemar per true class, Holm"},
    )


def _summary(harmed: Sequence[ClassHarm], undecided: Sequence[str], count: int) -> str:
    if harmed:
        worst = harmed[0]
        return (
            f"Class {worst.label!r} lost most: {worst.losses} of its {worst.n} rows lost, {worst.gains} gained; "
            f"harm is shown for {len(harmed)} of {count} classes"
        )
    return f"No harm to a class is shown; {len(undecided)} of {count} classes have too few rows to rule it out"


def _to_json(item: ClassHarm) -> dict[str, Json]:
    return {
        "label": item.label,
        "rows": item.n,
        "losses": item.losses,
        "gains": item.gains,
        "drop": item.drop,
        "p": item.p,
        "p_adjusted": item.p_adjusted,
        "harmed": item.harmed,
        "undecided": item.undecided,
    }
