"""The plainest target: a folder with the bundle, its evidence and the signed release (docs/bundle-format.md)."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from lightship.bundle.build import export_folder
from lightship.bundle.store import BlobStore

__all__ = ["Folder"]


class Folder:
    """A folder that any program can verify without Lightship."""

    name: ClassVar[str] = "folder"

    def write(self, store: BlobStore, release: str, destination: Path) -> None:
        """Write the release to ``destination``, which must not exist."""
        export_folder(store, release, destination)
