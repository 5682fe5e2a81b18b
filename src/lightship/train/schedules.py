"""The learning rate of each step, as a pure function: nothing to save in a checkpoint, nothing to get out of step.

Source of the cosine: Loshchilov & Hutter 2016, arXiv:1608.03983; of one-cycle: Smith & Topin 2017, arXiv:1708.07120.
"""

from __future__ import annotations

import math

from lightship.errors import InvalidInput

__all__ = ["rate_at"]

_RISE = 0.3  # share of the steps in which one-cycle goes up
_START = 1 / 25  # of the highest rate


def rate_at(step: int, *, steps: int, highest: float, schedule: str) -> float:
    """Return the learning rate of step ``step`` (0 to ``steps - 1``) of a run of ``steps`` steps.

    ``constant``: ``highest``. ``cosine``: from ``highest`` down to near zero. ``one-cycle``: from ``highest / 25``
    up over the first 30 % of the steps and down to near zero, both along a cosine.

    Raises:
        InvalidInput: the schedule has another name.
    """
    if schedule == "constant":
        return highest
    if schedule == "cosine":
        return highest * _fall(step / steps)
    if schedule == "one-cycle":
        top = _RISE * steps
        if step < top:
            return highest * (1 - (1 - _START) * _fall(step / top))
        return highest * _fall((step - top) / (steps - top))
    raise InvalidInput(f"A schedule is constant, cosine or one-cycle. Got {schedule!r}.")


def _fall(share: float) -> float:
    """Return 1 at 0 and 0 at 1, along half a cosine."""
    return (1 + math.cos(math.pi * share)) / 2
