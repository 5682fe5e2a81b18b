"""Logits as the checks see them: which label they say, how surely, and whether they say anything at all."""

from __future__ import annotations

import numpy as np

from lightship.errors import InvalidTensor

__all__ = ["labels_of", "nonfinite_rows", "probabilities_of", "require_same_shape"]


def labels_of(logits: np.ndarray) -> np.ndarray:
    """Return the class of each row: the position of its largest logit, the first of equals. int64, shape (n,)."""
    _require_classes(logits)
    return np.asarray(logits.argmax(axis=1))


def nonfinite_rows(logits: np.ndarray) -> np.ndarray:
    """Return the positions of rows that hold NaN or infinity: such a row has no label, whatever ``argmax`` says."""
    return np.flatnonzero(~np.isfinite(logits.reshape(len(logits), -1)).all(axis=1))


def probabilities_of(logits: np.ndarray) -> np.ndarray:
    """Return the softmax of each row of finite logits: float64, shape (n, classes), every row sums to 1."""
    _require_classes(logits)
    wide = logits.astype(np.float64)
    with np.errstate(over="ignore", under="ignore"):  # logits 1e308 apart: the lesser one has the probability 0
        powers = np.exp(wide - wide.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def _require_classes(logits: np.ndarray) -> None:
    if logits.ndim != 2 or logits.shape[1] == 0:
        raise InvalidTensor(f"Logits must have the shape [rows, classes]. Got {list(logits.shape)}.")


def require_same_shape(**arrays: np.ndarray) -> None:
    """Refuse arrays of unequal shapes.

    Raises:
        InvalidTensor: names all of them.
    """
    if len({array.shape for array in arrays.values()}) > 1:
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())
        raise InvalidTensor(f"These arrays must have one shape: they are about the same rows. Got {shapes}.")
