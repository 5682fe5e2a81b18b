"""``models``, ``show``, ``promote``, ``rollback`` and ``history``: what there is, what is live, and who decided it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lightship.cli.examples import examples
from lightship.cli.json_answer import json_option, say_json
from lightship.cli.table import say_table

if TYPE_CHECKING:
    from lightship.registry.database import Registry
    from lightship.registry.records import AliasMove, HistoryCheck, HistoryEntry, Live, ModelRecord, VersionRecord
    from lightship.registry.releases import SignedVersion

__all__ = ["history", "models", "promote", "rollback", "show"]

_json_option = json_option()
_alias_option = click.option("--alias", default="production", show_default=True, help="The alias to move.")
_accept_option = click.option(
    "--accept-unproven",
    is_flag=True,
    help="Go on even if evidence for that version is missing; the history says who accepted it.",
)
_why_option = click.option("--why", default="", help="The reason; it is kept in the history.")


@click.command(epilog=examples("lightship models", "lightship models --json"))
@_json_option
def models(as_json: bool) -> None:
    """List the models of this home: versions, where the aliases point, and which versions are unproven."""
    from lightship.data.home import Home

    found: tuple[ModelRecord, ...] = ()
    if Home.from_environment().registry.exists():
        with _open() as registry:
            found = registry.models()
    if as_json:
        say_json({"models": [asdict(model) for model in found]})
        return
    if not found:
        click.echo(
            "There is no model yet. Release one with: lightship ship RECIPE.toml, or lightship import FILE", err=True
        )
        return
    say_table(
        ("NAME", "VERSIONS", "LATEST", "ALIASES", "UNPROVEN"),
        (
            (model.name, str(model.versions), str(model.latest), _pairs(model.aliases.items()), _listed(model.unproven))
            for model in found
        ),
    )  # fmt: skip


@click.command(
    epilog=examples(
        "lightship show digits",
        "lightship show digits:2 --html report.html",
        "lightship show digits@staging --card > card.md",
    )
)
@click.argument("reference", metavar="NAME[@ALIAS|:VERSION]")
@click.option("--card", is_flag=True, help="Print the model card (Markdown) instead.")
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), help="Write the report as a page instead.")
@_json_option
def show(reference: str, card: bool, html: Path | None, as_json: bool) -> None:
    """Show one version, its digests and its evidence, and which other versions there are.

    A bare NAME shows its production. Status and evidence are read from the signed release; if that does not verify, or
    the registry says something else, the exit code is 6. Card and report are made of the signed evidence alone.
    """
    from lightship.errors import BundleRefused

    if card or html is not None:
        _say_report(reference, card=card, html=html, as_json=as_json)
        return

    with _open() as registry:
        version = registry.find(reference)
        versions = registry.versions(version.name)
        signed, problem = _signed(registry, version)
    if as_json:
        others = [{"version": v.version, "created": v.created, "aliases": list(v.aliases)} for v in versions]
        say_json({**_believed(version, signed, problem), "versions": others})
    else:
        _say_version(version, signed, problem)
        click.echo("")
        say_table(
            ("CHECK", "VERDICT", "SUMMARY", "DIGEST"),
            (
                (row.check, row.verdict if signed else f"{row.verdict} (not verified)", row.summary, _short(row.digest))
                for row in (version if signed is None else signed).evidence
            ),
            title="Evidence",
        )
        click.echo("")
        _say_versions(version.name, versions)
    if problem:
        raise BundleRefused(problem)


def _say_report(reference: str, *, card: bool, html: Path | None, as_json: bool) -> None:
    from lightship.data.files import write_atomic
    from lightship.data.home import Home
    from lightship.pipeline.release_card import card_of
    from lightship.pipeline.release_report import release_facts
    from lightship.validate.report.page import render_page

    home = Home.from_environment()
    if html is not None:
        write_atomic(html, render_page(release_facts(home, reference)).encode())
    if as_json:
        written = {"html": str(html)} if html is not None else {}
        say_json({**written, "card": card_of(home, reference)} if card else written)
    elif card:
        click.echo(card_of(home, reference), nl=False)
    elif html is not None:
        click.echo(f"Wrote {html}")


def _say_versions(name: str, versions: Iterable[VersionRecord]) -> None:
    say_table(
        ("VERSION", "CREATED", "BY", "ALIASES", "NOTE"),
        (
            (str(v.version), _minute(v.created), v.created_by, " ".join(v.aliases), v.note)
            for v in versions
        ),
        title=f"Versions of {name}",
    )  # fmt: skip


@click.command(
    epilog=examples('lightship promote digits:2 --why "better on the night shift"', "lightship promote digits@staging")
)
@click.argument("reference", metavar="NAME:VERSION")
@_alias_option
@_why_option
@_accept_option
@_json_option
def promote(reference: str, alias: str, why: str, accept_unproven: bool, as_json: bool) -> None:
    """Point an alias at a version. A running server follows as soon as it has loaded it.

    NAME@ALIAS works too: `lightship promote digits@staging` makes production what staging is.
    """
    from lightship.registry.names import Reference

    if not set(reference) & {":", "@"}:
        raise click.UsageError(f"Say which version of {reference} to promote, e.g. {reference}:2.")
    wanted = Reference.parse(reference)
    with _open() as registry:
        version = registry.find(str(wanted)).version
        move = registry.promote(wanted.name, version, alias, who=_who(), why=why, accept_unproven=accept_unproven)
    _say_move(move, as_json)


@click.command(epilog=examples('lightship rollback digits --why "errors since noon"'))
@click.argument("name")
@_alias_option
@_why_option
@_accept_option
@_json_option
def rollback(name: str, alias: str, why: str, accept_unproven: bool, as_json: bool) -> None:
    """Point an alias of NAME back at the version it had before. Done twice, it goes two versions back."""
    with _open() as registry:
        move = registry.rollback(name, alias, who=_who(), why=why, accept_unproven=accept_unproven)
    _say_move(move, as_json)


@click.command(
    epilog=examples(
        "lightship history digits", "lightship history --at 2026-03-01T12:00:00Z", "lightship history --verify"
    )
)
@click.argument("name", required=False)
@click.option(
    "--at",
    metavar="TIME",
    help="What was live then: 2026-03-01T12:00:00Z, or 2026-03-01 for the end of that day (UTC).",
)
@click.option("--verify", is_flag=True, help="Recompute the chain of hashes first; exit code 6 if it does not hold.")
@_json_option
def history(name: str | None, at: str | None, verify: bool, as_json: bool) -> None:
    """Show who changed what, when and why, and what was live at a time. Without NAME: all models."""
    with _open() as registry:
        check = registry.verify_history() if verify else None
        found = registry.history(name, at=at)
    if as_json:
        shown = {**asdict(found), "verified": None if check is None else {**asdict(check), "ok": check.ok}}
        say_json(shown)
    else:
        _say_live(found.live, at=found.at)
        click.echo("")
        _say_lines(found.entries)
        if check is not None and check.ok:
            click.echo(f"\n{check.count} lines verified. Head: {check.head}")
    if check is not None:
        _refuse_broken(check)


def _open() -> Registry:
    from lightship.data.home import Home
    from lightship.errors import NotFound
    from lightship.registry.database import open_database

    home = Home.from_environment()
    if not home.registry.exists():  # looking, or moving what is not there, must not make a registry
        raise NotFound(f"There is no registry at {home.registry}. Release a model first: lightship ship RECIPE.toml")
    return open_database(home)


def _refuse_broken(check: HistoryCheck) -> None:
    from lightship.errors import Refused

    if not check.ok:
        raise Refused("The history does not hold: " + " ".join(check.problems))


def _say_move(move: AliasMove, as_json: bool) -> None:
    if as_json:
        say_json(asdict(move))
    elif not move.changed:
        click.echo(f"{move.name}@{move.alias} is version {move.to_version} already; nothing was changed.")
    elif move.from_version is None:
        click.echo(f"{move.name}@{move.alias} is now version {move.to_version} (new alias).")
    else:
        click.echo(f"{move.name}@{move.alias} is now version {move.to_version} (was {move.from_version}).")


def _signed(registry: Registry, version: VersionRecord) -> tuple[SignedVersion | None, str]:
    """Return what was signed about a version, if it can be read, and what is wrong about it."""
    from lightship.errors import BundleRefused
    from lightship.registry.releases import contradiction

    try:
        signed = registry.signed(version)
    except BundleRefused as exc:
        return None, str(exc)
    return signed, "" if signed is None else contradiction(version, signed)


def _believed(version: VersionRecord, signed: SignedVersion | None, problem: str) -> dict[str, Any]:
    """Return a version as JSON, with what was signed in place of what the registry says."""
    shown = {**asdict(version), "unproven": version.unproven or signed is None or signed.unproven}
    if signed is not None:
        shown["evidence"] = [asdict(row) for row in signed.evidence]
        signer = {"key_id": signed.signer.key_id, "name": signed.signer.name, "local": signed.signer.local}
        return {**shown, "signed": {"status": signed.status, "signer": signer}, "problem": problem or None}
    return {**shown, "signed": None, "problem": problem or None}


def _status(version: VersionRecord, signed: SignedVersion | None, problem: str) -> str:
    from lightship.types import Verdict

    if signed is None:
        return f"unproven: its signed release {'does not verify' if problem else 'is not in the store'}"
    if not (signed.unproven or version.unproven):
        return f"released on {len(signed.evidence)} checks"
    lacking = ", ".join(row.check for row in signed.evidence if row.verdict == Verdict.UNPROVEN)
    return f"unproven: {lacking or 'evidence'} {'was not measured' if lacking else 'is missing'}"


def _say_version(version: VersionRecord, signed: SignedVersion | None, problem: str) -> None:
    lines = {
        f"{version.name}:{version.version}": " ".join(f"@{alias}" for alias in version.aliases) or "(no alias)",
        "status": _status(version, signed, problem),
        "released": f"{_minute(version.created)} by {version.created_by}",
        "note": version.note or "-",
        "bundle": version.bundle,
        "release": version.release,
    }
    width = max(map(len, lines))
    for key, text in lines.items():
        click.echo(f"{key:<{width}}  {' '.join(text.split())}")


def _say_live(live: Iterable[Live], *, at: str | None) -> None:
    say_table(
        ("LIVE", "VERSION", "SINCE", "BUNDLE"),
        ((f"{item.name}@{item.alias}", str(item.version), _minute(item.since), _short(item.bundle)) for item in live),
        title="Live now" if at is None else f"Live at {at}",
    )


def _say_lines(entries: Iterable[HistoryEntry]) -> None:
    say_table(
        ("AT", "WHO", "WHAT", "MODEL", "CHANGE", "WHY"),
        ((_minute(e.at), e.who, e.action, f"{e.name}:{e.version}", _change(e), e.why) for e in entries),
        title="History",
    )


def _change(entry: HistoryEntry) -> str:
    if entry.alias is None:
        return ""
    return f"@{entry.alias} {'-' if entry.from_version is None else entry.from_version} -> {entry.to_version}"


def _pairs(aliases: Iterable[tuple[str, int]]) -> str:
    return " ".join(f"{alias}={version}" for alias, version in aliases)


def _listed(versions: Iterable[int]) -> str:
    return " ".join(map(str, versions)) or "-"


def _minute(at: str) -> str:
    """Return a moment without its microseconds."""
    return f"{at[:19]}Z"


def _short(digest: str) -> str:
    return digest.removeprefix("sha256:")[:12]


def _who() -> str:
    from lightship.registry.user import current_user

    return current_user()
