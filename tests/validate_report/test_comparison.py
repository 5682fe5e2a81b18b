"""The page of a comparison: whole, safe, and with every figure and its basis."""

from __future__ import annotations

import json
import re
from dataclasses import fields, replace

import pytest
from tests.validate_report.conftest import with_nan, with_text
from tests.validate_report.test_page import POLICY, Page

from lightship.types import Interval, Verdict
from lightship.validate.report.comparison import (
    Basis,
    Change,
    ComparisonFacts,
    EvidenceChange,
    Figure,
    Finding,
    PairedRows,
    SideFacts,
    render_comparison_json,
)
from lightship.validate.report.page import render_comparison

DIGEST = "sha256:9f2c41d0a7be5588c1d3e0b1b94a1f6f0e7a3d2291c84f0cb15d6a7e83f2190c"


def interval(estimate: float, reach: float = 0.01) -> Interval:
    """Return an interval of that reach on both sides."""
    return Interval(estimate, estimate - reach, estimate + reach, 0.95, 995)


def make_comparison() -> ComparisonFacts:
    """Return a comparison in which everything occurs."""
    before = SideFacts(
        "digits", "digits", 1, DIGEST, DIGEST, "passed", "2026-11-22T03:15:41Z", "local 3f9a", "reference",
        "onnxruntime", "fp32", 1_687_340, (("cpu", "AMD EPYC"), ("cores", "2")), (),
    )  # fmt: skip
    after = replace(before, asked="digits:2", version=2, default="int8-static", precision="int8", size_bytes=439_812)
    time = Figure(
        "Time of one row", "ms", interval(0.21, 0), interval(0.13, 0), interval(1.62), Basis.PAIRED, "Faster."
    )
    return ComparisonFacts(
        before=before,
        after=replace(after, status="structural", unproven=("accuracy",)),
        headline="digits:2 runs int8-static in int8, digits:1 reference in fp32.",
        findings=(
            Finding("quality", "no difference shown", "Accuracy -0.10 points (-0.52 to +0.32).", Verdict.UNDECIDED),
            Finding("speed", "faster", "1.62 times as fast (1.57 to 1.67, paired).", Verdict.PASSED),
            Finding("size", "smaller", "439,812 bytes, before 1,687,340.", Verdict.PASSED),
            Finding("evidence", "1 lost", "Lost: accuracy.", Verdict.FAILED),
        ),
        same_bundle=False,
        changes=(
            Change("How it runs", "variant", "reference", "int8-static"),
            Change("The model", "reference graph", DIGEST, None),
        ),
        figures=(
            Figure("Accuracy", "share", interval(0.983), interval(0.982), interval(-0.001, 0.004), Basis.PAIRED, ""),
            Figure("Latency p50", "ms", interval(0.2, 0), None, None, Basis.ONE_SIDE, ""),
            Figure("Speed", "times", interval(1, 0), interval(1.6), None, Basis.OTHER_MACHINE, "Moved."),
            Figure("Size", "bytes", interval(1_687_340, 0), interval(439_812, 0), interval(0.26, 0), Basis.EXACT, ""),
        ),
        evidence=(
            EvidenceChange("accuracy", "Accuracy", Verdict.PASSED, Verdict.UNPROVEN, "98 %", "no labels", "lost"),
            EvidenceChange("latency", "Speed", None, Verdict.PASSED, "", "faster", "gained"),
            EvidenceChange("class_harm", "No class is harmed", None, Verdict.PASSED, "", "none", "not needed"),
        ),
        paired=PairedRows("rows.npz", 600, DIGEST, (time,), (("threads", "1"),)),
    )  # fmt: skip


@pytest.mark.parametrize("paired", [True, False], ids=["paired", "signed"])
def test_every_figure_has_its_basis_and_every_link_a_place(paired: bool) -> None:
    """What is compared, on what ground, and why not where it is not; elements are closed and ids are one."""
    facts = make_comparison()
    page = Page(render_comparison(facts if paired else replace(facts, paired=None)))

    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    links = {value[1:] for tag, key, value in page.attributes if (tag, key) == ("a", "href")}
    assert links <= set(page.ids)
    for figure in facts.figures:
        assert figure.name in page.text
        assert figure.basis.value in page.text
    assert ("Both on the same rows" in page.text) == paired
    assert ("--data rows.npz" in page.text) != paired
    assert "-0.10 points" in page.text
    assert ("meta", "content", POLICY) in page.attributes


def test_sides_findings_and_proofs_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both releases with status and gaps; lost and gained proofs by name; a digest is cut, the whole is a title."""
    html = render_comparison(make_comparison())
    text = Page(html).text

    assert text.index("no difference shown") < text.index("What was changed")
    assert "structural: how good its answers are was not judged" in text
    assert "9f2c41d0a7be" in text
    assert f"title='{DIGEST}'" in html
    for word in ("lost", "gained", "not needed"):
        assert f">{word}</span>" in html


@pytest.mark.parametrize("attack", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "{{ 7 * 191 }}"])
def test_no_text_becomes_markup(attack: str) -> None:
    """Names, summaries and values of two bundles, as an attack, leave the tags as they were."""
    page = Page(render_comparison(spoken(attack)))
    harmless = Page(render_comparison(spoken("x" * len(attack))))

    assert set(page.tags) == set(harmless.tags)
    assert {name for _, name, _ in page.attributes} == {name for _, name, _ in harmless.attributes}
    assert attack in page.text
    assert "1337" not in page.text


def spoken(text: str) -> ComparisonFacts:
    """Return the comparison with every text replaced; the basis stays, it is our own word."""
    facts = make_comparison()
    figures = tuple(replace(one, name=text, words=text) for one in facts.figures)
    paired = replace(facts.paired, source=text, figures=figures, setup=((text, text),)) if facts.paired else None
    return replace(with_text(replace(facts, figures=(), paired=None), text), figures=figures, paired=paired)


def test_numbers_that_are_not_finite_are_dashes() -> None:
    """On the page and in the JSON twin."""
    facts = with_nan(make_comparison())

    assert not re.search(r"\b(nan|inf|infinity|None)\b", Page(render_comparison(facts)).text)
    read = json.loads(render_comparison_json(facts))
    assert read["figures"][0]["before"]["estimate"] is None


def test_the_json_twin_has_every_field() -> None:
    """A field that is added to the facts cannot be forgotten in the twin."""
    facts = make_comparison()
    read = json.loads(render_comparison_json(facts))

    assert facts.paired is not None
    for one, shown in (
        (facts, read),
        (facts.before, read["before"]),
        (facts.findings[0], read["findings"][0]),
        (facts.changes[0], read["changes"][0]),
        (facts.figures[0], read["figures"][0]),
        (facts.evidence[0], read["evidence"][0]),
        (facts.paired, read["paired"]),
    ):
        assert set(shown) == {field.name for field in fields(one)}
