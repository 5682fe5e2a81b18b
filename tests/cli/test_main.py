"""The command line as a whole: its table, its errors, its exit codes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from lightship.cli.main import COMMANDS, cli
from lightship.data.home import Home
from lightship.registry.database import open_database


def _run(*arguments: str, home, **settings) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lightship.cli.main", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "LIGHTSHIP_HOME": str(home)},
        **settings,
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


@pytest.mark.parametrize("arguments", [["keys", "create"], ["trust", "export"], ["trust", "list"]])
def test_a_home_that_is_a_file_is_said_in_words(arguments, tmp_path):
    """Whichever command meets it first: one line that names the place, no traceback, and the file is left alone."""
    home = tmp_path / "home"
    home.write_text("mine")

    done = _run(*arguments, home=home)

    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    assert str(home) in done.stderr
    assert home.read_text() == "mine"


def test_a_home_of_an_unknown_user_is_said_in_words(tmp_path):
    """A tilde and a slip of the finger."""
    done = _run("models", home="~no-such-user-here/home", cwd=tmp_path)

    assert done.returncode == 2
    assert "cannot be resolved" in done.stderr


def test_a_full_disk_behind_stdout_is_said_in_words(tmp_path):
    """What the system refuses is one line, not a traceback."""
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "lightship.cli.main", "--help"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            env={**os.environ, "LIGHTSHIP_HOME": str(tmp_path)},
        )

    assert done.returncode == 1
    assert done.stderr == "Error: The system refused: No space left on device.\n"


@pytest.mark.parametrize("closed", [0, 1, 2])
def test_a_closed_stream_is_no_crash(closed, tmp_path):
    """A daemon's caller may have closed any of the three; what is left still tells what happened."""
    done = _run("verify", "nobody", home=tmp_path, preexec_fn=lambda: os.close(closed))

    assert done.returncode == 3
    assert "Traceback" not in done.stderr


def test_lists_go_nowhere_when_stdout_is_closed(tmp_path):
    """A table asks whether it is on a terminal; without any stdout it is not."""
    open_database(Home(tmp_path).ensure()).close()

    done = _run("history", home=tmp_path, preexec_fn=lambda: os.close(1))

    assert (done.returncode, done.stderr) == (0, "")


def test_a_note_stays_one_line_of_the_list(tmp_path):
    """A line break or a terminal's escape in a note could forge a line of `keys list`."""
    done = _run("keys", "create", "--note", "mine\nfeedbeef  admin", home=tmp_path)

    assert done.returncode == 2
    assert "`--note` must be at most 200 printable characters" in done.stderr
    assert not list(tmp_path.rglob("api_keys.json"))


def test_a_pipe_is_no_public_key(tmp_path):
    """It is refused at once; reading it would wait for a writer."""
    os.mkfifo(tmp_path / "key.pem")

    done = _run("trust", "add", str(tmp_path / "key.pem"), "--name", "ada", home=tmp_path / "home", timeout=20)

    assert done.returncode == 1
    assert "not a regular file" in done.stderr


def test_a_key_file_that_is_no_text_is_refused_without_showing_it(tmp_path):
    """A wrong path to --key-file is a mistake, not a crash."""
    (tmp_path / "key").write_bytes(b"secret\xff\xfe")
    (tmp_path / "photo.png").write_bytes(b"")
    arguments = ("predict", "m", str(tmp_path / "photo.png"), "--url", "http://127.0.0.1:1")

    done = _run(*arguments, "--key-file", str(tmp_path / "key"), home=tmp_path)

    assert done.returncode == 2
    assert "A key is printable ASCII" in done.stderr
    assert "secret" not in done.stderr
