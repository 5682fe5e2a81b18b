"""``lightship optimize``: variants of a recipe's trained model, or the best variant of a released model."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lightship.cli.examples import examples
from lightship.cli.json_answer import json_option, say_json
from lightship.cli.progress import make_progress
from lightship.cli.table import say_line, say_table

if TYPE_CHECKING:
    from lightship.pipeline.optimized import OptimizedRelease

__all__ = ["optimize"]

_REFERENCE = "reference"  # as in `bundle.manifest`, which a help text need not load
_SHARE = click.FloatRange(0, 1, min_open=True, max_open=True)
_OF_A_NAME = (
    *("data", "objective", "minutes", "passes", "label", "label_kind", "output", "temperature", "accept_unproven"),
    *("min_cosine", "min_snr", "min_agreement", "max_broken", "min_explained", "min_accuracy", "margin"),
)


def _passes(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...] | None:
    names = tuple(name.strip() for text in values for name in text.split(",") if name.strip())
    if values and not names:
        raise click.BadParameter("must name a pass or a variant.", context, parameter)
    return names or None


@click.command(
    epilog=examples(
        "lightship optimize leaves --data rows.npz",
        "lightship optimize leaves --data images/ --objective throughput --minutes 20",
        "lightship optimize leaves:3 --data rows.parquet --min-accuracy 0.9 --margin 0.005",
        "lightship optimize recipe.toml",
    )
)
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
              help="With classes: the accuracy that is proven; only then it is no structural release.")  # fmt: skip
@click.option("--margin", type=_SHARE, help="With labels: what is too much to lose of accuracy, or of right tags "
              "[default: 0.01]; by how much errors of numbers may grow. [default: 0.02]")  # fmt: skip
@click.option("--passes", multiple=True, callback=_passes, metavar="NAME[,NAME]",
              help="Passes or whole variants to try, in place of all that are worth it.")  # fmt: skip
@click.option("--label", default="label", show_default=True, metavar="NAME", help="The array or column of labels.")
@click.option("--label-kind", type=click.Choice(["classes", "tags", "numbers"]),
              help="What the labels are, where their dtype and shape do not tell.")  # fmt: skip
@click.option("--output", metavar="NAME", help="The output that the labels are about, where that is not clear.")
@click.option("--temperature", type=click.Choice(["report", "apply"]), default="report", show_default=True,
              help="With classes of images: apply puts the temperature that calibrates into the new version, in place "
              "of the one that it has.")  # fmt: skip
@click.option(
    "--accept-unproven",
    is_flag=True,
    help="Let the new version become production if the name has none yet, although nobody measured how good its "
    "answers are. The history says who accepted it.",
)
@json_option()
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
                f"--{given[0].replace('_', '-')} is for a released model; a recipe says this in a section of its own."
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
        say_json({**optimized.found, "stages": [stage.to_json()]})
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
    from lightship.pipeline.optimized import optimize_model
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
        done = optimize_model(name, budget=FidelityBudget(**said) if said else None, progress=progress, **options)
    if as_json:
        say_json(done.to_json())
    else:
        _say(done)


def _say(done: OptimizedRelease) -> None:
    rows = [_reference_row(done), *(_row(done, each) for each in _mappings(done.search.get("candidates")))]
    click.echo("")
    if sys.stdout.isatty():
        _say_front(done, rows)
    else:
        say_table(_Row.heads(), [row.whole() for row in rows])
    for word in done.words:
        click.echo(f"  {word}")
    if done.version is None:
        click.echo(f"\nThe reference of {done.name}:{done.parent} stays: nothing better passed. No new version.")
        click.echo(f"  report     {done.report.with_suffix('.html')}")
        click.echo("\nNext")
        click.echo(f"  lightship serve {done.name}:{done.parent}                        serve it as it is")
        click.echo(
            f"  lightship optimize {done.name}:{done.parent} --minutes 20 …      search longer, or for another goal"
        )
        return
    reference = f"{done.name}:{done.version}"
    click.echo(f"\nReleased {reference}  ({done.chosen})" + ("" if done.is_new else "  (unchanged)"))
    click.echo("\nEvidence")
    for row in done.evidence:
        say_line(f"  {row.verdict:<10} {row.check:<15} {row.summary}")
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


@dataclass(frozen=True, slots=True)
class _Row:
    """What is told of one variant, each figure as a text; empty: not measured."""

    name: str
    speed: str
    gain: str
    quality: str
    size: str
    memory: str
    why: str
    told: bool
    """Whether it belongs into the table of the front."""

    @staticmethod
    def heads() -> tuple[str, ...]:
        return ("VARIANT", "SPEED", "THROUGHPUT", "QUALITY", "SIZE", "MEMORY", "WHY")

    def whole(self) -> tuple[str, ...]:
        return (self.name, self.speed, self.gain, self.quality, self.size, self.memory, self.why)


def _say_front(done: OptimizedRelease, rows: Sequence[_Row]) -> None:
    """Say who is best at something, and of each other one in one line why it lost: it fits 80 columns."""
    wanted = ", ".join(_objective(done))
    click.echo(f"{done.name}:{done.parent} on this machine" + (f", wanted: {wanted}" if wanted else ""))
    front = sorted((row for row in rows if row.told), key=lambda row: row.name != done.chosen)
    cells = [("VARIANT", "SPEED", "QUALITY", "SIZE"), *((r.name, r.speed, r.quality, r.size) for r in front)]
    widths = [max(len(row[place]) for row in cells) for place in range(4)]
    for number, row in enumerate(cells):
        fitted = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        say_line("  ".join(("*" if number == 1 else " ", *fitted)).rstrip())
    click.echo(f"* {'stays' if done.version is None else 'released'}\n")
    lost = [(row.name, row.why) for row in rows if row.name not in (done.chosen, _REFERENCE)]
    if lost:
        click.echo("Why the others lost")
        for name, why in lost:
            say_line(f"  {name}: {why}")
        click.echo("")


def _objective(done: OptimizedRelease) -> list[str]:
    found = done.search.get("objective")
    weights = found if isinstance(found, Mapping) else {}
    return [name if weight == 1 else f"{name} x {weight:g}" for name, weight in weights.items() if weight]


def _reference_row(done: OptimizedRelease) -> _Row:
    base: Mapping[str, Any] = done.search.get("reference") or {}  # type: ignore[assignment]  # as the search wrote it
    latency, throughput = base.get("latency") or {}, base.get("throughput") or {}
    return _Row(
        name=_REFERENCE,
        speed=f"1x, {latency['p50_ms']:.3g} ms a call" if latency else "",
        gain=f"{throughput['rows_per_s']:,.0f} rows/s" if throughput else "",
        quality=_quality(base.get("quality")),
        size=_size(base.get("size_bytes")),
        memory=_size(base.get("memory_bytes")),
        why="chosen" if done.chosen == _REFERENCE else "",
        told=True,
    )


def _row(done: OptimizedRelease, each: Mapping[str, Any]) -> _Row:
    outcome = next((o for o in done.outcomes if o.name == each["name"]), None)
    why = each["dropped"] or (outcome.reason if outcome else "")
    chosen = each["name"] == done.chosen
    return _Row(
        name=each["name"],
        speed=_speed(each["latency"]),
        gain=_speed(each["throughput"]),
        quality=_quality(each["quality"]),
        size=_size(each["size_bytes"]),
        memory=_size(each["memory_bytes"]),
        why="chosen" if chosen else " ".join(why.split()),
        told=chosen or bool(each.get("on_front")),
    )


def _speed(found: Mapping[str, Any] | None) -> str:
    """Say how many times as fast as the reference, with the interval."""
    if not found:
        return ""
    ratio = found["ratio"]
    ends = [1 / ratio[end] if ratio[end] else float("inf") for end in ("high", "low")]
    return f"{1 / ratio['estimate']:.2f}x ({ends[0]:.2f} to {ends[1]:.2f})"


def _quality(found: Mapping[str, Any] | None) -> str:
    """Say the one figure that counts: rows that are right, else how alike the answers are to the reference's."""
    if not found:
        return ""
    if found.get("correct") is not None:
        return f"{found['correct']}/{found['rows']} right"
    if found.get("loss") is not None:
        return f"error {found['loss']:.3g}"
    if found.get("cosine"):
        return f"cos {found['cosine']['estimate']:.4f}"
    return f"{found['snr_db']['estimate']:.0f} dB" if found.get("snr_db") else ""


def _size(count: object) -> str:
    if not isinstance(count, int) or not count:
        return ""
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.0f} kB"


def _mappings(found: object) -> list[Mapping[str, Any]]:
    return [each for each in found if isinstance(each, Mapping)] if isinstance(found, list) else []
