"""What the rows were: parts, classes, duplicates, conflicts, bad rows, and how often the gate part was looked at.

A gate set that is looked at again and again stops being a test. The count is shown; it does not refuse.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lightship.bundle.statement import Evidence
from lightship.types import Json, Verdict

__all__ = ["check_data"]

_SHOWN = 20


def check_data(
    *,
    class_counts: Mapping[str, Mapping[str, int]],
    labels: Sequence[str],
    duplicates: int,
    conflicts: Sequence[Sequence[str]],
    bad: Sequence[tuple[str, str]],
    gate_looks: int,
    subjects: Mapping[str, str],
    max_bad_share: float = 0.05,
    near_duplicates: Mapping[str, Json] | None = None,
) -> Evidence:
    """Record the rows; ``FAILED`` when a part lacks a class or too many rows could not be read.

    Args:
        class_counts: part -> label -> rows.
        labels: the task's labels.
        duplicates: rows whose input equals that of another; they stay in one part.
        conflicts: ids of equal inputs with unequal labels, one group each.
        bad: (id, reason) of rows that could not be used.
        gate_looks: how often this gate set was looked at, this time included.
        subjects: what was judged, with its SHA-256.
        max_bad_share: of all rows, good and bad.
        near_duplicates: of rows across parts, as ``duplicates.twins_json`` has them; None when nobody looked.
    """
    rows = sum(sum(counts.values()) for counts in class_counts.values())
    lacking = [
        f"{part} lacks {label!r}" for part, counts in class_counts.items() for label in labels if not counts.get(label)
    ]
    share = len(bad) / max(rows + len(bad), 1)
    problems = lacking[:3]
    if share > max_bad_share:
        problems.append(f"{len(bad)} of {rows + len(bad)} rows are bad, first {bad[0][0]}: {bad[0][1]}")
    counts: dict[str, Json] = {part: {**counts} for part, counts in class_counts.items()}
    return Evidence(
        check="data",
        verdict=Verdict.FAILED if problems else Verdict.PASSED,
        subjects=subjects,
        summary=(
            "; ".join(problems)
            or f"{rows} rows in {len(class_counts)} parts, {duplicates} duplicates, {len(conflicts)} conflicts, "
            f"{len(bad)} bad rows{_near(near_duplicates)}; look {gate_looks} at this gate set"
        ),
        measured={
            "rows": rows,
            "class_counts": counts,
            "lacking": [*lacking],
            "duplicates": duplicates,
            "conflicts": len(conflicts),
            "first_conflicts": [[*group] for group in conflicts[:_SHOWN]],
            "bad": len(bad),
            "first_bad": [{"id": name, "reason": reason} for name, reason in bad[:_SHOWN]],
            "near_duplicates": None if near_duplicates is None else {**near_duplicates},
            "gate_looks": gate_looks,
        },
        method={"max_bad_share": max_bad_share},
    )


def _near(found: Mapping[str, Json] | None) -> str:
    """Say how many gate rows are nearly known from another part, if any are."""
    return f", {found['gate_rows']} gate rows nearly as in another part" if found and found["gate_rows"] else ""
