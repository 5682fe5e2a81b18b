"""Whether the values of an input lie in the range that was proven: asked once a batch, before it runs.

Two passes over the array, its least and its greatest value, answer it for all that is right; only what is not is looked
at again. NaN is neither least nor greatest, so a comparison with it is false, which is the answer that is wanted.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lightship.errors import InvalidTensor
from lightship.types import ValueRange, number_words

__all__ = ["are_proven", "require_proven"]

_least, _greatest = np.minimum.reduce, np.maximum.reduce  # a microsecond less than the methods of an array


def are_proven(inputs: Mapping[str, np.ndarray], proven: Mapping[str, ValueRange]) -> bool:
    """Return whether every value of every input is one that was proven; of other inputs nothing is asked."""
    for name, allowed in proven.items():
        array = inputs[name]
        if not array.size or (_least(array, None) >= allowed.low and _greatest(array, None) <= allowed.high):
            continue
        if not (allowed.nan or allowed.infinite) or bool(_outside(array, allowed).any()):
            return False
    return True


def require_proven(inputs: Mapping[str, np.ndarray], proven: Mapping[str, ValueRange]) -> None:
    """Refuse inputs with a value outside of what was proven.

    Raises:
        InvalidTensor: names the input, what it may hold, the first value that it may not, and where that stands.
    """
    for name, allowed in proven.items():
        outside = np.argwhere(_outside(np.asarray(inputs[name]), allowed))
        if len(outside):
            place = tuple(outside[0].tolist())
            value = number_words(inputs[name][place].item())
            more = f" and {len(outside) - 1} more" if len(outside) > 1 else ""
            raise InvalidTensor(
                f"The values of input {name!r} must be {allowed}, which is what the model was proven for. "
                f"Got {value} at {list(place)}{more}."
            )


def _outside(array: np.ndarray, allowed: ValueRange) -> np.ndarray:
    outside = ~((array >= allowed.low) & (array <= allowed.high))
    if allowed.nan:
        outside &= ~np.isnan(array)
    if allowed.infinite:
        outside &= ~np.isinf(array)
    return outside
