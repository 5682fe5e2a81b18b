"""Answers of a variant against the reference's: what passes, what must not, whatever kind of answers they are."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lightship.errors import InvalidInput, InvalidTensor
from lightship.types import Verdict
from lightship.validate.checks.fidelity import check_fidelity
from lightship.validate.fidelity import FidelityBudget, FidelityMeter

SUBJECTS = {"reference": "0" * 64, "int8": "1" * 64}
SHARED = 0.05 / 3  # the alpha of three candidates
ROWS = 300


def judged(reference, variant, *, alpha=SHARED, batch=64, **budget):
    """Feed both in batches, as a long stream would be, and judge."""
    meter = FidelityMeter()
    for start in range(0, len(reference), batch):
        part = slice(start, start + batch)
        meter.add({"y": reference[part]}, {"y": variant[part]})
    found = meter.result(confidence=1 - 2 * alpha)
    return check_fidelity(found, budget=FidelityBudget(**budget), subjects=SUBJECTS, alpha=alpha)


def embeddings(rng):
    """Unit vectors in all directions."""
    rows = rng.normal(size=(ROWS, 384))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def crowded(rng):
    """Vectors that all point nearly the same way, as those of many language models do: cosine 0.9 between rows."""
    return rng.normal(size=(ROWS, 384)) + 3 * rng.normal(size=384)


def logits(rng):
    """Ten classes."""
    return 4 * rng.normal(size=(ROWS, 10))


def probabilities(rng):
    """Ten classes, after the softmax."""
    powers = np.exp(logits(rng))
    return powers / powers.sum(axis=1, keepdims=True)


def prices(rng):
    """One value a row, far from zero: every plain cosine is 1."""
    return 200 + 50 * rng.normal(size=(ROWS, 1))


def tokens(rng):
    """A sequence of vectors a row."""
    return rng.normal(size=(ROWS, 12, 32))


KINDS = {each.__name__: each for each in (embeddings, crowded, logits, probabilities, prices, tokens)}


def on_some_rows(value):
    """Return a wreckage of 3 % of the rows, at places that no batch size fits."""

    def wreck(rows, rng):
        found = rows.copy()
        hit = rng.choice(len(rows), size=round(0.03 * len(rows)), replace=False)
        found[hit] = value(rows)[hit] if callable(value) else value
        return found

    return wreck


WRECKS = {
    "constant": lambda rows, _: np.broadcast_to(rows.mean(axis=0), rows.shape).copy(),
    "zero": lambda rows, _: rows * 0,
    "negated": lambda rows, _: -rows,
    "NaN": lambda rows, _: rows * np.float32(np.nan),
    "shuffled rows": lambda rows, rng: rows[rng.permutation(len(rows))],
    "previous row": lambda rows, _: np.roll(rows, 1, axis=0),
    "x 1e30": lambda rows, _: rows * np.float32(1e30),
    "x 2": lambda rows, _: rows * np.float32(2),
    "x 0.5": lambda rows, _: rows * np.float32(0.5),
    "x 1.4": lambda rows, _: rows * np.float32(1.4),
    "noise of a third": lambda rows, rng: rows + (rows.std() / 3 * rng.normal(size=rows.shape)).astype(np.float32),
    "NaN on 3 %": on_some_rows(np.nan),
    "zero on 3 %": on_some_rows(0.0),
    "another row on 3 %": on_some_rows(lambda rows: np.roll(rows, 1, axis=0)),
    "1e30 on 3 %": on_some_rows(1e30),
    "constant on 3 %": on_some_rows(lambda rows: np.broadcast_to(rows.mean(axis=0), rows.shape)),
}


@pytest.mark.parametrize("wreck", WRECKS)
@pytest.mark.parametrize("kind", KINDS)
def test_wrecked_variant_does_not_pass_with_the_default_budget(kind, wreck):
    """And what the evidence says is JSON: infinity would be none."""
    rng = np.random.default_rng(5)
    rows = KINDS[kind](rng).astype(np.float32)

    found = judged(rows, WRECKS[wreck](rows, rng))

    assert found.verdict in (Verdict.FAILED, Verdict.UNDECIDED)
    json.dumps([dict(found.measured), dict(found.method)], allow_nan=False)


@pytest.mark.parametrize("kind", KINDS)
def test_rounding_passes_with_the_default_budget(kind):
    """Noise 30 dB below the answers' spread, as int8 leaves it."""
    rng = np.random.default_rng(6)
    rows = KINDS[kind](rng).astype(np.float32)

    found = judged(rows, rows + (0.03 * rows.std() * rng.normal(size=rows.shape)).astype(np.float32))

    assert found.verdict is Verdict.PASSED, found.summary
    assert found.summary.startswith("0 of 300 rows broken, mean cosine 0.999")


def test_one_broken_row_in_300_is_seen():
    """It does not pass: one of 300 may be two of a hundred; and the evidence names the row."""
    rng = np.random.default_rng(7)
    rows = embeddings(rng)
    variant = rows.copy()
    variant[123] = rows[7]

    found = judged(rows, variant)

    assert found.verdict is Verdict.UNDECIDED
    assert (
        found.summary.startswith("1 of 300 rows are broken, at most 1.97 % in truth") or "mean cosine" in found.summary
    )
    assert (found.measured["worst_row"], found.measured["broken"]["estimate"]) == (123, 1 / 300)


def test_too_few_rows_are_undecided_with_a_number_that_decides():
    """100 perfect rows cannot show that fewer than 2 % are broken; the number it says does."""
    rows = logits(np.random.default_rng(8))

    few = judged(rows[:100], rows[:100])

    assert (few.verdict, few.measured["rows_needed"]) == (Verdict.UNDECIDED, 203)
    assert "About 203 rows would decide it" in few.summary
    assert judged(rows[:203], rows[:203]).verdict is Verdict.PASSED


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_a_handful_of_rows_proves_nothing(rows):
    """Nor does it crash."""
    answers = logits(np.random.default_rng(9))[:rows]

    assert judged(answers, answers).verdict is Verdict.UNDECIDED


def test_budget_is_that_of_the_caller():
    """A cosine of 0.967 misses 0.99 and keeps 0.95."""
    rng = np.random.default_rng(10)
    rows = embeddings(rng)
    rows = np.concatenate([rows, embeddings(rng)])
    variant = rows + np.sqrt(0.068 / 384) * rng.normal(size=rows.shape)

    assert judged(rows, variant).verdict is Verdict.FAILED
    assert judged(rows, variant, min_cosine=0.95).verdict is Verdict.PASSED


@pytest.mark.parametrize(
    ("budget", "verdict"),
    [
        ({"min_snr_db": 25.0}, Verdict.PASSED),
        ({"min_snr_db": 35.0}, Verdict.FAILED),
        ({"min_agreement": 0.9}, Verdict.PASSED),
        ({"min_agreement": 0.999}, Verdict.FAILED),
    ],
)
def test_further_figures_decide_when_they_have_a_budget(budget, verdict):
    """30 dB of noise."""
    rng = np.random.default_rng(11)
    rows = logits(rng)

    assert judged(rows, rows + 0.03 * rows.std() * rng.normal(size=rows.shape), **budget).verdict is verdict


def test_figures_are_those_of_the_formulas():
    """Against numpy over all rows at once; batches of any size give the same."""
    rng = np.random.default_rng(12)
    rows = crowded(rng)
    variant = rows + 0.1 * rng.normal(size=rows.shape)
    error, signal = ((rows - variant) ** 2).sum(axis=1), (rows**2).sum(axis=1)
    spread = ((rows - rows.mean(axis=0)) ** 2).sum() / (ROWS - 1)
    cosine = 2 * (rows * variant).sum(axis=1) / (signal + (variant**2).sum(axis=1))

    for batch in (1, 7, 300):
        measured = judged(rows, variant, batch=batch).measured
        assert measured["cosine"]["estimate"] == pytest.approx(cosine.mean(), rel=1e-12)
        assert measured["snr_db"]["estimate"] == pytest.approx(10 * np.log10(signal.sum() / error.sum()), rel=1e-12)
        assert measured["explained"]["estimate"] == pytest.approx(1 - error.mean() / spread, rel=1e-9)
        assert measured["agreement"]["estimate"] == np.mean(rows.argmax(axis=1) == variant.argmax(axis=1))
        assert measured["largest"] == np.abs(rows - variant).max()
        assert measured["worst_row"] == cosine.argmin()


def test_the_worst_output_counts():
    """One of two outputs is wrecked, and the other is not a float."""
    rng = np.random.default_rng(13)
    rows, scores = embeddings(rng), logits(rng)
    meter = FidelityMeter()
    meter.add(
        {"a": rows, "b": scores, "label": scores.argmax(1)}, {"a": rows, "b": -scores, "label": (-scores).argmax(1)}
    )

    found = meter.result()
    only = FidelityMeter(outputs=["a"])
    only.add({"a": rows, "b": scores}, {"a": rows, "b": -scores})

    assert found.cosine.estimate == pytest.approx(-1)
    assert found.agreement.estimate == 0
    assert only.result().cosine.estimate == 1


@pytest.mark.parametrize("size", [1e-30, 1e-12, 1e-3, 1e6, 1e30])
@pytest.mark.parametrize("width", [1, 5])
def test_answers_may_be_of_any_size(width, size):
    """A charge in coulombs is as good an answer as a price: figures are those of the same answers near one."""
    rng = np.random.default_rng(7)
    right = rng.normal(size=(400, width))
    noisy, other = right + 0.01 * rng.normal(size=right.shape), right[::-1]

    for answers in (right, noisy, other):
        figures = []
        for times in (1.0, size):
            meter = FidelityMeter()
            for start in range(0, 400, 16):
                rows = slice(start, start + 16)
                meter.add({"y": times * right[rows]}, {"y": times * answers[rows]})
            found = meter.result()
            figures.append([found.broken.estimate, found.cosine.estimate, found.cosine.low, found.explained.low])
        assert figures[1] == pytest.approx(figures[0], abs=2e-4)


def test_integers_alone_are_compared_as_they_are():
    """A model that answers with labels only."""
    labels = np.arange(ROWS) % 7
    wrong = labels.copy()
    wrong[:9] += 1

    assert judged(labels, labels).verdict is Verdict.PASSED
    assert judged(labels, wrong).verdict in (Verdict.FAILED, Verdict.UNDECIDED)


def test_answers_of_many_lengths_are_compared():
    """Each batch is as long as its longest text."""
    rng = np.random.default_rng(14)
    meter, wrong = FidelityMeter(), FidelityMeter()
    for length in (5, 9, 5, 17) * 10:
        answers = rng.normal(size=(8, length, 16))
        meter.add({"y": answers}, {"y": answers + 0.01 * rng.normal(size=answers.shape)})
        wrong.add({"y": answers}, {"y": answers if length < 17 else np.roll(answers, 1, axis=0)})

    for found, verdict in ((meter, Verdict.PASSED), (wrong, Verdict.FAILED)):
        evidence = check_fidelity(found.result(confidence=0.9), budget=FidelityBudget(), subjects=SUBJECTS)
        assert evidence.verdict is verdict


def test_masks_of_infinity_are_no_difference():
    """The reference says minus infinity there, and so does the variant."""
    rows = logits(np.random.default_rng(15))
    rows[:, 3] = -np.inf

    assert judged(rows, rows).verdict is Verdict.PASSED
    other = rows.copy()
    other[0, 3] = 0
    assert judged(rows, other).summary == "1 of 300 rows give NaN or infinity where the reference gives numbers"


def test_answers_that_do_not_belong_together_are_refused():
    """Which output, and what came."""
    meter = FidelityMeter()
    with pytest.raises(InvalidTensor, match=r"variant gives no output 'y'\. It gives z"):
        meter.add({"y": np.ones((2, 2))}, {"z": np.ones((2, 2))})
    with pytest.raises(InvalidTensor, match=r"'y' must have the same shape.*\[2, 2\].*\[2, 3\]"):
        meter.add({"y": np.ones((2, 2))}, {"y": np.ones((2, 3))})
    with pytest.raises(InvalidTensor, match="'y' is int64 of the reference and float64"):
        meter.add({"y": np.ones((2, 2), dtype=np.int64)}, {"y": np.ones((2, 2))})
    with pytest.raises(InvalidInput, match="at least one row"):
        FidelityMeter().result()


def test_budgets_and_levels_that_ask_nothing_are_refused():
    """A proof of nothing would be one."""
    meter = FidelityMeter()
    meter.add({"y": np.ones((4, 2))}, {"y": np.ones((4, 2))})
    with pytest.raises(InvalidInput, match=r"`min_cosine`.*between 0 and 1.*Got 1.5"):
        FidelityBudget(min_cosine=1.5)
    with pytest.raises(InvalidInput, match=r"confidence of 0.9. Got 0.8"):
        check_fidelity(meter.result(confidence=0.8), budget=FidelityBudget(), subjects=SUBJECTS)
    with pytest.raises(InvalidInput, match="asks for nothing"):
        check_fidelity(
            meter.result(),
            budget=FidelityBudget(min_cosine=None, max_broken=None, min_explained=None),
            subjects=SUBJECTS,
        )


def test_limits_of_decibels_hold_the_truth_about_as_often_as_they_say():
    """200 draws of 300 rows whose noise differs much from row to row; 5 % allowed, up to the luck of 200 draws."""
    rng = np.random.default_rng(21)
    truth_db, missed = 20 - 10 * np.log10(np.exp(0.5)), 0
    for _ in range(200):
        rows = rng.normal(size=(ROWS, 16))
        meter = FidelityMeter()
        noise = 0.1 * np.sqrt(rng.lognormal(0, 1, size=(ROWS, 1))) * rng.normal(size=rows.shape)
        meter.add({"y": rows}, {"y": rows + noise})
        found = meter.result(confidence=0.9)
        assert found.snr_db.low <= found.snr_db.estimate <= found.snr_db.high
        assert found.explained.low <= found.explained.estimate <= found.explained.high
        missed += found.snr_db.low > truth_db

    assert missed <= 200 * 0.05 + 11
