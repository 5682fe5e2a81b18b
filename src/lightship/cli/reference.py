"""The reference page of the command line, made from the commands themselves."""

from __future__ import annotations

import click

from lightship.cli.main import COMMANDS, cli

__all__ = ["commands_page"]

_HEAD = """# Commands

Data goes to stdout, progress and errors to stderr.
With `--json` stdout has one JSON object whatever happens: the answer, or `error` and `exit_code`.
A refusal by the gate has all that the gate saw.
State lives under `LIGHTSHIP_HOME` (default: the user's data folder).

| exit code | means |
| --- | --- |
| 0 | done |
| 1 | something went wrong that is not your input's fault |
| 2 | the input, the recipe or the command line cannot be used |
| 3 | no model, version, alias or file of that name |
| 4 | the name is taken, or another process is at work on it |
| 5 | no key, an unknown one, or one without the role |
| 6 | refused: the gate, a digest or a signature said no |
| 7 | try again later |
| 8 | an optional dependency is missing; the message has the line that installs it |
| 130 | interrupted |
"""


def commands_page() -> str:
    """Return ``docs/commands.md``: the help of every command and subcommand."""
    context = click.Context(cli, info_name="lightship", **cli.context_settings)
    parts = [_HEAD]
    for name in COMMANDS:
        command = cli.get_command(context, name)
        if command is not None:
            parts += _help(command, click.Context(command, info_name=name, parent=context))
    return "\n".join(parts)


def _help(command: click.Command, context: click.Context) -> list[str]:
    context.terminal_width = context.max_content_width = 100
    parts = [f"## {context.command_path}\n\n```text\n{command.get_help(context)}\n```\n"]
    if isinstance(command, click.Group):
        for name, inner in sorted(command.commands.items()):
            parts += _help(inner, click.Context(inner, info_name=name, parent=context))
    return parts
