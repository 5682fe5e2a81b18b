"""Keys: made once, kept hashed, seen by a running server, and asked for."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest

from lightship.errors import Forbidden, InvalidInput, NotFound, Unauthenticated
from lightship.serve.access import ANY_KEY, OPEN, Access, KeyFile, Role

INFER = frozenset({Role.INFER})
READ = frozenset({Role.READ})


class Clock:
    """A clock in the test's hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


def bearer(key: str) -> str:
    """Return the header for a key."""
    return f"Bearer {key}"


def test_a_key_is_kept_only_as_a_digest(tmp_path):
    """The file and its neighbors do not contain it, and only the owner reads them."""
    file = KeyFile(tmp_path / "keys")

    record, key = file.create(Role.INFER, note="mine")

    assert key.startswith(f"lsk_{record.id}_")
    assert len(key) == 56
    assert key.rpartition("_")[2] not in file.path.read_text()
    assert file.path.stat().st_mode & 0o777 == 0o600
    assert file.path.parent.stat().st_mode & 0o777 == 0o700
    assert file.records() == (record,)


@pytest.mark.parametrize(
    ("role", "roles", "passes"),
    [
        (Role.INFER, INFER, True),
        (Role.INFER, READ, False),
        (Role.INFER, ANY_KEY, True),
        (Role.READ, INFER, False),
        (Role.READ, READ, True),
        (Role.READ, ANY_KEY, True),
        (Role.ADMIN, INFER, True),
        (Role.ADMIN, READ, True),
    ],
)
def test_a_key_opens_what_its_role_allows(tmp_path, role, roles, passes):
    """And admin everything."""
    record, key = KeyFile(tmp_path).create(role)
    access = Access(KeyFile(tmp_path), clock=Clock())

    if passes:
        assert access.check(bearer(key), roles) == record
    else:
        with pytest.raises(Forbidden, match=f"has the role {role}"):
            access.check(bearer(key), roles)


def test_no_key_is_no_access(tmp_path):
    """Missing, of another scheme, unknown, altered, cut short, too long: all the same."""
    _, key = KeyFile(tmp_path).create(Role.ADMIN)
    access = Access(KeyFile(tmp_path), clock=Clock())
    flipped = key[:-1] + ("A" if key[-1] != "A" else "B")

    for header in (
        None,
        "",
        key,
        f"Basic {key}",
        "Bearer",
        bearer(flipped),
        bearer(key[:-1]),
        bearer(key + "A"),
        bearer(f"{key}, {key}"),
        bearer("lsk_00000000_" + "A" * 43),
        bearer("é" * 56),
    ):
        with pytest.raises(Unauthenticated, match="Authorization: Bearer KEY"):
            access.check(header, ANY_KEY)


def test_an_open_route_and_a_server_without_keys_ask_for_none(tmp_path):
    """On purpose, both."""
    assert Access(KeyFile(tmp_path), clock=Clock()).check(None, OPEN) is None
    assert Access(None, clock=Clock()).check(None, READ) is None


def test_a_running_server_sees_new_and_revoked_keys_within_a_second(tmp_path):
    """It looks at the file at most once a second."""
    file, clock = KeyFile(tmp_path), Clock()
    access = Access(file, clock=clock)
    with pytest.raises(Unauthenticated, match="known API key"):
        access.check(None, INFER)
    record, key = file.create(Role.INFER)

    with pytest.raises(Unauthenticated, match="known API key"):
        access.check(bearer(key), INFER)
    clock.now += 1.0
    assert access.check(bearer(key), INFER) == record

    file.revoke(record.id)
    clock.now += 1.0
    with pytest.raises(Unauthenticated, match="known API key"):
        access.check(bearer(key), INFER)


@pytest.mark.parametrize(
    "broken", ["{", '{"format_version": 2, "keys": []}', '{"format_version":1,"keys":[],"x":1}', None]
)
def test_a_broken_or_missing_key_file_lets_nobody_in(tmp_path, broken):
    """A revoked key must not come back because of a typing error."""
    file, clock = KeyFile(tmp_path), Clock()
    _, key = file.create(Role.INFER)
    access = Access(file, clock=clock)
    access.check(bearer(key), INFER)

    if broken is None:
        file.path.unlink()
    else:
        file.path.write_text(broken)
    clock.now += 1.0

    with pytest.raises(Unauthenticated, match="known API key"):
        access.check(bearer(key), INFER)


def test_a_broken_key_file_is_not_overwritten(tmp_path):
    """It may hold keys that somebody wants back."""
    (tmp_path / "api_keys.json").write_text("{")

    with pytest.raises(InvalidInput, match="cannot be read"):
        KeyFile(tmp_path).create(Role.INFER)
    assert (tmp_path / "api_keys.json").read_text() == "{"


def test_revoking_an_unknown_key_says_so(tmp_path):
    """With the way to the known ones."""
    with pytest.raises(NotFound, match="lightship keys list"):
        KeyFile(tmp_path).revoke("00000000")


def test_the_first_start_makes_one_key_and_the_next_none(tmp_path):
    """In a file that only the owner reads."""
    file = KeyFile(tmp_path)

    path = file.ensure_default()

    assert path == tmp_path / "default.key"
    assert path.stat().st_mode & 0o777 == 0o600
    access = Access(file, clock=Clock())
    key = access.check(bearer(path.read_text().strip()), INFER)
    assert key is not None
    assert key.role is Role.INFER
    assert file.ensure_default() is None


def _create(folder: str) -> None:
    KeyFile(Path(folder)).create(Role.INFER)


def test_processes_that_make_keys_at_once_lose_none(tmp_path):
    """Read, change and write are one step."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(4) as pool:
        pool.map(_create, [str(tmp_path)] * 12)

    assert len(json.loads((tmp_path / "api_keys.json").read_text())["keys"]) == 12
