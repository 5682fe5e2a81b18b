"""``lightship ship`` killed in each stage, and interrupted: nothing half-written is left, and the next run goes on.

Real processes, real SIGKILL. A run starts from a home in which the stages before are finished.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lightship.bundle.signing import TrustStore
from lightship.bundle.store import BlobStore
from lightship.bundle.verify import verify_stored
from lightship.data.files import digest_file
from lightship.data.home import Home
from lightship.pipeline.ship import ship
from lightship.registry.database import open_database

DEADLINE_S = 90


class Run:
    """A command in its own process group, with what it prints in files."""

    def __init__(self, recipe: Path, home: Path) -> None:
        self.folder = home.parent / f"run-{time.monotonic_ns()}"
        self.folder.mkdir()
        with (self.folder / "out").open("wb") as out, (self.folder / "err").open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "lightship.cli.main", "ship", str(recipe)],
                env={**os.environ, "LIGHTSHIP_HOME": str(home), "OMP_NUM_THREADS": "1"},
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    def wait_for(self, happened: Callable[[], bool]) -> bool:
        """Wait until something happened; False if the command ended before."""
        until = time.monotonic() + DEADLINE_S
        while not happened():
            if self.process.poll() is not None:
                return happened()
            if time.monotonic() > until:
                pytest.fail(f"Nothing happened in {DEADLINE_S} s: {self.err}")
            time.sleep(0.001)  # how finely we look
        return True

    def send(self, number: int) -> None:
        """Send a signal to the whole group."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, number)

    def end(self) -> int:
        """Wait for the end; return the exit code."""
        return self.process.wait(timeout=DEADLINE_S)

    @property
    def out(self) -> str:
        """What it printed."""
        return (self.folder / "out").read_text(encoding="utf-8")

    @property
    def err(self) -> str:
        """What it said on stderr."""
        return (self.folder / "err").read_text(encoding="utf-8")


@pytest.fixture
def start(request):
    """Return a function that starts the command; what still runs is killed in the end."""

    def begin(recipe: Path, home: Path) -> Run:
        run = Run(recipe, home)
        request.addfinalizer(lambda: (run.send(signal.SIGKILL), run.end()))
        return run

    return begin


def require_nothing_half_written(home: Path) -> None:
    """Check by hand every place that a crash could have left half-written; what is temporary says so by its name."""
    for folder in (path for path in (home / "runs").glob("*/*-*") if path.is_dir()):
        if folder.name.startswith(".tmp-") or folder.name.endswith(".scratch") or folder.name == "held-out":
            continue
        mark = json.loads((folder / "stage.json").read_bytes())
        assert folder.name == f"{mark['stage']}-{mark['key'][:16]}"
        assert {name: digest_file(folder / name)[1] for name in mark["files"]} == mark["files"]
    for blob in (home / "store").rglob("*"):
        if blob.is_file() and not blob.name.startswith(".tmp-"):
            assert digest_file(blob)[1] == blob.name
    if (home / "registry.db").exists():
        store, trust = BlobStore(home / "store"), TrustStore(home / "trust")
        with open_database(Home(home)) as registry:
            assert registry.verify_history().ok
            for model in registry.models():
                for version in registry.versions(model.name):
                    verify_stored(store, version.release, trust=trust, complete=True)


def forget(site, *stages: str) -> None:
    """Remove finished stages."""
    for stage in stages:
        for path in site.run.glob(f"{stage}-*"):
            shutil.rmtree(path)


def appears(site, stage: str) -> Callable[[], bool]:
    """Tell whether the stage is being worked on."""
    return lambda: any(site.run.glob(f".tmp-{stage}-*"))


def finished(site, stage: str) -> Callable[[], bool]:
    """Tell whether the stage has its name."""
    return lambda: any(not path.name.endswith(".scratch") for path in site.run.glob(f"{stage}-*"))


@pytest.mark.parametrize(
    ("stage", "redo", "longest_s"),
    [
        ("prepare", ("prepare", "optimize", "validate"), 0.3),
        ("optimize", ("optimize", "validate"), 0.6),
        ("validate", ("validate",), 3.0),
        ("release", (), 0.6),
    ],
)
def test_kill_in_a_stage_leaves_nothing_half_written(unreleased, shipped, start, stage, redo, longest_s):
    """Killed at once and at a drawn moment later: whole or absent, and the next run gives the very same bundle."""
    forget(unreleased, *redo)
    moments = random.Random(stage)
    in_stage = 0
    for delay in (0.0, moments.uniform(0, longest_s)):
        run = start(unreleased.recipe, unreleased.home)
        if run.wait_for(appears(unreleased, stage)):
            in_stage += 1
        begun = time.monotonic()
        run.wait_for(lambda begun=begun, delay=delay: time.monotonic() - begun >= delay)
        run.send(signal.SIGKILL)
        run.end()
        require_nothing_half_written(unreleased.home)

    result = ship(unreleased.recipe, home=unreleased.home)

    assert in_stage >= 1
    assert result.released.bundle == shipped.answer["bundle"]
    assert result.released.version == 1
    require_nothing_half_written(unreleased.home)
    assert not list(unreleased.run.glob(".tmp-*"))


def test_kill_while_registering_leaves_a_version_or_none(unreleased, shipped, start):
    """Killed around the moment that the version gets its number, again and again."""
    moments = random.Random("registering")
    for _ in range(3):
        run = start(unreleased.recipe, unreleased.home)
        forget(unreleased, "release")
        run.wait_for(finished(unreleased, "release"))
        begun, delay = time.monotonic(), moments.uniform(0, 0.15)
        run.wait_for(lambda begun=begun, delay=delay: time.monotonic() - begun >= delay)
        run.send(signal.SIGKILL)
        run.end()
        require_nothing_half_written(unreleased.home)

    result = ship(unreleased.recipe, home=unreleased.home)

    assert result.released.bundle == shipped.answer["bundle"]
    assert result.released.version == 1
    require_nothing_half_written(unreleased.home)


@pytest.mark.slow
def test_kill_in_training_resumes_to_the_same_bundle(unreleased, shipped, start):
    """Killed after its first checkpoint, training goes on from there, and the bundle is the one of a run in peace."""
    forget(unreleased, "train", "optimize", "validate")

    run = start(unreleased.recipe, unreleased.home)
    assert run.wait_for(lambda: any(unreleased.run.glob("train-*.scratch/*-epoch-*")))
    run.send(signal.SIGKILL)
    run.end()
    require_nothing_half_written(unreleased.home)
    assert not finished(unreleased, "train")()
    result = ship(unreleased.recipe, home=unreleased.home)

    assert [stage.stage for stage in result.stages if stage.skipped] == ["prepare"]
    assert result.released.bundle == shipped.answer["bundle"]
    assert not list(unreleased.run.glob("*.scratch"))
    require_nothing_half_written(unreleased.home)


@pytest.mark.parametrize("stage", ["prepare", "train", "validate"])
def test_interrupt_says_one_clear_line(unreleased, start, stage):
    """Ctrl-C ends with 130 and says that finished work is kept; no traceback."""
    forget(unreleased, stage)
    run = start(unreleased.recipe, unreleased.home)
    assert run.wait_for(appears(unreleased, stage))

    run.send(signal.SIGINT)

    assert run.end() == 130
    assert "Traceback" not in run.err
    assert run.err.rstrip().splitlines()[-1].startswith("Interrupted. Finished stages are kept")
    assert not list(unreleased.run.glob(".tmp-*"))
    require_nothing_half_written(unreleased.home)


def test_second_process_on_one_recipe_gets_a_conflict(unreleased, start, lightship):
    """One works; the other is told who does, with exit code 4; the first is not disturbed."""
    forget(unreleased, "optimize", "validate")
    first = start(unreleased.recipe, unreleased.home)
    assert first.wait_for(appears(unreleased, "optimize"))
    first.send(signal.SIGSTOP)

    second = lightship("ship", unreleased.recipe, home=unreleased.home)
    first.send(signal.SIGCONT)

    assert second.code == 4
    assert f"pid {first.process.pid}" in second.err
    assert "'shapes'" in second.err
    assert first.end() == 0, first.err
    require_nothing_half_written(unreleased.home)


def test_two_names_are_released_at_once(unreleased, start):
    """Two processes in one home under different names do not disturb each other."""
    runs = []
    for name in ("left", "right"):
        shutil.copytree(unreleased.run, unreleased.home / "runs" / name)
        recipe = unreleased.write(f"{name}.toml", ('name = "shapes"', f'name = "{name}"'))
        runs.append(start(recipe, unreleased.home))

    codes = [run.end() for run in runs]

    assert codes == [0, 0], [run.err for run in runs]
    with open_database(Home(unreleased.home), read_only=True) as registry:
        assert [(model.name, model.versions) for model in registry.models()] == [("left", 1), ("right", 1)]
        assert registry.alias("left").bundle != registry.alias("right").bundle  # the recipe is part of the lineage
        assert registry.verify_history().ok
    require_nothing_half_written(unreleased.home)


def test_homes_are_independent(site, unreleased, tmp_path, start, lightship):
    """Work that is held up in one home holds up no other."""
    other = tmp_path / "other"
    shutil.copytree(site.home, other)
    forget(unreleased, "optimize", "validate")
    first = start(unreleased.recipe, unreleased.home)
    assert first.wait_for(appears(unreleased, "optimize"))
    first.send(signal.SIGSTOP)

    second = lightship("ship", unreleased.recipe, home=other)

    assert second.code == 0, second.err
