"""How parts are plugged in: entry points, one group a kind. What we ship registers the same way as what others write.

Two plugins with one name is an error that names both; silent shadowing would cost days.
"""

from __future__ import annotations

import sys
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from lightship.errors import Conflict, NotFound

__all__ = ["extension_names", "load_extension"]


def extension_names(kind: str) -> tuple[str, ...]:
    """Return the names of all installed extensions of a kind (``"tasks"``, ``"passes"`` …), sorted."""
    return tuple(sorted({point.name for point in _points(kind)}))


def load_extension(kind: str, name: str) -> Any:
    """Import and return what the entry point ``name`` of ``lightship.<kind>`` names.

    Raises:
        NotFound: nothing installed has that name; the message lists what is there.
        Conflict: two installed distributions offer it.
    """
    points = [point for point in _points(kind) if point.name == name]
    if not points:
        known = ", ".join(extension_names(kind)) or "none"
        raise NotFound(f"Nothing called {name!r} is among the {kind}. Installed: {known}.")
    if len({point.value for point in points}) > 1:
        offers = " and ".join(f"{point.value} ({point.dist.name if point.dist else 'unknown'})" for point in points)
        raise Conflict(f"{name!r} among the {kind} is offered twice: {offers}. Uninstall one of them.")
    return points[0].load()


def _points(kind: str) -> list[EntryPoint]:
    return list(_all_points(tuple(sys.path)).select(group=f"lightship.{kind}"))


@cache
def _all_points(_path: tuple[str, ...]) -> Any:
    """Look through everything that is installed: once, for it takes longer than most that it finds."""
    return entry_points()
