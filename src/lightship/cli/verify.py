"""``lightship verify`` and ``lightship trust``: is this what its signer signed, and whose signature counts here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lightship.cli.examples import examples
from lightship.cli.json_answer import json_option, say_json

if TYPE_CHECKING:
    from lightship.bundle.verify import Verification

__all__ = ["trust", "verify"]

_MAX_PEM_BYTES = 1 << 16  # a public key has about a hundred


@click.command(
    epilog=examples("lightship verify digits", "lightship verify digits:2 --json", "lightship verify ./digits-release")
)
@click.argument("what", metavar="NAME[@ALIAS|:VERSION]|PATH")
@json_option()
def verify(what: str, as_json: bool) -> None:
    """Recompute every digest and signature of a release in this home, or of a folder written by `deploy`.

    Anything that is not exactly what a trusted signer signed is refused by name, with exit code 6.
    """
    found = _verify(what)
    if as_json:
        say_json(_as_json(found))
        return
    kind = "a key of this home (local)" if found.signer.local else found.signer.name
    click.echo(f"{found.name}:{found.version} is whole: {found.files} files, {found.bytes:,} bytes")
    click.echo(f"  bundle     {found.bundle}")
    click.echo(f"  release    {found.release}  ({found.status})")
    if found.status == "structural":
        click.echo("             structural: it is what was tried; how good its answers are was not measured")
    click.echo(f"  signed by  {kind}  {found.signer.key_id}")
    for each in found.evidence:
        click.echo(f"  {each.verdict:<10} {each.check:<16} {each.summary}")


def _verify(what: str) -> Verification:
    from lightship.bundle.signing import TrustStore
    from lightship.bundle.store import BlobStore
    from lightship.bundle.verify import verify_folder, verify_stored
    from lightship.data.home import Home
    from lightship.registry.resolve import resolve

    home = Home.from_environment()
    trusted = TrustStore(home.trust)
    # A path is written as one; a bare word is a name, so a folder of that name cannot stand in for a release.
    if "/" in what or what in (".", ".."):
        return verify_folder(Path(what), trust=trusted)
    return verify_stored(BlobStore(home.store), resolve(home, what).release, trust=trusted)


def _as_json(found: Verification) -> dict[str, Any]:
    return {
        "name": found.name,
        "version": found.version,
        "status": found.status,
        "bundle": found.bundle,
        "release": found.release,
        "signer": {"key_id": found.signer.key_id, "name": found.signer.name, "local": found.signer.local},
        "files": found.files,
        "bytes": found.bytes,
        "variants": list(found.variants),
        "evidence": [
            {"check": each.check, "verdict": each.verdict, "summary": each.summary, "digest": each.digest}
            for each in found.evidence
        ],
    }


@click.group()
def trust() -> None:
    """Name the signers whose releases this home believes."""


@trust.command(epilog=examples("lightship trust add release-team.pem --name release-team"))
@click.argument("public_key", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--name", required=True, help="Who the key belongs to, e.g. release-team.")
def add(public_key: Path, name: str) -> None:
    """Trust the Ed25519 public key in the PEM file PUBLIC_KEY. Get it from its owner, not from beside the model."""
    from lightship.bundle.folder import open_regular
    from lightship.bundle.signing import TrustStore
    from lightship.data.home import Home

    with open_regular(public_key.resolve()) as file:  # a pipe would wait for ever
        pem = file.read(_MAX_PEM_BYTES)
    signer = TrustStore(Home.from_environment().ensure().trust).add(pem, name)
    click.echo(f"Trusted {signer.name}  {signer.key_id}")


@trust.command(name="list", epilog=examples("lightship trust list"))
def list_signers() -> None:
    """List the signers that this home trusts."""
    from lightship.bundle.signing import TrustStore
    from lightship.data.home import Home

    for signer in TrustStore(Home.from_environment().trust).signers():
        click.echo(f"{signer.key_id}  {signer.name}{'  (made by this home)' if signer.local else ''}")


@trust.command(epilog=examples("lightship trust export --out mine.pem"))
@click.option("--out", type=click.Path(path_type=Path), help="Write to this file instead of stdout.")
def export(out: Path | None) -> None:
    """Print the public key that this home signs with, to be trusted elsewhere."""
    from lightship.bundle.signing import PrivateKey
    from lightship.data.home import Home

    pem = PrivateKey.load_or_create(Home.from_environment().ensure().keys).public_pem.decode()
    if out is None:
        click.echo(pem, nl=False)
    else:
        out.write_text(pem)
        click.echo(f"Wrote {out}")
