"""What each check is called for people: in reports, cards and comparisons."""

from __future__ import annotations

__all__ = ["title_of"]

_TITLES = {
    "accuracy": "Accuracy on the gate rows",
    "audit": "What the file could do",
    "calibration": "How sure the model is, and how right",
    "class_harm": "No class is harmed",
    "data": "The rows",
    "equivalence": "The variant computes what the reference computes",
    "errors": "What it gets wrong",
    "fidelity": "The variant answers as the reference does",
    "golden": "Golden examples are answered alike",
    "latency": "Speed against the reference",
    "noninferiority": "The variant is as accurate as the reference",
    "overfitting": "Training against validation",
    "parity": "The graph answers as the trained model does",
    "probabilities": "Probabilities are those of the reference",
    "search": "What was tried",
    "shapes": "Batch sizes and shapes",
    "slice_harm": "No slice is harmed",
    "slices": "Where it is weakest",
    "values": "Extreme and broken values",
}


def title_of(check: str) -> str:
    """Return the title of a check; one that is not known here goes by its name."""
    return _TITLES.get(check, check)
