"""The home: folders with the right modes, made once."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from lightship.data.home import Home
from lightship.errors import InvalidInput


def test_whatever_the_umask_only_the_owner_changes_keys_and_trust(tmp_path):
    """A mode that was loosened is put right."""
    home = Home(tmp_path / "home").ensure()
    home.keys.chmod(0o755)
    home.trust.chmod(0o777)

    home.ensure()

    assert (stat.S_IMODE(home.keys.stat().st_mode), stat.S_IMODE(home.trust.stat().st_mode)) == (0o700, 0o755)


def test_a_home_that_is_right_is_not_written_to(tmp_path, monkeypatch):
    """A server may run from a read-only mount, where even setting the mode that is there already is refused."""
    home = Home(tmp_path / "home").ensure()

    def refuse(self, mode):
        raise OSError(30, "Read-only file system", str(self))

    monkeypatch.setattr(Path, "chmod", refuse)

    assert home.ensure() is home


def test_a_file_in_the_place_of_the_home_is_named(tmp_path):
    """The message has the path and what to set."""
    (tmp_path / "home").write_text("mine")

    with pytest.raises(InvalidInput, match=r"/home cannot be used: .* File exists. Set LIGHTSHIP_HOME"):
        Home(tmp_path / "home").ensure()
