"""How good and how fast two releases are, by their signed evidence, and what a difference of two figures rests on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from lightship.bundle.manifest import REFERENCE
from lightship.data.home import Home
from lightship.pipeline.compare_rows import figure_of_pairs, gate_answers
from lightship.registry.statements import Statements
from lightship.types import Interval, Json
from lightship.validate.report.comparison import Basis, Figure
from lightship.validate.report.measured import interval_of, items_of, mapping_of, number_of, text_of
from lightship.validate.statistics import gap_interval

__all__ = ["quality_figures", "speed_figures", "tried"]


def tried(found: Statements, name: str) -> Mapping[str, Json]:
    """Return what the search found of a variant."""
    search = found.of("search")
    candidates = search.evidence.measured.get("candidates") if search else None
    return next((each for each in items_of(candidates) if each.get("name") == name), {})


def quality_figures(home: Home, one: Statements, two: Statements) -> Iterator[Figure]:
    """Yield accuracy and fidelity of both."""
    same_rows = bool(_gate_rows(one)) and _gate_rows(one) == _gate_rows(two)
    before, after = _accuracy(one), _accuracy(two)
    if before is not None or after is not None:
        yield _accuracy_figure(home, one, two, before, after, same_rows=same_rows)
    same_reference = one.graph_digest(REFERENCE) == two.graph_digest(REFERENCE)
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


def _gate_rows(found: Statements) -> str:
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
        return figure(None, Basis.ONE_SIDE, f"The accuracy of {lacking.title} was not measured.")
    if not same_rows:
        return figure(
            None, Basis.OTHER_ROWS, "They were judged on other rows: a difference of these two numbers shows nothing."
        )
    answers = gate_answers(home, one, two, rows=_gate_rows(one), right=(_right(before), _right(after)))
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


def speed_figures(one: Statements, two: Statements) -> Iterator[Figure]:
    """Yield times, memory and size of both."""
    machines = [text_of(side.machine.get("digest")) for side in (one, two)]
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
    old, new = one.size_bytes(one.default.name), two.size_bytes(two.default.name)
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
    of_variant = mapping_of(of_search, "reference") if name == REFERENCE else tried(found, name)
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
        return figure(None, Basis.ONE_SIDE, f"The speed of {lacking.title} was not measured.")
    if not same:
        return figure(None, Basis.OTHER_MACHINE, "They were timed on other machines, or with other engine versions.")
    if one.graph_digest(REFERENCE) != two.graph_digest(REFERENCE):
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
