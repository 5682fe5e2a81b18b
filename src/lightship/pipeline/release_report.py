"""The report and the model card of any release, read back from its signed statements: no recipe, no run is needed.

What only a run has (curves, pictures of rows) is not in there; all figures are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from lightship.bundle.manifest import REFERENCE
from lightship.bundle.statement import Evidence
from lightship.data.files import write_atomic
from lightship.data.home import Home
from lightship.pipeline.report import interface_facts, machine_facts
from lightship.pipeline.search_evidence import tried_words
from lightship.registry.statements import Statements, read_statements
from lightship.types import Json, Verdict
from lightship.validate.report.facts import ReportFacts, render_json
from lightship.validate.report.from_evidence import Given, facts_of
from lightship.validate.report.measured import interval_of, items_of, mapping_of, text_of, texts_of

if TYPE_CHECKING:
    from lightship.pipeline.optimized import OptimizedRelease

__all__ = ["facts_of_release", "kept_facts", "release_facts", "write_facts", "write_optimized_report"]

Outcomes = Mapping[str, tuple[Verdict, str]]
"""Name of a candidate -> what the gate said of it, and why."""

_TELLING = ("accuracy", "fidelity", "equivalence", "noninferiority")


def release_facts(home: Home, reference: str, *, outcomes: Outcomes | None = None) -> ReportFacts:
    """Return the facts of a release.

    Args:
        home: where the registry and the store are.
        reference: ``digits`` (its production), ``digits@staging`` or ``digits:3``.
        outcomes: of the gate, where they are known; the evidence tells of the chosen variant only.

    Raises:
        NotFound, BundleRefused, InvalidInput: as ``registry.statements.read_statements``.
    """
    return facts_of_release(read_statements(home, reference), outcomes=outcomes)


def facts_of_release(found: Statements, *, outcomes: Outcomes | None = None) -> ReportFacts:
    """Return the facts of what a release says."""
    record, default, manifest = found.record, found.default, found.manifest
    origin = mapping_of(manifest.lineage, "origin") or manifest.lineage
    evidence = [each.evidence for each in found.evidence]
    said = {each.check: each for each in reversed(evidence)}
    telling = [said[check].summary for check in _TELLING if check in said and said[check].verdict is Verdict.PASSED]
    telling += [said["accuracy"].summary] if _is_unproven(said, "accuracy") else []
    name, sizes = found.title, {each.name: found.size_bytes(each.name) for each in manifest.variants}
    return facts_of(
        evidence,
        Given(
            name=record.name,
            version=record.version,
            created=record.created,
            released=True,
            headline=_headline(default.name, said, sizes=sizes, status=record.status),
            reasons=tuple(f"{line}." for line in telling),
            task=manifest.task.name,
            chosen=default.name,
            status=record.status,
            digests=dict(reversed(record.evidence)),
            required=texts_of(record.policy.get("required")),
            outcomes=outcomes,
            source=text_of(mapping_of(origin, "recipe", "data").get("source")),
            fingerprint=text_of(mapping_of(origin, "data").get("fingerprint")),
            size_bytes=sizes,
            lineage=_lineage(found),
            machine=machine_facts(found.machine),
            interface=interface_facts(manifest.interface),
            commands=(
                ("Serve it", f"lightship serve {name} --port 8080"),
                ("Check every byte", f"lightship verify {name}"),
                ("Compare it with another version", f"lightship diff {record.name}:VERSION {name}"),
                ("Write it out", f"lightship deploy {name} --to folder --out {record.name}-release"),
            ),
            signer=found.signed_by,
        ),
    )


def _is_unproven(said: Mapping[str, Evidence], check: str) -> bool:
    return check in said and said[check].verdict is Verdict.UNPROVEN


def _headline(runs: str, said: Mapping[str, Evidence], *, sizes: Mapping[str, int], status: str) -> str:
    """Say what runs, and how fast or small as was wanted; of a release that nobody judged, that nobody did."""
    unjudged = ""
    if status == "structural":
        known = said["accuracy"].measured if "accuracy" in said else {}
        what = "How good its answers are was not judged"
        if known.get("accuracy") or known.get("mae") or known.get("hamming"):
            what = "It was measured how good its answers are, and no limit was asked for"
        unjudged = f" {what}."
    if runs == REFERENCE:
        return f"It runs the reference, the model as it was exported.{unjudged}"
    wanted = mapping_of(said["search"].measured, "objective") if "search" in said else {}
    if [name for name, weight in wanted.items() if weight] == ["size"] and sizes.get(REFERENCE):
        return f"It runs {runs}, {sizes[runs] / sizes[REFERENCE]:.0%} of the reference's size.{unjudged}"
    ratio = interval_of(said["latency"].measured.get("time_ratio")) if "latency" in said else None
    if ratio is None or ratio.low <= 0:
        return f"It runs {runs}.{unjudged}"
    speed = f"{1 / ratio.estimate:.2f} times as fast as the reference ({1 / ratio.high:.2f} to {1 / ratio.low:.2f})"
    return f"It runs {runs}, {speed}.{unjudged}"


def _lineage(found: Statements) -> tuple[tuple[str, str], ...]:
    lineage = found.manifest.lineage
    origin = mapping_of(lineage, "origin") or lineage
    parent = mapping_of(lineage, "parent")
    source = mapping_of(origin, "source")
    rows = [
        ("optimized from", f"{parent['name']}:{parent['version']}" if {"name", "version"} <= set(parent) else ""),
        ("imported from", text_of(source.get("format"))),
        ("file", f"sha256:{source['sha256']}" if "sha256" in source else ""),
        ("trained on", _trained_on(origin)),
        ("data", text_of(mapping_of(origin, "data").get("fingerprint"))),
        ("gate rows", text_of(mapping_of(origin, "data", "parts").get("gate"))),
        ("lightship", text_of(origin.get("lightship"))),
        *((name, text_of(value)) for name, value in mapping_of(origin, "libraries").items()),
        ("bundle", found.bundle.digest),
        ("release", found.digest),
    ]
    return tuple((name, value) for name, value in rows if value)


def _trained_on(origin: Mapping[str, Json]) -> str:
    """Return the source of the rows that the model learned from; of a file that was imported nobody knows."""
    source = text_of(mapping_of(origin, "recipe", "data").get("source"))
    return source or ("unknown: the file does not say" if mapping_of(origin, "source") else "")


def kept_facts(
    home: Home,
    reference: str,
    *,
    search: Mapping[str, Json],
    outcomes: Outcomes,
    evidence: Sequence[Evidence],
    words: tuple[str, ...],
    created: str,
) -> ReportFacts:
    """Return the facts of a search that found nothing better: the release stays as it is, and this says why.

    Args:
        home: where the registry and the store are.
        reference: the release that stays.
        search: what was tried, as ``SearchResult.to_json`` has it.
        outcomes: what became of those that were proposed to the gate.
        evidence: about the rows, and how good the reference is on them.
        words: what people should know, one line each.
        created: RFC 3339 time.
    """
    stays = release_facts(home, reference)
    tried = Evidence("search", Verdict.PASSED, {}, tried_words(_dropped(search)), search, {})
    headline = "Nothing that was tried is shown to be better than the reference: it stays."
    if outcomes:
        headline = "Nothing that was tried passed the gate: the reference stays."
    given = Given(
        name=stays.name,
        version=stays.version,
        created=created,
        released=True,
        headline=headline,
        reasons=(
            *(f"{name}: {why}" for name, (verdict, why) in outcomes.items() if verdict is not Verdict.PASSED),
            *(f"{word[:1].upper()}{word[1:]}" for word in words if word.lower() not in headline.lower()),
        ),
        task=stays.task,
        chosen=REFERENCE,
        status="kept",
        outcomes=outcomes,
        interface=stays.interface,
        lineage=stays.lineage,
        commands=stays.commands,
    )
    facts = facts_of([*evidence, tried], given)
    return replace(facts, gate_accuracy=facts.gate_accuracy or stays.gate_accuracy, data=facts.data or stays.data)


def _dropped(search: Mapping[str, Json]) -> list[str]:
    """Return why each candidate was dropped; nothing of those that were not."""
    return [text_of(each.get("dropped")) for each in items_of(search.get("candidates"))]


def write_optimized_report(home: Home, result: OptimizedRelease, evidence: Sequence[Evidence] = ()) -> Path:
    """Write page, facts and card of an optimized model, or of a search that found nothing better; return the page.

    A release brings its own evidence; what was found where the reference stays is given.
    """
    from lightship.pipeline.release_card import card_of

    outcomes = {each.name: (each.verdict, each.reason) for each in result.outcomes}
    card = ""
    if result.version is None:
        facts = kept_facts(
            home,
            f"{result.name}:{result.parent}",
            search=result.search,
            outcomes=outcomes,
            evidence=evidence,
            words=result.words,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )
    else:
        facts = release_facts(home, f"{result.name}:{result.version}", outcomes=outcomes)
        card = card_of(home, f"{result.name}:{result.version}")
    return write_facts(facts, result.report.with_suffix(".html"), card=card)


def write_facts(facts: ReportFacts, page: Path, *, card: str) -> Path:
    """Write the page, beside it the same facts as JSON and, if there is one, the model card. Return the page."""
    from lightship.validate.report.page import render_page

    write_atomic(page, render_page(facts).encode())
    write_atomic(page.with_name(f"{page.stem}-facts.json"), render_json(facts).encode())
    if card:
        write_atomic(page.with_name(f"{page.stem}-card.md"), card.encode())
    return page
