"""The policy and the gate."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from lightship.bundle.statement import Evidence
from lightship.errors import GateRefused, InvalidInput
from lightship.types import Verdict
from lightship.validate.fidelity import FidelityBudget
from lightship.validate.gate import Policy, apply_policy, policy_named, require

POLICY = policy_named("standard", min_accuracy=0.955, margin=0.01)
METHODS = {
    "accuracy": {"min_accuracy": 0.955, "confidence": 0.95},
    "noninferiority": {"margin": 0.01, "alpha": 0.05 / 3},
}


def evidence(check, verdict=Verdict.PASSED, **measured):
    """Return evidence with the limits of the policy."""
    return Evidence(check, verdict, {"reference": "0" * 64}, f"{check} was looked at", measured, METHODS.get(check, {}))


def complete():
    """Return all that the standard policy wants, by check."""
    return {check: evidence(check) for check in POLICY.required}


def test_complete_evidence_opens_the_gate():
    """Everything required is there and passed."""
    decision = apply_policy(POLICY, list(complete().values()))

    assert (decision.released, decision.reasons) == (True, ())
    require(decision, what="digits:1")


@pytest.mark.parametrize("check", POLICY.required)
@pytest.mark.parametrize("verdict", [Verdict.FAILED, Verdict.UNDECIDED, Verdict.UNPROVEN])
def test_anything_but_passed_refuses(check, verdict):
    """Each required check alone closes the gate; the reason names it and what to do."""
    found = {**complete(), check: evidence(check, verdict)}

    decision = apply_policy(POLICY, list(found.values()))

    assert decision.verdict is verdict
    assert decision.reasons[0].startswith(f"{check}: {verdict}, {check} was looked at. ")
    assert len(decision.reasons) == 1


@pytest.mark.parametrize("check", POLICY.required)
def test_missing_evidence_is_unproven_and_refuses(check):
    """A check that was not run lets nothing through."""
    found = complete()
    del found[check]

    decision = apply_policy(POLICY, list(found.values()))

    assert (decision.verdict, dict(decision.required)[check]) == (Verdict.UNPROVEN, Verdict.UNPROVEN)
    assert decision.reasons == (
        f"{check}: unproven, there is no such evidence. Run this check; the policy 'standard' needs it",
    )


def test_undecided_says_how_many_rows_would_decide():
    """The number comes from the evidence."""
    found = {**complete(), "noninferiority": evidence("noninferiority", Verdict.UNDECIDED, rows_needed=1411)}

    with pytest.raises(GateRefused, match=r"digits is not released \(undecided\):\n- noninferiority.*1411 gate rows"):
        require(apply_policy(POLICY, list(found.values())), what="digits")


def test_one_failure_among_several_pieces_refuses():
    """Two pieces of evidence of one check: both must have passed."""
    decision = apply_policy(POLICY, [*complete().values(), evidence("golden", Verdict.FAILED)])

    assert decision.verdict is Verdict.FAILED


@pytest.mark.parametrize(
    ("check", "method", "words"),
    [
        ("accuracy", {"min_accuracy": 0.5, "confidence": 0.95}, "judged with min_accuracy 0.5, the policy says 0.955"),
        ("accuracy", {"min_accuracy": 0.955, "confidence": 0.5}, "judged with confidence 0.5"),
        ("noninferiority", {"margin": 0.2, "alpha": 0.01}, "judged with margin 0.2"),
        ("noninferiority", {"margin": 0.01, "alpha": 0.2}, "judged with alpha 0.2"),
        ("noninferiority", {}, "does not say its margin"),
    ],
)
def test_evidence_by_laxer_limits_proves_too_little(check, method, words):
    """``passed`` at a margin of 20 points is not what the policy asked for."""
    found = {**complete(), check: replace(evidence(check), method=method)}

    decision = apply_policy(POLICY, list(found.values()))

    assert (decision.verdict, words in decision.reasons[0]) == (Verdict.UNPROVEN, True)


def test_reported_checks_refuse_nothing():
    """Over-fitting is shown."""
    assert apply_policy(POLICY, [*complete().values(), evidence("overfitting", Verdict.FAILED)]).released


def test_reference_needs_no_comparison_with_itself():
    """Its policy leaves out what is about a variant."""
    found = [
        item for check, item in complete().items() if check not in ("noninferiority", "probabilities", "class_harm")
    ]

    assert apply_policy(POLICY.for_reference(), found).released
    assert not apply_policy(POLICY, found).released


def test_speed_is_required_when_it_was_asked_for():
    """Then no latency evidence is no release."""
    policy = policy_named("standard", min_accuracy=0.955, margin=0.01, speed_asked=True)

    assert not apply_policy(policy, list(complete().values())).released


def test_policy_is_written_without_floats():
    """The release record holds decimals as strings."""
    written = json.loads(json.dumps(POLICY.to_json()))

    assert (written["min_accuracy"], written["margin"], written["name"]) == ("0.955", "0.01", "standard")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("strict", "Known: standard, structural, fidelity, labeled"),
        ("standard", "needs `min_accuracy` and `margin`"),
        ("labeled", "needs `margin`"),
    ],
)
def test_unknown_or_incomplete_policies_are_refused(name, message):
    """A policy without numbers would prove nothing."""
    with pytest.raises(InvalidInput, match=message):
        policy_named(name)


def test_undecided_does_not_ask_for_fewer_rows_than_there_are():
    """121 rows would decide it, with 140 there, would be no advice: these rows saw a drop."""
    seen = Evidence("accuracy", Verdict.UNDECIDED, {"task": "0" * 64}, "it fell", {"rows": 140, "rows_needed": 121}, {})

    (reason,) = apply_policy(Policy("p", required=("accuracy",)), [seen]).reasons

    assert "121" not in reason


FIDELITY = policy_named("fidelity", alpha=0.05)
STRICT = {"alpha": 0.05 / 3, "budget": FidelityBudget(max_broken=0.01).to_json()}


def without_labels(**method):
    """Return all that the policy without labels wants."""
    pieces = {check: evidence(check) for check in FIDELITY.required}
    pieces["fidelity"] = replace(pieces["fidelity"], method={**STRICT, **method})
    return [*pieces.values()]


def test_fidelity_is_enough_where_there_are_no_labels():
    """What is not proven, accuracy, is reported, and refuses nothing."""
    assert FIDELITY.required == ("golden", "shapes", "fidelity")
    assert apply_policy(FIDELITY, [*without_labels(), evidence("accuracy", Verdict.UNPROVEN)]).released
    assert not apply_policy(FIDELITY, without_labels()[:2]).released
    assert apply_policy(FIDELITY.for_reference(), without_labels()[:2]).released


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ({"alpha": 0.1}, "judged with alpha 0.1"),
        ({"budget": FidelityBudget(min_cosine=0.5).to_json()}, "judged with min_cosine 0.5, the policy says 0.99"),
        ({"budget": FidelityBudget(max_broken=0.5).to_json()}, "judged with max_broken 0.5, the policy says 0.02"),
        ({"budget": FidelityBudget(max_broken=None).to_json()}, "judged without max_broken, the policy says 0.02"),
        ({"budget": None}, "judged without min_cosine"),
    ],
)
def test_fidelity_by_laxer_budgets_proves_too_little(method, words):
    """Each figure at least as strict as the policy's."""
    decision = apply_policy(FIDELITY, without_labels(**method))

    assert (decision.verdict, words in decision.reasons[0]) == (Verdict.UNPROVEN, True)


def test_labels_ask_for_what_they_can_show():
    """Classes for a classifier, accuracy where there is a budget of it, speed where it was asked for."""
    classifier = policy_named("labeled", margin=0.01, min_accuracy=0.9, speed_asked=True)
    numbers = policy_named("labeled", margin=0.02, classes=False)

    assert set(classifier.required) == {
        *("golden", "shapes", "accuracy", "noninferiority", "probabilities", "class_harm", "slice_harm", "latency")
    }
    plain = policy_named("labeled", margin=0.01, scores=False)
    assert set(plain.required) == {"golden", "shapes", "noninferiority", "class_harm", "slice_harm"}
    assert set(numbers.required) == {"golden", "shapes", "noninferiority", "slice_harm"}
    assert {"accuracy", "slices", "errors"} <= set(numbers.reported)


def test_budget_of_fidelity_is_written_without_floats():
    """As every other number of the release record."""
    written = policy_named("fidelity", budget=FidelityBudget(min_snr_db=20)).to_json()

    assert written["budget"] == {
        "min_cosine": "0.99",
        "min_snr_db": "20.0",
        "min_agreement": None,
        "max_broken": "0.02",
        "min_explained": "0.25",
    }
