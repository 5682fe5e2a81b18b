"""From what a person typed to digests, for servers: standard library and ``bundle`` only, the database read-only.

SQLAlchemy costs 0.6 s of import, which a server would pay in every process. The price is that the queries here know the
schema too: a migration that touches ``models``, ``versions``, ``aliases`` or ``history`` must change this file.
"""

from __future__ import annotations

import difflib
import json
import sqlite3
from contextlib import closing
from dataclasses import dataclass, fields
from pathlib import Path

from lightship.bundle.signing import TrustStore
from lightship.data.home import Home
from lightship.errors import NotFound, Refused
from lightship.registry.alias_moves import require_signed
from lightship.registry.names import PRODUCTION, Reference, fold
from lightship.registry.records import HistoryEntry
from lightship.registry.sqlite import HEAD, as_error, connect_reader, revision_of

__all__ = ["Resolved", "check_revision", "not_accepted", "resolve", "unknown_alias", "unknown_name", "unknown_version"]

_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Resolved:
    """The version that a reference names now.

    Attributes:
        bundle: digest of the bundle's manifest, ``sha256:<hex>``.
        release: digest of the signed release record, ``sha256:<hex>``.
        alias: the alias that led here, None when the version was named.
    """

    name: str
    version: int
    bundle: str
    release: str
    alias: str | None


def resolve(home: Home, reference: str) -> Resolved:
    """Return the version that ``reference`` names: ``digits`` (its production), ``digits@staging`` or ``digits:3``.

    Raises:
        InvalidInput: the reference has another form.
        NotFound: no such registry, name, alias or version; the message lists what exists.
        BundleRefused: nobody who is trusted has signed that the alias points where it does.
        Unavailable: another program holds the registry locked.
        LightshipError: the registry is damaged, or was written by a newer program.
    """
    wanted = Reference.parse(reference)
    path = home.registry
    with closing(connect_reader(path)) as connection:
        check_revision(connection, path)
        try:
            connection.execute("BEGIN")  # all queries see one moment
            return _find(connection, wanted, TrustStore(home.trust))
        except sqlite3.Error as exc:
            raise as_error(exc, path) from exc


def check_revision(connection: sqlite3.Connection, path: Path) -> None:
    """Refuse to read a registry of an older schema.

    Raises:
        Refused: it is one; the message says what brings it up to date.
    """
    if (revision := revision_of(connection, path)) != HEAD:
        raise Refused(
            f"The registry {path} has the older schema {revision}; this program reads {HEAD}. "
            "Run `lightship models` once as a user who may write there: it brings the registry up to date."
        )


def _require_signed(connection: sqlite3.Connection, name: str, alias: str, version: int, trust: TrustStore) -> None:
    """Refuse an alias that was moved by somebody without a key."""
    columns = ", ".join(f"history.{field.name}" for field in fields(HistoryEntry))
    row = connection.execute(
        f"SELECT {columns}, envelope FROM history LEFT JOIN alias_moves USING (seq) "  # noqa: S608 - our own names
        "WHERE name = ? AND alias = ? ORDER BY history.seq DESC LIMIT 1",
        (name, alias),
    ).fetchone()
    last, envelope = None, None
    if row is not None:
        said = dict(zip((field.name for field in fields(HistoryEntry)), row[:-1], strict=True))
        last, envelope = HistoryEntry(**{**said, "evidence": tuple(json.loads(said["evidence"]))}), row[-1]
    require_signed((name, alias, version), last, envelope, trust=trust)


def _find(connection: sqlite3.Connection, wanted: Reference, trust: TrustStore) -> Resolved:
    model = connection.execute("SELECT id FROM models WHERE name = ?", (wanted.name,)).fetchone()
    if model is None:
        names = [name for (name,) in connection.execute("SELECT name FROM models ORDER BY name")]
        raise unknown_name(wanted.name, names)
    version = wanted.version
    if wanted.alias is not None:
        found = connection.execute(
            "SELECT version FROM aliases WHERE model_id = ? AND alias = ?", (model[0], wanted.alias)
        ).fetchone()
        if found is None:
            if wanted.alias == PRODUCTION and (latest := _latest_unproven(connection, model[0])):
                raise not_accepted(wanted.name, latest)
            rows = connection.execute("SELECT alias FROM aliases WHERE model_id = ? ORDER BY alias", model)
            raise unknown_alias(wanted.name, wanted.alias, [alias for (alias,) in rows])
        version = int(found[0])
        _require_signed(connection, wanted.name, wanted.alias, version, trust)
    row = connection.execute(
        "SELECT bundle, release FROM versions WHERE model_id = ? AND version = ?", (model[0], version)
    ).fetchone()
    if row is None:
        rows = connection.execute("SELECT version FROM versions WHERE model_id = ? ORDER BY version", model)
        raise unknown_version(wanted.name, version, [number for (number,) in rows])
    return Resolved(wanted.name, int(version or 0), row[0], row[1], wanted.alias)


def _latest_unproven(connection: sqlite3.Connection, model_id: int) -> int | None:
    """Return the latest version if it is unproven, which is why there is no production."""
    latest = connection.execute(
        "SELECT version, unproven FROM versions WHERE model_id = ? ORDER BY version DESC LIMIT 1", (model_id,)
    ).fetchone()
    return int(latest[0]) if latest is not None and latest[1] else None


def not_accepted(name: str, version: int) -> NotFound:
    """Return the error for a name without a production, because nobody has accepted what is unproven."""
    return NotFound(
        f"The model {name!r} has no production: {name}:{version} was released unproven (see `lightship show "
        f"{name}:{version}`). Accept that with `lightship promote {name}:{version} --accept-unproven`, "
        f"or use the version by its number: {name}:{version}."
    )


def unknown_name(name: str, names: list[str]) -> NotFound:
    """Return the error for a name that is not there; near ones come first."""
    if not names:
        return NotFound(f"There is no model {name!r}: the registry is empty. Release one with `lightship ship`.")
    near = [known for known in names if fold(known) == fold(name)] or difflib.get_close_matches(name, names, n=3)
    if near:
        return NotFound(f"There is no model {name!r}. Did you mean {_listed(near)}?")
    return NotFound(f"There is no model {name!r}. There is: {_listed(names)}.")


def unknown_alias(name: str, alias: str, aliases: list[str]) -> NotFound:
    """Return the error for an alias that is not there."""
    return NotFound(
        f"The model {name!r} has no alias {alias!r}. Its aliases: {_listed(aliases) or 'none'}. "
        f"Set it with `lightship promote {name}:VERSION --alias {alias}`."
    )


def unknown_version(name: str, version: int | None, versions: list[int]) -> NotFound:
    """Return the error for a version that is not there."""
    return NotFound(f"The model {name!r} has no version {version}. Its versions: {_listed(versions) or 'none'}.")


def _listed(items: list[str] | list[int]) -> str:
    shown = [str(item) for item in items[-_SHOWN:]]
    more = len(items) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
