"""What a model gets wrong, and where, if its answers are numbers, tags, or classes without scores.

``analysis`` does it for classes with scores. Slices are found by the loss of each row on selection rows; gate rows only
tell, and refuse a variant that harms one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from lightship.bundle.statement import Evidence
from lightship.optimize.candidate import Candidate
from lightship.pipeline.analysis import divergence, explained
from lightship.pipeline.labeled_rows import GivenValues
from lightship.validate.checks.loss_slices import LossRows, check_loss_slice_harm, check_loss_slices
from lightship.validate.checks.value_errors import check_number_errors, check_tag_errors
from lightship.validate.row_losses import RowLosses
from lightship.validate.slice_features import AnswerSpace
from lightship.validate.slices import Features

__all__ = ["ValueAnalysis"]

_MOST_SHOWN = 8  # answers of so few values are features as they are


class ValueAnalysis:
    """The analysis of one look; the losses of each variant are noted once.

    Args:
        rows: what is looked at.
        reference: the reference as a variant.
        alpha: of each check.
        margin: of the gate; a slice may lose as much.
    """

    def __init__(self, rows: GivenValues, reference: Candidate, *, alpha: float, margin: float) -> None:
        self._rows, self._kind, self._reference = rows, rows.kind, reference
        self._alpha, self._margin = alpha, margin
        self._losses: dict[tuple[str, str], RowLosses] = {}
        self._features: dict[str, Features] = {}

    def note(self, part: str, variant: Candidate, losses: RowLosses) -> None:
        """Take a variant's losses of the rows of a part, so that it is not asked again."""
        self._losses[part, variant.name] = losses

    def look(
        self, variant: Candidate, look: Callable[[float], Sequence[Evidence]], *, subjects: Mapping[str, str]
    ) -> Callable[[float], Sequence[Evidence]]:
        """Return the look with harm to slices added, and the layer to blame where something failed."""

        def extended(alpha: float) -> Sequence[Evidence]:
            evidence = (*look(alpha), self.slice_harm(variant, subjects=subjects))
            return explained(evidence, lambda: divergence(self._reference, variant, self._rows.few()))

        return extended

    def slice_harm(self, variant: Candidate, *, subjects: Mapping[str, str]) -> Evidence:
        """The slices that a variant harms."""
        selection, gate = (self._beside(part, variant) for part in ("selection", "gate"))
        return check_loss_slice_harm(
            self._kind, selection, gate, subjects=subjects, alpha=self._alpha, margin=self._margin
        )

    def of(self, variant: Candidate, *, subjects: Mapping[str, str], calm: bool = False) -> Sequence[Evidence]:
        """What the variant gets wrong: its worst slices, and its errors. There is no temperature."""
        del calm
        parts = (LossRows(self._known(part), self._loss(part, variant).values) for part in ("selection", "gate"))
        slices = check_loss_slices(self._kind, *parts, subjects=subjects, alpha=self._alpha)
        if self._kind == "classes":
            return (slices,)
        check = check_number_errors if self._kind == "numbers" else check_tag_errors
        errors = check(
            self._loss("gate", variant), rows=self._rows.ids("gate"), subjects=subjects, confidence=1 - self._alpha
        )
        return (slices, errors)

    def _beside(self, part: str, variant: Candidate) -> LossRows:
        return LossRows(self._known(part), self._loss(part, variant).values, self._loss(part, self._reference).values)

    def _loss(self, part: str, variant: Candidate) -> RowLosses:
        if (part, variant.name) not in self._losses:
            base = self._losses.get((part, self._reference.name))
            self.note(part, variant, self._rows.losses(part, variant, shares=base.shares if base else None))
        return self._losses[part, variant.name]

    def _known(self, part: str) -> Features:
        """Return what is known of the rows, and what the reference answers to them."""
        if part not in self._features:
            kept = {each: self._loss(each, self._reference).answers for each in ("selection", part)}
            if any(each is None for each in kept.values()):
                self._features[part] = self._rows.features(part)
            else:
                said = {each: found[1] for each, found in kept.items() if found is not None}
                self._features[part] = self._rows.features(part) | _answer_features(said["selection"], said[part])
        return self._features[part]


def _answer_features(selection: np.ndarray, answers: np.ndarray) -> Features:
    """Return the values of short answers, the place of longer ones among those of the selection rows."""
    width = answers.shape[1]
    if width <= _MOST_SHOWN:
        names = [f"answer[{place}]" for place in range(width)] if width > 1 else ["answer"]
        return Features({name: answers[:, place] for place, name in enumerate(names)})
    return AnswerSpace.fit(selection).features(answers)
