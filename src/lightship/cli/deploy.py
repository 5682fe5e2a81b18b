"""``lightship deploy``: write a release out for a target."""

from __future__ import annotations

from pathlib import Path

import click

from lightship.cli.examples import examples

__all__ = ["deploy"]


@click.command(epilog=examples("lightship deploy digits:2 --to folder --out digits-release"))
@click.argument("reference", metavar="NAME[@ALIAS|:VERSION]")
@click.option("--to", "target", required=True, help="The target: folder.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Where to write; must not exist yet.")
def deploy(reference: str, target: str, out: Path) -> None:
    """Write a release out for a target.

    The target `folder` holds the bundle, its evidence and the signed release; docs/bundle-format.md says how any
    program can verify it. The release is verified first; that it is unproven is said on standard error.
    """
    from lightship.bundle.store import BlobStore
    from lightship.cli.unproven import say_unproven
    from lightship.data.home import Home
    from lightship.deploy.target import load_target
    from lightship.registry.releases import signed_version
    from lightship.registry.resolve import resolve

    home = Home.from_environment()
    found = resolve(home, reference)
    signed = signed_version(home, found.name, found.version, bundle=found.bundle, release=found.release)
    load_target(target).write(BlobStore(home.store), found.release, out)
    if signed is not None and signed.unproven:
        say_unproven(found.name, found.version)
    click.echo(f"Wrote {found.name}:{found.version} to {out}")
