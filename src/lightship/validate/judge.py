"""Which variant is released: candidates in order against the reference, the first that passes, else the reference.

The gate rows are looked at once, by at most three candidates, which share alpha evenly (Bonferroni): so the chance that
*any* variant is released that should not be stays at alpha. Who they are, in which order, and so how many, is settled
before, on the selection rows; given those, the queue is fixed, and a shorter one has larger shares. What a candidate
must show is not known here: its look makes the evidence (``validate/looks.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from lightship.bundle.statement import Evidence
from lightship.errors import InvalidInput
from lightship.types import Verdict

__all__ = ["MAX_CANDIDATES", "REFERENCE", "Candidate", "Judgement", "Look", "Outcome", "judge"]

MAX_CANDIDATES = 3
REFERENCE = "reference"

# Of checks that did not pass, the one that tells most about what is wrong gives the reason.
_TELLING = ("class_harm", "slice_harm", "noninferiority", "fidelity", "probabilities")

Look: TypeAlias = "Callable[[float], Sequence[Evidence]]"
"""Takes the alpha that one candidate has, returns the evidence about it, the main one first."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A variant that might be released.

    Attributes:
        name: of the variant.
        look: makes the evidence; called at most once, and not at all when a candidate before it passed.
    """

    name: str
    look: Look


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


def judge(candidates: Sequence[Candidate], *, alpha: float = 0.05, named: str | None = None) -> Judgement:
    """Choose the variant to release.

    A candidate passes when all evidence about it has passed, or is only measured. Each of k candidates has alpha / k,
    also when the first passes. A *named* variant is judged alone, at the whole of alpha; it stays chosen when it fails,
    and the gate refuses it on its evidence. Nothing else is released in its place.

    Args:
        candidates: in the order of preference, at most three.
        alpha: chance of releasing any variant that should not be.
        named: name of the candidate that must be released; ``"reference"`` chooses that without judging others.

    Raises:
        InvalidInput: more than three candidates, names that repeat, or a named one that is not there.
    """
    queue = _queue(candidates, named)
    share = alpha / max(len(queue), 1)
    outcomes: list[Outcome] = []
    chosen = REFERENCE
    for candidate in queue:
        if chosen != REFERENCE:
            outcomes.append(Outcome(candidate.name, Verdict.UNPROVEN, f"not judged: {chosen} passed before it"))
            continue
        outcome = _outcome(candidate.name, tuple(candidate.look(share)))
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


def _outcome(name: str, evidence: tuple[Evidence, ...]) -> Outcome:
    if not evidence:
        return Outcome(name, Verdict.UNPROVEN, "nothing was looked at")
    lacking = [item for item in evidence if item.verdict not in (Verdict.PASSED, Verdict.MEASURED)]
    if not lacking:
        return Outcome(name, Verdict.PASSED, evidence[0].summary, evidence)
    rank = {check: place for place, check in enumerate(_TELLING)}
    worst = min(lacking, key=lambda item: rank.get(item.check, len(rank)))
    return Outcome(name, worst.verdict, worst.summary, evidence)
