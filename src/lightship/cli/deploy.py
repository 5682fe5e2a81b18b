"""``lightship deploy``: write a release out for a target."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["deploy"]


@click.command()
@click.argument("reference", metavar="NAME[@ALIAS|:VERSION]")
@click.option("--to", "target", required=True, help="The target: folder.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Where to write; must not exist yet.")
def deploy(reference: str, target: str, out: Path) -> None:
    """Write a release out for a target.

    The target `folder` holds the bundle, its evidence and the signed release; docs/bundle-format.md says how any
    program can verify it.
    """
    from lightship.bundle.store import BlobStore
    from lightship.data.home import Home
    from lightship.deploy.target import load_target
    from lightship.registry.resolve import resolve

    home = Home.from_environment()
    found = resolve(home, reference)
    load_target(target).write(BlobStore(home.store), found.release, out)
    click.echo(f"Wrote {found.name}:{found.version} to {out}")
