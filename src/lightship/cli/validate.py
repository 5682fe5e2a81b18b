"""``lightship validate``: a model and its variants on the gate rows, or a live endpoint against a release."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lightship.cli.examples import examples
from lightship.cli.json_answer import json_option, say_json
from lightship.cli.progress import make_progress
from lightship.cli.server import key_in, trusted_by
from lightship.cli.ship import say_stages
from lightship.cli.table import say_line

if TYPE_CHECKING:
    from lightship.bundle.statement import Evidence
    from lightship.data.home import Home

__all__ = ["validate"]


@click.command(
    epilog=examples(
        "lightship validate recipe.toml",
        "lightship validate recipe.toml --variant mine.onnx",
        "lightship validate digits:2 --endpoint https://models.example:8000 --out found.json",
        "lightship validate digits --endpoint grpc://127.0.0.1:8001",
    )
)
@click.argument("what", metavar="RECIPE|NAME[@ALIAS|:VERSION]")
@click.option(
    "--variant", type=click.Path(path_type=Path), help="Judge this graph file instead of the variants made here."
)
@click.option(
    "--endpoint",
    metavar="URL",
    help="Judge the server at this address (http, https, grpc or grpcs): does it answer as NAME was released?",
)
@click.option("--key-file", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="A file with the server's key; by default the variable LIGHTSHIP_KEY.")  # fmt: skip
@click.option("--timeout", "timeout_s", type=click.FloatRange(min=0.001), default=30.0, show_default=True,
              help="Seconds for one request, with --endpoint.")  # fmt: skip
@click.option("--ca-file", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="Certificates (PEM) to trust with --endpoint, instead of the usual ones.")  # fmt: skip
@click.option("--allow-plain-http", is_flag=True, help="Send the key to another machine unencrypted.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE.json",
              help="Keep what was found about an endpoint: as text for people, and signed.")  # fmt: skip
@click.option("--quiet", is_flag=True, help="Show no progress.")
@json_option()
def validate(
    what: str,
    variant: Path | None,
    endpoint: str | None,
    key_file: Path | None,
    timeout_s: float,
    ca_file: Path | None,
    allow_plain_http: bool,
    out: Path | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Judge the model of a RECIPE and its variants on the gate rows; exit code 6 when the gate refuses.

    With --endpoint, judge a live server: every golden input of the release is sent to it, as tensors and raw, alone,
    many at once and as rows of one request, and each answer is held against the recorded one. Exit code 6 when another
    version, bundle or variant answers than was released, or an answer is off.
    NAME:VERSION asks the server for that version; NAME and NAME@ALIAS for what it gives without one.
    """
    if endpoint is None:
        if out is not None:
            raise click.UsageError("--out goes with --endpoint. What a recipe's run finds is kept under its home.")
        _judge_recipe(Path(what), variant, as_json=as_json, quiet=quiet)
        return
    if variant is not None:
        raise click.UsageError("--variant goes with a RECIPE, not with --endpoint.")
    from lightship.apply.client import AsyncClient
    from lightship.apply.endpoint import validate_endpoint
    from lightship.apply.grpc_client import GrpcClient, is_grpc
    from lightship.data.home import Home
    from lightship.errors import Refused
    from lightship.types import Verdict

    client: AsyncClient | GrpcClient
    if is_grpc(endpoint):
        trusted_by(ca_file)  # says so if it holds no certificates
        client = GrpcClient(
            endpoint,
            key=key_in(key_file),
            timeout_s=timeout_s,
            allow_plain=allow_plain_http,
            authority=ca_file.read_bytes() if ca_file else None,
        )
    else:
        client = AsyncClient(
            endpoint,
            key=key_in(key_file),
            timeout_s=timeout_s,
            allow_plain_http=allow_plain_http,
            verify=trusted_by(ca_file),
        )
    home = Home.from_environment()
    found = validate_endpoint(home, what, client)
    if out is not None:
        _keep(found, home, out)
    if as_json:
        say_json(_endpoint_json(found))
    else:
        _say_endpoint(found)
    if found.verdict is not Verdict.PASSED:
        raise Refused(f"The endpoint does not answer as {what} was released. {found.summary}")


def _judge_recipe(recipe: Path, variant: Path | None, *, as_json: bool, quiet: bool) -> None:
    from lightship.pipeline.ship import validate as run

    with make_progress(quiet=quiet) as progress:
        validated = run(recipe, variant=variant, progress=progress)
    if as_json:
        say_json({**validated.to_json(), "stages": [validated.finished.to_json()]})
        return
    say_stages((validated.finished,))
    click.echo(f"  chosen  {validated.chosen}")
    for each in validated.evidence:
        say_line(f"  {each.verdict:<10} {each.check:<16} {each.summary}")


def _endpoint_json(found: Evidence) -> dict[str, Any]:
    from lightship.bundle.document import plain_json

    return {
        "check": found.check,
        "verdict": str(found.verdict),
        "summary": found.summary,
        "subjects": dict(found.subjects),
        "measured": plain_json(found.measured),
        "method": plain_json(found.method),
    }


def _say_endpoint(found: Evidence) -> None:
    """Say what answers there and how each way of asking went; what is wrong is the error's to say."""
    shown = _endpoint_json(found)["measured"]
    released, there = shown["released"], shown["endpoint"]
    click.echo(f"{released['name']}:{released['version']} at the endpoint: {found.verdict}")
    click.echo(f"  version    {there['version'] or ', '.join(there['versions']) or 'not told'}")
    click.echo(f"  bundle     {there['bundle'] or 'not told'}")
    click.echo(f"  variant    {there['variant'] or 'not told'}  (released: {released['variant']})")
    for asked in shown["asked"]:
        worst = "-" if asked["largest_difference"] is None else f"{asked['largest_difference']:.2g}"
        off = f"{asked['wrong']} of {asked['answers']} off" if asked["wrong"] else f"{asked['answers']} right"
        click.echo(f"  {asked['way']:<28} {off:<16} within {worst}, allowed {asked['allowed']:.2g}")


def _keep(found: Evidence, home: Home, out: Path) -> None:
    """Write evidence to a file: its content to be read, and as text the envelope that this home signed."""
    from lightship.bundle.signing import PrivateKey
    from lightship.bundle.statement import sign_evidence
    from lightship.data.files import write_atomic
    from lightship.engine.machine import fingerprint
    from lightship.registry.moments import now, stamp

    created = stamp(now())
    machine = fingerprint()
    key = PrivateKey.load_or_create(home.ensure().keys)
    envelope = sign_evidence(found, key=key, created=created, machine=machine)
    kept = {**_endpoint_json(found), "created": created, "machine": machine, "signed": envelope.decode()}
    write_atomic(out, json.dumps(kept, indent=2).encode() + b"\n")
