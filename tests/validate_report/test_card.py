"""The model card says what the report says, names what nobody knows, and lets no text become markup."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from markdown_it import MarkdownIt

from lightship.validate.report.card import render_card
from lightship.validate.report.facts import ReportFacts
from lightship.validate.report.words import missing_of

SECTIONS = ["What it is", "What it is for", "Data", "Figures", "Limits", "How it was made", "License", "Evidence"]


def headings(card: str) -> list[str]:
    """Return the second-level headings, as a Markdown reader sees them."""
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(card)
    return [
        tokens[i + 1].content for i, token in enumerate(tokens) if token.type == "heading_open" and token.tag == "h2"
    ]


def kinds(card: str) -> set[str]:
    """Return the kinds of elements that a Markdown reader makes of the card."""
    found = set()
    for token in MarkdownIt("gfm-like", {"linkify": False}).parse(card):
        found |= {token.type, *(child.type for child in token.children or ())}
    return found


@pytest.mark.parametrize("name", ["release", "refusal", "bare", "no_numbers"])
def test_every_card_has_all_sections(name: str, request: pytest.FixtureRequest) -> None:
    """Also one of which nothing is known: what is missing is said, never left out."""
    card = render_card(replace(request.getfixturevalue(name), values=()))  # whose texts speak of NaN

    assert headings(card) == SECTIONS
    assert "of the model: unknown" in card
    assert not re.search(r"\b(nan|inf|none)\b", card, re.IGNORECASE)


def test_figures_have_their_intervals_and_limits_what_is_unproven(release: ReportFacts) -> None:
    """Accuracy with its interval and rows; each gap that the report names stands among the limits."""
    card = render_card(release).replace("\u202f", " ")

    assert "| accuracy on the gate rows | 98.2 % | 97.2–98.9 % | 95 % | 995 |" in card
    assert "| F1 of class 3 |" in card
    limits = card[card.index("## Limits") : card.index("## How it was made")]
    for title in (one.name for one in missing_of(release)):
        assert title in limits
    assert "Undecided: **No class harmed**" in limits
    assert "Worse where mean brightness" in limits
    assert release.evidence[0].digest in card


def test_a_model_that_nobody_judged_is_called_unproven(release: ReportFacts) -> None:
    """Its card does not open with a number."""
    card = render_card(replace(release, status="structural", gate_accuracy=None, per_class=(), data=None))

    assert "released, unproven: how good its answers are was not judged" in card
    assert "No rows were given" in card
    assert "accuracy on the gate rows" not in card


@pytest.mark.parametrize(
    "attack",
    [
        "<script>alert(1)</script>",
        "![x](https://evil.example/x.png)",
        "[click](javascript:alert(1))",
        "# not a heading",
        "a | b | c",
        "line\n\n# broken\n- list",
        "`code` *bold* _it_ ~~gone~~",
        "---",
        "<https://evil.example>",
    ],
    ids=["html", "image", "link", "heading", "table", "lines", "style", "rule", "autolink"],
)
def test_no_text_becomes_markup(release: ReportFacts, say, attack: str) -> None:
    """Every text of the facts, as an attack, makes no element that a harmless text does not make."""
    card, harmless = render_card(say(release, attack)), render_card(say(release, "harmless"))

    assert kinds(card) == kinds(harmless)
    assert headings(card) == headings(harmless) == SECTIONS


def test_the_same_facts_give_the_same_card(release: ReportFacts) -> None:
    """So that it can have a digest."""
    assert render_card(release) == render_card(release)


def test_versions_are_written_as_they_are_and_no_text_begins_a_list(release: ReportFacts) -> None:
    """A number at the start of a line begins a list in Markdown, in the middle it is a number."""
    changed = replace(release, headline="1. Not a list", lineage=(("numpy", "2.4.6"), ("- x", "-1")))
    card = render_card(changed)

    assert "- numpy: 2.4.6" in card
    assert "\n1\\. Not a list\n" in card
    assert "\n- \\- x: -1\n" in card
