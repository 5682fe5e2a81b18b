"""Logits as the checks see them: which label they say, and whether they say anything at all."""

from __future__ import annotations

import numpy as np

from lightship.errors import InvalidTensor

__all__ = ["labels_of", "nonfinite_rows", "require_same_shape"]


def labels_of(logits: np.ndarray) -> np.ndarray:
    """Return the class of each row: the position of its largest logit, the first of equals. int64, shape (n,)."""
    if logits.ndim != 2 or logits.shape[1] == 0:
        raise InvalidTensor(f"Logits must have the shape [rows, classes]. Got {list(logits.shape)}.")
    return np.asarray(logits.argmax(axis=1))


def nonfinite_rows(logits: np.ndarray) -> np.ndarray:
    """Return the positions of rows that hold NaN or infinity: such a row has no label, whatever ``argmax`` says."""
    return np.flatnonzero(~np.isfinite(logits.reshape(len(logits), -1)).all(axis=1))


def require_same_shape(**arrays: np.ndarray) -> None:
    """Refuse arrays of unequal shapes.

    Raises:
        InvalidTensor: names all of them.
    """
    if len({array.shape for array in arrays.values()}) > 1:
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())
        raise InvalidTensor(f"These arrays must have one shape: they are about the same rows. Got {shapes}.")
