"""Bytes by digest, and the two places that a bundle is read from: a blob store and a folder.

A store writes ``blobs/sha256/<hex>`` whole or not at all and reads it back before it says so. Whatever is read is
checked against its digest on exactly the bytes that are returned: nothing is checked first and opened again later.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

from lightship.bundle.digest import Digest
from lightship.bundle.folder import Folder, open_regular
from lightship.bundle.manifest import MAX_MANIFEST_BYTES, FileEntry, Manifest
from lightship.data.files import fsync_dir, sha256_hex, write_atomic
from lightship.errors import BundleRefused, NotFound

__all__ = ["BlobStore", "BundleReader", "FolderBundle", "StoredBundle"]


class BlobStore:
    """Immutable bytes below ``root/blobs/sha256/``. Safe for many processes: a blob only ever appears whole."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._blobs = root / "blobs" / "sha256"

    def put(self, data: bytes) -> Digest:
        """Keep ``data`` and return its digest. A blob that is there already is checked, and mended if damaged."""
        digest = Digest.of(data)
        if not self._is_whole(digest):
            self._make_folders()
            write_atomic(self._path(digest), data)
            self.get(digest)  # the disk must give back what was written before anybody relies on it
        return digest

    def get(self, digest: str, *, max_bytes: int | None = None) -> bytes:
        """Return the bytes of that digest. A blob of more than ``max_bytes`` is refused before it is read.

        Raises:
            NotFound: no such blob.
            BundleRefused: the bytes on the disk have another digest, or are not a file, or more than ``max_bytes``.
            InvalidInput: ``digest`` is none.
        """
        digest = Digest.parse(digest)
        data = self._read(digest, max_bytes=max_bytes)
        if sha256_hex(data) != digest.hex:
            raise BundleRefused(
                f"The blob {digest} in {self.root} is damaged: its bytes have the digest {Digest.of(data)}. "
                "Fetch it again, or put the same contents once more."
            )
        return data

    def has(self, digest: str) -> bool:
        """Return whether a blob of that name is there. Only ``get`` tells whether it is whole."""
        return self._path(Digest.parse(digest)).is_file()

    def _path(self, digest: Digest) -> Path:
        return self._blobs / digest.hex

    def _is_whole(self, digest: Digest) -> bool:
        try:
            self.get(digest)
        except (NotFound, BundleRefused):
            return False
        return True

    def _make_folders(self) -> None:
        for folder in (self.root, self._blobs.parent, self._blobs):
            if not folder.is_dir():
                folder.mkdir(parents=True, exist_ok=True)
                fsync_dir(folder.parent)

    def _read(self, digest: Digest, *, max_bytes: int | None) -> bytes:
        try:
            file = open_regular(self._path(digest))
        except FileNotFoundError as exc:
            raise NotFound(f"There is no blob {digest} in {self.root}.") from exc
        except OSError as exc:
            raise BundleRefused(
                f"The blob {digest} in {self.root} cannot be opened as a file: {exc.strerror}."
            ) from exc
        with file:
            size = os.fstat(file.fileno()).st_size
            if max_bytes is not None and size > max_bytes:
                raise BundleRefused(
                    f"The blob {digest} in {self.root} may have at most {max_bytes:,} bytes here. It has {size:,}."
                )
            return file.read()


class BundleReader(Protocol):
    """Reads one bundle, wherever it stands."""

    @property
    def manifest(self) -> Manifest:
        """What the bundle holds."""

    @property
    def digest(self) -> str:
        """The name of the bundle."""

    def read(self, path: str) -> bytes:
        """Return the bytes of the file at ``path``, checked against the manifest.

        Raises:
            NotFound: the manifest lists no such file.
            BundleRefused: the file is missing, or its size or digest is another.
        """


class StoredBundle:
    """A ``BundleReader`` of the bundle with that digest in a store.

    Raises:
        NotFound: the store has no such blob.
        BundleRefused: the manifest is damaged or is none.
    """

    def __init__(self, store: BlobStore, digest: str) -> None:
        self.digest = Digest.parse(digest)
        self.manifest = Manifest.from_bytes(store.get(self.digest, max_bytes=MAX_MANIFEST_BYTES))
        self._store = store

    def read(self, path: str) -> bytes:
        """Return the verified bytes of ``path``."""
        entry = _entry(self.manifest, path, self.digest)
        try:
            return self._store.get(f"sha256:{entry.sha256}")
        except NotFound as exc:
            raise BundleRefused(f"{path} of the bundle {self.digest} is missing. {exc}") from exc
        except BundleRefused as exc:
            raise BundleRefused(f"{path} of the bundle {self.digest}: {exc}") from exc


class FolderBundle:
    """A ``BundleReader`` of an exported folder. It checks digests; ``verify_folder`` checks signatures too.

    Give the name that ``verify_folder`` found as ``digest``: a folder that was exchanged since then is refused.

    Raises:
        NotFound: there is no folder.
        BundleRefused: ``bundle.json`` is missing, a link, not a manifest, or not that of ``digest``.
    """

    def __init__(self, path: Path, *, digest: str | None = None) -> None:
        self._path = path
        with Folder(path) as folder:
            data = folder.read("bundle.json", max_bytes=MAX_MANIFEST_BYTES)
        self.digest = Digest.of(data)
        if digest is not None and self.digest != Digest.parse(digest):
            raise BundleRefused(f"bundle.json in {path} has the digest {self.digest}. Expected {digest}.")
        self.manifest = Manifest.from_bytes(data)

    def read(self, path: str) -> bytes:
        """Return the verified bytes of ``path``."""
        entry = _entry(self.manifest, path, self.digest)
        with Folder(self._path) as folder:
            data = folder.read(path, max_bytes=entry.size)
        if len(data) != entry.size or sha256_hex(data) != entry.sha256:
            raise BundleRefused(
                f"{path} in {self._path} is not the file that bundle.json lists: it has {len(data):,} bytes and the "
                f"digest {Digest.of(data)}, not {entry.size:,} bytes and sha256:{entry.sha256}."
            )
        return data


def _entry(manifest: Manifest, path: str, digest: Digest) -> FileEntry:
    entry = manifest.file(path)
    if entry is None:
        raise NotFound(f"The bundle {digest} has no file {path!r}.")
    return entry
