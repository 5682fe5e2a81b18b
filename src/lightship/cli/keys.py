"""``lightship keys``: the API keys that a server of this home accepts."""

from __future__ import annotations

import click

from lightship.cli.examples import examples
from lightship.cli.json_answer import json_option, say_json

__all__ = ["keys"]

_MOST_NOTE_CHARS = 200  # a line of the list


@click.group()
def keys() -> None:
    """Create, list and revoke the keys that a server accepts.

    A server asks for `Authorization: Bearer KEY`. It sees a change here within a second.
    """


@keys.command(epilog=examples('lightship keys create --note "the shop"', "lightship keys create --role admin --json"))
@click.option(
    "--role",
    type=click.Choice(["infer", "read", "admin"]),
    default="infer",
    show_default=True,
    help="infer: ask models. read: see state and metrics. admin: everything.",
)
@click.option("--note", default="", help="Whose key it is, for the list.")
@json_option()
def create(role: str, note: str, as_json: bool) -> None:
    """Make a key and print it, once: only its digest is kept."""
    from lightship.data.home import Home
    from lightship.errors import InvalidInput
    from lightship.serve.access import KeyFile, Role

    if not note.isprintable() or len(note) > _MOST_NOTE_CHARS:
        raise InvalidInput(f"`--note` must be at most {_MOST_NOTE_CHARS} printable characters. Got {note[:80]!a}.")
    record, text = KeyFile(Home.from_environment().ensure().keys).create(Role(role), note=note)
    if as_json:
        say_json({"id": record.id, "role": record.role, "key": text})
    else:
        click.echo(text)
        click.echo(f"Key {record.id} with the role {record.role}. It is shown only now.", err=True)


@keys.command("list", epilog=examples("lightship keys list"))
@json_option()
def list_(as_json: bool) -> None:
    """List ids, roles and notes; the keys themselves are kept nowhere."""
    from lightship.data.home import Home
    from lightship.serve.access import KeyFile

    records = KeyFile(Home.from_environment().keys).records()
    if as_json:
        rows = [{"id": r.id, "role": r.role, "created": r.created, "note": r.note} for r in records]
        say_json({"keys": rows})
        return
    for record in records:
        click.echo(f"{record.id}  {record.role:<5}  {record.created}  {record.note}".rstrip())
    if not records:
        click.echo("There are no keys. `lightship keys create` makes one.", err=True)


@keys.command(epilog=examples("lightship keys revoke feedbeef"))
@click.argument("key_id", metavar="ID")
def revoke(key_id: str) -> None:
    """Revoke the key with this ID."""
    from lightship.data.home import Home
    from lightship.serve.access import KeyFile

    record = KeyFile(Home.from_environment().keys).revoke(key_id)
    click.echo(f"Key {record.id} ({record.role}) is revoked.", err=True)
