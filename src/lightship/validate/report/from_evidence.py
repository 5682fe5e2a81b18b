"""From evidence to the facts of a report: the same for a recipe, for any bundle, and for a release read back later.

All figures are those of the evidence. What only a run has (curves, pictures of rows) is added by who has it, with
`dataclasses.replace`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from lightship.bundle.manifest import REFERENCE
from lightship.bundle.statement import TASK_SUBJECT, Evidence
from lightship.types import Interval, Json, Verdict
from lightship.validate.report.facts import (
    BinFacts,
    CalibrationFacts,
    ClassFacts,
    ConfusionFacts,
    DataFacts,
    DivergenceFacts,
    EvidenceFacts,
    ExampleFacts,
    FloorFacts,
    FrontFacts,
    LossFacts,
    NearDuplicateFacts,
    OneValueFacts,
    ReportFacts,
    ResidualBinFacts,
    SliceFacts,
    SliceHarmFacts,
    TwinFacts,
    ValueFacts,
    VariantFacts,
    WorstRowFacts,
)
from lightship.validate.report.measured import (
    interval_of,
    items_of,
    mapping_of,
    number_of,
    text_of,
    texts_of,
    whole_of,
)
from lightship.validate.report.titles import title_of
from lightship.validate.statistics import wilson

__all__ = ["Given", "facts_of"]

_PARTS = ("train", "validation", "calibration", "selection", "gate")
_FIDELITY = (
    ("Agreement", "share", "agreement"),
    ("Cosine", "cosine", "cosine"),
    ("SNR", "dB", "snr_db"),
    ("Broken rows", "share", "broken"),
)


@dataclass(frozen=True, slots=True)
class Given:
    """What evidence does not say.

    Attributes:
        chosen: name of the variant that runs, or would run.
        digests: check -> digest of the signed statement, ``sha256:...``; empty when nothing was signed.
        required: the checks that the policy requires.
        outcomes: name of a candidate -> (verdict, reason) of the gate.
        source: where the rows come from, e.g. ``folder:images``.
        fingerprint: of the rows.
        size_bytes: of the graph of each variant that is in the bundle, by name.
    """

    name: str
    version: int | None
    created: str
    released: bool
    headline: str
    reasons: tuple[str, ...]
    task: str
    chosen: str
    status: str = "passed"
    digests: Mapping[str, str] | None = None
    required: Sequence[str] = ()
    outcomes: Mapping[str, tuple[Verdict, str]] | None = None
    source: str = ""
    fingerprint: str = ""
    size_bytes: Mapping[str, int] | None = None
    lineage: tuple[tuple[str, str], ...] = ()
    machine: tuple[tuple[str, str], ...] = ()
    interface: tuple[tuple[str, str], ...] = ()
    commands: tuple[tuple[str, str], ...] = ()
    signer: str = ""


def facts_of(evidence: Sequence[Evidence], given: Given) -> ReportFacts:
    """Return the facts of a report about ``evidence``. What the evidence does not have stays empty."""
    found = {each.check: each for each in reversed(evidence)}  # of several pieces the first is shown

    def measured(check: str) -> Mapping[str, Json]:
        return found[check].measured if check in found else {}

    if given.outcomes is None:
        given = replace(given, outcomes=_outcomes(measured("search")))
    front, variants = _front(measured("search"), measured("latency"), given)
    variants = tuple(_explained(one, found) for one in variants)
    accuracy = measured("accuracy")
    return ReportFacts(
        name=given.name,
        version=given.version,
        created=given.created,
        released=given.released,
        headline=given.headline,
        reasons=given.reasons,
        task=given.task,
        data=_data(measured("data"), given),
        status=given.status,
        variants=variants,
        front=front,
        per_class=tuple(_classes(accuracy.get("classes") or measured("errors").get("tags"))),
        confusion=_confusion(accuracy, measured("errors")),
        losses=_losses(accuracy, measured("errors")),
        calibration=_calibration(measured("calibration")),
        slices=tuple(_slices(measured("slices"))),
        slice_harm=tuple(_slice_harm(measured("slice_harm"))),
        near_duplicates=_near_duplicates(mapping_of(measured("data"), "near_duplicates")),
        values=tuple(_values(measured("values"))),
        divergence=tuple(_divergences(evidence, given.chosen)),
        worst=tuple(_worst(measured("errors"))),
        evidence=tuple(_pieces(evidence, given)),
        lineage=given.lineage,
        machine=given.machine,
        interface=given.interface,
        commands=given.commands,
        signer=given.signer,
        gate_accuracy=interval_of(accuracy.get("accuracy")),
        cost=interval_of(measured("noninferiority").get("difference")) if "accuracy" in accuracy else None,
        fidelity=tuple(_fidelity(found.get("fidelity"))),
    )


def _outcomes(search: Mapping[str, Json]) -> dict[str, tuple[Verdict, str]]:
    """Return what became of the candidates at the gate, as the release remembers it."""
    known = {str(verdict): verdict for verdict in Verdict}
    return {
        text_of(each.get("name")): (known[text_of(each.get("verdict"))], text_of(each.get("reason")))
        for each in items_of(search.get("outcomes"))
        if text_of(each.get("verdict")) in known
    }


def _front(
    search: Mapping[str, Json], latency: Mapping[str, Json], given: Given
) -> tuple[FrontFacts | None, tuple[VariantFacts, ...]]:
    reference = mapping_of(search, "reference")
    candidates = list(items_of(search.get("candidates")))
    qualities = [mapping_of(each, "quality") for each in (reference, *candidates)]
    measure, key = next(
        ((name, key) for name, key in _MEASURES if any(quality.get(key) is not None for quality in qualities)),
        ("Accuracy", "correct"),
    )
    rows = max((whole_of(quality.get("rows")) or 0 for quality in qualities), default=0)
    sizes = given.size_bytes or {}
    if not search and not sizes:
        return None, ()
    front = FrontFacts(
        measure=measure,
        rows=rows,
        objective={
            name: weight for name, value in mapping_of(search, "objective").items() if (weight := number_of(value))
        },
        minutes=number_of(search.get("minutes")),
        cores=whole_of(search.get("cores")),
        floor=_floor(mapping_of(search, "floor")),
    )
    reference = _beside(reference, next((each for each in candidates if each.get("name") == given.chosen), {}))
    base = _reference(
        reference, candidates, key, given, size=whole_of(reference.get("size_bytes")) or sizes.get(REFERENCE, 0)
    )
    others = [_variant(each, base, key, given) for each in candidates]
    named = {REFERENCE, *(each.name for each in others)}
    # A bundle may hold variants of which no search tells.
    others += [_untold(name, size, latency, given) for name, size in sizes.items() if name not in named]
    return front, (base, *others)


def _beside(reference: Mapping[str, Json], chosen: Mapping[str, Json]) -> Mapping[str, Json]:
    """Return the reference with the times that it took beside the chosen variant, which the evidence speaks of."""
    beside = dict(reference)
    for kind, key in (("latency", "p50_ms"), ("throughput", "rows_per_s")):
        speed = mapping_of(chosen, kind)
        row_ms = number_of(mapping_of(speed, "timing", "a_ms").get("p50"))
        batch = whole_of(speed.get("reference_batch"))
        if row_ms and batch:
            value = row_ms * batch if kind == "latency" else 1000 / row_ms
            beside[kind] = {**mapping_of(reference, kind), key: value}
    return beside


def _explained(one: VariantFacts, found: Mapping[str, Evidence]) -> VariantFacts:
    """Return the chosen variant with what the gate found about it as its reason, where nothing else gives one."""
    if one.reason or not one.chosen:
        return one
    said = [found[check].summary for check in _TELLING if check in found]
    return replace(one, reason=said[0] if said else "Chosen.")


_TELLING = ("noninferiority", "fidelity", "equivalence")
_MEASURES = (("Accuracy", "correct"), ("Cosine", "cosine"), ("Agreement", "agreement"))


def _quality(found: Mapping[str, Json], key: str) -> Interval | None:
    if key != "correct":
        return interval_of(found.get(key))
    correct, rows = whole_of(found.get("correct")), whole_of(found.get("rows"))
    return wilson(correct, rows) if correct is not None and rows and 0 <= correct <= rows else None


def _reference(
    found: Mapping[str, Json], candidates: Sequence[Mapping[str, Json]], key: str, given: Given, *, size: int
) -> VariantFacts:
    chosen = given.chosen == REFERENCE
    return VariantFacts(
        name=REFERENCE,
        precision="fp32",
        size_bytes=size,
        quality=_quality(mapping_of(found, "quality"), key),
        latency_p50_ms=number_of(mapping_of(found, "latency").get("p50_ms")),
        latency_p99_ms=None,
        speedup=None,
        chosen=chosen,
        verdict=Verdict.PASSED if not chosen or given.released else Verdict.FAILED,
        reason="The model as it was exported; what the others are measured against.",
        throughput=number_of(mapping_of(found, "throughput").get("rows_per_s")),
        engine=text_of(found.get("engine")) or "onnxruntime",
        memory_bytes=whole_of(found.get("memory_bytes")),
        # Nothing that was kept is as good in everything: else the reference would have been beaten outright.
        on_front=bool(candidates) and found.get("on_front") is not False,
    )


def _variant(found: Mapping[str, Json], base: VariantFacts, key: str, given: Given) -> VariantFacts:
    name = text_of(found.get("name"))
    latency, throughput = mapping_of(found, "latency"), mapping_of(found, "throughput")
    speedup, gain = _inverse(interval_of(latency.get("ratio"))), _inverse(interval_of(throughput.get("ratio")))
    verdict, reason = (given.outcomes or {}).get(name, (None, ""))
    dropped = text_of(found.get("dropped"))
    chosen = name == given.chosen
    if verdict is None:
        verdict = Verdict.PASSED if chosen and given.released else Verdict.UNPROVEN
    p50, rate = number_of(latency.get("p50_ms")), number_of(throughput.get("rows_per_s"))
    # Each was timed beside the reference in processes of its own, and processes differ; what holds is the ratio within
    # one. So the figures of all but the chosen one are those of the reference, times how much better the variant is.
    if not chosen and base.latency_p50_ms and speedup:
        p50 = base.latency_p50_ms / speedup.estimate
    if not chosen and base.throughput and gain:
        rate = base.throughput * gain.estimate
    return VariantFacts(
        name=name,
        precision=text_of(found.get("precision")),
        size_bytes=whole_of(found.get("size_bytes")) or 0,
        quality=_quality(mapping_of(found, "quality"), key),
        latency_p50_ms=p50,
        latency_p99_ms=None,
        speedup=speedup,
        chosen=chosen,
        verdict=verdict,
        reason=reason or dropped or ("" if chosen else f"Proposed; {given.chosen} was taken."),
        throughput=rate,
        throughput_gain=gain,
        engine=text_of(found.get("engine")),
        passes=texts_of(found.get("passes")),
        options={name: str(value) for name, value in mapping_of(found, "options").items()},
        memory_bytes=whole_of(found.get("memory_bytes")),
        on_front=found.get("on_front") is True,
        notes=texts_of(found.get("notes")),
    )


def _untold(name: str, size: int, latency: Mapping[str, Json], given: Given) -> VariantFacts:
    """Return a variant of the bundle that no search was about."""
    own = latency if latency.get("variant") == name else {}
    return VariantFacts(
        name=name,
        precision="",
        size_bytes=size,
        quality=None,
        latency_p50_ms=number_of(mapping_of(own, "variant_ms").get("p50")),
        latency_p99_ms=number_of(mapping_of(own, "variant_ms").get("p99")),
        speedup=_inverse(interval_of(own.get("time_ratio"))),
        chosen=name == given.chosen,
        verdict=Verdict.PASSED if given.released else Verdict.UNPROVEN,
        reason="It is in the bundle.",
    )


def _inverse(ratio: Interval | None) -> Interval | None:
    """Turn a ratio of times into a speed-up."""
    if ratio is None or ratio.low <= 0:
        return None
    return Interval(1 / ratio.estimate, 1 / ratio.high, 1 / ratio.low, ratio.confidence, ratio.n)


def _floor(found: Mapping[str, Json]) -> FloorFacts | None:
    floor, compute, memory = (number_of(found.get(key)) for key in ("floor_ms", "compute_ms", "memory_ms"))
    if floor is None or compute is None or memory is None:
        return None
    rest = {key: number_of(found.get(key)) for key in ("gflops", "gflop", "mib", "mib_per_s")}
    return FloorFacts(floor, compute, memory, **rest)


def _data(found: Mapping[str, Json], given: Given) -> DataFacts | None:
    if not found:
        return None
    counts = {
        part: {label: rows for label, count in mapping_of(per_label).items() if (rows := whole_of(count)) is not None}
        for part, per_label in mapping_of(found, "class_counts").items()
    }
    parts = {part: whole_of(rows) or 0 for part, rows in mapping_of(found, "parts").items()}
    parts = parts or {part: sum(per_label.values()) for part, per_label in counts.items()}
    order = sorted(parts, key=lambda part: _PARTS.index(part) if part in _PARTS else len(_PARTS))
    return DataFacts(
        source=text_of(found.get("source")) or given.source,
        rows=whole_of(found.get("rows")) or sum(parts.values()),
        bad_rows=whole_of(found.get("bad")) or 0,
        duplicates=whole_of(found.get("duplicates")) or 0,
        conflicts=whole_of(found.get("conflicts")) or 0,
        parts={part: parts[part] for part in order},
        class_counts={part: counts[part] for part in order if part in counts},
        fingerprint=text_of(found.get("fingerprint")) or given.fingerprint,
        gate_looks=whole_of(found.get("gate_looks")) or 0,
    )


def _classes(found: Json) -> Iterator[ClassFacts]:
    for each in items_of(found):
        f1 = interval_of(each.get("f1"))
        precision, recall = (interval_of(each.get(key)) for key in ("precision", "recall"))
        if f1 is not None and precision is not None and recall is not None:
            support = whole_of(each.get("support")) or 0
            yield ClassFacts(text_of(each.get("label")), support, precision.estimate, recall.estimate, f1)


def _confusion(accuracy: Mapping[str, Json], errors: Mapping[str, Json]) -> ConfusionFacts | None:
    labels = tuple(text_of(each.get("label")) for each in items_of(accuracy.get("classes")))
    for counts in (accuracy.get("confusion"), errors.get("confusion")):
        if not isinstance(counts, list) or len(counts) != len(labels):
            continue
        rows = tuple(tuple(whole_of(cell) or 0 for cell in row) for row in counts if isinstance(row, list))
        if labels and len(rows) == len(labels) and all(len(row) == len(labels) for row in rows):
            return ConfusionFacts(labels, rows)
    return None


def _calibration(found: Mapping[str, Json]) -> CalibrationFacts | None:
    before, after = mapping_of(found, "before"), mapping_of(found, "after")
    ece = interval_of(before.get("ece"))
    if ece is None:
        return None
    return CalibrationFacts(
        rows=whole_of(found.get("rows")) or ece.n,
        ece=ece,
        bins=tuple(_bins(before)),
        brier=interval_of(before.get("brier")),
        nll=interval_of(before.get("nll")),
        temperature=number_of(found.get("temperature")),
        applied=found.get("applied") is True,
        after=interval_of(after.get("ece")),
        after_bins=tuple(_bins(after)),
        helps=found.get("helps") is True,
    )


def _bins(found: Mapping[str, Json]) -> Iterator[BinFacts]:
    for each in items_of(found.get("bins")):
        accuracy, confidence = interval_of(each.get("accuracy")), number_of(each.get("confidence"))
        low, high = number_of(each.get("low")), number_of(each.get("high"))
        if accuracy is not None and confidence is not None and low is not None and high is not None:
            yield BinFacts(low, high, whole_of(each.get("rows")) or 0, confidence, accuracy)


def _slices(found: Mapping[str, Json]) -> Iterator[SliceFacts]:
    for each in items_of(found.get("slices")):
        value = interval_of(each.get("accuracy")) or interval_of(each.get("loss"))
        if value is not None:
            rows = whole_of(mapping_of(each, "gate").get("rows")) or 0
            share = number_of(each.get("share")) or 0.0
            measure = text_of(found.get("loss")) or "accuracy"
            yield SliceFacts(text_of(each.get("words")), rows, share, value, each.get("worse") is True, measure)


def _slice_harm(found: Mapping[str, Json]) -> Iterator[SliceHarmFacts]:
    for each in items_of(found.get("slices")):
        counts = {key: whole_of(mapping_of(each, "gate").get(key)) or 0 for key in ("rows", "losses", "gains")}
        harmed, undecided = each.get("harmed") is True, each.get("undecided") is True
        verdict = Verdict.FAILED if harmed else Verdict.UNDECIDED if undecided else Verdict.PASSED
        yield SliceHarmFacts(
            text_of(each.get("words")),
            **counts,
            verdict=verdict,
            before=number_of(each.get("reference")),
            after=number_of(each.get("variant")),
        )


def _losses(accuracy: Mapping[str, Json], errors: Mapping[str, Json]) -> LossFacts | None:
    """Return the errors of numbers or tags; of classes there is a confusion matrix."""
    overall = interval_of(accuracy.get("mae")) or interval_of(accuracy.get("hamming"))
    if overall is None:
        return None
    kind = text_of(accuracy.get("kind"))
    return LossFacts(
        kind=kind,
        name="Mean absolute error" if kind == "numbers" else "Wrong tags",
        overall=overall,
        rmse=interval_of(accuracy.get("rmse")),
        r2=number_of(accuracy.get("r2")),
        bias=interval_of(errors.get("bias")),
        bins=tuple(_residual_bins(errors)),
        values=tuple(_each_value(errors)),
        worst=tuple(_worst_rows(errors)),
    )


def _residual_bins(found: Mapping[str, Json]) -> Iterator[ResidualBinFacts]:
    for each in items_of(found.get("bins")):
        places = {key: number_of(each.get(key)) for key in ("low", "high", "p05", "p25", "p50", "p75", "p95")}
        known = {key: value for key, value in places.items() if value is not None}
        if len(known) == len(places):
            yield ResidualBinFacts(rows=whole_of(each.get("rows")) or 0, **known)


def _each_value(found: Mapping[str, Json]) -> Iterator[OneValueFacts]:
    for each in items_of(found.get("values")):
        mae = interval_of(each.get("mae"))
        if mae is not None:
            name = str(whole_of(each.get("value")) or 0)
            yield OneValueFacts(name, mae, interval_of(each.get("rmse")), number_of(each.get("r2")))


def _worst_rows(found: Mapping[str, Json]) -> Iterator[WorstRowFacts]:
    """Yield the rows with the largest losses; of classes ``_worst`` does."""
    several = bool(found.get("values"))
    for each in items_of(found.get("worst")):
        loss, truth, answer = (number_of(each.get(key)) for key in ("loss", "truth", "answer"))
        if loss is None:
            continue
        place = f" (value {whole_of(each.get('value'))})" if several else ""
        said = [f"{one:.4g}{place}" if one is not None else "" for one in (truth, answer)]
        if truth is None:
            said = [_listed(each.get(key)) for key in ("missed", "false")]
        yield WorstRowFacts(text_of(each.get("row")), loss, *said)


def _listed(found: Json) -> str:
    return ", ".join(str(one) for one in found) if isinstance(found, list) else ""


def _worst(found: Mapping[str, Json]) -> Iterator[ExampleFacts]:
    """Yield the worst rows by their ids: evidence holds no pictures, who has them puts them in."""
    for each in items_of(found.get("worst")):
        probability = number_of(each.get("probability"))
        if probability is not None:
            row, truth, predicted = (text_of(each.get(key)) for key in ("row", "truth", "predicted"))
            yield ExampleFacts(row, b"", truth, predicted, probability)


def _near_duplicates(found: Mapping[str, Json]) -> NearDuplicateFacts | None:
    pairs = whole_of(found.get("pairs"))
    if pairs is None:
        return None
    return NearDuplicateFacts(
        pairs=pairs,
        gate_rows=whole_of(found.get("gate_rows")) or 0,
        across={name: count for name, value in mapping_of(found, "across").items() if (count := whole_of(value))},
        examples=tuple(
            TwinFacts(
                one=text_of(each.get("a")),
                one_part=text_of(each.get("a_part")),
                one_label=text_of(each.get("a_label")),
                other=text_of(each.get("b")),
                other_part=text_of(each.get("b_part")),
                other_label=text_of(each.get("b_label")),
                similarity=number_of(each.get("similarity")) or 0.0,
            )
            for each in items_of(found.get("examples"))
        ),
        compared=whole_of(found.get("compared")) or 0,
    )


def _values(found: Mapping[str, Json]) -> Iterator[ValueFacts]:
    for each in items_of(found.get("cases")):
        yield ValueFacts(*(text_of(each.get(key)) for key in ("case", "input", "reference", "variant", "problem")))


def _divergences(evidence: Sequence[Evidence], chosen: str) -> Iterator[DivergenceFacts]:
    """Yield the layers that any evidence names, each once."""
    seen: set[tuple[str, str]] = set()
    for piece in evidence:
        places = [(_about(piece, chosen), piece.measured.get("divergence"))]
        places += [(text_of(e.get("name")), e.get("divergence")) for e in items_of(piece.measured.get("candidates"))]
        for variant, found in places:
            said = mapping_of(found)
            layer = text_of(said.get("layer"))
            if layer and (variant, layer) not in seen:
                seen.add((variant, layer))
                yield DivergenceFacts(
                    variant=variant,
                    layer=layer,
                    operator=text_of(said.get("operator")),
                    tensor=text_of(said.get("tensor")),
                    before=number_of(said.get("before")),
                    after=number_of(said.get("after")),
                    final=number_of(said.get("final")),
                    gradual=said.get("gradual") is True,
                )


def _about(piece: Evidence, chosen: str) -> str:
    """Return the variant that a piece of evidence is about: its subject besides task and reference."""
    named = [name for name in piece.subjects if name not in (TASK_SUBJECT, REFERENCE)]
    if len(named) == 1:
        return named[0]
    return chosen if named or REFERENCE not in piece.subjects else REFERENCE


def _fidelity(evidence: Evidence | None) -> Iterator[tuple[str, str, Interval]]:
    """Yield the figures that were judged, then the others: of an embedding, say, agreement means nothing."""
    if evidence is None:
        return
    found, budget = evidence.measured, mapping_of(evidence.method, "budget")
    judged = {key.partition("_")[2] for key, limit in budget.items() if limit is not None}
    for name, unit, key in sorted(_FIDELITY, key=lambda each: each[2] not in judged):
        value = interval_of(found.get(key)) or interval_of(mapping_of(found, "fidelity").get(key))
        if value is not None:
            yield name, unit, value


def _pieces(evidence: Sequence[Evidence], given: Given) -> Iterator[EvidenceFacts]:
    for each in evidence:
        yield EvidenceFacts(
            check=each.check,
            title=title_of(each.check),
            verdict=each.verdict,
            summary=each.summary,
            digest=(given.digests or {}).get(each.check, ""),
            required=each.check in given.required,
            measured=each.measured,
        )
