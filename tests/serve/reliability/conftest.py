"""The scripts of ``benchmarks/reliability`` in their short forms: the same code that makes the figures."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[3] / "benchmarks" / "reliability"
for folder in (SCRIPTS, SCRIPTS.parent / "serve"):
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


@pytest.fixture
def figures(request: pytest.FixtureRequest):
    """Return an empty table of figures."""
    from rig import Figures

    return Figures(request.node.name[:14])


@pytest.fixture
def home(tmp_path):
    """Return an empty home."""
    from lightship.data.home import Home

    return Home(tmp_path / "home").ensure()


@pytest.fixture
def scratch(tmp_path):
    """Return a folder beside the home."""
    made = tmp_path / "scratch"
    made.mkdir()
    return made


def missed(figures) -> list[str]:
    """Return the figures beyond their goals, but for quantiles of times: those are for a machine without neighbors."""
    return [text for text in figures.missed if "p99" not in text]
