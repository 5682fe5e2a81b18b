"""The command line: parse, call the library, print. One file a command group; all are light until they run.

Data goes to stdout, progress and errors to stderr; exit codes come from the one table in ``errors``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import click

from lightship.cli.json_answer import JsonAnswer, say_error
from lightship.errors import GateRefused, LightshipError, status_of
from lightship.version import __version__

__all__ = ["cli", "main"]

# command -> (module, attribute, one line of help). The help stands here so that listing the commands imports none.
COMMANDS: dict[str, tuple[str, str, str]] = {
    "ship": ("lightship.cli.ship", "ship", "Everything from data to a signed release."),
    "train": ("lightship.cli.ship", "train", "Read and split the data, train the model, export it."),
    "optimize": ("lightship.cli.optimize", "optimize", "Find the best variant of a model, and prove it."),
    "validate": ("lightship.cli.validate", "validate", "Judge a variant on the gate rows, or a live endpoint."),
    "release": ("lightship.cli.ship", "release", "Put what passed into the registry, signed."),
    "import": ("lightship.cli.import_", "import_", "Release a model that was trained elsewhere."),
    "verify": ("lightship.cli.verify", "verify", "Recompute every digest and signature of a release."),
    "serve": ("lightship.cli.serve", "serve", "Serve models over HTTP."),
    "predict": ("lightship.cli.predict", "predict", "Answer for one or more files."),
    "models": ("lightship.cli.models", "models", "List the models of this home."),
    "show": ("lightship.cli.models", "show", "Show one model: versions, aliases, evidence."),
    "diff": ("lightship.cli.diff", "diff", "Compare two releases: what changed, how good, how fast."),
    "promote": ("lightship.cli.models", "promote", "Point an alias at a version."),
    "rollback": ("lightship.cli.models", "rollback", "Point an alias back at the version it had before."),
    "history": ("lightship.cli.models", "history", "Who changed what, when and why; what was live at a time."),
    "deploy": ("lightship.cli.deploy", "deploy", "Write a release out for a target."),
    "keys": ("lightship.cli.keys", "keys", "Create, list and revoke the keys that a server accepts."),
    "trust": ("lightship.cli.verify", "trust", "Name the signers whose releases this home believes."),
}


class _LateGroup(click.Group):
    """Imports a command's module only when the command is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else " `lightship --help` lists the commands."
            ctx.fail(f"There is no command {args[0]!r}.{hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, _, line) in COMMANDS.items()])


@click.group(cls=_LateGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="lightship")
def cli() -> None:
    """Make an AI model light, then ship it: one artifact that carries its own proof.

    State lives under LIGHTSHIP_HOME. Start with: lightship ship RECIPE.toml
    """


def main() -> None:
    """Run the command line; every known error becomes one message and its exit code."""
    _open_missing_streams()
    answer = JsonAnswer()
    try:
        cli.main(standalone_mode=False, obj=answer)
    except click.ClickException as exc:
        exc.show()
        say_error(answer, exc.format_message(), exc.exit_code)
        sys.exit(exc.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _end(answer, "Interrupted. Finished stages are kept; the same command goes on from there.", 130)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has gone; nothing is left to say
        sys.exit(1)
    except GateRefused as exc:
        _end(answer, f"Error: {exc}", status_of(exc).exit_code, found=exc.found)
    except LightshipError as exc:
        _end(answer, f"Error: {exc}", status_of(exc).exit_code)
    except OSError as exc:  # the machine said no: a full disk, a missing permission, a folder that went away
        what = "".join(f" {name!r}" for name in (exc.filename, exc.filename2) if name)
        words = f"Error: The system refused{what and ' at' + what}: {exc.strerror or exc}."
        _end(answer, words, status_of(exc).exit_code)


def _end(answer: JsonAnswer, message: str, exit_code: int, *, found: Mapping[str, Any] | None = None) -> NoReturn:
    """Say why it ended, to people and, if asked, to programs."""
    click.echo(message, err=True)
    say_error(answer, message.removeprefix("Error: "), exit_code, found=found)
    sys.exit(exit_code)


def _open_missing_streams() -> None:
    """Stand in for streams that the caller closed: Python has None for them, and everybody writes to them."""
    if sys.stdin is None:
        sys.stdin = Path(os.devnull).open(encoding="utf-8")  # noqa: SIM115 - as long as the process
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115


if __name__ == "__main__":
    main()
