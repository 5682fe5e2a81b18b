"""What a comparison of two releases says, as plain values: filled by the pipeline, drawn by `page`, written as JSON.

Like `facts`: nothing here measures or judges, a missing number is ``None``. Each figure says how it may be compared:
``paired`` (the same rows, answer by answer), ``same rows`` or ``same machine`` (measured apart), or not at all.
Standard library and `lightship.types` only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from lightship.types import Interval, Json, Verdict
from lightship.validate.report.facts import interval_json, writable

__all__ = [
    "Basis",
    "Change",
    "ComparisonFacts",
    "EvidenceChange",
    "Figure",
    "Finding",
    "PairedRows",
    "SideFacts",
    "render_comparison_json",
]


class Basis(StrEnum):
    """What a difference of two figures rests on."""

    PAIRED = "paired"
    """The same rows, answer by answer, or timed in neighboring pairs."""
    SAME_ROWS = "same rows, not paired"
    SAME_MACHINE = "same machine, not paired"
    OTHER_ROWS = "not comparable: other rows"
    OTHER_MACHINE = "not comparable: other machine"
    ONE_SIDE = "not comparable: measured on one side only"
    OTHER_REFERENCE = "not comparable: each against its own reference"
    EXACT = "exact"
    """Counted, not measured."""


@dataclass(frozen=True, slots=True)
class SideFacts:
    """One of the two releases.

    Attributes:
        asked: what a person typed, e.g. ``digits@staging``.
        status: ``passed`` or ``structural`` (quality was not judged).
        signer: who signed, as a person should read it.
        default: name of the variant that runs.
        machine: (name, value) of the machine that measured; empty: no evidence names one.
        unproven: checks that were not made.
    """

    asked: str
    name: str
    version: int
    bundle: str
    release: str
    status: str
    created: str
    signer: str
    default: str
    engine: str
    precision: str
    size_bytes: int
    machine: tuple[tuple[str, str], ...] = ()
    unproven: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """Name and version, as people type them."""
        return f"{self.name}:{self.version}"

    def to_json(self) -> dict[str, Json]:
        """Return the JSON form."""
        return {
            "asked": self.asked,
            "name": self.name,
            "version": self.version,
            "bundle": self.bundle,
            "release": self.release,
            "status": self.status,
            "created": self.created,
            "signer": self.signer,
            "default": self.default,
            "engine": self.engine,
            "precision": self.precision,
            "size_bytes": self.size_bytes,
            "machine": [[name, value] for name, value in self.machine],
            "unproven": list(self.unproven),
        }


@dataclass(frozen=True, slots=True)
class Finding:
    """The answer to one question, in a word and a sentence.

    Attributes:
        about: ``quality``, ``speed``, ``size`` or ``evidence``.
        word: e.g. ``no difference shown``, ``worse``, ``not comparable``.
        tone: how it is colored: good is ``PASSED``, bad ``FAILED``, not shown ``UNDECIDED``, not known ``UNPROVEN``.
    """

    about: str
    word: str
    sentence: str
    tone: Verdict

    def to_json(self) -> dict[str, Json]:
        """Return the JSON form."""
        return {"about": self.about, "word": self.word, "sentence": self.sentence, "tone": self.tone.value}


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that is not the same. ``None``: that side has none.

    Attributes:
        topic: where it belongs, e.g. ``How it runs``.
        what: e.g. ``engine``, or ``seed`` of the recipe.
    """

    topic: str
    what: str
    before: str | None
    after: str | None

    def to_json(self) -> dict[str, Json]:
        """Return the JSON form."""
        return {"topic": self.topic, "what": self.what, "before": self.before, "after": self.after}


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured figure on both sides.

    Attributes:
        unit: ``share``, ``cosine``, ``dB``, ``ms``, ``rows/s``, ``times`` or ``bytes``.
        before, after: with intervals where there are some; without one ``low`` and ``high`` equal the estimate and
            ``n`` is 0.
        difference: after less before (for ``times``, ``ms`` and ``rows/s``: the ratio), if the basis allows one.
        basis: what the difference rests on, or why there is none.
        words: one sentence: what is shown.
    """

    name: str
    unit: str
    before: Interval | None
    after: Interval | None
    difference: Interval | None
    basis: Basis
    words: str

    def to_json(self) -> dict[str, Json]:
        """Return the JSON form."""
        return {
            "name": self.name,
            "unit": self.unit,
            "before": interval_json(self.before),
            "after": interval_json(self.after),
            "difference": interval_json(self.difference),
            "basis": self.basis.value,
            "words": self.words,
        }


@dataclass(frozen=True, slots=True)
class EvidenceChange:
    """One check on both sides; ``None``: that release has no such evidence.

    Attributes:
        change: ``gained`` (passed now, and did not before), ``lost`` (passed before, and does not now), ``changed``
            (another verdict, neither of them passed), ``not needed`` (one side runs the reference, which has nothing
            to be compared with) or ``same``.
    """

    check: str
    title: str
    before: Verdict | None
    after: Verdict | None
    before_summary: str
    after_summary: str
    change: str

    def to_json(self) -> dict[str, Json]:
        """Return the JSON form."""
        return {
            "check": self.check,
            "title": self.title,
            "before": self.before.value if self.before else None,
            "after": self.after.value if self.after else None,
            "before_summary": self.before_summary,
            "after_summary": self.after_summary,
            "change": self.change,
        }


@dataclass(frozen=True, slots=True)
class PairedRows:
    """Both releases on the same rows, here and now.

    Attributes:
        source: the file or folder, by its name.
        fingerprint: SHA-256 of what was run.
        figures: agreement, cosine, accuracy, time, all of them paired.
        setup: (name, value) of how it was run: machine, threads, rows in a timed call.
    """

    source: str
    rows: int
    fingerprint: str
    figures: tuple[Figure, ...]
    setup: tuple[tuple[str, str], ...]

    def to_json(self) -> dict[str, Json]:
        """Return the JSON form."""
        return {
            "source": self.source,
            "rows": self.rows,
            "fingerprint": self.fingerprint,
            "figures": [one.to_json() for one in self.figures],
            "setup": [[name, value] for name, value in self.setup],
        }


@dataclass(frozen=True, slots=True)
class ComparisonFacts:
    """All that a comparison says. ``before`` is the first release that was named, ``after`` the second.

    Attributes:
        headline: the one sentence to read.
        findings: quality, speed, size and evidence, each in a word.
        same_bundle: both are the same bytes; only what stands around them may differ.
        changes: what is not the same, by topic.
        figures: quality and speed as the signed evidence has them.
        paired: both on the rows that were given; ``None``: none were.
    """

    before: SideFacts
    after: SideFacts
    headline: str
    findings: tuple[Finding, ...]
    same_bundle: bool
    changes: tuple[Change, ...]
    figures: tuple[Figure, ...]
    evidence: tuple[EvidenceChange, ...]
    paired: PairedRows | None = None

    def to_json(self) -> dict[str, Json]:
        """Return the JSON form: what the page shows, unrounded."""
        return {
            "before": self.before.to_json(),
            "after": self.after.to_json(),
            "headline": self.headline,
            "findings": [one.to_json() for one in self.findings],
            "same_bundle": self.same_bundle,
            "changes": [one.to_json() for one in self.changes],
            "figures": [one.to_json() for one in self.figures],
            "evidence": [one.to_json() for one in self.evidence],
            "paired": self.paired.to_json() if self.paired else None,
        }


def render_comparison_json(facts: ComparisonFacts) -> str:
    """Return the comparison as one JSON object, to be written as UTF-8; the same facts give the same text."""
    document: Mapping[str, Json] = facts.to_json()
    return writable(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
