"""What a pass is: it takes the reference graph and gives another graph that should answer the same, lighter.

Passes are entry points in the group ``lightship.passes``. A pass may fail on a graph (``PassFailed``): the search then
drops it with the reason, and a recipe that names it is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Protocol

import numpy as np

from lightship.errors import LightshipError
from lightship.extensions import load_extension

__all__ = ["PassFailed", "VariantPass", "load_pass"]


class PassFailed(LightshipError):
    """A pass cannot make a variant of this graph."""


class VariantPass(Protocol):
    """Makes one variant. An implementation holds no state between calls."""

    name: ClassVar[str]
    """The variant's name, e.g. ``int8-static``."""
    precision: ClassVar[str]
    """What the weights become, e.g. ``int8``."""
    needs_calibration: ClassVar[bool]
    """Whether ``apply`` must see rows. They are training rows, never any that judge the result."""

    def apply(self, graph: bytes, *, calibration: Sequence[Mapping[str, np.ndarray]]) -> bytes:
        """Return the bytes of the new graph.

        Args:
            graph: the reference, ONNX.
            calibration: batches of the graph's inputs by name, each with a batch axis; empty unless needed.

        Raises:
            PassFailed: the graph cannot be treated.
        """


def load_pass(name: str) -> VariantPass:
    """Return the installed pass called ``name``.

    Raises:
        NotFound, Conflict: there is none, or there are two.
    """
    loaded: VariantPass = load_extension("passes", name)()
    return loaded
