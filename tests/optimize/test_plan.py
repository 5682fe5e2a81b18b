"""In which order plans are tried: when the time is over, the rest is never looked at."""

from __future__ import annotations

import pytest
from tests.optimize.zoo import model_of

from lightship.optimize.plan import default_plans, for_graph

pytest.importorskip("nncf")  # the order among all plans


def names(kind: str) -> list[str]:
    """Return the plans for a model of the zoo, in order."""
    return [plan.name for plan in for_graph(default_plans(), model_of(kind).graph)]


def test_a_transformer_is_first_quantized_while_it_runs():
    """The quantizer of convolutions took a minute of five, and dynamic int8 with float layers was not begun."""
    order = names("encoder")

    assert order.index("int8-dynamic") < order.index("int8-dynamic-mixed") < order.index("openvino-nncf-int8")
    assert order[0] == "openvino-fp32"  # which costs nothing to make


def test_convolutions_are_first_quantized_on_rows():
    """Dynamic int8 makes them slower."""
    order = names("cnn")

    assert order.index("openvino-nncf-int8") < order.index("int8-static") < order.index("int8-dynamic")
    assert sorted(order) == sorted(names("encoder"))
