"""Compare two releases: what was changed, how good and how fast each is, and which proofs came or went.

All figures come from signed evidence. Two figures have a difference only where one can be told: the same gate rows
answer by answer (``paired``), the same rows measured apart, or times against the same reference on the same machine.
For the rest the answer is "not comparable", and rows that are given (``data``) let both run side by side.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from lightship.bundle.interface import interface_to_json
from lightship.bundle.manifest import REFERENCE
from lightship.data.home import Home
from lightship.pipeline.compare_rows import figure_of_pairs, gate_answers, run_both
from lightship.registry.statements import Statements, read_statements
from lightship.tasks.row_files import LABEL
from lightship.types import Interval, Json, Progress, Silent, Verdict
from lightship.validate.report.comparison import (
    Basis,
    Change,
    ComparisonFacts,
    EvidenceChange,
    Figure,
    Finding,
    PairedRows,
    SideFacts,
)
from lightship.validate.report.measured import interval_of, items_of, mapping_of, number_of, text_of, texts_of
from lightship.validate.report.titles import title_of
from lightship.validate.statistics import gap_interval

__all__ = ["compare"]

_SHOWN_CHARACTERS = 200
_LONG_DECIMAL = re.compile(r"-?[0-9]{1,15}\.[0-9]{8,32}(e-?[0-9]{1,3})?")
_MACHINE = ("cpu", "cores", "memory_gib", "vnni", "flags_digest", "platform", "python")


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
    figures = (*_quality(where, one, two), *_speed(one, two))
    evidence = tuple(_evidence(one, two))
    findings = tuple(_findings(one, two, figures, evidence, paired))
    return ComparisonFacts(
        before=_side(one),
        after=_side(two),
        headline=_headline(one, two, findings),
        findings=findings,
        same_bundle=one.bundle.digest == two.bundle.digest,
        changes=tuple(_changes(one, two)),
        figures=figures,
        evidence=evidence,
        paired=paired,
    )


def _side(found: Statements) -> SideFacts:
    record, default = found.record, found.default
    machine = _machine(found)
    return SideFacts(
        asked=found.reference,
        name=record.name,
        version=record.version,
        bundle=record.bundle,
        release=found.digest,
        status=record.status,
        created=record.created,
        signer=_signer(found),
        default=default.name,
        engine=default.engine,
        precision=default.precision,
        size_bytes=_size(found),
        machine=tuple((key, _shown(machine[key])) for key in _MACHINE if key in machine),
        unproven=tuple(e.evidence.check for e in found.evidence if e.evidence.verdict is Verdict.UNPROVEN),
    )


def _signer(found: Statements) -> str:
    kind = "  (a key of this home)" if found.signer.local else ""
    return f"{found.signer.name}  {found.signer.key_id}{kind}"


def _machine(found: Statements) -> Mapping[str, Json]:
    """Return the machine that the figures hold for: that of the timing, else of any evidence."""
    timed = found.of("search") or found.of("latency") or next(iter(found.evidence), None)
    return timed.machine if timed else {}


def _size(found: Statements) -> int:
    """Return the bytes that the variant needs to run."""
    paths = {found.default.graph, *found.default.files}
    return sum(entry.size for entry in found.manifest.files if entry.path in paths)


def _graph(found: Statements, name: str) -> str:
    """Return the digest of a variant's graph."""
    variant = found.manifest.variant(name)
    entry = found.manifest.file(variant.graph) if variant else None
    return f"sha256:{entry.sha256}" if entry else ""


def _tried(found: Statements, name: str) -> Mapping[str, Json]:
    """Return what the search found of a variant."""
    search = found.of("search")
    candidates = search.evidence.measured.get("candidates") if search else None
    return next((each for each in items_of(candidates) if each.get("name") == name), {})


# What was changed


def _changes(one: Statements, two: Statements) -> Iterator[Change]:
    for (topic, before), (_, after) in zip(_topics(one), _topics(two), strict=True):
        yield from _differing(topic, before, after)


def _topics(found: Statements) -> Iterator[tuple[str, dict[str, Json]]]:
    """Yield what a release is made of, topic by topic."""
    default, manifest, record = found.default, found.manifest, found.record
    lineage = dict(manifest.lineage)
    origin = dict(mapping_of(lineage.pop("origin", None))) or lineage
    if origin is not lineage:
        lineage.pop("parent", None)  # says itself which version it was; that is no difference of the two
    machine = _machine(found)
    yield (
        "How it runs",
        {
            "variant": default.name,
            "engine": default.engine,
            "engine options": dict(default.options),
            "precision": default.precision,
            "passes": list(texts_of(_tried(found, default.name).get("passes"))),
            "graph": _graph(found, default.name),
            "size, bytes": _size(found),
            "variants in the bundle": [each.name for each in manifest.variants],
        },
    )
    yield (
        "The model",
        {
            "reference graph": _graph(found, REFERENCE),
            "recipe": origin.pop("recipe", None),
            "data": origin.pop("data", None),
            "source": origin.pop("source", None),
            "optimized": lineage.pop("optimized", None),
        },
    )
    yield "Task", {"task": manifest.task.name, "codec": manifest.task.codec_version, **manifest.task.config}
    yield "Interface", _interface(found)
    yield "Golden examples", {name: f"within {e.tolerance}" for name, e in manifest.golden.expected.items()}
    yield "Policy", dict(record.policy)
    libraries = {"lightship": origin.pop("lightship", None), **mapping_of(origin.pop("libraries", None))}
    yield "Libraries", libraries
    yield "Origin", {**origin, **lineage}
    yield "Machine", {**{key: machine.get(key) for key in _MACHINE}, "libraries": machine.get("libraries")}
    yield "Release", {"status": record.status, "signed by": _signer(found)}


def _interface(found: Statements) -> dict[str, Json]:
    said = interface_to_json(found.manifest.interface)
    topic: dict[str, Json] = {}
    for side in ("inputs", "outputs"):
        for tensor in items_of(said[side]):
            dims = tensor["shape"]
            shape = ", ".join(map(str, dims)) if isinstance(dims, list) else ""
            topic[f"{side[:-1]} {tensor['name']}"] = f"{tensor['dtype']} [{shape}]"
    for name, bounds in found.manifest.interface.proven.items():
        topic[f"proven {name}"] = f"{bounds[0]} to {bounds[1]}"
    return topic


def _differing(topic: str, before: Mapping[str, Json], after: Mapping[str, Json]) -> Iterator[Change]:
    one, two = dict(_leaves(before)), dict(_leaves(after))
    for key in dict.fromkeys((*one, *two)):
        old, new = one.get(key), two.get(key)
        if old == new:
            continue
        if isinstance(old, list) and isinstance(new, list):
            yield from _lists(topic, key, old, new)
        else:
            yield Change(topic, key, _shown(old) or None, _shown(new) or None)


def _leaves(value: Mapping[str, Json], prefix: str = "") -> Iterator[tuple[str, Json]]:
    for key, item in value.items():
        name = f"{prefix}{key}"
        if isinstance(item, dict):
            yield from _leaves(item, f"{name} · ")
        elif item is not None:
            yield name, item


def _lists(topic: str, key: str, old: list[Json], new: list[Json]) -> Iterator[Change]:
    """Tell what a list lost and gained; of a long one nobody sees the difference otherwise."""
    lost = [item for item in old if item not in new]
    gained = [item for item in new if item not in old]
    if not lost and not gained:
        yield Change(topic, f"{key}, order", _shown(old), _shown(new))
    elif len(old) + len(new) <= 12:
        yield Change(topic, key, _shown(old) or None, _shown(new) or None)
    else:
        words = [f"without {_shown(lost)}" if lost else "", f"with {_shown(gained)}" if gained else ""]
        yield Change(topic, key, f"{len(old)} items", f"{len(new)} items: {', '.join(filter(None, words))}")


def _shown(value: Json) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        text = ", ".join(_shown(item) for item in value)
    elif isinstance(value, dict):
        text = json.dumps(value, ensure_ascii=False)
    else:
        text = "" if value is None else str(value)
        if _LONG_DECIMAL.fullmatch(text):  # a sum of floats: 0.050000000000000044
            text = f"{float(text):.6g}"
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"


# How good


def _quality(home: Home, one: Statements, two: Statements) -> Iterator[Figure]:
    same_rows = bool(gate_rows(one)) and gate_rows(one) == gate_rows(two)
    before, after = _accuracy(one), _accuracy(two)
    if before is not None or after is not None:
        yield _accuracy_figure(home, one, two, before, after, same_rows=same_rows)
    same_reference = _graph(one, REFERENCE) == _graph(two, REFERENCE)
    for name, unit, key in _FIDELITY:
        old, new = (_fidelity(side, key) for side in (one, two))
        if old is None and new is None:
            continue
        basis = (
            Basis.ONE_SIDE
            if old is None or new is None
            else Basis.OTHER_REFERENCE
            if not same_reference
            else Basis.SAME_ROWS
            if same_rows
            else Basis.OTHER_ROWS
        )
        yield Figure(f"{name} to its reference", unit, old, new, None, basis, "")


_FIDELITY = (("Agreement", "share", "agreement"), ("Cosine", "cosine", "cosine"), ("SNR", "dB", "snr_db"))


def gate_rows(found: Statements) -> str:
    """Return the fingerprint of the rows that the release was judged on, empty if it names none."""
    lineage = found.manifest.lineage  # of a variant of a released model, then of a recipe
    given = text_of(mapping_of(lineage, "optimized", "rows").get("gate"))
    return given or text_of(mapping_of(lineage, "data", "parts").get("gate"))


def _accuracy(found: Statements) -> Interval | None:
    signed = found.of("accuracy")
    return interval_of(signed.evidence.measured.get("accuracy")) if signed else None


def _fidelity(found: Statements, key: str) -> Interval | None:
    signed = found.of("fidelity")
    if signed is None:
        return None
    measured = signed.evidence.measured
    return interval_of(measured.get(key)) or interval_of(mapping_of(measured, "fidelity").get(key))


def _accuracy_figure(
    home: Home, one: Statements, two: Statements, before: Interval | None, after: Interval | None, *, same_rows: bool
) -> Figure:
    def figure(difference: Interval | None, basis: Basis, words: str) -> Figure:
        return Figure("Accuracy", "share", before, after, difference, basis, words)

    if before is None or after is None:
        lacking = one if before is None else two
        return figure(None, Basis.ONE_SIDE, f"The accuracy of {_title(lacking)} was not measured.")
    if not same_rows:
        return figure(
            None, Basis.OTHER_ROWS, "They were judged on other rows: a difference of these two numbers shows nothing."
        )
    answers = gate_answers(home, one, two, rows=gate_rows(one), right=(_right(before), _right(after)))
    if answers is not None:
        return figure_of_pairs("Accuracy", before, after, losses=answers.losses, gains=answers.gains, rows=answers.rows)
    gap = gap_interval(_right(after), after.n, _right(before), before.n, min(before.confidence, after.confidence))
    return figure(
        gap,
        Basis.SAME_ROWS,
        "Judged on the same rows, but their answers are not at hand, so the difference is not paired and its interval "
        "is wider than it had to be. " + _signs(gap, better="better", worse="worse"),
    )


def _right(accuracy: Interval) -> int:
    return round(accuracy.estimate * accuracy.n)


def _signs(difference: Interval, *, better: str, worse: str) -> str:
    if difference.low > 0:
        return f"It is shown to be {better}."
    return f"It is shown to be {worse}." if difference.high < 0 else "No difference is shown."


# How fast


def _speed(one: Statements, two: Statements) -> Iterator[Figure]:
    machines = [text_of(_machine(side).get("digest")) for side in (one, two)]
    same = bool(machines[0]) and machines[0] == machines[1]
    measured = [_timing(side) for side in (one, two)]
    for name, unit, key in _SPEEDS:
        before, after = (timing.get(key) for timing in measured)
        if before is None and after is None:
            continue
        basis = (
            Basis.ONE_SIDE if before is None or after is None else Basis.SAME_MACHINE if same else Basis.OTHER_MACHINE
        )
        yield Figure(name, unit, before, after, None, basis, "")
    yield _speedup_figure(one, two, measured[0].get("speedup"), measured[1].get("speedup"), same=same)
    old, new = _size(one), _size(two)
    yield Figure("Size", "bytes", _exact(old), _exact(new), _exact(new / old) if old else None, Basis.EXACT, "")


_SPEEDS = (("Latency p50", "ms", "latency"), ("Throughput", "rows/s", "throughput"), ("Peak memory", "bytes", "memory"))


def _exact(value: float) -> Interval:
    return Interval(float(value), float(value), float(value), 1.0, 0)


def _timing(found: Statements) -> dict[str, Interval]:
    """Return what was measured of the variant that runs: latency, throughput, memory, and the speed-up."""
    name = found.default.name
    search, latency = found.of("search"), found.of("latency")
    of_search = mapping_of(search.evidence.measured if search else {})
    of_latency = mapping_of(latency.evidence.measured if latency else {})
    of_variant = mapping_of(of_search, "reference") if name == REFERENCE else _tried(found, name)
    said = {
        "latency": number_of(mapping_of(of_variant, "latency").get("p50_ms"))
        or number_of(mapping_of(of_latency, "variant_ms").get("p50")),
        "throughput": number_of(mapping_of(of_variant, "throughput").get("rows_per_s")),
        "memory": number_of(of_variant.get("memory_bytes")),
    }
    figures = {key: _exact(value) for key, value in said.items() if value is not None}
    ratio = interval_of(mapping_of(of_variant, "latency").get("ratio")) or interval_of(of_latency.get("time_ratio"))
    if name != REFERENCE and ratio is not None and ratio.low > 0:
        figures["speedup"] = Interval(1 / ratio.estimate, 1 / ratio.high, 1 / ratio.low, ratio.confidence, ratio.n)
    elif name == REFERENCE:
        figures["speedup"] = _exact(1)
    return figures


def _speedup_figure(
    one: Statements, two: Statements, before: Interval | None, after: Interval | None, *, same: bool
) -> Figure:
    """Return how many times as fast as its own reference each is; through the same reference they can be compared."""

    def figure(difference: Interval | None, basis: Basis, words: str) -> Figure:
        return Figure("Speed against its reference", "times", before, after, difference, basis, words)

    if before is None or after is None:
        lacking = one if before is None else two
        return figure(None, Basis.ONE_SIDE, f"The speed of {_title(lacking)} was not measured.")
    if not same:
        return figure(None, Basis.OTHER_MACHINE, "They were timed on other machines, or with other engine versions.")
    if _graph(one, REFERENCE) != _graph(two, REFERENCE):
        return figure(
            None, Basis.OTHER_REFERENCE, "Timed on one machine, but each against another reference. Give rows (--data)."
        )
    confidence = 1 - (1 - before.confidence) - (1 - after.confidence)  # both intervals hold at once (Bonferroni)
    ratio = Interval(
        after.estimate / before.estimate,
        after.low / before.high,
        after.high / before.low,
        confidence,
        min(filter(None, (before.n, after.n)), default=0),
    )
    words = "Through the reference, which is the same graph on the same machine."
    shown = "faster" if ratio.low > 1 else "slower" if ratio.high < 1 else ""
    return figure(
        ratio, Basis.SAME_MACHINE, f"{words} {f'It is shown to be {shown}.' if shown else 'No difference is shown.'}"
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


_ABOUT_VARIANT = ("noninferiority", "probabilities", "class_harm", "slice_harm", "fidelity", "latency")
_ORDER = (Verdict.FAILED, Verdict.UNPROVEN, Verdict.UNDECIDED, Verdict.PASSED)


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
    if _graph(one, one.default.name) == _graph(two, two.default.name) and _runs(one) == _runs(two):
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
        return f"{_title(one)} and {_title(two)} are the same bundle."
    runs = [f"{side.default.name} in {side.default.precision} on {side.default.engine}" for side in (one, two)]
    how = f"Both run {runs[0]}" if runs[0] == runs[1] else f"{_title(two)} runs {runs[1]}, {_title(one)} {runs[0]}"
    words = {each.about: each.word for each in findings}
    return f"{how}. Quality: {words['quality']}; speed: {words['speed']}; size: {words['size']}."


def _title(found: Statements) -> str:
    return f"{found.record.name}:{found.record.version}"
