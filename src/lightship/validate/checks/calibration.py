"""Whether the probabilities are those of what happens, and whether a temperature would bring them nearer. Reported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from lightship.bundle.statement import Evidence
from lightship.errors import InvalidInput
from lightship.types import Verdict
from lightship.validate.calibration import MOST_BINS, calibration, fit_temperature, improvement
from lightship.validate.logits import nonfinite_rows

__all__ = ["applied", "check_calibration", "temperature_in"]


_WOULD, _DOES = "would make", "makes"


def check_calibration(
    logits: np.ndarray,
    truth: np.ndarray,
    *,
    selection: tuple[np.ndarray, np.ndarray] | None,
    subjects: Mapping[str, str],
    confidence: float = 0.95,
    current: float = 1.0,
) -> Evidence:
    """Measure calibration on the gate rows, and what a temperature that was fitted on selection rows would change.

    ``PASSED`` whatever is found: no budget applies. ``UNPROVEN`` when a row's logits are not finite.

    Args:
        logits: on the gate rows, (rows, classes).
        truth: int classes of the gate rows.
        selection: logits and classes of the selection rows; ``None`` fits no temperature.
        subjects: what was judged, with its SHA-256.
        confidence: of all intervals.
        current: the temperature that the model has. Another one takes its place.
    """
    broken = [*nonfinite_rows(logits), *(nonfinite_rows(selection[0]) if selection else ())]
    if broken or not len(truth):
        return Evidence(
            check="calibration",
            verdict=Verdict.UNPROVEN,
            subjects=subjects,
            summary=f"Calibration needs rows with finite answers; {len(broken)} rows have none",
            measured={"rows": len(truth)},
            method={"confidence": confidence},
        )
    before = calibration(logits, truth, temperature=current, confidence=confidence)
    after, temperature, better = None, None, None
    if selection is not None and len(selection[1]):
        temperature = fit_temperature(*selection)
        after = calibration(logits, truth, temperature=temperature, confidence=confidence)
        better = improvement(logits / current, truth, temperature=temperature / current, confidence=confidence)
    helps = better is not None and better[0].low > 0
    ece = before.ece
    summary = f"Calibration error {ece.estimate:.4f} ({ece.low:.4f} to {ece.high:.4f}) on {len(truth)} gate rows"
    if current != 1:
        summary += f" with its temperature of {current:.3g}"
    if after is not None and better is not None:
        shown = "" if helps else ", a gain that is not shown"
        summary += f"; a temperature of {temperature:.3g} {_WOULD} it {after.ece.estimate:.4f}{shown}"
    return Evidence(
        check="calibration",
        verdict=Verdict.PASSED,
        subjects=subjects,
        summary=summary,
        measured={
            "rows": len(truth),
            "selection_rows": len(selection[1]) if selection is not None else 0,
            "before": before.to_json(),
            "after": after.to_json() if after else None,
            "current": current,
            "temperature": temperature,
            "improvement": {"nll": better[0].to_json(), "brier": better[1].to_json()} if better else None,
            "helps": helps,
            "applied": False,
        },
        method={
            "confidence": confidence,
            "bins": f"equal mass, at most {MOST_BINS}",
            "ece": "of the surest class, less what noise adds; normal means of bins, triangle inequality below",
            "temperature": "least negative log likelihood on the selection rows",
            "improvement": "paired over the gate rows, central limit theorem",
        },
    )


def temperature_in(evidence: Sequence[Evidence]) -> str:
    """Return the temperature that was fitted, as the decimal that a task's configuration holds.

    Raises:
        InvalidInput: none was: the answers are no probabilities of classes, or there were no rows to fit it on.
    """
    found = next((each.measured.get("temperature") for each in evidence if each.check == "calibration"), None)
    if not isinstance(found, int | float):
        raise InvalidInput(
            "There is no temperature to apply: it needs a model that gives probabilities of classes, and selection "
            "rows with labels and finite answers. Leave it at 'report'."
        )
    return f"{found:.4f}".rstrip("0").rstrip(".")


def applied(evidence: Evidence) -> Evidence:
    """Return calibration evidence of a release that has the temperature: ``after`` is what it answers."""
    return replace(
        evidence,
        summary=evidence.summary.replace(_WOULD, _DOES, 1),
        measured={**evidence.measured, "applied": True},
    )
