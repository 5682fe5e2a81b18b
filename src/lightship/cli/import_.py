"""``lightship import``: a model that was trained elsewhere becomes a signed release."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lightship.cli.examples import examples
from lightship.cli.json_answer import json_option, say_json
from lightship.cli.progress import make_progress
from lightship.cli.table import say_line

if TYPE_CHECKING:
    from lightship.pipeline.imported import Imported
    from lightship.types import TensorSpec

__all__ = ["import_"]


def _bounds(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, int]:
    bounds: dict[str, int] = {}
    for text in values:
        dim, _, size = text.rpartition("=")
        if not dim or not size.isascii() or not size.isdigit():
            raise click.BadParameter(f"must be DIM=SIZE, e.g. batch=8. Got {text!r}.", context, parameter)
        bounds[dim] = int(size)
    return bounds


@click.command(
    name="import",
    epilog=examples(
        "lightship import model.onnx --name leaves",
        "lightship import model.onnx --name leaves --golden rows.npz --upto batch=8",
    ),
)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--name", required=True, help="What the model is called in the registry.")
@click.option(
    "--golden",
    type=click.Path(path_type=Path),
    metavar="ROWS.npz",
    help="Rows to use as golden examples: arrays by the name of the input, the first axis are rows. "
    "By default they are drawn, by seed.",
)
@click.option(
    "--upto",
    multiple=True,
    callback=_bounds,
    metavar="DIM=SIZE",
    help="The largest size to try of a free dimension (default: batch=32, others 512). May be repeated.",
)
@click.option(
    "--fix",
    multiple=True,
    callback=_bounds,
    metavar="DIM=SIZE",
    help="The one size that a free dimension has from now on: engines can plan for it. May be repeated.",
)
@click.option(
    "--accept-unproven",
    is_flag=True,
    help="Let it become production if the name has none yet, although nobody measured how good its answers are. "
    "The history says who accepted it.",
)
@json_option()
@click.option("--quiet", is_flag=True, help="Show no progress.")
def import_(
    file: Path,
    name: str,
    golden: Path | None,
    upto: dict[str, int],
    fix: dict[str, int],
    accept_unproven: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Make a bundle of the model in FILE (ONNX) and release it as NAME.

    The file is audited before anything runs. Then it is tried in a process of its own: golden examples under several
    settings of the engine, batch sizes, other free sizes. What was tried is signed evidence, and a server runs nothing
    beyond it. Accuracy is not measured: the release is structural, and to become production it needs your word.

    The same file again is the same version.
    """
    from lightship.pipeline.imported import import_model

    with make_progress(quiet=quiet) as progress:
        imported = import_model(
            file, name=name, golden=golden, upto=upto, fix=fix, accept_unproven=accept_unproven, progress=progress
        )
    if as_json:
        say_json(_as_json(imported))
    else:
        _say(imported)


def _as_json(imported: Imported) -> dict[str, Any]:
    interface = imported.interface
    return {
        "name": imported.name,
        "version": imported.version,
        "is_new": imported.is_new,
        "status": "structural",
        "alias": imported.alias,
        "bundle": imported.bundle,
        "release": imported.release,
        "inputs": [_spec_json(spec) for spec in interface.inputs],
        "outputs": [_spec_json(spec) for spec in interface.outputs],
        "proven": {dim: [low, high] for dim, (low, high) in interface.proven.items()},
        "values": {name: str(values) for name, values in interface.values.items()},
        "unproven": list(imported.unproven),
        "words": list(imported.words),
        "evidence": [
            {"check": row.check, "verdict": row.verdict, "summary": row.summary, "digest": row.digest}
            for row in imported.evidence
        ],
    }


def _spec_json(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape)}


def _say(imported: Imported) -> None:
    reference = f"{imported.name}:{imported.version}"
    click.echo(f"\nImported {reference}" + ("" if imported.is_new else "  (unchanged)"))
    for what, specs in (("input", imported.interface.inputs), ("output", imported.interface.outputs)):
        for spec in specs:
            click.echo(f"  {what:<8} {spec.name}  {spec.dtype} [{', '.join(map(str, spec.shape))}]")
    for dim, (low, high) in sorted(imported.interface.proven.items()):
        click.echo(f"  {'proven':<8} {dim} {low} to {high}")
    for name, values in sorted(imported.interface.values.items()):
        click.echo(f"  {'values':<8} {name} {values}")
    click.echo("\nEvidence")
    for row in imported.evidence:
        say_line(f"  {row.verdict:<10} {row.check:<10} {row.summary}")
    click.echo(f"\n  bundle     {imported.bundle}")
    click.echo(f"  signed by  {imported.signer}")
    click.echo("\nNext")
    if imported.alias is not None:
        click.echo(f"  {imported.name}@{imported.alias} is {reference}; accepted as unproven, and the history says so")
        click.echo(f"  lightship serve {imported.name}")
        return
    click.echo(f"  lightship serve {reference}                        try it as it is")
    click.echo(f"  lightship promote {reference} --accept-unproven    make it production")
