"""A hostile folder cannot lead a reader out of it or make it hang."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lightship.bundle import folder as folder_module
from lightship.bundle.folder import Folder
from lightship.errors import BundleRefused, NotFound


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with one file in it, and a secret beside it."""
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "root" / "a").mkdir(parents=True)
    (tmp_path / "root" / "a" / "b").write_bytes(b"abc")
    return tmp_path / "root"


def test_read_and_digest(root):
    """A plain file is read, whole and in pieces."""
    with Folder(root) as folder:
        assert folder.read("a/b", max_bytes=3) == b"abc"
        assert folder.digest("a/b", max_bytes=3)[0] == 3
        assert folder.files() == ["a/b"]


def test_no_folder_is_not_found(root):
    """A root that is not there, or is a file, is not found."""
    for path in (root / "none", root / "a" / "b"):
        with pytest.raises(NotFound, match="cannot be opened as a folder"):
            Folder(path)


@pytest.mark.parametrize("path", ["../secret", "a/../../secret", "/etc/passwd", "a//b", "./a/b", "a/.", "", "a/b\0"])
def test_paths_that_leave_are_refused(root, path):
    """Even a caller that forgot to check a path gets nothing from outside."""
    with Folder(root) as folder, pytest.raises(BundleRefused, match=r"is not a path inside|cannot be opened"):
        folder.read(path, max_bytes=10)


@pytest.mark.parametrize("kind", ["file link", "folder link", "hard link", "pipe", "folder"])
def test_what_is_no_plain_file_is_refused(root, kind):
    """Links in any part of a path, second names, pipes and folders are not read."""
    place, asked = root / "x", "x"
    if kind == "file link":
        place.symlink_to(root / "a" / "b")
    elif kind == "folder link":
        place.symlink_to(root / "a")
        asked = "x/b"
    elif kind == "hard link":
        place.hardlink_to(root.parent / "secret")
    elif kind == "pipe":
        os.mkfifo(place)
    else:
        place.mkdir()
        (place / "y").write_text("y")

    with Folder(root) as folder:
        with pytest.raises(BundleRefused, match=f"^{asked} in "):
            folder.read(asked, max_bytes=100)
        if kind != "folder":
            with pytest.raises(BundleRefused, match=r"^x in .* (link|regular)"):
                folder.files()


def test_a_file_over_the_limit_is_refused_before_it_is_read(root):
    """A terabyte with holes costs nothing."""
    with (root / "a" / "big").open("wb") as file:
        file.truncate(1 << 40)

    with Folder(root) as folder, pytest.raises(BundleRefused, match="may have at most 10 bytes"):
        folder.read("a/big", max_bytes=10)


def test_a_missing_file_is_named(root):
    """Absence is said as such."""
    with Folder(root) as folder, pytest.raises(BundleRefused, match="a/none is missing in"):
        folder.read("a/none", max_bytes=10)


def test_empty_folders_are_seen_and_deep_and_crowded_ones_refused(root, monkeypatch):
    """A walk overlooks nothing and ends at its limits."""
    (root / "empty").mkdir()
    with Folder(root) as folder:
        assert folder.files() == ["a/b", "empty/"]
    (root / "empty").joinpath(*["d"] * 17).mkdir(parents=True)
    with Folder(root) as folder, pytest.raises(BundleRefused, match="deeper than 16 folders"):
        folder.files()
    monkeypatch.setattr(folder_module, "MAX_ENTRIES", 3)
    with Folder(root) as folder, pytest.raises(BundleRefused, match="more than 3 files and folders"):
        folder.files()


def test_no_descriptor_stays_open(root):
    """A server may read for years."""
    before = sum(1 for _ in Path("/proc/self/fd").iterdir())

    for _ in range(20):
        with Folder(root) as folder:
            folder.files()
            folder.read("a/b", max_bytes=10)
            with pytest.raises(BundleRefused, match="missing"):
                folder.read("a/c", max_bytes=10)

    assert sum(1 for _ in Path("/proc/self/fd").iterdir()) == before


@pytest.mark.parametrize("kind", ["file link", "hard link", "pipe", "missing", "folder link", "deep"])
@pytest.mark.parametrize("name", ["a\x1b[2Jb", "a\u202eb"], ids=["escape", "direction"])
def test_a_name_that_a_terminal_would_obey_is_escaped(root, kind, name, monkeypatch):
    """Whoever made the folder must not write on the screen of who verifies it."""
    if kind == "file link":
        (root / name).symlink_to(root / "a" / "b")
    elif kind == "hard link":
        (root / name).hardlink_to(root.parent / "secret")
    elif kind == "pipe":
        os.mkfifo(root / name)
    elif kind == "deep":
        monkeypatch.setattr(folder_module, "MAX_PARTS", 1)
        (root / name).mkdir()
    elif kind != "missing":
        (root / name).symlink_to(root / "a")

    by_path = kind in ("missing", "folder link")
    with Folder(root) as folder, pytest.raises(BundleRefused) as caught:
        folder.read(f"{name}/b", max_bytes=10) if by_path else folder.files()
    assert str(caught.value).isprintable()
    assert ascii(name)[1:-1] in str(caught.value)
