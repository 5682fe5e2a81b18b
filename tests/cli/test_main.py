"""The command line as a whole: its table, its errors, its exit codes."""

from __future__ import annotations

import os
import subprocess
import sys

import click
import pytest

from lightship.cli.main import COMMANDS, cli


def _run(*arguments: str, home) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lightship.cli.main", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "LIGHTSHIP_HOME": str(home)},
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_there_and_every_option_has_help(name):
    """The table of commands cannot point at nothing, and no option is a riddle."""
    command = cli.get_command(click.Context(cli), name)

    assert command is not None
    assert command.help
    for each in [command, *getattr(command, "commands", {}).values()]:
        bare = [p.name for p in each.params if isinstance(p, click.Option) and not p.help]
        assert not bare


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["shp"], 2, "Did you mean 'ship'"),
        (["ship", "nowhere.toml"], 2, "There is no recipe nowhere.toml"),
        (["predict", "nobody", "photo.png"], 3, "registry"),
        (["verify", "nobody"], 3, "registry"),
        (["verify", "./nowhere"], 3, "nowhere"),
        (["deploy", "nobody", "--to", "folder", "--out", "x"], 3, "registry"),
        (["promote", "Bad Name:1"], 2, "Bad Name"),
    ],
)
def test_a_mistake_gets_one_clear_message_and_its_exit_code(arguments, code, words, tmp_path):
    """Each kind of mistake is told in words, never as a traceback, with the code from the one table."""
    done = _run(*arguments, home=tmp_path)

    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
    assert words in done.stderr
    assert not done.stdout
