"""What a trial proves, and what nobody could prove for want of data, as evidence for the policy ``structural``."""

from __future__ import annotations

from collections.abc import Mapping

from lightship.bundle.statement import Evidence, summary_of
from lightship.imports.trial import Found
from lightship.types import Json, Verdict

__all__ = ["UNPROVEN", "evidence_of"]

UNPROVEN: Mapping[str, str] = {
    "accuracy": "No labeled rows: how often the answers are right was not measured",
    "parity": "No original: whether the graph answers as the model that was trained was not measured",
}
"""The checks that an import cannot make, and why."""


def evidence_of(found: Found, *, audit: str, facts: Mapping[str, Json], subjects: Mapping[str, str]) -> list[Evidence]:
    """Return the evidence: audit, golden and shapes as measured, and the others as unproven.

    Args:
        found: by the trial.
        audit: one line about what was looked for in the file.
        facts: what the file says of itself.
        subjects: the graph and the task, with their SHA-256.
    """
    examples, tolerance = found.golden["examples"], found.tolerance
    return [
        Evidence("audit", Verdict.PASSED, subjects, audit, dict(facts), {"read": "without running any of it"}),
        Evidence(
            check="golden",
            verdict=Verdict.PASSED,
            subjects=subjects,
            summary=f"{examples} golden examples ({found.golden['values']}) give the same under 5 settings of the "
            f"engine (allowed {tolerance:.2g})",
            measured=found.golden,
            method={"settings": "1 and 2 threads; optimization all, extended, basic, none; places in a batch",
                    "tolerance": "8 x the largest spread, at least 64 spacings of float32 at the largest value"},
        ),
        Evidence(
            check="shapes",
            verdict=Verdict.PASSED,
            subjects=subjects,
            summary=_summary(found),
            measured={**found.shapes, "words": list(found.words)},
            method={"compared": "every row's answer with its answer alone, and beside other rows"},
        ),
        *(
            Evidence(check, Verdict.UNPROVEN, subjects, why, {}, {"reason": "not measured"})
            for check, why in UNPROVEN.items()
        ),
    ]  # fmt: skip


def _summary(found: Found) -> str:
    ranges = [f"{name} {low} to {high}" for name, (low, high) in sorted(found.interface.proven.items())]
    words = "; ".join(found.words)
    return summary_of(f"Works for {', '.join(ranges) or 'its one size'}{'; ' if words else ''}{words}")
