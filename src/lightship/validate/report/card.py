"""The model card: what a person must know before using a model, as Markdown, from the same facts as the report.

What nobody recorded (what it is meant for, under which license) is said to be unknown; it is never left out. Texts of
the facts are hostile: they are escaped so that none becomes markup, in Markdown or in the HTML that is made of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from lightship.types import Interval, Verdict
from lightship.validate.report import numerals
from lightship.validate.report.facts import ReportFacts, VariantFacts
from lightship.validate.report.svg import clean
from lightship.validate.report.words import front_words, missing_of, released_word

__all__ = ["render_card"]

_MARKUP = re.compile(r"([\\`*_{}\[\]<>#!|~&$]|:(?=//))")
_AT_START = re.compile(r"^(\d*)([-+=.)])")  # what begins a list or underlines a heading where a line begins with it
_WEAKEST = 5
_UNKNOWN = "unknown: nobody recorded it"


def render_card(facts: ReportFacts) -> str:
    """Return the card as Markdown; write it as UTF-8. The same facts give the same text."""
    title = facts.name + (f":{facts.version}" if facts.version is not None else "")
    lines = [f"# Model card: {_text(title)}", "", _first(facts.headline), ""]
    for heading, body in (
        ("What it is", _what(facts)),
        ("What it is for", _purpose(facts)),
        ("Data", _data(facts)),
        ("Figures", _figures(facts)),
        ("Limits", _limits(facts)),
        ("How it was made", _made(facts)),
        ("License", _license()),
        ("Evidence", _evidence(facts)),
    ):
        lines += [f"## {heading}", "", *body, ""]
    return "\n".join(lines).rstrip() + "\n"


def _text(value: str) -> str:
    """Return a text in one line in which nothing is markup."""
    return _MARKUP.sub(r"\\\1", " ".join(clean(value).split()))


def _first(value: str) -> str:
    """Return a text that begins a line, or an item of a list, and so must not begin another list."""
    return _AT_START.sub(r"\1\\\2", _text(value))


def _digest(value: str) -> str:
    return f"`{value}`" if re.fullmatch("sha256:[0-9a-f]{64}", value) else _text(value)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield f"| {' | '.join('---' for _ in heads)} |"
    for row in rows:
        yield f"| {' | '.join(cell or numerals.DASH for cell in row)} |"


def _listed(pairs: Sequence[tuple[str, str]]) -> Iterator[str]:
    for name, value in pairs:
        yield f"- {_first(name)}: {_text(value)}"


def _what(facts: ReportFacts) -> Iterator[str]:
    word = released_word(facts)[0].lower()
    if facts.status == "structural":
        word = "released, unproven: how good its answers are was not judged"
    yield from _listed(
        [
            ("task", facts.task),
            ("status", word),
            ("made", numerals.day(facts.created)),
            ("signed by", facts.signer.removesuffix("(a key of this home)").rstrip() or "nobody"),
        ]
    )
    chosen = _chosen(facts)
    if chosen is not None:
        how = ", ".join(filter(None, (chosen.name, chosen.precision, chosen.engine, numerals.size(chosen.size_bytes))))
        yield from _listed([("runs", how)])
    yield from _listed(facts.interface)


def _chosen(facts: ReportFacts) -> VariantFacts | None:
    return next((variant for variant in facts.variants if variant.chosen), None)


def _purpose(facts: ReportFacts) -> Iterator[str]:
    yield f"Intended use: {_UNKNOWN}. What it does is its task, {_text(facts.task)}."
    if facts.per_class:
        labels = [one.label for one in facts.per_class]
        shown = ", ".join(map(_text, labels[:20])) + (f" and {len(labels) - 20} more" if len(labels) > 20 else "")
        yield f"It tells {len(labels)} classes apart and knows no other: {shown}."


def _data(facts: ReportFacts) -> Iterator[str]:
    data = facts.data
    if data is None:
        yield "No rows were given, so nothing is known about the data that it was trained on or would fit."
        return
    parts = ", ".join(f"{part} {rows:,}" for part, rows in data.parts.items())
    yield from _listed(
        [
            ("source", data.source or _UNKNOWN),
            ("rows", f"{data.rows:,}" + (f" ({parts})" if parts else "")),
            ("duplicates", f"{data.duplicates:,}, each kept in one part"),
            ("equal inputs with unlike labels", f"{data.conflicts:,} groups"),
            ("rows that could not be read", f"{data.bad_rows:,}"),
            ("looks at the gate rows", f"{data.gate_looks:,}"),
            ("fingerprint", data.fingerprint or _UNKNOWN),
            ("license of the data", _UNKNOWN),
        ]
    )
    twins = facts.near_duplicates
    if twins is not None:
        yield f"- near duplicates: {twins.pairs:,} pairs across parts; {twins.gate_rows:,} gate rows have one elsewhere"
    if "optimized from" in dict(facts.lineage):
        trained = dict(facts.lineage).get("trained on", _UNKNOWN)
        yield f"- what it learned from: {_text(trained)}; the rows above chose and judged the variant"


def _figures(facts: ReportFacts) -> Iterator[str]:
    rows = [*_quality_rows(facts), *_speed_rows(facts)]
    if not rows:
        yield "Nothing was measured."
        return
    yield from _table(("figure", "value", "interval", "level", "n"), rows)
    if facts.machine:
        named = dict(facts.machine)
        machine = ", ".join(
            f"{key} {named[key]}" for key in ("cpu", "cores", "onnxruntime", "openvino") if key in named
        )
        yield ""
        machine = machine or "; ".join(map(" ".join, facts.machine))
        yield f"Times hold for the machine that measured them: {_text(machine)}."


def _row(name: str, unit: str, value: Interval) -> tuple[str, str, str, str, str]:
    return (
        _text(name),
        numerals.quality(value, unit),
        numerals.quality_range(value, unit),
        numerals.level(value.confidence),
        f"{value.n:,}",
    )


def _quality_rows(facts: ReportFacts) -> Iterator[Sequence[str]]:
    if facts.gate_accuracy is not None:
        yield _row("accuracy on the gate rows", "share", facts.gate_accuracy)
    if facts.losses is not None:
        unit = "number" if facts.losses.kind == "numbers" else "share"
        yield _row(f"{facts.losses.name.lower()} on the gate rows", unit, facts.losses.overall)
    for name, unit, value in facts.fidelity:
        yield _row(f"{name.lower() if name != 'SNR' else name} against the reference", unit, value)
    worst = sorted(facts.per_class, key=lambda one: one.f1.estimate)[:_WEAKEST]
    for one in worst:
        yield _row(f"F1 of {'class' if facts.losses is None else 'tag'} {one.label}", "share", one.f1)
    if facts.calibration is not None:
        yield _row("calibration error", "share", facts.calibration.ece)


def _speed_rows(facts: ReportFacts) -> Iterator[Sequence[str]]:
    chosen = _chosen(facts)
    if chosen is None:
        return
    if chosen.latency_p50_ms is not None:
        yield ("latency p50", numerals.milliseconds(chosen.latency_p50_ms), "", "", "")
    for name, gain in (("speed", chosen.speedup), ("throughput", chosen.throughput_gain)):
        if gain is not None:
            level, pairs = numerals.level(gain.confidence), f"{gain.n:,}"
            yield (
                f"{name} against the reference",
                numerals.times(gain.estimate),
                numerals.times_range(gain),
                level,
                pairs,
            )
    if chosen.throughput is not None:
        yield ("rows a second", numerals.per_second(chosen.throughput), "", "", "")
    yield ("size of the graph", numerals.size(chosen.size_bytes), "", "", "")
    if chosen.memory_bytes is not None:
        yield ("peak memory", numerals.size(chosen.memory_bytes), "", "", "")


def _limits(facts: ReportFacts) -> Iterator[str]:
    for one in missing_of(facts):
        yield f"- Unproven: **{_text(one.name)}**. {_text(one.why)}"
    for piece in facts.evidence:
        if piece.verdict in (Verdict.FAILED, Verdict.UNDECIDED):
            yield f"- {piece.verdict.value.capitalize()}: **{_text(piece.title)}**. {_text(piece.summary)}"
    for part in facts.slices:
        if part.worse:
            unit = "number" if part.measure == "mean absolute error" else "share"
            shown = f"{numerals.quality(part.accuracy, unit)} ({numerals.quality_range(part.accuracy, unit)})"
            yield f"- Worse where {_text(part.words)}: {_text(part.measure)} {shown} on {part.rows:,} rows"
    for value in facts.values:
        if value.problem:
            yield f"- {_first(value.case)} in {_text(value.input)}: {_text(value.problem)}"
    proven = [
        f"{name.removeprefix('proven ')} {value}" for name, value in facts.interface if name.startswith("proven ")
    ]
    sizes = f"Proven sizes: {_text(', '.join(proven))}; a server refuses others" if proven else "No size was proven"
    yield f"- {sizes}."
    ranges = [
        f"{name.removeprefix('values of ')} {value}" for name, value in facts.interface if name.startswith("values of ")
    ]
    if ranges:
        yield f"- Values: {_text(', '.join(ranges))}."
    yield "- Rows that differ from those that it was judged on may be answered worse; nothing here says how much."


def _made(facts: ReportFacts) -> Iterator[str]:
    if facts.curves is not None and facts.curves.epochs:
        epochs = f"{len(facts.curves.epochs)} epochs, the weights of epoch {facts.curves.best_epoch} kept"
        yield f"- trained: {epochs}"
    if facts.front is not None and len(facts.variants) > 1:
        yield f"- variants: {_text(front_words(facts))}"
        chosen = _chosen(facts)
        if chosen is not None:
            yield f"- {_first(chosen.name)}: {_text(chosen.reason)}"
    yield from _listed(facts.lineage)
    if not facts.lineage:
        yield f"- origin: {_UNKNOWN}"


def _license() -> Iterator[str]:
    yield f"- of the model: {_UNKNOWN}"
    yield f"- of the data: {_UNKNOWN}"
    yield ""
    yield "Find out before you pass it on: who may read data may not always publish what was learned from it."


def _evidence(facts: ReportFacts) -> Iterator[str]:
    if not facts.evidence:
        yield "No check was made."
        return
    if facts.signer:
        yield "All figures are those of these signed statements about exact bytes. Check it yourself:"
        yield ""
        yield f"    lightship verify {facts.name}" + (f":{facts.version}" if facts.version is not None else "")
        yield ""
        yield "recomputes every digest and signature; the signed release holds the digest of this card, too."
    else:
        yield "All figures are those of these statements, which nobody signed."
    yield ""
    yield from _table(
        ("check", "verdict", "what was found", "statement"),
        [(_text(e.check), e.verdict.value, _text(e.summary), _digest(e.digest)) for e in facts.evidence],
    )
