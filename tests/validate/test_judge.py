"""Which variant is released: real graphs, one of them crippled."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from lightship.engine.measure import PairedTiming, Percentiles, median_interval
from lightship.engine.runner import load_runner
from lightship.errors import GateRefused, InvalidInput
from lightship.types import Verdict
from lightship.validate.fidelity import FidelityBudget, FidelityMeter
from lightship.validate.gate import Policy, apply_policy
from lightship.validate.judge import REFERENCE, Candidate, judge
from lightship.validate.looks import Speed, look_at_classes, look_at_fidelity, require_finite_reference

LABELS = tuple(str(k) for k in range(5))
SUBJECTS = {"reference": "0" * 64}
CENTERS = np.random.default_rng(12).normal(size=(16, 5)).astype(np.float32)


def timing(ratio):
    """Return a measured time ratio against the reference, to within 1 %."""
    ratios = np.linspace(ratio * 0.99, ratio * 1.01, 50)
    return PairedTiming(median_interval(ratios), Percentiles(1, 2), Percentiles(1, 2), 50, 5)


def logits_of(weights, rows):
    """Run ``rows @ weights`` as a real graph."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 5])],
        [numpy_helper.from_array(weights.astype(np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return load_runner(model.SerializeToString()).run({"x": rows})["y"]


@pytest.fixture(scope="module")
def gate():
    """1,000 gate rows: truth, rows and the reference's logits, right on nearly all."""
    rng = np.random.default_rng(13)
    truth = rng.integers(0, 5, size=1000)
    unit = CENTERS / (CENTERS**2).sum(axis=0)
    rows = (unit.T[truth] + rng.normal(scale=0.06, size=(1000, 16))).astype(np.float32)
    return truth, rows, logits_of(CENTERS, rows)


def candidate(gate, name, logits, speed, *, reference=None):
    """Return a candidate with its look; speed is asked for."""
    look = look_at_classes(
        name,
        gate[0],
        gate[2] if reference is None else reference,
        logits,
        labels=LABELS,
        margin=0.01,
        harm_alpha=0.05,
        subjects=SUBJECTS,
        speed=speed,
    )
    return Candidate(name, look)


def measured(ratio):
    """Return a speed that was asked for and measured."""
    return Speed(asked=True, timing=timing(ratio))


def rounded(gate, noise=1e-3):
    """Return the logits of weights that were rounded a little."""
    return logits_of(CENTERS + np.random.default_rng(14).normal(scale=noise, size=CENTERS.shape), gate[1])


def faithful(gate, name="int8", ratio=0.5):
    """Return a candidate whose weights were rounded a little."""
    return candidate(gate, name, rounded(gate), measured(ratio))


def crippled(gate, name="wrecked", ratio=0.3):
    """Return a candidate with the scale of one output channel, class 3, wrecked."""
    weights = CENTERS.copy()
    weights[:, 3] *= 0.4
    return candidate(gate, name, logits_of(weights, gate[1]), measured(ratio))


def test_first_that_passes_is_chosen(gate):
    """The next ones are not even looked at."""
    found = judge([faithful(gate, "a"), faithful(gate, "b")])

    assert found.chosen == "a"
    assert [item.verdict for item in found.outcomes] == [Verdict.PASSED, Verdict.UNPROVEN]
    assert found.outcomes[1].reason == "not judged: a passed before it"
    assert {item.check for item in found.evidence} == {"noninferiority", "probabilities", "class_harm", "latency"}


def test_crippled_graph_is_dropped_by_name_of_the_class_that_lost_most(gate):
    """The fast one is wrecked, the second is taken."""
    found = judge([crippled(gate), faithful(gate)])

    assert found.chosen == "int8"
    assert found.outcomes[0].verdict is Verdict.FAILED
    assert found.outcomes[0].reason.startswith("Class '3' lost most")
    assert {item.check: item.verdict for item in found.outcomes[0].evidence}["noninferiority"] is Verdict.FAILED


@pytest.mark.parametrize("factor", [1e-3, 1e30])
def test_scaled_logits_are_dropped_though_every_label_is_right(gate, factor):
    """Nothing is lost but the probabilities, and the reason says so; the next candidate is taken."""
    reference = gate[2] * 2  # sure of its answers by about two thirds
    scaled = candidate(gate, "scaled", reference * np.float32(factor), measured(0.3), reference=reference)
    int8 = candidate(gate, "int8", rounded(gate) * 2, measured(0.5), reference=reference)

    found = judge([scaled, int8])

    verdicts = {item.check: item.verdict for item in found.outcomes[0].evidence}
    assert found.chosen == "int8"
    assert found.outcomes[0].reason.startswith("Probabilities differ by ")
    assert (verdicts["noninferiority"], verdicts["probabilities"]) == (Verdict.PASSED, Verdict.FAILED)


def test_reference_stays_when_no_candidate_passes(gate):
    """An honest result, with one reason each and no evidence about a variant."""
    found = judge([crippled(gate), faithful(gate, "slow", ratio=1.4), faithful(gate, "same", ratio=1.0)])

    assert (found.chosen, found.evidence) == (REFERENCE, ())
    assert [item.verdict for item in found.outcomes] == [Verdict.FAILED, Verdict.FAILED, Verdict.UNDECIDED]
    assert "1.40 times as slow" in found.outcomes[1].reason
    assert "no difference shown" in found.outcomes[2].reason


def test_speed_is_ignored_when_it_was_not_asked_for(gate):
    """A smaller variant may be slower."""
    slow = Speed(asked=False, timing=timing(1.4))

    assert judge([candidate(gate, "int8", rounded(gate), slow)]).chosen == "int8"
    assert judge([candidate(gate, "int8", rounded(gate), None)]).chosen == "int8"


def test_speed_that_was_not_measured_is_not_shown(gate):
    """No timing, no release."""
    found = judge([candidate(gate, "int8", gate[2], Speed(asked=True))])

    assert (found.chosen, found.outcomes[0].reason) == (REFERENCE, "its speed was not measured")
    assert found.outcomes[0].verdict is Verdict.UNPROVEN


def test_named_variant_that_passes_is_chosen_at_the_whole_of_alpha(gate):
    """It is judged alone, so it does not share alpha."""
    found = judge([crippled(gate), faithful(gate)], named="int8")

    assert (found.chosen, found.alpha, len(found.outcomes)) == ("int8", 0.05, 1)


def test_named_variant_that_does_not_pass_stays_chosen_for_the_gate_to_refuse(gate):
    """Nothing else is released in its place; the gate says no on the evidence about it."""
    found = judge([crippled(gate), faithful(gate)], named="wrecked")

    policy = Policy("test", required=("noninferiority", "class_harm", "latency"), margin=0.01)
    decision = apply_policy(policy, found.evidence)
    assert found.chosen == "wrecked"
    assert decision.verdict is Verdict.FAILED
    assert any("Class '3' lost most" in reason for reason in decision.reasons)


def test_reference_can_be_asked_for(gate):
    """Then nobody looks at the candidates."""
    assert judge([faithful(gate)], named=REFERENCE).outcomes == ()


def test_candidates_share_alpha(gate):
    """Evenly, by how many there are, whether or not the last ones are looked at: one alone has all of it."""
    for count in (1, 2, 3):
        queue = [faithful(gate, f"int8-{number}") for number in range(count)]
        found = judge(queue)
        assert found.alpha == pytest.approx(0.05 / count)
        assert found.evidence[0].method["alpha"] == pytest.approx(0.05 / count)


def test_nan_in_a_candidate_is_a_failure_in_clear_words(gate):
    """``argmax`` of NaN would be class 0."""
    logits = gate[2].copy()
    logits[7] = np.nan

    found = judge([candidate(gate, "int8", logits, measured(0.5))])

    assert found.chosen == REFERENCE
    assert found.outcomes[0].verdict is Verdict.FAILED
    assert found.outcomes[0].reason == "1 of 1000 rows give NaN or infinite logits, the first is gate row 7"


def test_nan_in_the_reference_stops_everything(gate):
    """There is nothing to compare with, and nothing to fall back on."""
    logits = gate[2].copy()
    logits[3, 1] = np.inf

    with pytest.raises(GateRefused, match="reference gives NaN or infinity on 1 of 1000 gate rows, first row 3"):
        require_finite_reference(logits)


@pytest.mark.parametrize(
    ("names", "named", "message"),
    [
        (["a", "b", "c", "d"], None, "At most 3 candidates.*Got 4: a, b, c, d"),
        (["a", "a"], None, "different names"),
        (["reference"], None, "none of them 'reference'"),
        (["a"], "b", "no candidate 'b'. Candidates: a"),
    ],
)
def test_impossible_lists_of_candidates_are_refused(gate, names, named, message):
    """A fourth look would break the promise about alpha."""
    candidates = [candidate(gate, name, gate[2], measured(0.5)) for name in names]

    with pytest.raises(InvalidInput, match=message):
        judge(candidates, named=named)


def test_a_look_that_shows_nothing_releases_nothing():
    """No evidence is no proof."""
    found = judge([Candidate("int8", lambda _: ())])

    assert (found.chosen, found.outcomes[0].verdict) == (REFERENCE, Verdict.UNPROVEN)


def test_answers_without_labels_are_judged_by_their_likeness(gate):
    """The wrecked one is dropped, the rounded one taken, at its share of alpha."""
    found = judge([alike(gate, "wrecked", -gate[2]), alike(gate, "int8", rounded(gate))])

    assert found.chosen == "int8"
    assert found.outcomes[0].reason.startswith("1000 of 1000 rows are broken")
    assert {item.check for item in found.evidence} == {"fidelity", "latency"}
    assert found.evidence[0].method["alpha"] == pytest.approx(0.05 / 2)


def alike(gate, name, logits):
    """Return a candidate that is compared with the reference alone."""
    meter = FidelityMeter()
    for part in range(0, 1000, 250):
        meter.add({"y": gate[2][part : part + 250]}, {"y": logits[part : part + 250]})
    look = look_at_fidelity(name, meter, budget=FidelityBudget(), subjects=SUBJECTS, speed=measured(0.5))
    return Candidate(name, look)
