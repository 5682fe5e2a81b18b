"""What a pass is: it takes the reference graph and gives another graph that should answer the same, lighter.

Passes are entry points in the group ``lightship.passes``. A pass may fail on a graph (``PassFailed``): the search then
drops it with the reason, and a recipe that names it is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from typing import ClassVar, Protocol

import numpy as np

from lightship.errors import Conflict, LightshipError, NotFound

__all__ = ["PassFailed", "VariantPass", "load_pass", "pass_names"]

_GROUP = "lightship.passes"


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


def pass_names() -> tuple[str, ...]:
    """Return the names of all installed passes, sorted."""
    return tuple(sorted({point.name for point in entry_points(group=_GROUP)}))


def load_pass(name: str) -> VariantPass:
    """Return the pass called ``name``.

    Raises:
        NotFound: no installed distribution offers it.
        Conflict: two do.
    """
    points = [point for point in entry_points(group=_GROUP) if point.name == name]
    if not points:
        raise NotFound(f"There is no pass called {name!r}. Installed: {', '.join(pass_names())}.")
    if len(points) > 1:
        raise Conflict(
            f"Two passes are called {name!r}: {' and '.join(point.value for point in points)}. Uninstall one."
        )
    loaded: VariantPass = points[0].load()()
    return loaded
