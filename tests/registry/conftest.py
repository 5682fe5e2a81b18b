"""A home in a temporary folder, its registry, digests and a clock that the test moves."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from lightship.data.files import sha256_hex
from lightship.data.home import Home
from lightship.registry.database import Registry, open_database
from lightship.registry.records import EvidenceRow


class Clock:
    """A clock that stands still until the test moves it."""

    def __init__(self) -> None:
        self.time = datetime(2026, 3, 1, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        """Return the time."""
        return self.time

    def move(self, **delta: float) -> None:
        """Move the clock by a timedelta."""
        self.time += timedelta(**delta)


@pytest.fixture(scope="session")
def empty_registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an empty registry's file, made once: Alembic takes half a second."""
    home = Home(tmp_path_factory.mktemp("template"))
    open_database(home).close()
    return home.registry


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """Return a home that does not exist yet, with a name that URIs and Alembic must quote."""
    return Home(tmp_path / "a home, 100% ünusual?#")


@pytest.fixture
def clock() -> Clock:
    """Return a clock that stands at noon of 2026-03-01, UTC."""
    return Clock()


@pytest.fixture
def registry(home: Home, clock: Clock, empty_registry: Path) -> Iterator[Registry]:
    """Return the open, empty registry of ``home``."""
    home.root.mkdir()
    shutil.copy(empty_registry, home.registry)
    with open_database(home, clock=clock) as opened:
        yield opened


@pytest.fixture
def digest() -> Callable[[object], str]:
    """Return a function that gives a digest of whatever text."""
    return lambda text: f"sha256:{sha256_hex(str(text).encode())}"


@pytest.fixture
def add(registry: Registry, digest: Callable[[object], str]) -> Callable[..., int]:
    """Return a function that registers the next version of a name and gives its number."""

    def add_one(name: str = "digits", **options: object) -> int:
        seed = f"{name} {registry.history().entries[-1:]}"
        options.setdefault("evidence", [EvidenceRow("accuracy", "passed", "good", digest(f"evidence {seed}"))])
        return registry.add_version(
            name, bundle=digest(seed), release=lambda v: digest(f"{name} {v}"), who="ada", **options
        ).version

    return add_one
