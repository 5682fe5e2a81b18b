"""The report as one HTML file that needs nothing else: no network, no script, no second file. The comparison likewise.

Facts in, HTML out: whatever made the facts (a recipe, an optimized bundle, a release that was read back) draws here.
Each text of the facts is hostile until escaped: Jinja2 escapes what the template prints, `svg.element` what drawings
hold, and the content security policy of the page lets nothing run or load even if both failed. The same facts give
the same bytes. `numerals` rounds, the plots draw, the template orders; this module only puts them together.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from lightship.bundle.manifest import REFERENCE
from lightship.types import Interval, Json, Verdict
from lightship.validate.report import numerals
from lightship.validate.report.comparison import Change, ComparisonFacts, Figure, SideFacts
from lightship.validate.report.facts import (
    ClassFacts,
    ConfusionFacts,
    ExampleFacts,
    FloorFacts,
    ReportFacts,
    VariantFacts,
)
from lightship.validate.report.front_plot import AXES, SPEEDS, front_plot, numbered, plotted, state_of
from lightship.validate.report.key_figures import key_figures
from lightship.validate.report.plots import StripPlot, calibration_plot, confusion_plot, curve_plots, residual_plot
from lightship.validate.report.svg import clean
from lightship.validate.report.words import (
    findings_of,
    front_words,
    missing_of,
    opened_by,
    released_word,
    weakest_class,
)

__all__ = ["render_comparison", "render_page"]

_MEASURED_LINES = 60  # more are noise on a page; the JSON twin has them all
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CRISP_PX = 96  # an image up to this size is enlarged with sharp pixels
_MISTAKES = 10
_LONG_CLASS_LIST = 12
_MOST_REASONS = 6
_FEW_CLASSES = 40  # with more, the weakest stand first and all others one click away
_WEAK_CLASSES = 20
_FEW_DROPPED = 4  # so many dropped variants stand in the first table; more are folded
_TEMPLATES = ("base", "macros", "report", "comparison")
_SECTIONS = (
    ("classes", "Classes"),
    ("confusion", "Confusion"),
    ("losses", "Errors"),
    ("slices", "Slices"),
    ("calibration", "Calibration"),
    ("worst", "Worst examples"),
    ("fidelity", "Against the reference"),
    ("training", "Training"),
    ("data", "Data"),
    ("evidence", "Evidence"),
)


def render_page(facts: ReportFacts) -> str:
    """Return the report as one self-contained HTML document; write it as UTF-8.

    The text has no lone surrogates, whatever the facts hold, and no NaN.
    """
    word, tone = released_word(facts)
    chosen_word = "stays" if facts.status == "kept" else "chosen" if facts.released else "candidate"
    measure = facts.front.measure if facts.front else "Accuracy"
    order = numbered(facts.variants)
    dropped = [each for each in order if state_of(each[1]) == "dropped"]
    folded = dropped if len(dropped) > _FEW_DROPPED else []
    plots = [
        plot
        for axis in AXES
        if (plot := front_plot(facts.variants, axis, measure=measure, chosen_word=chosen_word)) is not None
    ]
    drawn = [one for one in facts.variants if any(plotted(one, axis) for axis in AXES)]
    missing = missing_of(facts)
    there = _there(facts)
    return _render(
        "report",
        facts=facts,
        word=word,
        tone=tone,
        title=facts.name + (f":{facts.version}" if facts.version is not None else ""),
        icon=_icon(good=facts.released),
        most_reasons=_MOST_REASONS,
        tally=_tally(facts.evidence),
        chosen_word=chosen_word,
        key_figures=key_figures(facts),
        sections=[
            ("front", "Front"),
            *((key, "Tags" if key == "classes" and facts.losses else name) for key, name in _SECTIONS if key in there),
            *([("unproven", "Not measured")] if missing else []),
            ("origin", "Origin"),
            *([("next", "How to go on")] if facts.commands else []),
        ],
        measure=measure,
        unit="cosine" if measure == "Cosine" else "share",
        front_words=front_words(facts),
        confidence=_confidence(facts.variants),
        plots=plots,
        states={state_of(variant) for variant in drawn},
        has_stairs=any('class="staircase"' in plot for plot in plots),
        has_low=any("h10l-5 8z" in plot for plot in plots),
        untimed=[one.name for one in facts.variants if not any(plotted(one, axis) for axis in SPEEDS)],
        main_variants=[each for each in order if each not in folded],
        other_variants=folded,
        has_throughput=any(one.throughput for one in facts.variants),
        has_memory=any(one.memory_bytes for one in facts.variants),
        floor=_floor(facts),
        findings=findings_of(facts),
        opened=opened_by(facts),
        f1_plot=StripPlot([one.f1 for one in facts.per_class]),
        weakest=weakest_class(facts.per_class),
        compares_values=any(one.variant for one in facts.values),
        weak_classes=_weak_classes(facts.per_class),
        confusion_plot=confusion_plot(facts.confusion) if facts.confusion else None,
        mistakes=list(_mistakes(facts.confusion)) if facts.confusion else [],
        slice_plot=StripPlot(
            [one.accuracy for one in facts.slices],
            line=_overall(facts),
            losses=bool(facts.slices and facts.slices[0].measure != "accuracy"),
            shares=_slice_unit(facts) == "share",
        ),
        slice_unit=_slice_unit(facts),
        slice_name=facts.slices[0].measure if facts.slices else "accuracy",
        residual_plot=residual_plot(facts.losses) if facts.losses else None,
        calibration_plot=calibration_plot(facts.calibration) if facts.calibration else None,
        curve_plots=curve_plots(facts.curves) if facts.curves else (),
        has_pictures=any(example.png for example in facts.worst),
        long_class_list=_LONG_CLASS_LIST,
        labels=_labels(facts.data.class_counts) if facts.data else [],
        missing=missing,
    )


def render_comparison(facts: ComparisonFacts) -> str:
    """Return a comparison of two releases as one self-contained HTML document; write it as UTF-8."""
    sections = [("figures", "Signed figures"), ("changes", "Changes"), ("evidence", "Evidence"), ("sides", "Releases")]
    return _render(
        "comparison",
        facts=facts,
        one=facts.before.title,
        two=facts.after.title,
        icon=_icon(good=True),
        sections=[*([("paired", "Same rows")] if facts.paired else []), *sections],
        topics=_topics(facts.changes),
    )


def _render(template: str, **values: object) -> str:
    style = Markup(_resource("style.css"))  # noqa: S704 (our own file)
    return _environment().get_template(f"{template}.html.j2").render(style=style, **values)


def _weak_classes(classes: Sequence[ClassFacts]) -> list[ClassFacts]:
    """Return the weakest of many classes, worst first; none where all are few enough to be seen at once."""
    if len(classes) <= _FEW_CLASSES:
        return []
    known = [one for one in classes if math.isfinite(one.f1.estimate)]
    return sorted(known, key=lambda one: one.f1.estimate)[:_WEAK_CLASSES]


def _there(facts: ReportFacts) -> set[str]:
    """Return the parts of the page that have something to show."""
    parts: dict[str, object] = {
        "classes": facts.per_class,
        "confusion": facts.confusion and facts.confusion.labels,
        "losses": facts.losses and (facts.losses.bins or facts.losses.values or facts.losses.worst),
        "slices": facts.slices or facts.slice_harm,
        "calibration": facts.calibration,
        "worst": facts.worst,
        "fidelity": facts.fidelity or facts.divergence or facts.values,
        "training": facts.curves and curve_plots(facts.curves),
        "data": facts.data,
        "evidence": facts.evidence,
    }
    return {name for name, found in parts.items() if found}


def _overall(facts: ReportFacts) -> float | None:
    """Return what slices are compared with: the figure of all gate rows."""
    overall = facts.gate_accuracy or (facts.losses.overall if facts.losses else None)
    if overall is None or (
        facts.slices and (facts.slices[0].measure == "accuracy") != (facts.gate_accuracy is not None)
    ):
        return None
    return overall.estimate


def _slice_unit(facts: ReportFacts) -> str:
    return "number" if facts.slices and facts.slices[0].measure == "mean absolute error" else "share"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=DictLoader({f"{name}.html.j2": _resource(f"templates/{name}.html.j2") for name in _TEMPLATES}),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_final,
    )
    environment.filters |= {
        "percent": numerals.percent,
        "percent_range": numerals.percent_range,
        "quality": numerals.quality,
        "quality_range": numerals.quality_range,
        "per_second": numerals.per_second,
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
        "how": _how,
        "in_unit": _in_unit,
        "side": _side,
        "gap": _gap,
        "leaf": _leaf,
        "lines": _lines_of_side,
    }
    return environment


def _final(value: Any) -> Any:
    """What the template prints: text of the facts without characters that cannot be written or that deceive."""
    return clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _resource(name: str) -> str:
    return files("lightship.validate.report").joinpath(name).read_text(encoding="utf-8")


def _icon(*, good: bool) -> str:
    """The icon of the browser's tab, as a data: URL; without one a browser asks the server for a file."""
    color, stroke = ("#0b6e55", "M9 17l5 5 10-12") if good else ("#b3380f", "M10 10l12 12M22 10l-12 12")
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><circle cx="16" cy="16" r="16" fill="{color}"/>'
        f'<path d="{stroke}" fill="none" stroke="#fff" stroke-width="3.5"/></svg>'
    )
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode("ascii")


def _confidence(variants: tuple[VariantFacts, ...]) -> str:
    """The confidence of the quality intervals, e.g. ``95 %``; empty when there are none or several."""
    levels = {variant.quality.confidence for variant in variants if variant.quality}
    return numerals.level(levels.pop()) if len(levels) == 1 else ""


def _how(variant: VariantFacts) -> str:
    """How a variant is run, in one line: precision, engine, passes, options."""
    options = [f"{name} {value}" for name, value in variant.options.items()]
    passes = " + ".join(variant.passes)
    told = [variant.precision, variant.engine, passes if passes and passes != variant.name else "", *options]
    return ", ".join(filter(None, told))


@dataclass(frozen=True, slots=True)
class _Bar:
    name: str
    ms: float
    width: float
    state: str


@dataclass(frozen=True, slots=True)
class _Floor:
    words: str
    bars: tuple[_Bar, ...]


def _floor(facts: ReportFacts) -> _Floor | None:
    """Bars of the times of a call: what the hardware allows in float32, the chosen variant, the reference."""
    floor = facts.front.floor if facts.front else None
    if floor is None or not math.isfinite(floor.floor_ms) or floor.floor_ms <= 0:
        return None
    named = {one.name: one for one in facts.variants}
    chosen = next((one for one in facts.variants if one.chosen), None)
    rows = [("floor", "The hardware's floor, float32", floor.floor_ms)]
    for state, one in (("chosen", chosen), ("base", named.get(REFERENCE))):
        told = one is not None and not (state == "base" and one.chosen)
        if one is not None and told and one.latency_p50_ms is not None and math.isfinite(one.latency_p50_ms):
            rows.append((state, one.name, one.latency_p50_ms))
    longest = max(ms for _, _, ms in rows)
    bars = tuple(_Bar(name, ms, round(max(100 * ms / longest, 0.4), 2), state) for state, name, ms in rows)
    return _Floor(_floor_words(floor), bars)


def _floor_words(floor: FloorFacts) -> str:
    work = []
    if floor.gflop and floor.gflops:
        work.append(f"{numerals.loss(floor.gflop)} Gflop at {numerals.loss(floor.gflops)} Gflop/s measured")
    if floor.mib and floor.mib_per_s:
        work.append(f"{numerals.loss(floor.mib)} MiB at {numerals.loss(floor.mib_per_s / 1024)} GiB/s measured")
    bound = "arithmetic" if floor.compute_ms >= floor.memory_ms else "memory"
    told = f" ({'; '.join(work)})" if work else ""
    return (
        f"The least time of a call of the reference in float32 on that machine{told}; {bound} decides. Only fewer or "
        "smaller numbers (int8, bf16, pruning) go below it."
    )


def _topics(changes: Sequence[Change]) -> list[tuple[str, list[Change]]]:
    found: dict[str, list[Change]] = {}
    for change in changes:
        found.setdefault(change.topic, []).append(change)
    return list(found.items())


def _side(value: Interval | None, unit: str) -> Markup:
    """One side of a figure in its own unit, with its interval below if it has one."""
    if value is None:
        return Markup("<span class='soft'>{}</span>").format(numerals.DASH)
    shown = _in_unit(value.estimate, unit)
    if value.low == value.high or not all(map(math.isfinite, (value.low, value.high))):
        return Markup("{}").format(shown)
    limits = f"{_in_unit(value.low, unit)} to {_in_unit(value.high, unit)}"
    return Markup("{}<small>{}</small>").format(shown, limits)


def _in_unit(value: float, unit: str) -> str:
    if not math.isfinite(value):
        return numerals.DASH
    if unit == "bytes":
        return numerals.size(int(value))
    if unit == "ms":
        return numerals.milliseconds(value)
    if unit == "rows/s":
        return numerals.per_second(value)
    if unit == "times":
        return numerals.times(value)
    return numerals.quality(Interval(value, value, value, 1.0, 0), unit)


def _gap(figure: Figure) -> Markup:
    """The difference with its interval: points of a share, else a ratio."""
    gap = figure.difference
    if gap is None or not all(map(math.isfinite, (gap.estimate, gap.low, gap.high))):
        return Markup("<span class='soft'>{}</span>").format(numerals.DASH)
    if figure.unit == "share":
        shown, limits = f"{100 * gap.estimate:+.2f} points", f"{100 * gap.low:+.2f} to {100 * gap.high:+.2f}"
    else:
        tail = "" if figure.unit == "bytes" else " as fast"
        shown, limits = f"{numerals.times(gap.estimate)}{tail}", numerals.times_range(gap)
    if gap.low == gap.high:
        return Markup("<b>{}</b>").format(shown)
    return Markup("<b>{}</b><small>{}</small>").format(shown, limits)


def _leaf(value: str | None) -> Markup:
    """One side of a change; a digest is cut to what tells it from another."""
    if value is None:
        return Markup("<span class='soft'>none</span>")
    if value.startswith("sha256:"):
        return Markup("<code title='{}'>{}</code>").format(value, value[7:19])
    return Markup("<bdi>{}</bdi>").format(clean(value))


_MACHINE_WORDS = {"cpu": "processor", "memory_gib": "GiB of memory", "flags_digest": "instruction sets", "vnni": "VNNI"}


def _lines_of_side(side: SideFacts) -> list[tuple[str, str]]:
    status = "structural: how good its answers are was not judged" if side.status == "structural" else side.status
    return [
        ("asked for as", side.asked),
        ("runs", f"{side.default}, {side.precision}, {side.engine}"),
        ("status", status),
        ("unproven", ", ".join(side.unproven) or "none"),
        ("created", numerals.day(side.created)),
        ("signed by", side.signer),
        ("bundle", side.bundle),
        ("release", side.release),
        (
            "measured on",
            "; ".join(f"{_MACHINE_WORDS.get(name, name)} {value}" for name, value in side.machine) or "unknown",
        ),
    ]


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
