"""What a search has tried, and what became of it at the gate, as the evidence ``search``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lightship.bundle.statement import Evidence, summary_of
from lightship.optimize.candidate import NOT_BEGUN, Candidate
from lightship.types import Json, Verdict
from lightship.validate.judge import Outcome

__all__ = ["search_evidence", "tried_words"]


def search_evidence(
    candidates: Sequence[Candidate],
    outcomes: Sequence[Outcome],
    *,
    found: Mapping[str, Json],
    method: Mapping[str, Json],
    chosen: str,
    subjects: Mapping[str, str],
) -> Evidence:
    """Return the evidence: every figure, and why each other one lost, in the search or at the gate.

    Args:
        candidates: all of the search.
        outcomes: of those that the gate has seen.
        found: what the search measured, as ``SearchResult.to_json`` has it.
        method: how.
        chosen: the variant that is released.
        subjects: it and the reference, with their SHA-256.
    """
    lost = [f"{each.name}: {each.reason}" for each in outcomes if each.name != chosen]
    lost += [
        f"{each.name}: {each.dropped}" for each in candidates if each.dropped and not each.dropped.startswith(NOT_BEGUN)
    ]
    told: list[Json] = [{"name": each.name, "verdict": str(each.verdict), "reason": each.reason} for each in outcomes]
    summary = "; ".join([tried_words([each.dropped for each in candidates]), *lost])
    return Evidence("search", Verdict.PASSED, subjects, summary_of(summary), {**found, "outcomes": told}, method)


def tried_words(dropped: Sequence[str]) -> str:
    """Say how many variants were tried, and how many are left, by why each of them was dropped."""
    rest, proposed = sum(each.startswith(NOT_BEGUN) for each in dropped), sum(not each for each in dropped)
    begun = len(dropped) - rest
    left = f", {rest} not begun in the time that was given" if rest else ""
    return f"{begun} variant{'' if begun == 1 else 's'} tried, {proposed} proposed to the gate{left}"
