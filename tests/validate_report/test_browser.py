"""The page as a real browser shows it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright
from tests.validate_report.test_comparison import make_comparison, spoken

from lightship.validate.report.facts import ReportFacts
from lightship.validate.report.page import render_comparison, render_page

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
OPEN_ALL = "document.querySelectorAll('details').forEach(each => { each.open = true })"
FOCUSED = "document.activeElement.closest('summary') && document.activeElement.closest('section').id"
LABELS = """plot => [...document.querySelectorAll(plot)].map(text => {
    const {left, top, right, bottom} = text.getBoundingClientRect();
    return {text: text.textContent, left, top, right, bottom};
})"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One Chromium for all tests."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium on this machine")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


class Opened:
    """A page with what it asked for and complained about."""

    def __init__(self, browser: Browser, path: Path, *, width: int = 1280) -> None:
        self.page: Page = browser.new_page(viewport={"width": width, "height": 800})
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())

    def overflow(self) -> int:
        """Return by how many pixels the page is wider than the screen."""
        return self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


HOSTILE = "<script>alert(1)</script>猫🐶" + "W" * 180
KINDS = [
    ("release", 360),
    ("release", 1280),
    ("refusal", 320),
    ("many", 320),
    ("many", 768),
    ("hostile", 320),
    ("hostile", 1280),
    ("comparison", 320),
    ("comparison", 1280),
    ("hostile-comparison", 320),
]


@pytest.mark.parametrize(("kind", "width"), KINDS, ids=[f"{kind}-{width}" for kind, width in KINDS])
def test_page_fits_the_screen_and_keeps_to_itself(
    kind: str,
    width: int,
    browser: Browser,
    release: ReportFacts,
    refusal: ReportFacts,
    many,
    release_of,
    say,
    tmp_path: Path,
) -> None:
    """No sideways scrolling, all parts open; no complaint, no request beyond the file, and sections have a height."""
    pages = {
        "release": lambda: render_page(release),
        "refusal": lambda: render_page(refusal),
        "many": lambda: render_page(replace(release, variants=many)),
        "hostile": lambda: render_page(say(release_of(tuple(map(str, range(50)))), HOSTILE)),
        "comparison": lambda: render_comparison(make_comparison()),
        "hostile-comparison": lambda: render_comparison(spoken(HOSTILE)),
    }
    path = tmp_path / "report.html"
    path.write_text(pages[kind](), encoding="utf-8")

    opened = Opened(browser, path, width=width)
    assert opened.overflow() == 0
    opened.page.evaluate(OPEN_ALL)

    assert opened.overflow() == 0
    assert opened.complaints == []
    assert [url for url in opened.requests if not url.startswith("data:")] == [path.as_uri()]
    heights = opened.page.evaluate("[...document.querySelectorAll('section')].map(one => one.offsetHeight)")
    assert len(heights) >= (5 if "comparison" in kind else 12)
    assert min(heights) > 40
    opened.page.close()


def test_light_and_dark_differ(browser: Browser, release: ReportFacts, tmp_path: Path) -> None:
    """The page follows the system's color scheme."""
    path = tmp_path / "report.html"
    path.write_text(render_page(release), encoding="utf-8")
    page = Opened(browser, path).page
    grounds = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        grounds.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    page.close()
    assert grounds == ["rgb(255, 255, 255)", "rgb(16, 22, 28)"]


def test_labels_of_a_crowded_plot_keep_apart(browser: Browser, release: ReportFacts, crowd, tmp_path: Path) -> None:
    """With the fonts of this machine no label of eight variants covers another, and no text leaves its drawing."""
    path = tmp_path / "report.html"
    path.write_text(render_page(replace(release, variants=crowd)), encoding="utf-8")
    opened = Opened(browser, path)
    opened.page.evaluate(OPEN_ALL)

    labels = opened.page.evaluate(LABELS, ".latency-plot .label")
    assert len(labels) == 8
    for index, one in enumerate(labels):
        for other in labels[index + 1 :]:
            apart = (
                one["right"] <= other["left"] + 1
                or other["right"] <= one["left"] + 1
                or one["bottom"] <= other["top"] + 3  # boxes hold room for accents above the letters
                or other["bottom"] <= one["top"] + 3
            )
            assert apart, (one["text"], other["text"])
    for plot in ("latency-plot", "loss-plot", "accuracy-plot", "confusion-plot", "calibration-plot"):
        (frame,) = opened.page.evaluate(LABELS, f"svg.{plot}")
        for text in opened.page.evaluate(LABELS, f"svg.{plot} text"):
            assert frame["left"] - 1 <= text["left"]
            assert text["right"] <= frame["right"] + 1
    opened.page.close()


def test_a_link_opens_the_part_that_it_leads_to(browser: Browser, release: ReportFacts, tmp_path: Path) -> None:
    """By mouse and by keyboard: a closed part opens when a link of the page leads into it."""
    path = tmp_path / "report.html"
    path.write_text(render_page(release), encoding="utf-8")
    page = Opened(browser, path).page

    assert not page.locator("#calibration").is_visible()
    page.get_by_role("link", name="Calibration").click()
    assert page.locator("#calibration").is_visible()
    page.locator("#confusion-part > details > summary").focus()
    page.keyboard.press("Enter")
    assert page.locator(".confusion-plot").is_visible()
    page.close()


def test_every_part_can_be_reached_with_the_tab_key(browser: Browser, release: ReportFacts, tmp_path: Path) -> None:
    """Each part's line takes the focus in the order of the page, and the focus is seen."""
    path = tmp_path / "report.html"
    path.write_text(render_page(release), encoding="utf-8")
    page = Opened(browser, path).page

    reached, outlines = [], set()
    for _ in range(80):
        page.keyboard.press("Tab")
        part = page.evaluate(
            "document.activeElement.closest('summary') && document.activeElement.closest('section').id"
        )
        if part and part not in reached:
            reached.append(part)
            outlines.add(page.evaluate("getComputedStyle(document.activeElement).outlineStyle"))
    page.close()
    parts = [
        f"{name}-part" for name in ("classes", "confusion", "slices", "calibration", "worst", "fidelity", "training")
    ]
    assert [one for one in reached if one in parts] == parts
    assert outlines == {"solid"}


def test_print_shows_every_part_in_light_colors(browser: Browser, release: ReportFacts, tmp_path: Path) -> None:
    """On paper nobody can open a part."""
    path = tmp_path / "report.html"
    path.write_text(render_page(release), encoding="utf-8")
    page = Opened(browser, path).page
    page.emulate_media(media="print", color_scheme="dark")

    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    for name in ("classes", "confusion", "calibration", "training"):
        assert page.evaluate(f"document.getElementById('{name}').getBoundingClientRect().height") > 100
    page.close()
