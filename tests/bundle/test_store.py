"""Blobs appear whole or not at all, and damage is named."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from lightship.bundle.digest import Digest
from lightship.bundle.store import BlobStore, FolderBundle, StoredBundle
from lightship.errors import BundleRefused, InvalidInput, NotFound


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    """An empty store whose folder is not there yet."""
    return BlobStore(tmp_path / "home" / "store")


def blob(store: BlobStore, digest: str) -> Path:
    """Return where the format says that a blob is."""
    return store.root / "blobs" / "sha256" / digest.removeprefix("sha256:")


def test_put_then_get(store):
    """Bytes are found by the digest of exactly these bytes, at the documented place."""
    digest = store.put(b"abc")

    assert digest == Digest.of(b"abc")
    assert store.get(digest) == b"abc"
    assert store.has(digest)
    assert blob(store, digest).read_bytes() == b"abc"
    assert [path.name for path in blob(store, digest).parent.iterdir()] == [digest.hex]


def test_an_unknown_digest_is_not_found(store):
    """Nothing there is not damage."""
    assert not store.has(Digest.of(b"abc"))
    with pytest.raises(NotFound, match="There is no blob sha256:ba78"):
        store.get(Digest.of(b"abc"))


@pytest.mark.parametrize("digest", ["sha256:../../secret", "../../secret", "sha256:" + "A" * 64])
def test_text_that_is_no_digest_never_becomes_a_path(store, digest):
    """A store is asked for digests only."""
    (store.root).mkdir(parents=True)
    (store.root / "secret").write_text("x")

    for ask in (store.get, store.has):
        with pytest.raises(InvalidInput, match="A digest must be"):
            ask(digest)


def test_a_damaged_blob_is_refused_and_mended_by_put(store):
    """One flipped bit is named with its digest; the same contents put again repair it."""
    digest = store.put(b"abc")
    blob(store, digest).write_bytes(b"abb")

    with pytest.raises(BundleRefused, match=f"The blob {digest} in .* is damaged"):
        store.get(digest)
    store.put(b"abc")
    assert store.get(digest) == b"abc"


@pytest.mark.parametrize("kind", ["link", "folder", "pipe"])
def test_a_blob_that_is_no_regular_file_is_refused(store, tmp_path, kind):
    """Links are not followed and pipes do not hang."""
    digest = store.put(b"abc")
    place = blob(store, digest)
    place.unlink()
    if kind == "link":
        (tmp_path / "abc").write_bytes(b"abc")
        place.symlink_to(tmp_path / "abc")
    elif kind == "folder":
        place.mkdir()
    else:
        os.mkfifo(place)

    with pytest.raises(BundleRefused, match=f"The blob {digest}"):
        store.get(digest)


def test_a_blob_over_the_limit_is_not_read(store):
    """The limit is compared with the size on the disk first."""
    digest = store.put(b"abc")

    assert store.get(digest, max_bytes=3) == b"abc"
    with pytest.raises(BundleRefused, match=r"may have at most 2 bytes here\. It has 3"):
        store.get(digest, max_bytes=2)


def _put_all(root: Path, blobs: list[bytes]) -> list[str]:
    return [BlobStore(root).put(data) for data in blobs]


def test_processes_put_the_same_blobs_at_once(store):
    """Four processes write the same 20 blobs; each is whole and no temporary file stays."""
    blobs = [bytes([i]) * 5_000 for i in range(20)]

    with ProcessPoolExecutor(4, mp_context=get_context("fork")) as pool:
        results = list(pool.map(_put_all, [store.root] * 4, [blobs] * 4))

    assert all(result == results[0] for result in results)
    assert [store.get(digest) for digest in results[0]] == blobs
    assert len(list((store.root / "blobs" / "sha256").iterdir())) == len(blobs)


def test_a_reader_never_sees_half_a_blob(store):
    """While a damaged blob is mended again and again, a read gives the whole of it or a refusal."""
    data = os.urandom(300_000)
    digest = store.put(data)
    done = threading.Event()

    def mend() -> None:
        for _ in range(20):
            blob(store, digest).with_suffix(".bad").write_bytes(b"damage")
            blob(store, digest).with_suffix(".bad").replace(blob(store, digest))
            store.put(data)
        done.set()

    writer = threading.Thread(target=mend)
    writer.start()
    while not done.is_set():
        try:
            assert store.get(digest) == data
        except BundleRefused:
            continue
    writer.join()
    assert store.get(digest) == data


@pytest.fixture(params=["stored", "folder"])
def reader_of(request):
    """Make each kind of reader of one bundle."""

    def make(shipped, folder):
        if request.param == "stored":
            return StoredBundle(shipped.store, shipped.manifest.digest)
        return FolderBundle(folder)

    return make


def test_readers_give_the_same_files(reader_of, shipped, folder, parts):
    """Every file of the manifest is read back as it was built."""
    reader = reader_of(shipped, folder)

    assert reader.digest == shipped.manifest.digest
    assert reader.manifest == shipped.manifest
    assert {file.path: reader.read(file.path) for file in reader.manifest.files} == parts["contents"]


@pytest.mark.parametrize("path", ["golden/none", "../store", "/etc/passwd", "bundle.json", ""])
def test_readers_read_only_what_is_listed(reader_of, shipped, folder, path):
    """A path that the manifest does not list is not opened, even if a file is there."""
    with pytest.raises(NotFound, match="has no file"):
        reader_of(shipped, folder).read(path)


@pytest.mark.parametrize("damage", [b"abd", b"ab", b"abcd", b""])
def test_a_changed_file_is_refused_by_both_readers(own, damage):
    """Another digest and another size are refused, naming the file."""
    path = "variants/reference/model.onnx"
    stored, in_folder = StoredBundle(own.store, own.manifest.digest), FolderBundle(own.export("out"))
    blob(own.store, own.manifest.file(path).sha256).write_bytes(damage)
    (own.root / "out" / path).write_bytes(damage)

    for reader in (stored, in_folder):
        with pytest.raises(BundleRefused, match=path):
            reader.read(path)


def test_a_missing_blob_of_a_bundle_is_refused(own):
    """A bundle that is not whole is refused, naming the file, not only the digest."""
    path = "golden/000.png"
    blob(own.store, own.manifest.file(path).sha256).unlink()

    with pytest.raises(BundleRefused, match=f"{path} of the bundle sha256:.* is missing"):
        StoredBundle(own.store, own.manifest.digest).read(path)


def test_a_folder_exchanged_after_verification_is_refused(own, other):
    """Whoever verified one bundle does not load another from the same place."""
    folder = other.export("exchanged")

    with pytest.raises(BundleRefused, match="Expected sha256:"):
        FolderBundle(folder, digest=own.manifest.digest)


def test_bytes_that_are_read_are_the_bytes_that_were_verified(folder, shipped):
    """While the file is exchanged a thousand times, a read gives the right bytes or a refusal (BI-043)."""
    path = "variants/reference/model.onnx"
    reader = FolderBundle(folder)
    stop = threading.Event()

    def exchange() -> None:
        good, bad = folder / "good", folder / "bad"
        while not stop.is_set():
            for place, data in ((bad, b"xyz"), (good, b"abc")):
                place.write_bytes(data)
                place.replace(folder / path)

    thread = threading.Thread(target=exchange)
    thread.start()
    outcomes = set()
    try:
        for _ in range(1_000):
            try:
                outcomes.add(reader.read(path))
            except BundleRefused:
                outcomes.add(b"refused")
    finally:
        stop.set()
        thread.join()

    assert outcomes <= {b"abc", b"refused"}
    assert b"abc" in outcomes
