"""In which order plans are tried: when the time is over, the rest is never looked at."""

from __future__ import annotations

import pytest
from tests.optimize.zoo import model_of

from lightship.optimize import plan
from lightship.optimize.plan import default_plans, for_graph

pytest.importorskip("nncf")  # the order among all plans


def names(kind: str) -> list[str]:
    """Return the plans for a model of the zoo, in order."""
    return [plan.name for plan in for_graph(default_plans(), model_of(kind).graph)]


def test_a_transformer_is_first_quantized_while_it_runs():
    """The quantizer of convolutions took a minute of five, and dynamic int8 with float layers was not begun."""
    order = names("encoder")

    assert order.index("int8-dynamic") < order.index("int8-dynamic-mixed") < order.index("openvino-nncf-int8")
    assert order[0] in ("openvino-bf16", "openvino-fp32")  # which cost nothing to make


def test_arithmetic_that_the_cpu_lacks_is_not_tried(monkeypatch):
    """Engines would compute otherwise than they were asked to, or refuse."""
    of_a_cpu = {"openvino-bf16": "has_fast_bf16", "openvino-nncf-int8-weights-dynamic": "has_vnni"}
    for has_it in (False, True):
        for function in of_a_cpu.values():
            monkeypatch.setattr(plan, function, lambda has_it=has_it: has_it)
        assert (set(of_a_cpu) <= set(names("encoder"))) is has_it
        assert of_a_cpu.keys().isdisjoint(names("encoder")) is not has_it


def test_convolutions_are_first_quantized_on_rows():
    """Dynamic int8 makes them slower."""
    order = names("cnn")

    assert order.index("openvino-nncf-int8") < order.index("int8-static") < order.index("int8-dynamic")
    assert sorted(order) == sorted(names("encoder"))
