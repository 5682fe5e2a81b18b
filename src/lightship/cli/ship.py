"""``ship`` and its stages alone: ``train`` and ``release`` (``optimize`` and ``validate`` have files of their own)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from lightship.cli.examples import examples
from lightship.cli.json_answer import json_option, say_json
from lightship.cli.progress import make_progress
from lightship.cli.table import say_line

if TYPE_CHECKING:
    from lightship.pipeline.cache import Finished
    from lightship.pipeline.ship import Shipped

__all__ = ["release", "say_stages", "ship", "train"]

_F = TypeVar("_F", bound=Callable[..., Any])


def _recipe_command(function: _F) -> _F:
    """Add what all commands of this group take."""
    function = click.argument("recipe", type=click.Path(path_type=Path))(function)
    function = json_option()(function)
    return click.option("--quiet", is_flag=True, help="Show no progress.")(function)


@click.command(epilog=examples("lightship ship recipe.toml", "lightship ship recipe.toml --json > released.json"))
@_recipe_command
def ship(recipe: Path, as_json: bool, quiet: bool) -> None:
    """Everything from data to a signed release; stages whose inputs are unchanged are skipped."""
    _release(recipe, as_json, quiet)


@click.command(epilog=examples("lightship release recipe.toml"))
@_recipe_command
def release(recipe: Path, as_json: bool, quiet: bool) -> None:
    """Put what the gate lets through into the registry, signed. Runs the stages before it if they are not done."""
    _release(recipe, as_json, quiet)


def _release(recipe: Path, as_json: bool, quiet: bool) -> None:
    from lightship.pipeline.ship import ship as run

    with make_progress(quiet=quiet) as progress:
        shipped = run(recipe, progress=progress)
    if as_json:
        say_json(_shipped_json(shipped))
        return
    released = shipped.released
    say_stages(shipped.stages)
    click.echo(f"\nReleased {released.name}:{released.version}" + ("" if released.is_new else "  (unchanged)"))
    for line in released.headlines:
        say_line(f"  {line}")
    click.echo("\nEvidence")
    for row in released.evidence:
        say_line(f"  {row.verdict:<10} {row.check:<16} {row.summary}")
    click.echo(f"\n  bundle     {released.bundle}")
    click.echo(f"  signed by  {released.signer}")
    click.echo(f"  report     {shipped.report}")


def _shipped_json(shipped: Shipped) -> dict[str, Any]:
    released = shipped.released
    return {
        "name": released.name,
        "version": released.version,
        "is_new": released.is_new,
        "bundle": released.bundle,
        "release": released.release,
        "evidence": [
            {"check": row.check, "verdict": row.verdict, "summary": row.summary, "digest": row.digest}
            for row in released.evidence
        ],
        "report": str(shipped.report),
        "stages": [stage.to_json() for stage in shipped.stages],
    }


def say_stages(stages: tuple[Finished, ...]) -> None:
    """Say which stages of a run were skipped."""
    for stage in stages:
        click.echo(f"  {stage.stage:<10} {'unchanged, skipped' if stage.skipped else 'done'}")


@click.command(epilog=examples("lightship train recipe.toml"))
@_recipe_command
def train(recipe: Path, as_json: bool, quiet: bool) -> None:
    """Read and split the data, train the model, export the reference graph."""
    from lightship.pipeline.ship import train as run

    with make_progress(quiet=quiet) as progress:
        trained = run(recipe, progress=progress)
    if as_json:
        say_json({"reference": str(trained.reference_path), "stages": [trained.finished.to_json()]})
        return
    say_stages((trained.finished,))
    click.echo(f"  {trained.headline}")
    click.echo(f"  reference graph  {trained.reference_path}")
