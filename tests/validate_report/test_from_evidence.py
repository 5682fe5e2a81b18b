"""From evidence as the checks write it to the facts of a report; and from evidence of another version."""

from __future__ import annotations

import numpy as np
import pytest

from lightship.bundle.statement import Evidence
from lightship.engine.measure import PairedTiming, Percentiles
from lightship.optimize.candidate import Candidate, Quality, Speed
from lightship.types import Interval, Verdict
from lightship.validate.checks.accuracy import check_accuracy
from lightship.validate.checks.calibration import check_calibration
from lightship.validate.checks.errors import check_errors
from lightship.validate.report.from_evidence import Given, facts_of
from lightship.validate.report.page import render_page

SUBJECTS = {"reference": "0" * 64}
CHECKS = ("search", "accuracy", "data", "calibration", "slices", "values", "errors", "fidelity")
LABELS = ("cat", "dog", "owl")


def given(**changes: object) -> Given:
    """Return what evidence does not say."""
    base = {
        "name": "pets", "version": 1, "created": "2026-11-22T03:15:41Z", "released": True, "headline": "It is.",
        "reasons": (), "task": "image-classification", "chosen": "int8-static",
    }  # fmt: skip
    return Given(**{**base, **changes})  # type: ignore[arg-type]


def judged(rows: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Return logits that are right on about nine rows of ten, and the truth."""
    random = np.random.default_rng(3)
    truth = random.integers(0, 3, rows)
    logits = random.normal(size=(rows, 3))
    logits[np.arange(rows), truth] += 2.5
    return logits.astype(np.float32), truth


def search() -> Evidence:
    """Return what a search writes: the reference, one that was proposed, one that was dropped."""
    ratio = Interval(0.5, 0.48, 0.53, 0.95, 5)
    timing = PairedTiming(ratio, Percentiles(4.0, 6.0), Percentiles(2.1, 3.0), 200, 20, processes=5)
    fast = Candidate(
        name="int8-static",
        passes=("int8-static",),
        engine="openvino",
        options={"precision": "bf16"},
        precision="int8",
        size_bytes=300,
        quality=Quality(200, correct=190),
        latency=Speed(timing, 2, 1, 2, 1),
        on_front=True,
        notes=("left in float: /conv1",),
    )
    slow = Candidate("fused", ("fused",), precision="fp32", size_bytes=900, dropped="not shown to be faster")
    measured = {
        "objective": {"latency": 1.0},
        "minutes": 4.2,
        "cores": 2,
        "reference": {
            "latency": {"p50_ms": 3.8, "threads": 1, "batch": 1},
            "throughput": {"rows_per_s": 400.0, "threads": 2, "batch": 8},
            "size_bytes": 1000,
            "memory_bytes": None,
            "quality": Quality(200, correct=192).to_json(),
        },
        "candidates": [fast.to_json(), slow.to_json()],
        "floor": {"floor_ms": 0.4, "compute_ms": 0.4, "memory_ms": 0.1, "gflops": 60.0, "mib": 1.0, "share": 0.1},
    }
    return Evidence("search", Verdict.PASSED, SUBJECTS, "2 variants tried", measured, {})


def test_the_front_is_that_of_the_search() -> None:
    """Accuracy from the counts, times through the ratio to the reference, every reason, and the floor."""
    outcomes = {"int8-static": (Verdict.PASSED, "the fastest that is as good")}
    facts = facts_of([search()], given(outcomes=outcomes))

    reference, fast, slow = facts.variants
    assert facts.front is not None
    assert (facts.front.measure, facts.front.rows, facts.front.objective) == ("Accuracy", 200, {"latency": 1.0})
    assert reference.quality is not None
    assert reference.quality.estimate == 192 / 200
    assert (fast.latency_p50_ms, fast.size_bytes, fast.engine) == (2.1, 300, "openvino")
    assert reference.latency_p50_ms == 4.0  # beside the chosen one, as its evidence says; alone it took 3.8
    assert fast.speedup is not None
    assert (fast.speedup.low, fast.speedup.high) == pytest.approx((1 / 0.53, 1 / 0.48))
    assert (fast.chosen, fast.on_front, fast.notes) == (True, True, ("left in float: /conv1",))
    assert (fast.verdict, fast.reason) == outcomes["int8-static"]
    assert (slow.reason, slow.quality, slow.latency_p50_ms) == ("not shown to be faster", None, None)
    assert facts.front.floor is not None
    assert facts.front.floor.floor_ms == 0.4


def test_times_of_others_go_through_the_ratio() -> None:
    """A variant that is not the chosen one was timed in other processes: only its ratio holds."""
    facts = facts_of([search()], given(chosen="reference"))

    reference, fast, _ = facts.variants
    assert (reference.latency_p50_ms, reference.throughput) == (3.8, 400.0)
    assert fast.latency_p50_ms == pytest.approx(3.8 * 0.5)


def test_without_labels_the_front_shows_agreement() -> None:
    """A search on rows without labels has no right answers to count."""
    found = search()
    for each in (found.measured["reference"], *found.measured["candidates"]):  # type: ignore[misc]
        if each["quality"]:
            each["quality"] |= {"correct": None, "agreement": Interval(0.97, 0.95, 0.99, 0.95, 200).to_json()}

    facts = facts_of([found], given())

    assert facts.front is not None
    assert facts.front.measure == "Agreement"
    assert facts.variants[1].quality is not None
    assert facts.variants[1].quality.estimate == 0.97


def test_a_layer_that_differs_belongs_to_the_variant_that_the_evidence_is_about() -> None:
    """Parity is about the reference; evidence about a candidate names it as a subject."""
    sizes = {"before": 0.0, "after": 0.4, "final": 0.9, "gradual": False}
    found = {"layer": "/conv", "operator": "Conv", "tensor": "t", **sizes}
    about = {**SUBJECTS, "int8": "1" * 64}
    ours = Evidence("parity", Verdict.FAILED, {"task": "0" * 64, **SUBJECTS}, "far", {"divergence": found}, {})
    theirs = Evidence("noninferiority", Verdict.FAILED, about, "far", {"divergence": found}, {})

    facts = facts_of([ours, theirs], given())

    assert [(one.variant, one.layer, one.after) for one in facts.divergence] == [
        ("reference", "/conv", 0.4),
        ("int8", "/conv", 0.4),
    ]
    assert "First layer that differs: /conv" in render_page(facts)


def test_what_the_checks_measured_is_what_the_report_shows() -> None:
    """Classes, confusion, calibration and worst rows, from the real checks; the page draws them."""
    logits, truth = judged()
    predicted = logits.argmax(axis=1)
    evidence = [
        check_accuracy(truth, predicted, labels=LABELS, min_accuracy=0.5, subjects=SUBJECTS),
        check_calibration(logits, truth, selection=(logits[:200], truth[:200]), subjects=SUBJECTS),
        check_errors(logits, truth, labels=LABELS, rows=[f"row-{i}" for i in range(400)], subjects=SUBJECTS),
    ]

    facts = facts_of(evidence, given(required=("accuracy",)))

    assert facts.gate_accuracy is not None
    assert facts.gate_accuracy.estimate == pytest.approx((predicted == truth).mean())
    assert facts.confusion is not None
    counts = np.zeros((3, 3), int)
    np.add.at(counts, (truth, predicted), 1)
    assert facts.confusion.counts == tuple(map(tuple, counts.tolist()))
    assert [one.label for one in facts.per_class] == list(LABELS)
    assert facts.calibration is not None
    assert sum(one.rows for one in facts.calibration.bins) == 400
    surest = max(
        (float(np.exp(row).max() / np.exp(row).sum()), i) for i, row in enumerate(logits) if predicted[i] != truth[i]
    )
    assert surest[1] in {int(one.row_id.removeprefix("row-")) for one in facts.worst}
    assert [(one.check, one.required) for one in facts.evidence][:2] == [("accuracy", True), ("calibration", False)]
    html = render_page(facts)
    assert "calibration-plot" in html.split("</style>")[1]
    assert facts.worst[0].row_id in html


@pytest.mark.parametrize(
    "measured",
    [
        {},
        {"reference": None, "candidates": None, "objective": [], "floor": 7},
        {"candidates": [{"name": "a"}, "b", None, {"quality": {"rows": "many", "correct": -1}}]},
        {"candidates": [{"name": "a", "latency": {"ratio": {"estimate": 0.5}}, "size_bytes": -1.5}], "floor": {}},
        {"reference": {"latency": {"p50_ms": float("inf")}, "quality": {"correct": 5, "rows": 3}}},
    ],
    ids=["empty", "null", "odd", "half", "impossible"],
)
@pytest.mark.parametrize(
    "check", ["search", "accuracy", "data", "calibration", "slices", "values", "errors", "fidelity"]
)
def test_evidence_of_another_version_is_read_as_far_as_it_goes(check: str, measured: dict) -> None:
    """What is not understood is not known; the page stands, and says that it was not measured."""
    facts = facts_of([Evidence(check, Verdict.PASSED, SUBJECTS, "found", measured, {})], given())

    assert "What was not measured" in render_page(facts)
