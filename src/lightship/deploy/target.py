"""What a target is: a place that a release can be written out for. Targets are entry points ``lightship.targets``."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Protocol

from lightship.bundle.store import BlobStore
from lightship.extensions import load_extension

__all__ = ["Target", "load_target"]


class Target(Protocol):
    """Writes one release out in the form that a platform takes."""

    name: ClassVar[str]

    def write(self, store: BlobStore, release: str, destination: Path) -> None:
        """Write the release with digest ``release`` to ``destination``, all of it or nothing.

        Raises:
            Conflict: the destination exists.
            BundleRefused: a stored byte is not what was signed.
        """


def load_target(name: str) -> Target:
    """Return the installed target called ``name``.

    Raises:
        NotFound, Conflict: there is none, or there are two.
    """
    loaded: Target = load_extension("targets", name)()
    return loaded
