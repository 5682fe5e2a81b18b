"""Compare two releases: what was changed, how good and how fast each is, and which proofs came or went.

All figures come from signed evidence. Two figures have a difference only where one can be told: the same gate rows
answer by answer (``paired``), the same rows measured apart, or times against the same reference on the same machine.
For the rest the answer is "not comparable", and rows that are given (``data``) let both run side by side.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from lightship.bundle.manifest import REFERENCE
from lightship.data.home import Home
from lightship.pipeline.compare_changes import MACHINE_KEYS, changes_of, shown
from lightship.pipeline.compare_figures import quality_figures, speed_figures
from lightship.pipeline.compare_rows import run_both
from lightship.registry.statements import Statements, read_statements
from lightship.tasks.row_files import LABEL
from lightship.types import Interval, Progress, Silent, Verdict
from lightship.validate.report.comparison import (
    Basis,
    ComparisonFacts,
    EvidenceChange,
    Figure,
    Finding,
    PairedRows,
    SideFacts,
)
from lightship.validate.report.titles import title_of

__all__ = ["compare"]


def compare(
    before: str,
    after: str,
    *,
    data: Path | str | None = None,
    label: str = LABEL,
    home: Home | Path | str | None = None,
    progress: Progress | None = None,
) -> ComparisonFacts:
    """Return what tells the release ``after`` from the release ``before``.

    Args:
        before, after: ``digits`` (its production), ``digits@staging`` or ``digits:3``; the names may differ.
        data: rows that both shall answer, side by side, as ``tasks.row_files`` reads them: a ``.npz`` or Parquet file
            with the inputs by name, or a folder of them; for models of images a folder of images.
        label: the array or column of labels.
        home: where the registry and the store are; by default what LIGHTSHIP_HOME names.
        progress: hears of long work.

    Raises:
        NotFound: no such registry, name, alias or version, or no such file.
        BundleRefused: bytes, digests or signatures of one of them do not agree.
        InvalidInput: a reference of another form; rows that one of them does not take.
    """
    where = home if isinstance(home, Home) else Home(Path(home)) if home is not None else Home.from_environment()
    one, two = read_statements(where, before), read_statements(where, after)
    paired = run_both(one, two, Path(data), label=label, progress=progress or Silent()) if data is not None else None
    figures = (*quality_figures(where, one, two), *speed_figures(one, two))
    evidence = tuple(_evidence(one, two))
    findings = tuple(_findings(one, two, figures, evidence, paired))
    return ComparisonFacts(
        before=_side(one),
        after=_side(two),
        headline=_headline(one, two, findings),
        findings=findings,
        same_bundle=one.bundle.digest == two.bundle.digest,
        changes=tuple(changes_of(one, two)),
        figures=figures,
        evidence=evidence,
        paired=paired,
    )


def _side(found: Statements) -> SideFacts:
    record, default = found.record, found.default
    machine = found.machine
    return SideFacts(
        asked=found.reference,
        name=record.name,
        version=record.version,
        bundle=record.bundle,
        release=found.digest,
        status=record.status,
        created=record.created,
        signer=found.signed_by,
        default=default.name,
        engine=default.engine,
        precision=default.precision,
        size_bytes=found.size_bytes(found.default.name),
        machine=tuple((key, shown(machine[key])) for key in MACHINE_KEYS if key in machine),
        unproven=tuple(e.evidence.check for e in found.evidence if e.evidence.verdict is Verdict.UNPROVEN),
    )


# Which proofs


def _evidence(one: Statements, two: Statements) -> Iterator[EvidenceChange]:
    checks = dict.fromkeys(each.evidence.check for side in (one, two) for each in side.evidence)
    for check in checks:
        before, after = _worst(one, check), _worst(two, check)
        yield EvidenceChange(
            check=check,
            title=title_of(check),
            before=before[0] if before else None,
            after=after[0] if after else None,
            before_summary=before[1] if before else "",
            after_summary=after[1] if after else "",
            change=_change(one, two, check, before[0] if before else None, after[0] if after else None),
        )


_ABOUT_VARIANT = frozenset(
    ("noninferiority", "probabilities", "class_harm", "slice_harm", "fidelity", "equivalence", "latency")
)
_ORDER = (Verdict.FAILED, Verdict.UNPROVEN, Verdict.UNDECIDED, Verdict.MEASURED, Verdict.PASSED)


def _worst(found: Statements, check: str) -> tuple[Verdict, str] | None:
    """Return the worst verdict of a check, for there may be several pieces of it, and its summary."""
    pieces = [(e.evidence.verdict, e.evidence.summary) for e in found.evidence if e.evidence.check == check]
    return min(pieces, key=lambda piece: _ORDER.index(piece[0]), default=None)


def _change(one: Statements, two: Statements, check: str, before: Verdict | None, after: Verdict | None) -> str:
    if before is after:
        return "same"
    for side, verdict in ((one, before), (two, after)):
        if verdict is None and side.default.name == REFERENCE and check in _ABOUT_VARIANT:
            return "not needed"
    if after is Verdict.PASSED:
        return "gained"
    return "lost" if before is Verdict.PASSED else "changed"


# In words


def _findings(
    one: Statements,
    two: Statements,
    figures: Sequence[Figure],
    evidence: Sequence[EvidenceChange],
    paired: PairedRows | None,
) -> Iterator[Finding]:
    if one.bundle.digest == two.bundle.digest:
        yield Finding("quality", "the same", "Both are the same bundle, byte by byte.", Verdict.PASSED)
    else:
        yield _quality_finding(one, two, figures, paired)
        yield _speed_finding(figures, paired)
        yield _size_finding(figures)
    yield _evidence_finding(evidence)


def _quality_finding(one: Statements, two: Statements, figures: Sequence[Figure], paired: PairedRows | None) -> Finding:
    if one.graph_digest(one.default.name) == two.graph_digest(two.default.name) and _runs(one) == _runs(two):
        return Finding("quality", "the same graph", "Both run the same graph in the same way.", Verdict.PASSED)
    found = [*(paired.figures if paired else ()), *figures]
    figure = next((each for each in found if each.name == "Accuracy" and each.difference), None)
    if figure is None or figure.difference is None:
        agreement = next((each for each in found if each.name == "Agreement of the two" and each.after), None)
        if agreement is not None and agreement.after is not None:
            share = agreement.after
            words = f"Same class on {share.estimate:.2%} of the rows; no label says which is right."
            return Finding("quality", f"{share.estimate:.1%} agree", words, Verdict.UNDECIDED)
        why = next((each.words for each in found if each.name == "Accuracy"), "")
        return Finding("quality", "not comparable", why or "No accuracy was measured on either side.", Verdict.UNPROVEN)
    gap = figure.difference
    points = f"{100 * gap.estimate:+.2f} points ({100 * gap.low:+.2f} to {100 * gap.high:+.2f}, {figure.basis})"
    return _signed("quality", gap, f"Accuracy {points}.", better="better", worse="worse")


def _runs(found: Statements) -> tuple[object, ...]:
    return (found.default.engine, dict(found.default.options), found.manifest.task.digest)


def _signed(about: str, gap: Interval, sentence: str, *, better: str, worse: str, even: float = 0.0) -> Finding:
    if gap.low > even:
        return Finding(about, better, sentence, Verdict.PASSED)
    if gap.high < even:
        return Finding(about, worse, sentence, Verdict.FAILED)
    return Finding(about, "no difference shown", sentence, Verdict.UNDECIDED)


def _speed_finding(figures: Sequence[Figure], paired: PairedRows | None) -> Finding:
    timed = next((each for each in (paired.figures if paired else ()) if each.unit == "ms" and each.difference), None)
    figure = timed or next(each for each in figures if each.unit == "times")
    ratio = figure.difference
    if ratio is None:
        return Finding("speed", "not comparable", f"{figure.words} {_aside(figures)}".strip(), Verdict.UNPROVEN)
    sentence = f"{ratio.estimate:.2f} times as fast ({ratio.low:.2f} to {ratio.high:.2f}, {figure.basis})."
    return _signed("speed", ratio, sentence, better="faster", worse="slower", even=1.0)


def _aside(figures: Sequence[Figure]) -> str:
    """Say what each side had by itself."""
    figure = next((each for each in figures if each.name == "Latency p50" and each.before and each.after), None)
    if figure is None or figure.before is None or figure.after is None:
        return ""
    return f"Each by itself: {figure.before.estimate:.3g} ms and {figure.after.estimate:.3g} ms."


def _size_finding(figures: Sequence[Figure]) -> Finding:
    figure = next(each for each in figures if each.unit == "bytes" and each.basis is Basis.EXACT)
    old, new = (side.estimate if side else math.nan for side in (figure.before, figure.after))
    sentence = f"{new:,.0f} bytes, before {old:,.0f}."
    if new == old:
        return Finding("size", "the same", sentence, Verdict.PASSED)
    if new < old:
        return Finding("size", "smaller", sentence, Verdict.PASSED)
    return Finding("size", "larger", sentence, Verdict.UNDECIDED)


def _evidence_finding(evidence: Sequence[EvidenceChange]) -> Finding:
    gained = [each.check for each in evidence if each.change == "gained"]
    lost = [each.check for each in evidence if each.change == "lost"]
    open_now = [each.check for each in evidence if each.after in (Verdict.UNPROVEN, Verdict.UNDECIDED, Verdict.FAILED)]
    words = [
        f"Gained: {', '.join(gained)}." if gained else "",
        f"Lost: {', '.join(lost)}." if lost else "",
        f"Not shown by the second: {', '.join(open_now)}." if open_now else "",
    ]
    sentence = " ".join(filter(None, words)) or "The same checks passed on both sides."
    if lost:
        return Finding("evidence", f"{len(lost)} lost", sentence, Verdict.FAILED)
    if gained:
        return Finding("evidence", f"{len(gained)} gained", sentence, Verdict.PASSED)
    return Finding("evidence", "the same", sentence, Verdict.UNDECIDED if open_now else Verdict.PASSED)


def _headline(one: Statements, two: Statements, findings: Sequence[Finding]) -> str:
    if one.bundle.digest == two.bundle.digest:
        return f"{one.title} and {two.title} are the same bundle."
    runs = [f"{side.default.name} in {side.default.precision} on {side.default.engine}" for side in (one, two)]
    how = f"Both run {runs[0]}" if runs[0] == runs[1] else f"{two.title} runs {runs[1]}, {one.title} {runs[0]}"
    words = {each.about: each.word for each in findings}
    return f"{how}. Quality: {words['quality']}; speed: {words['speed']}; size: {words['size']}."
