"""Put a bundle into a store, and write a released one as a folder."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lightship.bundle.digest import Digest
from lightship.bundle.envelope import MAX_ENVELOPE_BYTES
from lightship.bundle.manifest import FileEntry, Golden, Manifest, TaskRef, Variant
from lightship.bundle.release import Release, peek_release
from lightship.bundle.store import BlobStore, StoredBundle
from lightship.bundle.verify import CARD_FILE, MANIFEST_FILE, RELEASE_FILE, evidence_path
from lightship.data.files import fsync_dir, sha256_hex
from lightship.errors import BundleRefused, Conflict, NotFound
from lightship.types import Interface, Json

__all__ = ["build_bundle", "export_folder"]

_TAKEN = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR)


def build_bundle(
    store: BlobStore,
    *,
    task: TaskRef,
    interface: Interface,
    variants: Sequence[Variant],
    default: str,
    golden: Golden,
    lineage: Mapping[str, Json],
    contents: Mapping[str, bytes],
) -> Manifest:
    """Put the files and the manifest of a bundle into ``store`` and return the manifest.

    The same arguments give the same bundle name, in whatever order variants and files come. Nothing is written
    before the manifest is found right; the manifest itself is written last. ``contents`` has the bytes of every file
    by its path: all must be used, and all that is used must be there.

    Raises:
        BundleRefused: the parts do not make a valid manifest; the message names the part.
        InvalidInput: a float in the task's configuration or the lineage.
    """
    manifest = Manifest(
        task=task,
        interface=interface,
        variants=tuple(
            replace(variant, files=tuple(sorted(variant.files)))
            for variant in sorted(variants, key=lambda variant: variant.name)
        ),
        default=default,
        golden=golden,
        lineage=lineage,
        files=tuple(FileEntry(path, len(data), sha256_hex(data)) for path, data in sorted(contents.items())),
    )
    # What is written must be what a reader accepts, so the reader's rules are the writer's rules.
    encoded = manifest.to_bytes()
    manifest = Manifest.from_bytes(encoded)
    for data in contents.values():
        store.put(data)
    store.put(encoded)
    return manifest


def export_folder(store: BlobStore, release_digest: str, dest: Path) -> None:
    """Write a released bundle as the folder ``dest``: all of it or nothing.

    Every file is checked against its digest on the way. Signatures are not looked at: who receives the folder decides
    whom he trusts (``verify_folder``).

    Raises:
        NotFound: the store has no such release, or ``dest`` has no parent folder.
        Conflict: there is something at ``dest`` already, even an empty folder; it is left as it is.
        BundleRefused: a blob is missing or damaged.
    """
    if os.path.lexists(dest):
        raise Conflict(f"{dest} is there already. Choose another place, or remove it first.")
    if not dest.parent.is_dir():
        raise NotFound(f"{dest.parent} is no folder. Make it first.")
    envelope = store.get(release_digest, max_bytes=MAX_ENVELOPE_BYTES)
    release = peek_release(envelope)
    temporary = Path(tempfile.mkdtemp(prefix=".tmp-", dir=dest.parent))
    try:
        temporary.chmod(0o755)
        _write_files(store, release, envelope, root=temporary)
        _rename_new(temporary, dest)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    fsync_dir(dest.parent)


def _write_files(store: BlobStore, release: Release, envelope: bytes, *, root: Path) -> None:
    try:
        bundle = StoredBundle(store, release.bundle)
        _write(root, MANIFEST_FILE, bundle.manifest.to_bytes())
        for entry in bundle.manifest.files:
            _write(root, entry.path, bundle.read(entry.path))
        for check, digest in release.evidence:
            _write(root, evidence_path(check, Digest.parse(digest)), store.get(digest, max_bytes=MAX_ENVELOPE_BYTES))
        if release.card is not None:
            _write(root, CARD_FILE, store.get(release.card))
    except NotFound as exc:
        raise BundleRefused(f"The release {release.name}:{release.version} is not whole in this store. {exc}") from exc
    _write(root, RELEASE_FILE, envelope)
    for folder, _, _ in os.walk(root):
        fsync_dir(Path(folder))


def _write(root: Path, path: str, data: bytes) -> None:
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _rename_new(source: Path, dest: Path) -> None:
    try:
        # Renaming onto something that appeared meanwhile fails, except onto an empty folder: nothing is lost then.
        source.rename(dest)
    except OSError as exc:
        if exc.errno in _TAKEN:
            raise Conflict(f"{dest} appeared meanwhile. Choose another place, or remove it first.") from exc
        raise
