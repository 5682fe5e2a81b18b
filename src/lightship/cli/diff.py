"""``lightship diff``: what tells one release from another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lightship.cli.examples import examples
from lightship.cli.json_answer import json_option, say_json
from lightship.cli.progress import make_progress
from lightship.cli.table import say_table

if TYPE_CHECKING:
    from lightship.types import Interval
    from lightship.validate.report.comparison import ComparisonFacts, Figure, SideFacts

__all__ = ["diff"]


@click.command(
    epilog=examples(
        "lightship diff digits:1 digits:2", "lightship diff digits digits@staging --data rows.npz --html diff.html"
    )
)
@click.argument("before", metavar="NAME[@ALIAS|:VERSION]")
@click.argument("after", metavar="NAME[@ALIAS|:VERSION]")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Rows that both shall answer here and now: a .npz or .parquet file (inputs by name), or a folder; of images "
    "for a model of images. Then both are timed in pairs, too.",
)
@click.option("--label", default="label", show_default=True, help="The array or column of --data with the classes.")
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), help="Write the comparison as a page, too.")
@json_option()
@click.option("--quiet", is_flag=True, help="Show no progress.")
def diff(before: str, after: str, data: Path | None, label: str, html: Path | None, as_json: bool, quiet: bool) -> None:
    """Compare two releases: what was changed, how good and how fast each is, which proofs came or went.

    Both are verified first. The figures are those of their signed evidence; a difference is told only where the two
    can be compared: on the same rows, on the same machine. For the rest it says that they cannot.
    """
    from lightship.pipeline.compare import compare

    with make_progress(quiet=quiet or data is None) as progress:
        facts = compare(before, after, data=data, label=label, progress=progress)
    if html is not None:
        from lightship.data.files import write_atomic
        from lightship.validate.report.page import render_comparison

        write_atomic(html, render_comparison(facts).encode())
    if as_json:
        say_json(facts.to_json())
    else:
        _say(facts)
        if html is not None:
            click.echo(f"\nWrote {html}")


def _say(facts: ComparisonFacts) -> None:
    click.echo(facts.headline)
    for finding in facts.findings:
        click.echo(f"  {finding.about:<9} {finding.word:<20} {finding.sentence}")
    click.echo("")
    titles = [f"{side.name}:{side.version}".upper() for side in (facts.before, facts.after)]
    say_table(("RELEASE", *titles), _sides(facts.before, facts.after), title="The two releases")
    click.echo("")
    if facts.changes:
        say_table(
            ("CHANGED", "WHAT", *titles),
            ((c.topic, _short(c.what), _short(c.before), _short(c.after)) for c in facts.changes),
            title="What was changed",
        )
    else:
        click.echo("Nothing was changed.")
    _say_figures(facts.figures, titles, title="Figures")
    if facts.paired is not None:
        _say_figures(
            facts.paired.figures, titles, title=f"Both on the {facts.paired.rows:,} rows of {facts.paired.source}"
        )
    click.echo("")
    say_table(
        ("CHECK", *titles, "CHANGE"),
        ((e.check, e.before or "-", e.after or "-", "" if e.change == "same" else e.change) for e in facts.evidence),
        title="Evidence",
    )


def _say_figures(figures: Sequence[Figure], titles: Sequence[str], *, title: str) -> None:
    click.echo("")
    say_table(
        ("FIGURE", *titles, "DIFFERENCE", "BASIS"),
        ((f.name, _figure(f.before, f.unit), _figure(f.after, f.unit), _difference(f), f.basis) for f in figures),
        title=title,
    )


def _sides(one: SideFacts, two: SideFacts) -> list[tuple[str, str, str]]:
    rows = [
        (
            "runs",
            *(f"{side.default}, {side.precision}, {side.engine}" for side in (one, two)),
        ),
        ("status", *(_status(side) for side in (one, two))),
        ("unproven", *(", ".join(side.unproven) or "-" for side in (one, two))),
        ("created", *(side.created for side in (one, two))),
        ("bundle", *(_short(side.bundle) for side in (one, two))),
        ("signed by", *(side.signer for side in (one, two))),
        ("measured on", *(", ".join(v for k, v in side.machine if k in ("cpu",)) or "-" for side in (one, two))),
    ]
    return [(name, before, after) for name, before, after in rows]


def _status(side: SideFacts) -> str:
    return "structural: how good its answers are was not judged" if side.status == "structural" else side.status


def _short(text: str | None) -> str:
    """Cut a digest; take from a text what a terminal would obey: labels come from data."""
    from lightship.validate.report.svg import clean

    if text is None:
        return "-"
    text = clean(text)
    return text.removeprefix("sha256:")[:12] if text.startswith("sha256:") else text


def _number(value: float, unit: str) -> str:
    if unit == "share":
        return f"{100 * value:.2f} %"
    if unit == "bytes":
        return f"{value:,.0f}"
    return f"{value:.6f}" if unit == "cosine" else f"{value:.4g} {unit}".replace(" times", "x")


def _figure(value: Interval | None, unit: str) -> str:
    if value is None:
        return "-"
    shown = _number(value.estimate, unit)
    if value.low == value.high:
        return shown
    return f"{shown} ({_number(value.low, unit)} to {_number(value.high, unit)})"


def _difference(figure: Figure) -> str:
    gap = figure.difference
    if gap is None:
        return "-"
    if figure.unit in ("share",):
        return f"{100 * gap.estimate:+.2f} points ({100 * gap.low:+.2f} to {100 * gap.high:+.2f})"
    words = f"x {gap.estimate:.3g}" if figure.unit == "bytes" else f"{gap.estimate:.2f} times as fast"
    return words if gap.low == gap.high else f"{words} ({gap.low:.2f} to {gap.high:.2f})"
