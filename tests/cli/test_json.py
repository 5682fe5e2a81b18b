"""``--json`` is one object on stdout, whatever happens: programs read stdout, people read stderr."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import click
import pytest

from lightship.cli.json_answer import json_option, say_json
from lightship.cli.main import COMMANDS, cli, main
from lightship.errors import LightshipError


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Run the command line in an empty home; return exit code, stdout and stderr."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setenv("LIGHTSHIP_HOME", str(tmp_path / "home"))
        monkeypatch.setattr(sys, "argv", ["lightship", *arguments])
        try:
            main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        else:
            code = 0
        return code, *capsys.readouterr()

    return call


MISTAKES = [
    (["ship", "nowhere.toml"], 2),
    (["train", "nowhere.toml"], 2),
    (["release", "nowhere.toml"], 2),
    (["validate", "nowhere.toml"], 2),
    (["optimize", "nowhere.toml"], 2),
    (["optimize", "nobody"], 3),
    (["optimize", "nobody", "--minutes", "soon"], 2),
    (["import", "nowhere.onnx", "--name", "m"], 3),
    (["verify", "nobody"], 3),
    (["verify", "./nowhere"], 3),
    (["predict", "nobody", "photo.png"], 3),
    (["show", "nobody"], 3),
    (["show", "nobody", "--card"], 3),
    (["diff", "nobody:1", "nobody:2"], 3),
    (["promote", "nobody"], 2),
    (["rollback", "nobody"], 3),
    (["history"], 3),
    (["keys", "create", "--note", "a\nb"], 2),
]


@pytest.mark.parametrize(
    ("arguments", "code"), MISTAKES, ids=[" ".join(each).replace("\n", " ") for each, _ in MISTAKES]
)
def test_a_mistake_is_one_json_object_with_its_exit_code(arguments, code, run):
    """A program that parses stdout would fail on nothing at all, and on words meant for people."""
    ended, out, err = run(*arguments, "--json")

    assert ended == code, err
    said = json.loads(out)
    assert said["exit_code"] == code
    assert said["error"]
    assert said["error"].splitlines()[0] in err


def test_a_server_that_cannot_start_says_so_in_json(tmp_path):
    """Who waits for the addresses on stdout gets the reason there."""
    done = subprocess.run(
        [sys.executable, "-m", "lightship.cli.main", "serve", "nobody", "--auth", "none", "--port", "0", "--json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "LIGHTSHIP_HOME": str(tmp_path)},
    )

    assert done.returncode == 3
    assert json.loads(done.stdout)["exit_code"] == 3


@pytest.mark.parametrize("arguments", [["models"], ["keys", "list"]], ids=" ".join)
def test_nothing_there_is_json_too(arguments, run):
    """The hint for people goes to stderr alone."""
    code, out, _ = run(*arguments, "--json")

    assert code == 0
    assert isinstance(json.loads(out), dict)


def test_every_json_option_is_the_one_that_knows_of_refusals():
    """An option of its own would print nothing when its command is refused."""
    for name in COMMANDS:
        command = cli.get_command(click.Context(cli), name)
        for each in [command, *getattr(command, "commands", {}).values()]:
            for option in each.params:
                if "--json" in option.opts:
                    assert option.callback is not None, name


def test_an_answer_that_ends_in_a_refusal_is_said_once(run, monkeypatch):
    """`show` and `history --verify` answer, and then refuse: two objects would be no JSON."""

    @click.command()
    @json_option()
    def refused(as_json: bool) -> None:
        say_json({"problem": "torn", "loss": float("nan")})
        raise LightshipError("It is torn.")

    monkeypatch.setattr(cli, "get_command", lambda *_: refused)

    code, out, err = run("show", "--json")

    assert (code, json.loads(out), err) == (1, {"problem": "torn", "loss": None}, "Error: It is torn.\n")
