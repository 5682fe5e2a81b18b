"""What is wrong where answers are numbers or tags: residuals, every value or tag, the worst rows. Reported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from lightship.bundle.statement import Evidence
from lightship.types import Interval, Json, Verdict
from lightship.validate.meters import NumberMeter, mean_interval, tags_of
from lightship.validate.metrics import class_metrics
from lightship.validate.row_losses import RowLosses

__all__ = ["check_number_errors", "check_tag_errors"]

_MOST_BINS = 15
_ROWS_A_BIN = 20
_MOST_SHOWN = 12
_MOST_VALUES = 100
_QUANTILES = {"p05": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p95": 0.95}


def check_number_errors(
    found: RowLosses, *, rows: Sequence[str], subjects: Mapping[str, str], confidence: float = 0.95
) -> Evidence:
    """Record residuals (answer less label) over the size of the answer, the errors of each value, and the worst rows.

    ``PASSED`` whatever is found; ``UNPROVEN`` where a row has no finite answer.

    Args:
        found: losses of the gate rows.
        rows: ids of the rows.
        subjects: what was judged, with its SHA-256.
        confidence: of all intervals.
    """
    if not np.isfinite(found.values).all():
        return _broken(subjects, found)
    measured: dict[str, Json] = {"kind": "numbers", "rows": len(rows), "bias": None, "bins": [], "values": []}
    words = (
        f"The worst of {len(rows)} gate rows is off by {found.values.max():.4g} ({rows[int(found.values.argmax())]})"
    )
    if found.answers is not None:
        truth, answers = (each.astype(np.float64) for each in found.answers)
        if truth.shape[1] == 1:
            residuals = answers[:, 0] - truth[:, 0]
            bias = _mean(residuals, confidence)
            measured |= {"bias": bias.to_json(), "residuals": _quantiles(residuals)}
            measured["bins"] = list(_residual_bins(answers[:, 0], residuals))
            words += f"; answers are off by {bias.estimate:+.4g} on average ({bias.low:+.4g} to {bias.high:+.4g})"
        else:
            measured["values"] = list(_each_value(truth, answers, confidence))
    measured["worst"] = list(_worst(found, rows))
    return Evidence(
        "errors",
        Verdict.PASSED,
        subjects,
        words,
        measured,
        {"confidence": confidence, "residual": "answer less label", "bins": "equal mass, by the answer"},
    )


def check_tag_errors(
    found: RowLosses, *, rows: Sequence[str], subjects: Mapping[str, str], confidence: float = 0.95
) -> Evidence:
    """Record precision, recall and F1 of every tag, and the worst rows; see ``check_number_errors``."""
    if found.answers is None or not np.isfinite(found.answers[1]).all():
        return _broken(subjects, found)
    truth, answers = found.answers
    said, true = tags_of(answers, shares=bool(found.shares)), truth > 0
    each = [
        class_metrics(_crossed(true[:, place], said[:, place]), ("no", str(place)), confidence=confidence)[1]
        for place in range(truth.shape[1])
    ]
    weakest = min(each, key=lambda one: one.f1.estimate if one.support else 1.0)
    exact = int((found.values == 0).sum())
    return Evidence(
        "errors",
        Verdict.PASSED,
        subjects,
        f"{exact} of {len(rows)} gate rows have every tag right; the weakest is tag {weakest.label}, "
        f"F1 {weakest.f1.estimate:.4f} on {weakest.support} rows that have it",
        {
            "kind": "tags",
            "rows": len(rows),
            "exact": exact,
            "tags": [one.to_json() for one in sorted(each, key=lambda one: one.f1.estimate)[:_MOST_VALUES]],
            "worst": list(_worst(found, rows)),
        },
        {"confidence": confidence, "tags": "by their places among the scores"},
    )


def _broken(subjects: Mapping[str, str], found: RowLosses) -> Evidence:
    why = "Errors are told of finite answers with at most 64 values a row"
    return Evidence("errors", Verdict.UNPROVEN, subjects, why, {"kind": found.kind, "rows": len(found.values)}, {})


def _crossed(truth: np.ndarray, said: np.ndarray) -> np.ndarray:
    return np.bincount(truth.astype(np.int64) * 2 + said, minlength=4).reshape(2, 2)


def _mean(values: np.ndarray, confidence: float) -> Interval:
    found = mean_interval(values, confidence)
    assert found is not None  # noqa: S101 - there are rows
    return found


def _quantiles(values: np.ndarray) -> dict[str, Json]:
    return {name: float(np.quantile(values, share)) for name, share in _QUANTILES.items()}


def _residual_bins(answers: np.ndarray, residuals: np.ndarray) -> Iterator[Json]:
    """Yield the residuals of rows with like answers: no row can be told from another."""
    count = max(1, min(_MOST_BINS, len(answers) // _ROWS_A_BIN))
    for rows in np.array_split(np.argsort(answers, kind="stable"), count):
        yield {
            "low": float(answers[rows].min()),
            "high": float(answers[rows].max()),
            "rows": len(rows),
            **_quantiles(residuals[rows]),
        }


def _each_value(truth: np.ndarray, answers: np.ndarray, confidence: float) -> Iterator[Json]:
    """Yield the errors of each value, the one that its own spread explains least first."""
    meters = []
    for place in range(truth.shape[1]):
        meter = NumberMeter()
        meter.add(truth[:, place], answers[:, place])
        bias = _mean(answers[:, place] - truth[:, place], confidence)
        r2 = meter.r2()
        meters.append(
            (
                -2.0 if r2 is None else r2,
                {"value": place, **meter.to_json(confidence=confidence), "bias": bias.to_json()},
            )
        )
    for _, each in sorted(meters, key=lambda one: one[0])[:_MOST_VALUES]:
        yield each


def _worst(found: RowLosses, rows: Sequence[str]) -> Iterator[Json]:
    """Yield the rows with the largest losses by id; of numbers with their label and answer, of tags what is wrong."""
    for at in np.argsort(-found.values, kind="stable")[:_MOST_SHOWN]:
        if found.values[at] == 0:
            return
        told: dict[str, Json] = {"row": rows[at], "loss": float(found.values[at])}
        if found.answers is not None and found.kind == "numbers":
            truth, answers = (each[at].astype(np.float64) for each in found.answers)
            place = int(np.abs(answers - truth).argmax())
            told |= {"value": place, "truth": float(truth[place]), "answer": float(answers[place])}
        elif found.answers is not None:
            truth, answers = (each[at] for each in found.answers)
            said, true = tags_of(answers, shares=bool(found.shares)), truth > 0
            missed, false = np.flatnonzero(true & ~said), np.flatnonzero(said & ~true)
            told |= {"missed": [int(tag) for tag in missed], "false": [int(tag) for tag in false]}
        yield told
