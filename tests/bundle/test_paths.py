"""Only paths that mean one file everywhere can be written."""

from __future__ import annotations

import os.path
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightship.bundle.paths import check_tree, take_path
from lightship.errors import BundleRefused

FOLDERS = ("variants", "assets", "golden")


@pytest.mark.parametrize(
    "path",
    [
        "variants/reference/model.onnx",
        "golden/000.png",
        "assets/1_Pooling/config.json",
        "assets/_private/a+b-c.bin",
        "variants/" + "a" * 128,
    ],
)
def test_plain_paths_pass(path):
    """What models need as file names can be written."""
    assert take_path(path, at="x", under=FOLDERS) == path


@pytest.mark.parametrize(
    "path",
    [
        "",
        "golden",
        "golden/",
        "/golden/a",
        "golden//a",
        "golden/./a",
        "./golden/a",
        "golden/../a",
        "golden/..",
        "../golden/a",
        "golden/...",
        "golden/.hidden",
        "golden/-rf",
        "golden/a\\b",
        "golden\\a",
        "golden/C:a",
        "golden/a\x00",
        "golden/a\n",
        "golden/a\x7f",
        "golden/a b",
        "golden/$(id)",
        "golden/a;b",
        "golden/é",
        "golden/\u202ea",
        "golden/a\u0301",
        "golden/" + "a" * 129,
        "golden/" + "a/" * 16 + "a",
        "golden/" + ("a" * 100 + "/") * 3,
        "evidence/a.json",
        "bundle.json",
        "Golden/a",
        "golden.x/a",
        None,
        7,
    ],
)
def test_other_paths_are_refused(path):
    """Escapes, tricks and what a shell might read are no paths."""
    with pytest.raises(BundleRefused, match=r"^x "):
        take_path(path, at="x", under=FOLDERS)


@settings(deadline=None)  # the machine may be busy with other things
@given(st.text(st.sampled_from("ab./\\-_+ \x00é"), max_size=12).map(lambda text: "golden/" + text))
def test_a_path_that_passes_is_canonical_and_stays_inside(path):
    """Whatever passes is already normalized, relative and below its folder."""
    try:
        taken = take_path(path, at="x", under=FOLDERS)
    except BundleRefused:
        return
    assert taken == os.path.normpath(path) == path
    assert os.path.commonpath(["/root/golden", os.path.realpath("/root/" + taken)]) == "/root/golden"
    assert re.fullmatch(r"[A-Za-z0-9._+/-]+", taken)


@pytest.mark.parametrize(
    "paths",
    [
        ["golden/a", "golden/A"],
        ["golden/a", "golden/a"],
        ["golden/a", "golden/a/b"],
        ["golden/a/b", "golden/a"],
        ["golden/Dir/b", "golden/dir/c"],
        ["golden/DIR", "golden/dir/c"],
    ],
)
def test_twins_cannot_stand_in_one_tree(paths):
    """What one file system would merge or could not write is refused."""
    with pytest.raises(BundleRefused, match="cannot both stand in one folder tree"):
        check_tree(paths, at="x")


def test_files_may_share_folders():
    """Folders of one spelling hold many files."""
    check_tree(["golden/a/b", "golden/a/c", "golden/ab", "variants/a"], at="x")
