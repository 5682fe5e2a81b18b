"""The page is whole, safe and the same for the same facts."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import pytest

from lightship.types import Interval, Verdict
from lightship.validate.report.facts import (
    CurveFacts,
    LossFacts,
    OneValueFacts,
    ReportFacts,
    ResidualBinFacts,
    SliceFacts,
    SliceHarmFacts,
    VariantFacts,
    WorstRowFacts,
)
from lightship.validate.report.page import render_page

SECTIONS = [
    "front",
    "classes",
    "confusion",
    "slices",
    "calibration",
    "worst",
    "fidelity",
    "training",
    "data",
    "evidence",
    "unproven",
    "origin",
    "next",
]
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


class Page(HTMLParser):
    """Collects tags, attributes and visible text, and sees that what is opened is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.ids: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        """Note a tag."""
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in {"meta", "link", "img"}:
            self.open.append(tag)

    def handle_endtag(self, tag):
        """Close the last tag."""
        assert self.open.pop() == tag

    def handle_data(self, data):
        """Note a text that is shown."""
        if "style" not in self.open:
            self.text += data


def test_the_same_facts_give_the_same_bytes(release: ReportFacts, refusal: ReportFacts) -> None:
    """Nothing of the clock, the process or the order of a set is in the page."""
    assert render_page(release) == render_page(release)
    assert render_page(release) != render_page(refusal)


@pytest.mark.parametrize("name", ["release", "refusal", "bare", "no_numbers"])
def test_sections_are_in_order_and_what_is_linked_is_there(name: str, request: pytest.FixtureRequest) -> None:
    """Every element is closed, every id is one, and each link of the page leads to a place in it."""
    page = Page(render_page(request.getfixturevalue(name)))

    assert page.open == []
    there = [one for one in page.ids if one in SECTIONS]
    assert there == [one for one in SECTIONS if one in there]
    assert there == SECTIONS or name in ("bare", "no_numbers")
    assert len(page.ids) == len(set(page.ids))
    links = {value[1:] for tag, key, value in page.attributes if (tag, key) == ("a", "href")}
    assert links <= set(page.ids)
    assert links - {"evidence"} == set(there) - {"evidence"}


def test_what_was_not_reached_is_said_to_be_missing(bare: ReportFacts, release: ReportFacts) -> None:
    """A part without numbers is named with its reason, not left out; a part with numbers is not named there."""
    text = Page(render_page(bare)).text

    for name in ("Quality", "Speed", "Every class by itself", "Slices", "Calibration", "Evidence"):
        assert name in text[text.index("What was not measured") :]
    rest = Page(render_page(release)).text
    told = rest[rest.index("What was not measured") : rest.index("Made from")]
    assert "Golden examples repeat" in told
    assert "Calibration" not in told


def test_a_closed_part_says_what_it_found(release: ReportFacts) -> None:
    """Each part has its finding in the line that is seen without opening it."""
    html = render_page(release)

    for finding in (
        "Weakest of 10: 3 with an F1 of",
        "Shown to be worse: 1 of 3 slices",
        "Calibration error 4.1",
        "first layer that differs: /features/features.6/Conv",
        "2 gate rows have a near duplicate elsewhere",
    ):
        assert finding in html.replace("\u202f", " ")


def test_a_refusal_opens_the_parts_that_say_why(refusal: ReportFacts, release: ReportFacts) -> None:
    """Classes stand open when a class was harmed; a release has all parts closed."""
    evidence = tuple(replace(one, required=True) for one in refusal.evidence)
    html = render_page(replace(refusal, evidence=evidence))

    assert re.search(r'id="classes-part" class="part">\s*<details open>', html)
    assert re.search(r'id="training-part" class="part">\s*<details>', html)
    assert not re.search(r'class="part">\s*<details open>', render_page(release))


def test_a_release_that_nobody_judged_does_not_look_like_one_that_passed(release: ReportFacts) -> None:
    """``structural`` is said in the first word, and the quality is a dash."""
    unjudged = replace(release, status="structural", gate_accuracy=None, fidelity=(), variants=release.variants[:1])
    html = render_page(unjudged)

    assert "<span>Released, unproven</span>" in html
    assert 'class="verdict structural"' in html
    assert "not judged" in html


def test_thirty_candidates_each_have_their_reason(release: ReportFacts, many) -> None:
    """The first table has the chosen one, the reference and the front; the others are one click away, by number."""
    page = Page(render_page(replace(release, variants=many)))

    assert [f"variant-{number}" for number in range(1, 32)] == [one for one in page.ids if one.startswith("variant-")]
    assert "26 that were dropped, each with its reason" in page.text
    assert page.text.index("nncf-int8-onnxruntime") < page.text.index("26 that were dropped")
    assert page.text.count("loses 46.8 % accuracy") >= 3
    assert "Not drawn against speed, because not measured" in page.text
    assert "below the drawing" in page.text


def test_the_worst_do_not_press_the_others_into_a_line(release: ReportFacts, many) -> None:
    """A variant at 30 % is drawn at the edge, so that what matters, about 76 %, has the whole height."""
    html = render_page(replace(release, variants=many))
    plot = html[html.index("latency-plot") :].split("</svg>")[0]

    ticks = [float(tick) for tick in re.findall(r'class="tick end">([\d.]+)<', plot)]
    assert min(ticks) > 60
    assert plot.count("h10l-5 8z") == 3


def test_the_hardware_floor_is_a_bar_beside_the_times(release: ReportFacts) -> None:
    """The floor, the chosen one and the reference, as long as their times."""
    html = render_page(release)

    widths = [float(width) for width in re.findall(r'class="bar" style="width:([\d.]+)%"', html)]
    assert widths == pytest.approx([100 * 0.0268 / 0.214, 100 * 0.132 / 0.214, 100.0], abs=0.01)
    assert "arithmetic decides" in html


def test_the_verdict_comes_first_and_in_words(release: ReportFacts, refusal: ReportFacts) -> None:
    """A release and a refusal differ in their first heading, not only in color."""
    released, refused = Page(render_page(release)).text, Page(render_page(refusal)).text

    assert released.index("Released") < released.index("digits:1") < released.index(release.headline)
    assert refused.index("Refused") < refused.index(refusal.headline) < refused.index("class_harm failed")
    assert "candidate" in refused
    assert "Released" not in refused


def test_the_numbers_are_those_of_the_facts(release: ReportFacts) -> None:
    """Accuracy, interval, latency, speed and size of the chosen variant stand in the page, rounded for people."""
    text = Page(render_page(release)).text.replace("\u202f", " ")

    for shown in ("98.2 %", "97.2–98.9 %", "0.132 ms", "1.62×", "440 kB", "3,012", "995 rows"):
        assert shown in text


@pytest.mark.parametrize(
    "attack",
    [
        "<script>alert(1)</script>",
        '"><img src=x onerror=alert(1)>',
        "' onload='alert(1)",
        "</style></title></svg><iframe src=//evil.example>",
        "{{ 7 * 191 }}{% raw %}",
        "javascript:alert(1)",
    ],
)
def test_no_text_becomes_markup(release: ReportFacts, say, attack: str) -> None:
    """Every text of the facts, as an attack, leaves the tags and attribute names of the page as they were."""
    page = Page(render_page(say(release, attack)))
    harmless = Page(render_page(say(release, "x" * len(attack))))

    assert set(page.tags) == set(harmless.tags)
    assert not {"script", "iframe", "object", "base", "form"} & set(page.tags)
    assert {name for _, name, _ in page.attributes} == {name for _, name, _ in harmless.attributes}
    assert attack in page.text
    assert "1337" not in page.text


def test_nothing_is_loaded_from_anywhere(release: ReportFacts) -> None:
    """Links point into the page or carry their data; the policy forbids the rest, scripts included."""
    page = Page(render_page(release))

    urls = [value for _, name, value in page.attributes if name in {"src", "href", "data", "action", "srcset"}]
    assert urls
    assert all(url.startswith(("#", "data:image/")) for url in urls)
    assert ("meta", "content", POLICY) in page.attributes
    assert "url(" not in (files("lightship.validate.report") / "style.css").read_text()


def test_deceiving_and_broken_characters_are_replaced(release: ReportFacts, say) -> None:
    """Lone surrogates cannot be written, a bidirectional override shows another text than there is."""
    html = render_page(say(release, "a\udcff\u202eb\x00"))

    assert html.encode()
    assert "a\ufffd\ufffdb\ufffd" in html
    assert "\u202e" not in html


@pytest.mark.parametrize("text", ["n" * 200, "猫" * 60, "🐶👩‍👩‍👧" * 20, "שלום עולם", "", " "])
def test_texts_of_any_script_and_length_are_drawn(release: ReportFacts, say, text: str) -> None:
    """The page stands, and every class shows its whole label somewhere."""
    assert text in Page(render_page(say(release, text))).text


@pytest.mark.parametrize("many", [1, 2, 13, 50, 61])
def test_any_number_of_classes_is_drawn(release_of, many: int) -> None:
    """A matrix is drawn for up to sixty classes; more are told by their commonest mistakes."""
    page = Page(render_page(release_of(tuple(f"class-{index}" for index in range(many)))))

    assert ("confusion-plot-title" in page.ids) == (many <= 60)
    assert ("No mistakes." in page.text) == (many == 1)


@pytest.mark.parametrize("epochs", [1, 2, 300])
def test_any_number_of_epochs_is_drawn(release: ReportFacts, epochs: int) -> None:
    """One epoch is a dot on each curve; without the kept epoch among them, none is marked."""
    flat = (0.5,) * epochs
    curves = CurveFacts(tuple(range(1, epochs + 1)), flat, flat, flat, flat, flat, best_epoch=epochs)

    html = render_page(replace(release, curves=curves))
    assert f"kept: epoch {epochs}" in html
    assert html.count('class="curve train"') == 2
    assert "kept: epoch" not in render_page(replace(release, curves=replace(curves, best_epoch=999)))


def test_a_loss_that_exploded_leaves_a_gap(release: ReportFacts) -> None:
    """The finite part of a curve is drawn, and the table has dashes."""
    values = tuple(math.inf if index == 10 else loss for index, loss in enumerate(release.curves.train_loss))

    html = render_page(replace(release, curves=replace(release.curves, train_loss=values)))
    train = re.search(r'<g class="curve train"><path d="([^"]*)"', html)
    assert train is not None
    assert train[1].count("M") == 2


def test_no_number_is_shown_as_nan_or_infinite(no_numbers: ReportFacts) -> None:
    """A dash stands for what is not known."""
    html = render_page(replace(no_numbers, values=()))  # whose texts speak of NaN and infinity

    assert not re.search(r"\b(nan|inf|infinity|None)\b", Page(html).text, re.IGNORECASE)
    assert not re.search(r'="[^"]*\b(nan|inf)\b[^"]*"', html)


def test_variants_that_were_not_measured_are_named(release: ReportFacts) -> None:
    """A variant without latency stands in the table, and beside the plot by name."""
    variants = (*release.variants[:-1], replace(release.variants[-1], latency_p50_ms=None, latency_p99_ms=None))

    assert (
        "Not drawn against speed, because not measured" in Page(render_page(replace(release, variants=variants))).text
    )
    nothing = tuple(replace(variant, quality=None) for variant in release.variants)
    assert "latency-plot" not in render_page(replace(release, variants=nothing)).split("</style>")[1]


def test_bytes_that_are_no_png_are_not_embedded(release: ReportFacts) -> None:
    """A picture that cannot be shown is said to be missing."""
    page = Page(render_page(replace(release, worst=(replace(release.worst[0], png=b"<svg onload=alert(1)>"),))))

    assert "img" not in page.tags
    assert "no image" in page.text


def test_drawings_are_told_to_those_who_do_not_see_them(release: ReportFacts) -> None:
    """Every drawing is an image with title and description, or hidden beside the table that says the same."""
    html = render_page(release)

    for tag in re.findall(r"<svg[^>]*>", html):
        assert 'role="img" aria-labelledby="' in tag or 'aria-hidden="true"' in tag
    for reference in re.findall(r'aria-labelledby="([^"]*)"', html):
        assert all(f'id="{one}"' in html for one in reference.split())
    assert '<html lang="en">' in html
    assert all('scope="' in tag for tag in re.findall(r"<th\b[^>]*>", html))


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_has_enough_contrast_on_its_ground(theme: str) -> None:
    """4.5:1 for text and 3:1 for marks (WCAG 2.2, 1.4.3 and 1.4.11)."""
    light, dark = re.findall(
        r":root \{(.*?)\}", (files("lightship.validate.report") / "style.css").read_text(), re.DOTALL
    )[:2]
    colors = dict(re.findall(r"--([\w-]+): (#\w{6})", light))
    if theme == "dark":
        colors |= dict(re.findall(r"--([\w-]+): (#\w{6})", dark))

    texts = [(ink, ground) for ink in ("ink", "soft") for ground in ("page", "raised")]
    texts += [(ink, "page") for ink in ("link", "alt", "mark", "failed")] + [("page", "alt")]
    texts += [(tone, f"{tone}-bg") for tone in ("passed", "failed", "undecided", "unproven")]
    texts += [("ink", f"{tone}-bg") for tone in ("passed", "failed", "undecided", "unproven")]
    texts += [("page", "passed"), ("page", "failed"), ("passed", "page"), ("undecided", "page"), ("link", "raised")]
    texts += [("wrong-ink", f"wrong-{step}") for step in (1, 2, 3, 4)] + [
        ("ink", f"right-{step}") for step in (1, 2, 3, 4)
    ]
    weak = [pair for pair in texts if contrast(colors[pair[0]], colors[pair[1]]) < 4.5]
    assert weak == []
    assert [mark for mark in ("mark", "mark-soft", "alt") if contrast(colors[mark], colors["page"]) < 3] == []


def contrast(one: str, other: str) -> float:
    """Return the contrast of two colors as WCAG 2.2 defines it, 1 to 21."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def luminance(color: str) -> float:
    """Return the relative luminance of an sRGB color."""
    parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_the_program_in_the_docs_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/report.md shows a program that writes a report."""
    text = (Path(__file__).parents[2] / "docs" / "report.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)

    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(compile(block, "docs/report.md", "exec"), {})

    assert "Refused" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert (tmp_path / "report.json").exists()


def test_the_first_figures_say_what_was_gained_and_what_it_cost(release: ReportFacts, many) -> None:
    """Speed and the change in accuracy with their intervals, and what is unproven by name, before anything else."""
    text = Page(render_page(release)).text.replace("\u202f", " ")
    first = text[: text.index("The front")]

    for told in ("1.62×", "1.57–1.67× at 95 %", "0.214 ms → 0.132 ms a call", "−0.10", "−0.52 to +0.31 at 95 %"):
        assert told in first
    assert "1 thing" in first
    wanted = replace(release, variants=many, front=replace(release.front, objective={"throughput": 1.0}))
    shown = Page(render_page(wanted)).text
    assert shown.index("Throughput") < shown.index("Speed")


def test_a_bound_on_one_side_is_not_shown_as_an_interval(release: ReportFacts) -> None:
    """The gate's test is one-sided: +100 points as the other end would say that nothing is known."""
    bound = replace(release, cost=Interval(0.0, -0.0079, 1.0, 1 - 0.05 / 3, 576))
    text = Page(render_page(bound)).text.replace("\u202f", " ")

    assert "at least −0.79 at 98.33 %" in text
    assert "100.00" not in text


def test_a_model_that_nobody_searched_for_says_so(release: ReportFacts) -> None:
    """A table of one row without numbers would look like a search that found nothing."""
    bare = VariantFacts("reference", "fp32", 5370, None, None, None, None, True, Verdict.PASSED, "As exported.")
    text = Page(render_page(replace(release, variants=(bare,), front=None))).text

    assert "No other way to run this model was tried." in text
    assert "As exported." not in text


def test_of_many_classes_the_weakest_come_first(release_of) -> None:
    """A thousand rows in the order of the labels hide the one that matters; all are one click away."""
    facts = release_of(tuple(f"class {index:04d}" for index in range(60)))
    text = Page(render_page(facts)).text
    part = text[text.index("F1 on the gate rows") : text.index("What was taken for what")]
    weakest = min(facts.per_class, key=lambda one: one.f1.estimate)

    assert "The weakest 20 of 60 come first." in part
    first, every = part.split("All 60 classes")
    assert first.count("class 00") == 20
    assert first.index(weakest.label) == first.index("class 00")
    assert every.count("class 00") == 60


def numbers(release: ReportFacts) -> ReportFacts:
    """Return the facts of a model that answers numbers."""
    bins = tuple(ResidualBinFacts(low, low + 10.0, 40, -9.0, -3.0, low / 20, 4.0, 11.0) for low in (0.0, 10.0, 20.0))
    overall = Interval(3.21, 3.0, 3.4, 0.95, 120)
    losses = LossFacts(
        "numbers",
        "Mean absolute error",
        overall,
        rmse=Interval(4.5, 4.1, 4.9, 0.95, 120),
        r2=0.71,
        bias=Interval(-0.5, -1.1, 0.1, 0.95, 120),
        bins=bins,
        values=(OneValueFacts("3", overall, None, None),),
        worst=(WorstRowFacts("row#7", 91.5, "12", "103.5"),),
    )
    return replace(
        release,
        gate_accuracy=None,
        cost=None,
        per_class=(),
        confusion=None,
        calibration=None,
        worst=(),
        losses=losses,
        slices=(SliceFacts("age >= 60", 31, 0.25, Interval(7.75, 6.1, 9.4, 0.99, 31), True, "mean absolute error"),),
        slice_harm=(SliceHarmFacts("age >= 60", 31, 0, 0, Verdict.FAILED, before=7.75, after=9.25),),
    )


def test_numbers_are_shown_by_their_errors(release: ReportFacts) -> None:
    """Residuals drawn and told, worst rows by name, slices in the unit of the answer, and no word of accuracy."""
    html = render_page(numbers(release))
    text = Page(html).text

    assert 'class="plot residual-plot"' in html
    for said in ("Mean absolute error", "3.21", "row#7", "103.5", "91.5", "7.75", "9.25", "age >= 60"):
        assert said in text, said
    assert "Mean absolute error of the weakest slices" in text
    assert "Accuracy change" not in text
    assert "775" not in text


def test_no_text_of_numbers_becomes_markup(release: ReportFacts, say) -> None:
    """Names of rows and values are anybody's."""
    attack = '"><img src=x onerror=alert(1)>'
    page, harmless = (Page(render_page(say(numbers(release), text))) for text in (attack, "x" * len(attack)))

    assert set(page.tags) == set(harmless.tags)
    assert {name for _, name, _ in page.attributes} == {name for _, name, _ in harmless.attributes}
