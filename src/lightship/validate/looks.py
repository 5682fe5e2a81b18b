"""What a candidate must show, by the kind of answers and labels: one look for each, as ``judge`` takes them.

A look closes over everything but its share of alpha. It makes the evidence; ``judge`` and the gate decide.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from lightship.bundle.statement import Evidence
from lightship.engine.measure import PairedTiming
from lightship.errors import GateRefused
from lightship.types import Json, Verdict
from lightship.validate.checks.class_harm import check_class_harm
from lightship.validate.checks.fidelity import check_fidelity
from lightship.validate.checks.latency import check_latency
from lightship.validate.checks.noninferiority import (
    check_noninferiority,
    check_noninferiority_of_numbers,
    check_noninferiority_of_tags,
    evidence_of_nonfinite,
)
from lightship.validate.checks.probabilities import check_probabilities
from lightship.validate.fidelity import FidelityBudget, FidelityMeter
from lightship.validate.judge import Look
from lightship.validate.logits import labels_of, nonfinite_rows, require_same_shape
from lightship.validate.paired_losses import PairedNumbers, PairedTags

__all__ = [
    "Speed",
    "look_at_classes",
    "look_at_fidelity",
    "look_at_losses",
    "require_finite_reference",
]


@dataclass(frozen=True)
class Speed:
    """How fast a candidate is, and whether that decides.

    Attributes:
        asked: whether it must be faster than the reference.
        timing: against the reference (side a), if it was measured.
        setup: what the timing holds for.
    """

    asked: bool = False
    timing: PairedTiming | None = None
    setup: Mapping[str, Json] = field(default_factory=dict)

    def evidence(self, name: str, *, subjects: Mapping[str, str]) -> tuple[Evidence, ...]:
        """Return the evidence ``latency``, or none where it was neither measured nor asked for."""
        if self.timing is not None:
            found = check_latency(
                self.timing, variant=name, speed_asked=self.asked, subjects=subjects, setup=self.setup
            )
            return (found,)
        if not self.asked:
            return ()
        return (Evidence("latency", Verdict.UNPROVEN, subjects, "its speed was not measured", {}, {}),)


def require_finite_reference(answers: np.ndarray) -> None:
    """Refuse a reference that gives NaN or infinity on gate rows.

    Raises:
        GateRefused: how many rows, and the first.
    """
    broken = nonfinite_rows(answers)
    if broken.size:
        raise GateRefused(
            f"The reference gives NaN or infinity on {broken.size} of {len(answers)} gate rows, first row {broken[0]}. "
            "Nothing can be compared with it; look at the training."
        )


def look_at_classes(
    name: str,
    truth: np.ndarray,
    reference: np.ndarray,
    variant: np.ndarray,
    *,
    labels: Sequence[str],
    margin: float,
    harm_alpha: float,
    subjects: Mapping[str, str],
    speed: Speed | None = None,
    class_margin: float = 0.05,
) -> Look:
    """Return the look at a classifier: accuracy, probabilities where it gives scores, every class, and speed.

    Args:
        name: of the candidate.
        truth: int classes of the gate rows, shape (n,).
        reference: class scores, shape (n, classes), finite; or the classes that it answers, shape (n,).
        variant: of the same shape.
        labels: the classes' names.
        margin: a drop in accuracy of this much is too much.
        harm_alpha: for the harm to a class: the whole, not a share. A smaller one would protect less.
        subjects: reference and variant, with their SHA-256.
        speed: what was measured of it.
        class_margin: see ``check_class_harm``.

    Raises:
        InvalidTensor: answers of unequal shapes.
    """
    require_same_shape(reference=reference, variant=variant)
    scored = reference.ndim > 1

    def look(alpha: float) -> Sequence[Evidence]:
        timed = (speed or Speed()).evidence(name, subjects=subjects)
        broken = nonfinite_rows(variant) if scored else np.empty(0)
        if broken.size:
            return (evidence_of_nonfinite(broken, total=len(truth), margin=margin, subjects=subjects), *timed)
        one, two = (labels_of(each) if scored else each for each in (reference, variant))
        probable = (check_probabilities(reference, variant, alpha=alpha, subjects=subjects),) if scored else ()
        return (
            check_noninferiority(truth, one, two, margin=margin, alpha=alpha, subjects=subjects),
            *probable,
            check_class_harm(truth, one, two, labels=labels, alpha=harm_alpha, margin=class_margin, subjects=subjects),
            *timed,
        )

    return look


def look_at_fidelity(
    name: str,
    meter: FidelityMeter,
    *,
    budget: FidelityBudget,
    subjects: Mapping[str, str],
    speed: Speed | None = None,
) -> Look:
    """Return the look at answers without labels: their likeness to the reference's, and speed.

    Args:
        name: of the candidate.
        meter: was given the answers of both to all gate rows.
        budget: what must be kept.
        subjects: reference and variant, with their SHA-256.
        speed: what was measured of it.
    """

    def look(alpha: float) -> Sequence[Evidence]:
        found = meter.result(confidence=1 - 2 * alpha)
        timed = (speed or Speed()).evidence(name, subjects=subjects)
        return (check_fidelity(found, budget=budget, subjects=subjects, alpha=alpha), *timed)

    return look


def look_at_losses(
    name: str,
    losses: PairedNumbers | PairedTags,
    *,
    margin: float,
    subjects: Mapping[str, str],
    speed: Speed | None = None,
) -> Look:
    """Return the look at numbers or tags beside their labels: errors of both sides on the same rows, and speed.

    Args:
        name: of the candidate.
        losses: was given labels and both answers of all gate rows.
        margin: of numbers relative, of tags absolute.
        subjects: reference and variant, with their SHA-256.
        speed: what was measured of it.
    """

    def look(alpha: float) -> Sequence[Evidence]:
        timed = (speed or Speed()).evidence(name, subjects=subjects)
        if isinstance(losses, PairedNumbers):
            return (
                check_noninferiority_of_numbers(losses, margin=margin, alpha=alpha, subjects=subjects),
                *timed,
            )
        return (check_noninferiority_of_tags(losses, margin=margin, alpha=alpha, subjects=subjects), *timed)

    return look
