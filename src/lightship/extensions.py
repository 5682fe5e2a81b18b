"""How parts are plugged in: entry points, one group a kind. What we ship registers the same way as what others write.

Two plugins with one name is an error that names both; silent shadowing would cost days.
To look through all that is installed takes longer than most that it finds: a process does it once, and one that was
started by another is told what that has found.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from functools import cache, reduce
from importlib import import_module
from typing import TYPE_CHECKING, Any

from lightship.errors import Conflict, LightshipError, NotFound

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = ["extension_names", "load_extension", "places_of", "take_places"]

_told: dict[str, str] = {}  # places that another process has found


def extension_names(kind: str) -> tuple[str, ...]:
    """Return the names of all installed extensions of a kind (``"tasks"``, ``"passes"`` …), sorted."""
    return tuple(sorted({point.name for point in _points(kind)}))


def load_extension(kind: str, name: str) -> Any:
    """Import and return what the entry point ``name`` of ``lightship.<kind>`` names.

    Raises:
        NotFound: nothing installed has that name; the message lists what is there.
        Conflict: two installed distributions offer it.
    """
    module, _, attributes = (_told.get(f"{kind}/{name}") or _place(kind, name)).partition(":")
    return reduce(getattr, filter(None, attributes.split(".")), import_module(module))


def places_of(extensions: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return where extensions, each a kind and a name, are; for ``take_places`` in another process.

    What is not there, or there twice, is left out: who wants to load it says so.
    """
    found = {}
    for kind, name in extensions:
        try:
            found[f"{kind}/{name}"] = _place(kind, name)
        except LightshipError:
            continue
    return found


def take_places(places: Mapping[str, str]) -> None:
    """Take the word of the process that started this one."""
    _told.update(places)


def _place(kind: str, name: str) -> str:
    points = [point for point in _points(kind) if point.name == name]
    if not points:
        known = ", ".join(extension_names(kind)) or "none"
        raise NotFound(f"Nothing called {name!r} is among the {kind}. Installed: {known}.")
    if len({point.value for point in points}) > 1:
        offers = " and ".join(f"{point.value} ({point.dist.name if point.dist else 'unknown'})" for point in points)
        raise Conflict(f"{name!r} among the {kind} is offered twice: {offers}. Uninstall one of them.")
    return f"{points[0].module}:{points[0].attr or ''}"


def _points(kind: str) -> list[EntryPoint]:
    return list(_all_points(tuple(sys.path)).select(group=f"lightship.{kind}"))


@cache
def _all_points(_path: tuple[str, ...]) -> Any:
    from importlib.metadata import entry_points  # late: a process that is told needs none of it

    return entry_points()
