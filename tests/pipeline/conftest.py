"""A folder of small images by class, shipped once through the command line; tests work on copies of what came of it."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

CLASSES = {0: "nought", 1: "a one", 2: "二"}  # a space and a letter beyond ASCII, as people name their folders

TEN_LINES = """\
name = "shapes"
[data]
source = "folder:images"
[train]
epochs = 3
threads = 1
[optimize]
variant = "int8-static"
[gate]
margin = 0.1
"""


class Ran(NamedTuple):
    """What a command left: exit code, stdout, stderr."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Site:
    """A recipe and a home.

    Attributes:
        folder: holds the recipes and ``images/``.
        home: the root of a ``LIGHTSHIP_HOME``.
    """

    folder: Path
    home: Path

    @property
    def recipe(self) -> Path:
        """The recipe of ten lines."""
        return self.folder / "recipe.toml"

    @property
    def run(self) -> Path:
        """The folder of the recipe's stages."""
        return self.home / "runs" / "shapes"

    def stage(self, name: str) -> Path:
        """Return the one finished folder of a stage."""
        (found,) = (path for path in self.run.glob(f"{name}-*") if not path.name.endswith(".scratch"))
        return found

    def write(self, name: str, *changes: tuple[str, str]) -> Path:
        """Write the recipe with some of its text replaced; return its path."""
        text = TEN_LINES
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        path = self.folder / name
        path.write_text(text, encoding="utf-8")
        return path


@dataclass(frozen=True)
class Shipped(Site):
    """The site that was shipped, and what the command printed."""

    ran: Ran

    @property
    def answer(self) -> dict[str, object]:
        """What ``ship --json`` printed."""
        answer: dict[str, object] = json.loads(self.ran.out)
        return answer


def environment(home: Path) -> dict[str, str]:
    """Return the environment of a command that works in ``home``."""
    return {**os.environ, "LIGHTSHIP_HOME": str(home), "OMP_NUM_THREADS": "1"}


def write_images(folder: Path, *, seed: int = 5) -> None:
    """Write the scanned digits 0 to 2 of scikit-learn as PNG files, one folder a class: 600 rows, no two equal."""
    random = np.random.default_rng(seed)
    digits = load_digits()
    for digit, name in CLASSES.items():
        (folder / name).mkdir(parents=True)
        found = digits.images[digits.target == digit]
        for number in range(200):
            noise = random.normal(scale=6, size=(8, 8))
            pixels = np.clip(found[number % len(found)] * (255 / 16) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number:03d}.png")


@pytest.fixture(scope="session")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Shipped:
    """Return the site whose recipe was shipped by ``lightship ship``; shared by all workers, read-only."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shipped"
    with _alone(folder.with_suffix(".lock")):
        if not (folder / "ran.json").exists():
            write_images(folder / "images")
            (folder / "recipe.toml").write_text(TEN_LINES, encoding="utf-8")
            command = [sys.executable, "-m", "lightship.cli.main", "ship", "--json", str(folder / "recipe.toml")]
            done = subprocess.run(
                command, env=environment(folder / "home"), capture_output=True, text=True, timeout=110, check=False
            )
            (folder / "ran.json").write_text(json.dumps([done.returncode, done.stdout, done.stderr]))
    return Shipped(folder, folder / "home", Ran(*json.loads((folder / "ran.json").read_text())))


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.fixture
def site(shipped: Shipped, tmp_path: Path) -> Site:
    """Return a copy of the shipped home with the same images; the images are shared, so do not change them."""
    copy = Site(tmp_path / "site", tmp_path / "site" / "home")
    copy.folder.mkdir()
    shutil.copytree(shipped.home, copy.home)
    (copy.folder / "images").symlink_to(shipped.folder / "images")
    shutil.copy(shipped.recipe, copy.recipe)
    return copy


@pytest.fixture
def unreleased(site: Site) -> Site:
    """Return a copy in which all stages but release are finished, and nothing was ever registered or stored."""
    for path in (site.home / "store", site.home / "trust", site.stage("release")):
        shutil.rmtree(path)
    (site.home / "registry.db").unlink()
    for path in site.home.glob("registry.db*"):
        path.unlink()
    return site


@pytest.fixture
def lightship(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Return a function that runs the command line in this process: a fresh one would load torch again."""
    from lightship.cli.main import main

    def run(*arguments: object, home: Path) -> Ran:
        monkeypatch.setenv("LIGHTSHIP_HOME", str(home))
        monkeypatch.setattr(sys, "argv", ["lightship", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as exc:
            code = int(exc.code or 0)
        out, err = capfd.readouterr()
        return Ran(code, out, err)

    return run
