"""``lightship optimize``: variants of a recipe's trained model, or the best variant of a released model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lightship.cli.progress import make_progress
from lightship.cli.table import say_table

if TYPE_CHECKING:
    from lightship.pipeline.optimized import OptimizedRelease

__all__ = ["optimize"]

_SHARE = click.FloatRange(0, 1, min_open=True, max_open=True)
_OF_A_NAME = (
    *("data", "objective", "minutes", "passes", "label", "output", "accept_unproven"),
    *("min_cosine", "min_snr", "min_agreement", "max_broken", "min_explained", "min_accuracy", "margin"),
)


def _passes(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...] | None:
    names = tuple(name.strip() for text in values for name in text.split(",") if name.strip())
    if values and not names:
        raise click.BadParameter("must name a pass or a variant.", context, parameter)
    return names or None


@click.command()
@click.argument("target", metavar="RECIPE.toml|NAME[@ALIAS|:VERSION]")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    metavar="ROWS",
    help="Rows that calibrate, choose and judge: a .npz file (arrays by the name of the input, and `label`), a "
    ".parquet file (the same as columns), or a folder of .npz files; for a model of images also images, in folders by "
    "class or not. Without it only what loses nothing is tried.",
)
@click.option(
    "--objective",
    default="latency",
    show_default=True,
    metavar="GOAL",
    help="latency, throughput, size or memory; or several with weights: latency=0.7,size=0.3.",
)
@click.option("--minutes", type=click.FloatRange(0, 1440, min_open=True), default=5.0, show_default=True,
              help="Time for the search. Reading the rows and judging come on top.")  # fmt: skip
@click.option("--min-cosine", type=_SHARE, help="Without labels: least mean cosine to the reference. [default: 0.99]")
@click.option("--min-snr", type=float, metavar="DB", help="Least signal-to-noise ratio to the reference, in decibels.")
@click.option("--min-agreement", type=_SHARE, help="Least share of rows with the reference's class.")
@click.option("--max-broken", type=_SHARE,
              help="Without labels: largest share of rows with quite another answer. [default: 0.02]")  # fmt: skip
@click.option("--min-explained", type=_SHARE,
              help="Without labels: least share of the rows' variation that is kept. [default: 0.25]")  # fmt: skip
@click.option("--min-accuracy", type=_SHARE,
              help="With labels: the accuracy that is proven; only then the release is no structural one.")  # fmt: skip
@click.option("--margin", type=_SHARE, help="With labels: the loss of accuracy that is too much. [default: 0.01]")
@click.option("--passes", multiple=True, callback=_passes, metavar="NAME[,NAME]",
              help="Passes or whole variants to try, in place of all that are worth it.")  # fmt: skip
@click.option("--label", default="label", show_default=True, metavar="NAME", help="The array or column of labels.")
@click.option("--output", metavar="NAME", help="The output with the class scores, where that is not clear.")
@click.option(
    "--accept-unproven",
    is_flag=True,
    help="Let the new version become production if the name has none yet, although nobody measured how good its "
    "answers are. The history says who accepted it.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
@click.option("--quiet", is_flag=True, help="Show no progress.")
@click.pass_context
def optimize(context: click.Context, /, target: str, as_json: bool, quiet: bool, **options: Any) -> None:
    """Find the best way to run a model on this machine, and prove that it is still the same model.

    A RECIPE.toml: make variants of its trained model and measure them; all options stand in the recipe.

    NAME, a released model: search round its reference, judge at most three candidates on rows that chose nothing, and
    release the first that passes as the next version of NAME. It never becomes production by itself if there is one
    already. When nothing better passes, the reference stays: exit code 0, and the reasons.
    """
    if target.endswith(".toml"):
        given = [name for name in _OF_A_NAME if context.get_parameter_source(name) is not _default_source()]
        if given:
            raise click.UsageError(
                f"--{given[0].replace('_', '-')} is for a released model; a recipe says this in its [optimize] section."
            )
        _recipe(Path(target), as_json=as_json, quiet=quiet)
        return
    _bundle(target, as_json=as_json, quiet=quiet, **options)


def _default_source() -> object:
    from click.core import ParameterSource

    return ParameterSource.DEFAULT


def _recipe(recipe: Path, *, as_json: bool, quiet: bool) -> None:
    from lightship.pipeline.ship import optimize as run

    with make_progress(quiet=quiet) as progress:
        optimized = run(recipe, progress=progress)
    stage = optimized.finished
    if as_json:
        said = {"stage": stage.stage, "key": stage.key, "skipped": stage.skipped, "path": str(stage.path)}
        click.echo(json.dumps({**optimized.found, "stages": [said]}))
        return
    click.echo(f"  {stage.stage:<10} {'unchanged, skipped' if stage.skipped else 'done'}")
    for candidate in optimized.candidates:
        speed = optimized.speed(candidate)
        words = speed.timing.words if speed else "not timed"
        click.echo(f"  {candidate.name:<24} {candidate.dropped or 'proposed'}; {words}")


def _bundle(
    name: str,
    *,
    as_json: bool,
    quiet: bool,
    min_cosine: float | None,
    min_snr: float | None,
    min_agreement: float | None,
    max_broken: float | None,
    min_explained: float | None,
    **options: Any,
) -> None:
    from lightship.pipeline.optimized import optimize_bundle
    from lightship.validate.fidelity import FidelityBudget

    asked = {
        "min_cosine": min_cosine,
        "min_snr_db": min_snr,
        "min_agreement": min_agreement,
        "max_broken": max_broken,
        "min_explained": min_explained,
    }
    said = {key: value for key, value in asked.items() if value is not None}
    with make_progress(quiet=quiet) as progress:
        done = optimize_bundle(name, budget=FidelityBudget(**said) if said else None, progress=progress, **options)
    if as_json:
        click.echo(json.dumps(done.to_json()))
    else:
        _say(done)


def _say(done: OptimizedRelease) -> None:
    click.echo("")
    say_table(
        ("VARIANT", "LATENCY", "THROUGHPUT", "QUALITY", "SIZE", "MEMORY", "WHY"),
        [_reference_row(done), *(_row(done, each) for each in _mappings(done.search.get("candidates")))],
        title=f"{done.name}:{done.parent} on this machine",
    )
    for word in done.words:
        click.echo(f"  {word}")
    if done.version is None:
        click.echo(f"\nThe reference of {done.name}:{done.parent} stays: nothing better passed. No new version.")
        click.echo(f"  report     {done.report.with_suffix('.html')}")
        return
    reference = f"{done.name}:{done.version}"
    click.echo(f"\nReleased {reference}  ({done.chosen})" + ("" if done.is_new else "  (unchanged)"))
    click.echo("\nEvidence")
    for row in done.evidence:
        click.echo(f"  {row.verdict:<10} {row.check:<16} {row.summary}")
    click.echo(f"\n  bundle     {done.bundle}")
    click.echo(f"  signed by  {done.signer}")
    click.echo(f"  report     {done.report.with_suffix('.html')}")
    click.echo("\nNext")
    if done.alias is not None:
        click.echo(f"  {done.name}@{done.alias} is {reference}")
        click.echo(f"  lightship serve {done.name}")
        return
    consent = " --accept-unproven" if done.status == "structural" else ""
    click.echo(f"  lightship serve {reference}                        try it as it is")
    click.echo(f"  lightship promote {reference}{consent}    make it production")


def _reference_row(done: OptimizedRelease) -> tuple[str, ...]:
    base: Mapping[str, Any] = done.search.get("reference") or {}  # type: ignore[assignment]  # as the search wrote it
    latency, throughput = base.get("latency") or {}, base.get("throughput") or {}
    return (
        "reference",
        f"{latency['p50_ms']:.3g} ms" if latency else "",
        f"{throughput['rows_per_s']:.3g} rows/s" if throughput else "",
        "",
        _size(base.get("size_bytes")),
        _size(base.get("memory_bytes")),
        "chosen" if done.version is None else "",
    )


def _row(done: OptimizedRelease, each: Mapping[str, Any]) -> tuple[str, ...]:
    outcome = next((o for o in done.outcomes if o.name == each["name"]), None)
    why = each["dropped"] or (outcome.reason if outcome else "")
    if each["name"] == done.chosen:
        why = "chosen"
    return (
        each["name"],
        _speed(each["latency"]),
        _speed(each["throughput"]),
        _quality(each["quality"]),
        _size(each["size_bytes"]),
        _size(each["memory_bytes"]),
        why,
    )


def _speed(found: Mapping[str, Any] | None) -> str:
    """Say how many times as fast as the reference, with the interval."""
    if not found:
        return ""
    ratio = found["ratio"]
    ends = [1 / ratio[end] if ratio[end] else float("inf") for end in ("high", "low")]
    return f"{1 / ratio['estimate']:.2f}x ({ends[0]:.2f} to {ends[1]:.2f})"


def _quality(found: Mapping[str, Any] | None) -> str:
    if not found:
        return ""
    said = []
    if found.get("correct") is not None:
        said.append(f"{found['correct']}/{found['rows']} right")
    if found.get("cosine"):
        said.append(f"cos {found['cosine']['estimate']:.4f}")
    if found.get("snr_db"):
        said.append(f"{found['snr_db']['estimate']:.0f} dB")
    return ", ".join(said)


def _size(count: object) -> str:
    if not isinstance(count, int) or not count:
        return ""
    return f"{count / 2**20:.1f} MiB" if count >= 1 << 20 else f"{count / 2**10:.0f} KiB"


def _mappings(found: object) -> list[Mapping[str, Any]]:
    return [each for each in found if isinstance(each, Mapping)] if isinstance(found, list) else []
