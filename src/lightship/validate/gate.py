"""The gate: a policy lists the evidence that a release needs, and what of it was measured against which limits.

Everything that is required must be there and ``PASSED``. What is absent is ``UNPROVEN``; that refuses as well, so a
check that was not run never lets a model through. Pure: it reads evidence, it makes none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from lightship.bundle.statement import Evidence
from lightship.errors import GateRefused, InvalidInput
from lightship.types import Json, Verdict
from lightship.validate.fidelity import FidelityBudget

__all__ = ["Decision", "Policy", "apply_policy", "policy_named", "require"]

_ABOUT_VARIANT = frozenset({"noninferiority", "probabilities", "class_harm", "slice_harm", "fidelity", "latency"})

_KNOWN = ("standard", "structural", "fidelity", "labeled")
_STANDARD = (
    "data",
    "accuracy",
    "parity",
    "golden",
    "shapes",
    "values",
    "noninferiority",
    "probabilities",
    "class_harm",
    "slice_harm",
)
_ANALYSIS = ("slices", "calibration", "errors")

_ADVICE = {
    "accuracy": "Train a better model, or lower `min_accuracy` in the recipe if the budget was too strict",
    "parity": "Export the model again, or look for an operator that the exporter changed",
    "golden": "Undo the change of the preprocessing, or train again with it",
    "noninferiority": "Release the reference, or another variant",
    "probabilities": "Release the reference, or another variant; look for an output that was scaled",
    "class_harm": "Release the reference, or a variant that keeps this class",
    "slice_harm": "Release the reference, or a variant that keeps these rows",
    "values": "Release the reference or another variant, or look for an operator that goes over the batch axis",
    "fidelity": "Release the reference or another variant, or lower the budget that was missed if it was too strict",
    "shapes": "Export the graph with a free batch axis",
    "latency": "Release the reference, ask for a small variant instead of a fast one, or measure more pairs",
    "overfitting": "Train with more data, augmentation, weight decay or dropout, or stop earlier",
    "data": "Repair the rows that it names, or the split",
}


@dataclass(frozen=True, slots=True)
class Policy:
    """What a release needs.

    Attributes:
        name: one of those that ``policy_named`` knows.
        required: checks that must be there and have passed.
        reported: checks that are shown if they are there, whatever they found.
        min_accuracy: the budget that the accuracy evidence must have been judged by, or a stricter one.
        margin: the same for non-inferiority: this margin or a smaller one.
        alpha: the same for its error rate: this or a smaller one.
        confidence: the same for the accuracy interval: this or a greater one.
        budget: the same for fidelity: each figure this or a stricter one.
    """

    name: str
    required: tuple[str, ...]
    reported: tuple[str, ...] = ()
    min_accuracy: float | None = None
    margin: float | None = None
    alpha: float = 0.05
    confidence: float = 0.95
    budget: FidelityBudget | None = None

    def for_reference(self) -> Policy:
        """Return the policy for a release of the reference itself, which has nothing to be compared with."""
        return replace(self, required=tuple(name for name in self.required if name not in _ABOUT_VARIANT))

    def to_json(self) -> dict[str, Json]:
        """Return the JSON form for the release record: no floats, decimals are strings."""

        def decimal(value: float | None) -> str | None:
            return None if value is None else repr(float(value))

        found: dict[str, Json] = {
            "name": self.name,
            "required": [*self.required],
            "reported": [*self.reported],
            "min_accuracy": decimal(self.min_accuracy),
            "margin": decimal(self.margin),
            "alpha": decimal(self.alpha),
            "confidence": decimal(self.confidence),
        }
        if self.budget is not None:
            found["budget"] = {key: decimal(value) for key, value in self.budget.limits().items()}
        return found


@dataclass(frozen=True, slots=True)
class Decision:
    """What the gate says.

    Attributes:
        verdict: ``PASSED``; else the worst that was found: ``FAILED`` before ``UNPROVEN`` before ``UNDECIDED``.
        reasons: why not, one line each: the check, what it found, what to do. Empty when passed.
        required: what was found for each required check.
    """

    verdict: Verdict
    reasons: tuple[str, ...]
    required: tuple[tuple[str, Verdict], ...]

    @property
    def released(self) -> bool:
        """Whether the gate is open."""
        return self.verdict is Verdict.PASSED


def policy_named(
    name: str,
    *,
    min_accuracy: float | None = None,
    margin: float | None = None,
    alpha: float = 0.05,
    confidence: float = 0.95,
    speed_asked: bool = False,
    overfitting_required: bool = False,
    classes: bool = True,
    scores: bool = True,
    budget: FidelityBudget | None = None,
) -> Policy:
    """Return one of the policies that Lightship brings.

    - ``standard`` requires data, accuracy, parity, golden, shapes, values, noninferiority, probabilities, class_harm
      and slice_harm (the last four only of a variant, see ``Policy.for_reference``), latency when speed was asked for,
      and overfitting
      when the recipe wants it.
    - ``labeled``, for a variant of a model that was trained elsewhere, judged on rows with labels: golden, shapes and
      noninferiority and slice_harm; class_harm where they are classes, and with scores probabilities; accuracy where
      there is a ``min_accuracy``; fidelity where there is a ``budget``, as other outputs need one; latency as above.
    - ``fidelity``, for the same without labels: golden, shapes and fidelity; latency as above.
    - ``structural`` requires golden and shapes: for a model without rows. Its releases say so.

    Args:
        name: of the policy.
        min_accuracy: see ``Policy``, as are margin, alpha, confidence and budget.
        speed_asked: whether a variant must be faster.
        overfitting_required: whether the gap between training and validation decides.
        classes: whether the labels are classes; numbers and tags are none.
        scores: whether the answers to those are scores of the classes, not the classes alone.

    Raises:
        InvalidInput: another name, or no budget for ``standard``, or no margin for ``labeled``.
    """
    if name == "structural":
        reported: tuple[str, ...] = ("audit", "accuracy", "parity", "latency", "data")
        return Policy("structural", required=("golden", "shapes"), reported=reported)
    speed = ("latency",) if speed_asked else ()
    if name == "fidelity":
        reported = ("audit", "accuracy", "parity", "data", *(() if speed_asked else ("latency",)))
        required = ("golden", "shapes", "fidelity", *speed)
        return Policy("fidelity", required, reported, alpha=alpha, budget=budget or FidelityBudget())
    if name == "labeled":
        if margin is None:
            raise InvalidInput("The policy 'labeled' needs `margin`: the drop that is too much.")
        harm = (
            *(("class_harm",) if classes else ()),
            *(("probabilities",) if classes and scores else ()),
            "slice_harm",
        )
        accuracy = () if min_accuracy is None else ("accuracy",)
        faithful = () if budget is None else ("fidelity",)
        required = ("golden", "shapes", *accuracy, "noninferiority", *harm, *faithful, *speed)
        analysis = _ANALYSIS if classes and scores else ("slices", "errors")
        told = ("audit", "accuracy", "parity", "data", "fidelity", *analysis, "latency")
        reported = tuple(check for check in told if check not in required)
        return Policy(
            "labeled",
            required,
            reported,
            min_accuracy=min_accuracy,
            margin=margin,
            alpha=alpha,
            confidence=confidence,
            budget=budget,
        )
    if name != "standard":
        raise InvalidInput(f"There is no policy {name!r}. Known: {', '.join(_KNOWN)}.")
    if min_accuracy is None or margin is None:
        raise InvalidInput("The policy 'standard' needs `min_accuracy` and `margin`. Set both in the recipe's gate.")
    asked = {"latency": speed_asked, "overfitting": overfitting_required}
    return Policy(
        "standard",
        required=(*_STANDARD, *(check for check, wanted in asked.items() if wanted)),
        reported=(*_ANALYSIS, *(check for check, wanted in asked.items() if not wanted)),
        min_accuracy=min_accuracy,
        margin=margin,
        alpha=alpha,
        confidence=confidence,
    )


def apply_policy(policy: Policy, evidence: Sequence[Evidence]) -> Decision:
    """Apply ``policy`` to the evidence about the one variant that would be released.

    Evidence about candidates that were not chosen does not belong here. Where a required check has several pieces of
    evidence, all must have passed.
    """
    reasons: list[str] = []
    found: list[tuple[str, Verdict]] = []
    for check in policy.required:
        pieces = [item for item in evidence if item.check == check]
        verdicts = [item.verdict for item in pieces] or [Verdict.UNPROVEN]
        if not pieces:
            reasons.append(
                f"{check}: unproven, there is no such evidence. Run this check; the policy {policy.name!r} needs it"
            )
        for item in pieces:
            lax = _laxer_than(policy, item)
            if item.verdict is not Verdict.PASSED:
                reasons.append(_reason(item))
            elif lax:
                reasons.append(f"{check}: unproven, {lax}. Run this check again with the limits of the policy")
                verdicts.append(Verdict.UNPROVEN)
        found.append((check, _worst(verdicts)))
    return Decision(_worst([verdict for _, verdict in found]), tuple(reasons), tuple(found))


def require(decision: Decision, *, what: str, found: Mapping[str, Json] | None = None) -> None:
    """Raise unless the gate is open.

    Args:
        what: was judged.
        found: what the error tells programs.

    Raises:
        GateRefused: with every reason.
    """
    if not decision.released:
        raise GateRefused(
            f"{what} is not released ({decision.verdict}):\n" + "\n".join(f"- {r}" for r in decision.reasons),
            found=found,
        )


def _worst(verdicts: Sequence[Verdict]) -> Verdict:
    order = (Verdict.FAILED, Verdict.UNPROVEN, Verdict.UNDECIDED)
    return next((verdict for verdict in order if verdict in verdicts), Verdict.PASSED)


def _reason(item: Evidence) -> str:
    advice = _ADVICE.get(item.check, "Look at its evidence")
    needed, there = item.measured.get("rows_needed"), item.measured.get("rows", 0)
    # Where these very rows suffice for a variant without a drop, they saw a drop: more of them are no advice.
    if item.verdict is Verdict.UNDECIDED and isinstance(needed, int) and isinstance(there, int) and needed > there:
        advice = f"About {needed} gate rows would decide it; give more rows, or: {advice[0].lower()}{advice[1:]}"
    return f"{item.check}: {item.verdict}, {item.summary}. {advice}"


def _laxer_than(policy: Policy, item: Evidence) -> str:
    """Say how evidence was judged by a laxer limit than the policy's: then its ``PASSED`` proves too little."""
    rounding = 1e-12

    def value(key: str) -> float | None:
        found = item.method.get(key)
        return float(found) if isinstance(found, int | float) else None

    limits: list[tuple[str, float | None, int]] = []  # name, the policy's limit, +1: more is stricter
    if item.check == "accuracy":
        limits = [("min_accuracy", policy.min_accuracy, +1), ("confidence", policy.confidence, +1)]
    elif item.check == "noninferiority":
        limits = [("margin", policy.margin, -1), ("alpha", policy.alpha, -1)]
    elif item.check == "fidelity" and policy.budget is not None:
        used_budget = item.method.get("budget")
        lax = _laxer_budget(policy.budget, used_budget if isinstance(used_budget, Mapping) else {})
        if lax:
            return lax
        limits = [("alpha", policy.alpha, -1)]
    for key, limit, stricter in limits:
        if limit is None:
            continue
        used = value(key)
        if used is None:
            return f"it does not say its {key}"
        if stricter * (used - limit) < -rounding:
            return f"judged with {key} {used:g}, the policy says {limit:g}"
    return ""


def _laxer_budget(budget: FidelityBudget, used: Mapping[str, Json]) -> str:
    """Say which figure of fidelity was judged by a laxer limit, or by none."""
    for key, limit in budget.limits().items():
        found = used.get(key)
        if limit is None:
            continue
        if not isinstance(found, int | float):
            return f"it was judged without {key}, the policy says {limit:g}"
        if (found > limit) if key.startswith("max_") else (found < limit):
            return f"judged with {key} {found:g}, the policy says {limit:g}"
    return ""
