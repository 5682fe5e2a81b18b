"""The report as one HTML file that needs nothing else: no network, no script, no second file.

Each text of the facts is hostile until escaped: Jinja2 escapes what the template prints, `svg.element` what drawings
hold, and the content security policy of the page lets nothing run or load even if both failed. The same facts give
the same bytes. `numerals` rounds, `plots` draws, the template orders; this module only puts them together.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from lightship.types import Json, Verdict
from lightship.validate.report import numerals
from lightship.validate.report.facts import ClassFacts, ConfusionFacts, ExampleFacts, ReportFacts, VariantFacts
from lightship.validate.report.plots import F1Plot, confusion_plot, curve_plots, plotted, state_of, variant_plot
from lightship.validate.report.svg import clean

__all__ = ["render_page"]

_MEASURED_LINES = 120  # more are noise on a page; the JSON twin has them all
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CRISP_PX = 96  # an image up to this size is enlarged with sharp pixels
_MISTAKES = 10
_LONG_CLASS_LIST = 12


def render_page(facts: ReportFacts) -> str:
    """Return the report as one self-contained HTML document; write it as UTF-8.

    The text has no lone surrogates, whatever the facts hold, and no NaN.
    """
    chosen_word = "chosen" if facts.released else "candidate"
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            facts=facts,
            style=Markup(_resource("style.css")),  # noqa: S704 (our own file)
            icon=_icon(facts),
            chosen=next((variant for variant in facts.variants if variant.chosen), None),
            chosen_word=chosen_word,
            variant_plot=variant_plot(facts.variants, chosen_word=chosen_word),
            unplotted=[variant.name for variant in facts.variants if not plotted(variant)],
            states={state_of(variant) for variant in facts.variants if plotted(variant)},
            confidence=_confidence(facts.variants),
            f1_plot=F1Plot(facts.per_class),
            weakest=_weakest(facts.per_class),
            confusion_plot=confusion_plot(facts.confusion) if facts.confusion else None,
            mistakes=list(_mistakes(facts.confusion)) if facts.confusion else [],
            right=_right(facts.confusion) if facts.confusion else (0, 0),
            curve_plots=curve_plots(facts.curves) if facts.curves else (),
            long_class_list=_LONG_CLASS_LIST,
            labels=_labels(facts.data.class_counts),
        )
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=DictLoader({"report.html.j2": _resource("templates/report.html.j2")}),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_final,
    )
    environment.filters |= {
        "percent": numerals.percent,
        "percent_range": numerals.percent_range,
        "ms": numerals.milliseconds,
        "times": numerals.times,
        "times_range": numerals.times_range,
        "size": numerals.size,
        "count": numerals.count,
        "day": numerals.day,
        "plain": numerals.plain,
        "level": numerals.level,
        "loss": numerals.loss,
        "rate": numerals.rate,
        "png": _png,
        "measured": _measured,
        "tally": _tally,
    }
    return environment


def _final(value: Any) -> Any:
    """What the template prints: text of the facts without characters that cannot be written or that deceive."""
    return clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _resource(name: str) -> str:
    return files("lightship.validate.report").joinpath(name).read_text(encoding="utf-8")


def _icon(facts: ReportFacts) -> str:
    """The icon of the browser's tab, as a data: URL; without one a browser asks the server for a file."""
    color, stroke = ("#0b6e55", "M9 17l5 5 10-12") if facts.released else ("#b3380f", "M10 10l12 12M22 10l-12 12")
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><circle cx="16" cy="16" r="16" fill="{color}"/>'
        f'<path d="{stroke}" fill="none" stroke="#fff" stroke-width="3.5"/></svg>'
    )
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode("ascii")


def _confidence(variants: tuple[VariantFacts, ...]) -> str:
    """The confidence of the accuracy intervals, e.g. ``95 %``; empty when there are none or several."""
    levels = {variant.accuracy.confidence for variant in variants if variant.accuracy}
    return numerals.level(levels.pop()) if len(levels) == 1 else ""


def _weakest(classes: tuple[ClassFacts, ...]) -> ClassFacts | None:
    known = [one for one in classes if math.isfinite(one.f1.estimate)]
    return min(known, key=lambda one: one.f1.estimate, default=None)


@dataclass(frozen=True, slots=True)
class _Mistake:
    truth: str
    predicted: str
    rows: int
    of: int

    @property
    def share(self) -> float:
        return self.rows / self.of


def _mistakes(confusion: ConfusionFacts) -> Iterator[_Mistake]:
    """The commonest confusions, most rows first; equal ones in the order of the labels."""
    labels, counts = confusion.labels, confusion.counts
    wrong = [(i, j) for i in range(len(labels)) for j in range(len(labels)) if i != j and counts[i][j]]
    for i, j in sorted(wrong, key=lambda pair: -counts[pair[0]][pair[1]])[:_MISTAKES]:
        yield _Mistake(labels[i], labels[j], counts[i][j], sum(counts[i]))


def _right(confusion: ConfusionFacts) -> tuple[int, int]:
    return sum(row[i] for i, row in enumerate(confusion.counts)), sum(sum(row) for row in confusion.counts)


def _labels(class_counts: Mapping[str, Mapping[str, int]]) -> list[str]:
    """All labels of all parts, in the order in which they first come."""
    return list(dict.fromkeys(label for counts in class_counts.values() for label in counts))


@dataclass(frozen=True, slots=True)
class _Picture:
    url: str
    crisp: bool


def _png(example: ExampleFacts) -> _Picture | None:
    """The image as a data: URL, or ``None`` when the bytes are no PNG: a broken image says nothing."""
    if not example.png.startswith(_PNG_SIGNATURE) or len(example.png) < 24:
        return None
    width, height = int.from_bytes(example.png[16:20]), int.from_bytes(example.png[20:24])  # IHDR is always first
    url = "data:image/png;base64," + base64.b64encode(example.png).decode("ascii")
    return _Picture(url, crisp=max(width, height) <= _CRISP_PX)


def _measured(measured: Mapping[str, Json]) -> tuple[list[tuple[str, str]], int]:
    """Lines (name, value) of nested measurements, and how many more there are."""
    lines = [line for key, value in measured.items() for line in _lines(key, value)]
    return lines[:_MEASURED_LINES], max(0, len(lines) - _MEASURED_LINES)


def _lines(name: str, value: Json) -> Iterator[tuple[str, str]]:
    interval = _as_interval(value)
    if interval is not None:
        yield name, interval
    elif isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _lines(f"{name} · {key}", item)
    elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        for index, item in enumerate(value, start=1):
            yield from _lines(f"{name} · {index}", item)
    else:
        yield name, "none" if value == {} else numerals.plain(value)


def _as_interval(value: Json) -> str | None:
    """An `Interval` in its JSON form, in one line."""
    if not isinstance(value, dict) or set(value) != {"estimate", "low", "high", "confidence", "n"}:
        return None
    estimate, low, high = (numerals.plain(value[key]) for key in ("estimate", "low", "high"))
    confidence = value["confidence"]
    level = numerals.level(confidence) if isinstance(confidence, int | float) else numerals.plain(confidence)
    return f"{estimate} ({low} to {high} at {level}, n = {numerals.plain(value['n'])})"


def _tally(evidence: tuple[Any, ...]) -> str:
    """How many pieces of evidence have which verdict: ``9 passed, 1 undecided``."""
    verdicts = [one.verdict for one in evidence]
    return ", ".join(f"{verdicts.count(verdict)} {verdict.value}" for verdict in Verdict if verdict in verdicts)
