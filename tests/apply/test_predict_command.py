"""``lightship predict`` and the commands of the registry, as a person types them."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing

import pytest
from click.testing import CliRunner
from tests.apply.conftest import GOOD, TASK, release

from lightship.cli.main import cli
from lightship.data.home import Home
from lightship.errors import InvalidInput, NotFound, Refused


@pytest.fixture
def run(shared_home, monkeypatch):
    """Return a function that runs a command line in the shared home; a known error is raised, as main() gets it."""
    monkeypatch.setenv("LIGHTSHIP_HOME", str(shared_home.root))
    monkeypatch.delenv("LIGHTSHIP_KEY", raising=False)

    def run_one(*arguments: object, standard_input: bytes | None = None):
        done = CliRunner().invoke(cli, [str(argument) for argument in arguments], input=standard_input)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done

    return run_one


def test_a_file_gets_one_line(run, png):
    """Tab-separated where no terminal is, so that `cut` and `sort` work."""
    done = run("predict", "shades", png)

    assert done.stdout.splitlines()[0] == "FILE\tLABEL\tPROBABILITY"
    assert done.stdout.splitlines()[1].split("\t")[:2] == [str(png), "light"]


def test_json_is_one_object_a_file(run, png):
    """All classes are in it, however many --top shows."""
    done = run("predict", "shades:1", png, png, "--json", "--top", 1)

    first, second = (json.loads(line) for line in done.stdout.splitlines())
    assert first == second
    assert (first["file"], first["label"], first["model"], first["version"]) == (str(png), "light", "shades", 1)
    assert set(first["probabilities"]) == {"dark", "middle", "light"}


def test_top_shows_the_next_classes_too(run, png):
    """Most probable first, and no more than there are."""
    lines = run("predict", "shades", png, "--top", 9).stdout.splitlines()[1:]

    assert [line.split("\t")[1] for line in lines] == ["light", "middle", "dark"]


def test_standard_input_is_a_dash(run, png):
    """For pipes."""
    assert "-\tlight\t" in run("predict", "shades", "-", standard_input=png.read_bytes()).stdout


def test_a_proven_version_is_not_called_unproven(run, png, tmp_path):
    """Nothing is said on standard error, by predict and by deploy."""
    assert run("predict", "shades", png).stderr == ""
    assert run("deploy", "shades", "--to", "folder", "--out", tmp_path / "out").stderr == ""


def test_one_bad_file_does_not_stop_the_others(run, png, tmp_path):
    """It is named on standard error, and the exit code tells of it."""
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    done = run("predict", "shades", bad, png, tmp_path / "none.png")

    assert done.exit_code == 2
    assert [line.split("\t")[0] for line in done.stdout.splitlines()[1:]] == [str(png)]
    assert f"Error: {bad}: Images must be" in done.stderr
    assert "none.png" in done.stderr


def test_a_single_bad_file_is_the_error(run, tmp_path):
    """As any command fails."""
    with pytest.raises(NotFound, match="There is no file"):
        run("predict", "shades", tmp_path / "none.png")


def test_a_server_answers_by_url(run, serve, png, tmp_path):
    """With the key of a file, its line break dropped."""
    script = serve(GOOD)
    key = tmp_path / "key"
    key.write_text("k-from-file\n")
    done = run("predict", "digits", png, "--url", script.url, "--key-file", key, "--json")

    assert json.loads(done.stdout)["label"] == "7"
    assert script.requests[0].headers["authorization"] == "Bearer k-from-file"
    with pytest.raises(InvalidInput, match="over plain http"):
        run("predict", "digits", png, "--url", "http://models.example.com", "--key-file", key)


def test_models_and_show_tell_what_there_is(run):
    """For people and for programs."""
    assert "shades\t1\t1\tproduction=1" in run("models").stdout
    assert json.loads(run("models", "--json").stdout)["models"][0]["aliases"] == {"production": 1}
    shown = json.loads(run("show", "shades", "--json").stdout)
    assert (shown["version"], shown["unproven"], shown["evidence"][0]["verdict"]) == (1, False, "passed")
    assert "accuracy\tpassed\tall right" in run("show", "shades").stdout


def test_an_empty_home_has_no_models(run, monkeypatch, tmp_path):
    """Looking makes nothing and is no error; naming a model is one."""
    monkeypatch.setenv("LIGHTSHIP_HOME", str(tmp_path / "empty"))

    assert json.loads(run("models", "--json").stdout) == {"models": []}
    assert "no model yet" in run("models").stderr
    for command in (["show", "x"], ["promote", "x:1"], ["rollback", "x"], ["history"]):
        with pytest.raises(NotFound, match="There is no registry"):
            run(*command)
    assert not (tmp_path / "empty").exists()


def test_promote_rollback_and_history_work_together(run, monkeypatch, tmp_path):
    """From version 1 to 2 and back, with who and why, and the chain verified."""
    home = Home(tmp_path / "home")
    monkeypatch.setenv("LIGHTSHIP_HOME", str(home.root))
    release(home)
    release(home, config={**TASK.config(), "labels": ["a", "b", "c"]})

    assert "is now version 2 (was 1)" in run("promote", "shades:2", "--why", "faster").stdout
    assert "already; nothing was changed" in run("promote", "shades:2").stdout
    assert json.loads(run("promote", "shades@production", "--alias", "staging", "--json").stdout)["to_version"] == 2
    assert "is now version 1 (was 2)" in run("rollback", "shades", "--why", "slower").stdout
    assert "unknown" not in run("history").stdout
    found = json.loads(run("history", "shades", "--json", "--verify").stdout)
    assert [entry["why"] for entry in found["entries"] if entry["why"]] == ["first version", "faster", "slower"]
    assert found["verified"]["ok"]
    assert {item["alias"]: item["version"] for item in found["live"]} == {"production": 1, "staging": 2}
    assert json.loads(run("history", "--at", "2020-01-01", "--json").stdout)["live"] == []
    assert run("promote", "shades").exit_code == 2


def test_a_broken_history_is_an_error_of_its_own(run, monkeypatch, tmp_path):
    """Shown all the same, then refused."""
    home = Home(tmp_path / "home")
    monkeypatch.setenv("LIGHTSHIP_HOME", str(home.root))
    release(home)
    with closing(sqlite3.connect(home.registry)) as connection, connection:
        connection.execute("DROP TRIGGER history_no_update")
        connection.execute("UPDATE history SET who = 'eve' WHERE seq = 1")

    with pytest.raises(Refused, match=r"does not hold: Line 1 of the history was changed"):
        run("history", "--verify")


@pytest.mark.parametrize("command", ["models", "show", "promote", "rollback", "history", "predict"])
def test_every_option_has_help(command):
    """``--help`` explains each of them."""
    found = cli.get_command(None, command)

    assert found.help
    assert any("--json" in parameter.opts for parameter in found.params)
    for parameter in found.params:
        assert parameter.param_type_name == "argument" or parameter.help, parameter.name
