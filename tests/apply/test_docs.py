"""The examples of the pages run, and print what the pages say."""

from __future__ import annotations

import doctest
from pathlib import Path

from tests.apply.conftest import TASK, gray, release, start_server

from lightship.data.home import Home

DOCS = Path(__file__).parents[2] / "docs"


def run_page(name: str, **replacements: str) -> doctest.TestResults:
    """Run the examples of a page, with some texts replaced."""
    text = (DOCS / name).read_text(encoding="utf-8")
    for old, new in replacements.items():
        text = text.replace(old, new)
    runner = doctest.DocTestRunner(verbose=False)
    # The fence after an example would be read as expected output.
    runner.run(doctest.DocTestParser().get_doctest(text.replace("```", ""), {}, name, name, 0))
    return runner.summarize(verbose=False)


def test_the_page_of_the_registry_is_right(tmp_path, monkeypatch):
    """All its examples, in a home of their own."""
    monkeypatch.setenv("LIGHTSHIP_HOME", str(tmp_path / "home"))

    found = run_page("registry.md")

    assert found.attempted > 10
    assert found.failed == 0


def test_the_page_of_the_client_is_right(tmp_path, monkeypatch):
    """All its examples, against a real server of a released model."""
    home = Home(tmp_path / "home")
    release(home, name="digits", config={**TASK.config(), "labels": ["3", "5", "7"]})
    (tmp_path / "photo.png").write_bytes(TASK.golden(gray(255))[1])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIGHTSHIP_HOME", str(home.root))
    with start_server(home, "digits", log=tmp_path / "log") as (url, key_file):
        monkeypatch.setenv("LIGHTSHIP_KEY", key_file.read_text().strip())

        found = run_page("client.md", **{"http://127.0.0.1:8000": url})

    assert found.attempted > 10
    assert found.failed == 0
