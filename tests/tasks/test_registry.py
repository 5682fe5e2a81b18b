"""Tasks by name."""

from __future__ import annotations

import sys

import pytest

from lightship.errors import Conflict, InvalidInput, NotFound
from lightship.tasks.image_classification import ImageClassification
from lightship.tasks.registry import load_task

CONFIG = {"labels": ["a", "b"], "channels": 1, "height": 28, "width": 28, "mean": ["0.1307"], "std": ["0.3081"]}


def install(folder, monkeypatch, *, name: str, target: str) -> None:
    """Install a distribution that has one task: a real one, on the real path."""
    info = folder / "rival-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: rival\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[lightship.tasks]\n{name} = {target}\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(folder)])


def test_our_own_task_is_found_by_its_entry_point():
    """The door that plugins use is the one that we use."""
    task = load_task("image-classification", 1, CONFIG)

    assert isinstance(task, ImageClassification)
    assert task.config() == CONFIG


def test_an_unknown_task_lists_the_known():
    """A slip shows what there is."""
    with pytest.raises(NotFound, match=r"'image-clasification'.*Installed: .*image-classification"):
        load_task("image-clasification", 1, CONFIG)


def test_another_codec_version_says_what_is_read():
    """A bundle from a newer Lightship is not decoded with old rules."""
    with pytest.raises(InvalidInput, match=r"Codec version 2 .* this installation reads version 1"):
        load_task("image-classification", 2, CONFIG)


def test_two_plugins_with_one_name_are_both_named(tmp_path, monkeypatch):
    """Neither shadows the other."""
    install(tmp_path, monkeypatch, name="image-classification", target="rival.task:Task")

    with pytest.raises(Conflict, match=r"(?s)(?=.*rival)(?=.*lightship)"):
        load_task("image-classification", 1, CONFIG)


def test_a_plugin_that_cannot_be_imported_is_named(tmp_path, monkeypatch):
    """Its own error is told."""
    install(tmp_path, monkeypatch, name="speech", target="no_such_module_here:Task")

    with pytest.raises(NotFound, match="'speech' is registered but cannot be imported: No module named"):
        load_task("speech", 1, {})
