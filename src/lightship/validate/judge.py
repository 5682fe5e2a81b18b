"""Which variant is released: candidates in order against the reference, the first that passes, else the reference.

The gate rows are looked at once, by at most three candidates, each at a third of alpha (Bonferroni): so the chance that
*any* variant with a true drop of the margin is released stays at alpha. Ordering and narrowing down to three happens
before, on the selection rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from lightship.bundle.statement import Evidence
from lightship.engine.measure import PairedTiming
from lightship.errors import GateRefused, InvalidInput
from lightship.types import Json, Verdict
from lightship.validate.checks.class_harm import check_class_harm
from lightship.validate.checks.latency import check_latency
from lightship.validate.checks.noninferiority import check_noninferiority, evidence_of_nonfinite
from lightship.validate.checks.probabilities import check_probabilities
from lightship.validate.logits import labels_of, nonfinite_rows, require_same_shape

__all__ = ["MAX_CANDIDATES", "REFERENCE", "Candidate", "Judgement", "Outcome", "judge"]

MAX_CANDIDATES = 3
REFERENCE = "reference"


@dataclass(frozen=True)
class Candidate:
    """A variant that might be released.

    Attributes:
        name: of the variant.
        logits: on the gate rows, shape (n, classes).
        subjects: SHA-256 in hex of what was judged, the reference's graph included.
        timing: against the reference (side a), if it was measured.
        setup: what the timing holds for.
    """

    name: str
    logits: np.ndarray
    subjects: Mapping[str, str]
    timing: PairedTiming | None = None
    setup: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one candidate.

    Attributes:
        verdict: ``PASSED``; ``UNPROVEN`` - not judged, because one before it passed; else why it was dropped.
        reason: one line.
        evidence: about this candidate; empty if it was not judged.
    """

    name: str
    verdict: Verdict
    reason: str
    evidence: tuple[Evidence, ...] = ()


@dataclass(frozen=True, slots=True)
class Judgement:
    """Which variant is released, and what became of each candidate."""

    chosen: str
    outcomes: tuple[Outcome, ...]
    alpha: float

    @property
    def evidence(self) -> tuple[Evidence, ...]:
        """Evidence about the chosen variant; none if that is the reference."""
        return next((item.evidence for item in self.outcomes if item.name == self.chosen), ())


def judge(
    truth: np.ndarray,
    reference_logits: np.ndarray,
    candidates: Sequence[Candidate],
    *,
    labels: Sequence[str],
    margin: float,
    alpha: float = 0.05,
    speed_asked: bool = True,
    class_margin: float = 0.05,
    named: str | None = None,
) -> Judgement:
    """Choose the variant to release.

    A candidate passes when non-inferiority is shown, no class is harmed, its probabilities are shown to be near the
    reference's, and, if speed was asked for, it is shown to be faster. A *named* variant is judged alone, at the whole
    of alpha; it stays chosen when it fails, and the gate refuses it on its evidence. Nothing else is released in its
    place.
    Class harm is tested at the whole of alpha for every candidate: there a smaller level would protect less.

    Args:
        truth: int classes of the gate rows, shape (n,).
        reference_logits: shape (n, classes).
        candidates: in the order of preference, at most three.
        labels: the task's labels, by class.
        margin: a drop in accuracy of this much is too much.
        alpha: chance of releasing any variant that has it.
        speed_asked: whether a variant must be faster.
        class_margin: see ``check_class_harm``.
        named: name of the candidate that must be released; ``"reference"`` chooses that without judging others.

    Raises:
        InvalidInput: more than three candidates, names that repeat, or a named one that is not there.
        GateRefused: the reference itself gives no finite answers.
    """
    queue = _queue(candidates, named)
    broken = nonfinite_rows(reference_logits)
    if broken.size:
        raise GateRefused(
            f"The reference gives NaN or infinity on {broken.size} of {len(truth)} gate rows, first row {broken[0]}. "
            "Nothing can be compared with it; look at the training."
        )
    share = alpha if named is not None else alpha / MAX_CANDIDATES
    outcomes: list[Outcome] = []
    chosen = REFERENCE
    for candidate in queue:
        if chosen != REFERENCE:
            outcomes.append(Outcome(candidate.name, Verdict.UNPROVEN, f"not judged: {chosen} passed before it"))
            continue
        outcome = _judge_one(
            truth,
            reference_logits,
            candidate,
            labels=labels,
            margin=margin,
            alpha=share,
            harm_alpha=alpha,
            speed_asked=speed_asked,
            class_margin=class_margin,
        )
        outcomes.append(outcome)
        if outcome.verdict is Verdict.PASSED:
            chosen = candidate.name
    return Judgement(chosen=named or chosen, outcomes=tuple(outcomes), alpha=share)


def _queue(candidates: Sequence[Candidate], named: str | None) -> Sequence[Candidate]:
    names = [candidate.name for candidate in candidates]
    if len(set(names)) != len(names) or REFERENCE in names:
        raise InvalidInput(f"Candidates need different names, none of them {REFERENCE!r}. Got {', '.join(names)}.")
    if named == REFERENCE:
        return ()
    if named is not None:
        if named not in names:
            raise InvalidInput(f"There is no candidate {named!r}. Candidates: {', '.join(names) or 'none'}.")
        return [candidates[names.index(named)]]
    if len(candidates) > MAX_CANDIDATES:
        raise InvalidInput(
            f"At most {MAX_CANDIDATES} candidates may see the gate rows. Got {len(candidates)}: {', '.join(names)}. "
            "Narrow them down on the selection rows."
        )
    return candidates


def _judge_one(
    truth: np.ndarray,
    reference_logits: np.ndarray,
    candidate: Candidate,
    *,
    labels: Sequence[str],
    margin: float,
    alpha: float,
    harm_alpha: float,
    speed_asked: bool,
    class_margin: float,
) -> Outcome:
    require_same_shape(reference=reference_logits, **{candidate.name: candidate.logits})
    timed: tuple[Evidence, ...] = ()
    if candidate.timing is not None:
        timed = (
            check_latency(
                candidate.timing,
                variant=candidate.name,
                speed_asked=speed_asked,
                subjects=candidate.subjects,
                setup=candidate.setup,
            ),
        )
    broken = nonfinite_rows(candidate.logits)
    if broken.size:
        found = evidence_of_nonfinite(broken, total=len(truth), margin=margin, subjects=candidate.subjects)
        return Outcome(candidate.name, Verdict.FAILED, found.summary, (found, *timed))
    reference, variant = labels_of(reference_logits), labels_of(candidate.logits)
    paired = check_noninferiority(truth, reference, variant, margin=margin, alpha=alpha, subjects=candidate.subjects)
    classes = check_class_harm(
        truth, reference, variant, labels=labels, alpha=harm_alpha, margin=class_margin, subjects=candidate.subjects
    )
    sureness = check_probabilities(reference_logits, candidate.logits, alpha=alpha, subjects=candidate.subjects)
    evidence = (paired, sureness, classes, *timed)
    # The harmed class first: it tells most about what is wrong.
    for item in (classes, paired, sureness):
        if item.verdict is not Verdict.PASSED:
            return Outcome(candidate.name, item.verdict, item.summary, evidence)
    if speed_asked and not timed:
        return Outcome(candidate.name, Verdict.UNPROVEN, "its speed was not measured", evidence)
    if timed and timed[0].verdict is not Verdict.PASSED:  # never when speed was not asked for
        return Outcome(candidate.name, timed[0].verdict, timed[0].summary, evidence)
    return Outcome(candidate.name, Verdict.PASSED, paired.summary, evidence)
