"""The same contents are the same bundle; an export is whole or not there."""

from __future__ import annotations

import errno
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from lightship.bundle import build
from lightship.bundle.build import build_bundle, export_folder
from lightship.bundle.digest import Digest
from lightship.bundle.manifest import MAX_MANIFEST_BYTES, Manifest
from lightship.bundle.store import BlobStore
from lightship.bundle.verify import verify_folder
from lightship.errors import BundleRefused, Conflict, InvalidInput, NotFound

CRASH = Path(__file__).with_name("crash.py")


def files_in(root: Path) -> dict[str, bytes]:
    """Return the bytes of every file below ``root``."""
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_two_builds_of_the_same_contents_have_one_name(tmp_path, parts):
    """Neither place nor time nor the order of the arguments shows in the name."""
    first = build_bundle(BlobStore(tmp_path / "a"), **parts)
    parts["variants"].reverse()
    parts["contents"] = dict(reversed(parts["contents"].items()))
    second = build_bundle(BlobStore(tmp_path / "b"), **parts)

    assert first.digest == second.digest
    assert files_in(tmp_path / "a") == files_in(tmp_path / "b")


def test_one_other_byte_is_another_bundle(tmp_path, parts):
    """Contents and configuration both show in the name."""
    store = BlobStore(tmp_path)
    names = {build_bundle(store, **parts).digest}
    parts["contents"] = {**parts["contents"], "golden/000.png": b"\x89PNH"}
    names.add(build_bundle(store, **parts).digest)
    parts["lineage"] = {**parts["lineage"], "seed": 8}
    names.add(build_bundle(store, **parts).digest)

    assert len(names) == 3


def test_the_manifest_is_in_the_store_under_the_name(tmp_path, parts):
    """Whoever knows the name finds everything."""
    store = BlobStore(tmp_path)

    manifest = build_bundle(store, **parts)

    assert Manifest.from_bytes(store.get(manifest.digest, max_bytes=MAX_MANIFEST_BYTES)) == manifest
    assert {file.path: store.get(f"sha256:{file.sha256}") for file in manifest.files} == parts["contents"]


@pytest.mark.parametrize(
    ("change", "error", "reason"),
    [
        (
            lambda parts: parts["contents"].pop("golden/000.png"),
            BundleRefused,
            "'golden/000.png' is used and not listed",
        ),
        (
            lambda parts: parts["contents"].update({"assets/x": b""}),
            BundleRefused,
            "'assets/x' is listed .* nothing uses",
        ),
        (lambda parts: parts["contents"].update({"../x": b""}), BundleRefused, "must be a relative path"),
        (lambda parts: parts.update(default="none"), BundleRefused, "no variant is named 'none'"),
        (lambda parts: parts.update(lineage={"lr": 0.1}), InvalidInput, "Canonical JSON holds no floats"),
    ],
)
def test_a_wrong_plan_writes_nothing(tmp_path, parts, change, error, reason):
    """A refusal comes before the first byte."""
    change(parts)

    with pytest.raises(error, match=reason):
        build_bundle(BlobStore(tmp_path / "store"), **parts)
    assert not (tmp_path / "store").exists()


def test_export_writes_exactly_the_format(shipped, folder, parts):
    """Contents, manifest, evidence by check and digest, card and release, and nothing else."""
    evidence = {
        f"evidence/{check}-{digest.removeprefix('sha256:')[:12]}.json": shipped.store.get(digest)
        for check, digest in shipped.release.evidence
    }

    assert files_in(folder) == {
        **parts["contents"],
        **evidence,
        "bundle.json": shipped.manifest.to_bytes(),
        "card.md": b"# digits\n",
        "release.json": shipped.store.get(shipped.release_digest),
    }


@pytest.mark.parametrize("kind", ["file", "empty folder", "folder", "dangling link"])
def test_an_existing_destination_is_a_conflict_and_untouched(shipped, tmp_path, kind):
    """Nothing is overwritten, merged or followed."""
    dest = tmp_path / "dest"
    if kind == "file":
        dest.write_text("mine")
    elif kind == "dangling link":
        dest.symlink_to(tmp_path / "nowhere")
    else:
        dest.mkdir()
        if kind == "folder":
            (dest / "mine").write_text("mine")
    before = (dest.lstat(), files_in(tmp_path))

    with pytest.raises(Conflict, match="is there already"):
        export_folder(shipped.store, shipped.release_digest, dest)
    assert (dest.lstat(), files_in(tmp_path)) == before
    assert list(tmp_path.iterdir()) == [dest]


def test_a_destination_that_appears_meanwhile_is_a_conflict(shipped, tmp_path, monkeypatch):
    """The last step is the one that decides."""
    (tmp_path / "dest").mkdir()
    (tmp_path / "dest" / "mine").write_text("mine")
    monkeypatch.setattr(build.os.path, "lexists", lambda _: False)

    with pytest.raises(Conflict, match="appeared meanwhile"):
        export_folder(shipped.store, shipped.release_digest, tmp_path / "dest")
    assert files_in(tmp_path) == {"dest/mine": b"mine"}


def test_export_of_what_is_not_there(shipped, tmp_path):
    """An unknown release and a folder that does not exist are not found; a bundle is no release."""
    with pytest.raises(NotFound, match="There is no blob"):
        export_folder(shipped.store, Digest.of(b"none"), tmp_path / "dest")
    with pytest.raises(NotFound, match="is no folder"):
        export_folder(shipped.store, shipped.release_digest, tmp_path / "none" / "dest")
    with pytest.raises(BundleRefused, match=r"release\.json has the unknown key"):
        export_folder(shipped.store, shipped.manifest.digest, tmp_path / "dest")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", ["golden/000.png", "variants/int8/model.onnx", "evidence", "card", "bundle.json"])
def test_a_store_that_is_not_whole_exports_nothing(own, tmp_path, path):
    """A missing blob leaves no folder and no temporary one behind."""
    digests = {"evidence": own.release.evidence[1][1], "card": own.release.card, "bundle.json": own.release.bundle}
    digest = digests.get(path) or own.manifest.file(path).sha256
    (own.root / "store" / "blobs" / "sha256" / digest.removeprefix("sha256:")).unlink()
    target = tmp_path / "out"
    target.mkdir()

    with pytest.raises(BundleRefused, match=r"missing|is not whole in this store"):
        export_folder(own.store, own.release_digest, target / "dest")
    assert not list(target.iterdir())


def test_a_full_disk_leaves_nothing(shipped, tmp_path, monkeypatch):
    """An error of the operating system in the middle takes the temporary folder away and is passed on."""
    calls = []

    def fail_at_the_fifth(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 5:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(build.os, "fsync", fail_at_the_fifth)

    with pytest.raises(OSError, match="No space left"):
        export_folder(shipped.store, shipped.release_digest, tmp_path / "dest")
    assert not list(tmp_path.iterdir())


def test_a_release_without_evidence_and_card_has_no_folder_for_them(own):
    """An empty folder would be refused, so there is none."""
    folder = own.export("bare", own.release_again(evidence=(), policy={}, card=None))

    assert not (folder / "evidence").exists()
    assert verify_folder(folder, trust=own.trust).evidence == ()


def test_a_variant_may_have_its_files_in_any_order(tmp_path, parts):
    """The builder sorts them, so the order is no part of the name."""
    store = BlobStore(tmp_path)
    parts["contents"]["variants/int8/a.bin"] = b""
    reference, int8 = parts["variants"]
    names = set()
    for files in (
        ("variants/int8/a.bin", "variants/int8/scales.bin"),
        ("variants/int8/scales.bin", "variants/int8/a.bin"),
    ):
        parts["variants"] = [reference, replace(int8, files=files)]
        names.add(build_bundle(store, **parts).digest)

    assert len(names) == 1


@pytest.mark.parametrize(("step", "least"), [(4, 50), pytest.param(1, 200, marks=pytest.mark.slow)])
def test_a_killed_publisher_leaves_the_old_state_or_the_new(tmp_path, step, least):
    """Build, sign and export are killed (SIGKILL) at their file system calls; nothing half-written is ever found."""
    done = subprocess.run(
        [sys.executable, CRASH, tmp_path, str(step)], capture_output=True, text=True, timeout=110, check=False
    )

    assert done.returncode == 0, done.stderr
    killed, exported = map(int, done.stdout.split())
    assert killed >= least
    assert exported < killed
