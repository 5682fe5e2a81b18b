"""The registry: names, versions, aliases, and the history of who moved what, when and why.

Every change is one transaction: the rows, the line in the history and the head of its chain are written together or
not at all, and flushed to the disk before the call returns. Servers do not use this module but ``resolve``.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from datetime import date, datetime
from pathlib import Path
from typing import Any, Self

from sqlalchemy import Connection, Row, RowMapping, func, insert, select, update
from sqlalchemy.dialects.sqlite import insert as insert_or
from sqlalchemy.exc import DBAPIError

from lightship.bundle.signing import PrivateKey, TrustStore
from lightship.data.files import canonical_json
from lightship.data.home import Home
from lightship.errors import BundleRefused, Conflict, GateRefused, InvalidInput, LightshipError
from lightship.registry.alias_moves import require_signed, signed_move
from lightship.registry.chain import breaks, live_aliases, previous_versions, sealed
from lightship.registry.engines import reader, writer
from lightship.registry.migrate import prepare
from lightship.registry.moments import moment, now, stamp
from lightship.registry.names import PRODUCTION, Reference, check_alias, check_name, check_version, fold
from lightship.registry.records import (
    AliasMove,
    EvidenceRow,
    History,
    HistoryCheck,
    HistoryEntry,
    ModelRecord,
    Registered,
    VersionRecord,
)
from lightship.registry.releases import SignedVersion, contradiction, signed_version
from lightship.registry.resolve import check_revision, not_accepted, unknown_alias, unknown_name, unknown_version
from lightship.registry.sqlite import as_error, connect_reader, write_lock
from lightship.registry.tables import ALIAS_MOVES, ALIASES, CHAIN_HEAD, GATE_LOOKS, HISTORY, MODELS, VERSIONS

__all__ = ["Registry", "open_database"]

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_WHO_CHARACTERS = 200
_TEXT_CHARACTERS = 4000
_SIGNS_MOVES = "0002"  # the first schema whose moves of aliases are signed
ACCEPTED = "[accepted as unproven]"
"""Stands in the history's reason of a move whose person accepted a version without all of its evidence."""


def open_database(home: Home, *, read_only: bool = False, clock: Callable[[], datetime] = now) -> Registry:
    """Open the registry of ``home``; make it, or bring its schema up to date, unless ``read_only``.

    Raises:
        NotFound: ``read_only`` and there is none.
        Refused: a newer program has written it, or, ``read_only``, an older one; or it is a database of something else.
        LightshipError: the file is damaged; it was left as it is.
    """
    if read_only:
        with closing(connect_reader(home.registry)) as connection:
            check_revision(connection, home.registry)
    else:
        prepare(home.registry, upgraded=lambda old: _sign_old_moves(home, old, clock))
    return Registry(home, read_only=read_only, clock=clock)


def _sign_old_moves(home: Home, old: str, clock: Callable[[], datetime]) -> None:
    """Sign where the aliases of a registry point that comes from a program which signed no moves."""
    if old < _SIGNS_MOVES:
        with Registry(home, clock=clock) as registry:
            registry.sign_old_moves()


class Registry:
    """Names, versions, aliases and history in one SQLite file. Safe to use from threads and from many processes.

    All answers are frozen values of ``records``. Where it decides something whether a version is proven, that is read
    from its signed release in the store: the file's own columns are not signed. Besides the errors that each method
    names, all raise ``Unavailable`` when another process holds the file for too long, and ``LightshipError`` when the
    file or its disk is damaged.
    """

    def __init__(self, home: Home, *, read_only: bool = False, clock: Callable[[], datetime] = now) -> None:
        self.path: Path = home.registry
        self.read_only = read_only
        self._home = home
        self._clock = clock
        self._reader = reader(self.path)
        self._writer = writer(self.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        self._reader.dispose()
        self._writer.dispose()

    # -- reading ------------------------------------------------------------------------------------------------

    def models(self) -> tuple[ModelRecord, ...]:
        """Return every name, sorted."""
        with self._read() as connection:
            aliases: dict[int, dict[str, int]] = {}
            for row in connection.execute(select(ALIASES).order_by(ALIASES.c.alias)):
                aliases.setdefault(row.model_id, {})[row.alias] = row.version
            unproven: dict[int, list[int]] = {}
            lacking = select(VERSIONS.c.model_id, VERSIONS.c.version).where(VERSIONS.c.unproven)
            for row in connection.execute(lacking.order_by(VERSIONS.c.version)):
                unproven.setdefault(row.model_id, []).append(row.version)
            query = (
                select(MODELS, func.count().label("versions"), func.max(VERSIONS.c.version).label("latest"))
                .join(VERSIONS, VERSIONS.c.model_id == MODELS.c.id)
                .group_by(MODELS.c.id)
                .order_by(MODELS.c.name)
            )
            return tuple(
                ModelRecord(
                    row.name,
                    row.created,
                    row.versions,
                    row.latest,
                    aliases.get(row.id, {}),
                    tuple(unproven.get(row.id, [])),
                )
                for row in connection.execute(query)
            )

    def versions(self, name: str) -> tuple[VersionRecord, ...]:
        """Return all versions of a name, oldest first.

        Raises:
            NotFound: there is no such name.
        """
        with self._read() as connection:
            return _versions(connection, name)

    def find(self, reference: str) -> VersionRecord:
        """Return the version that ``name``, ``name@alias`` or ``name:version`` names.

        Raises:
            InvalidInput: the reference has another form.
            NotFound: there is no such name, alias or version.
            BundleRefused: nobody who is trusted has signed that the alias points there.
        """
        with self._read() as connection:
            return self._followed(connection, Reference.parse(reference))

    def alias(self, name: str, alias: str = PRODUCTION) -> VersionRecord:
        """Return the version that an alias points to.

        Raises:
            NotFound: there is no such name or alias.
            BundleRefused: nobody who is trusted has signed that it points there.
        """
        with self._read() as connection:
            return self._followed(connection, Reference(check_name(name), check_alias(alias), None))

    def _followed(self, connection: Connection, wanted: Reference) -> VersionRecord:
        """Return the version that a reference names; an alias is followed only where its move is signed."""
        found = _find(connection, wanted)
        if wanted.alias is not None:
            self._require_signed(connection, wanted.name, wanted.alias, found.version)
        return found

    def signed(self, record: VersionRecord) -> SignedVersion | None:
        """Return what was signed about a version, or ``None`` if the store does not have its release.

        Raises:
            BundleRefused: a signature or a digest is wrong, or the release is of something else.
        """
        return signed_version(self._home, record.name, record.version, bundle=record.bundle, release=record.release)

    def history(self, name: str | None = None, at: datetime | date | str | None = None) -> History:
        """Return what happened, and what was live, up to a moment.

        Args:
            name: this model only; None: all.
            at: a moment, included; text is RFC 3339 with a zone; a date alone means its end, UTC. None: now.

        Raises:
            InvalidInput: ``at`` cannot be read as a moment.
            NotFound: there is no such name now.
        """
        until = None if at is None else moment(at)
        with self._read() as connection:
            if name is not None:
                _model_id(connection, name)
            entries = tuple(_history(connection, name=name, until=until))
        return History(until, entries, live_aliases(entries))

    def verify_history(self) -> HistoryCheck:
        """Recompute the whole chain, and compare versions and aliases with what the history says of them."""
        with self._read() as connection:
            head = connection.execute(select(CHAIN_HEAD)).one_or_none()
            count, last = (head.lines, head.hash) if head is not None else (0, "")
            entries = list(_history(connection))
            problems = list(breaks(entries, head_count=count, head_hash=last))
            problems += _contradictions(connection, entries)
            problems += self._unsigned(connection)
        return HistoryCheck(len(entries), last, tuple(problems))

    def _unsigned(self, connection: Connection) -> Iterator[str]:
        """Yield what is wrong with the signed moves of the aliases."""
        query = select(MODELS.c.name, ALIASES.c.alias, ALIASES.c.version).join(
            MODELS, MODELS.c.id == ALIASES.c.model_id
        )
        for name, alias, version in connection.execute(query.order_by(MODELS.c.name, ALIASES.c.alias)).all():
            try:
                self._require_signed(connection, name, alias, version)
            except BundleRefused as exc:
                yield str(exc).partition(" Somebody changed")[0]

    # -- writing ------------------------------------------------------------------------------------------------

    def add_version(
        self,
        name: str,
        *,
        bundle: str,
        release: str | Callable[[int], str],
        who: str,
        evidence: Sequence[EvidenceRow] = (),
        why: str = "",
        note: str = "",
        version: int | None = None,
        unproven: bool = False,
        accept_unproven: bool = False,
    ) -> Registered:
        """Register a bundle as the next version of a name.

        The first version of a name becomes its ``production``. An unproven one does only with ``accept_unproven``; the
        place stays free then for the first later version that may have it.

        The same bundle under the same name is one version, however often it is registered: the answer is then the
        version that it has, with ``is_new`` False, and no second one is written.

        Args:
            name: what the model is called; see ``names.check_name``.
            bundle: digest of the bundle's manifest, ``sha256:<hex>``.
            release: digest of the signed release record; or a function that is given the version number, makes the
                record and returns its digest. It runs while no other process can take a number, so it must be quick;
                when it raises, nothing is registered.
            who: the person or program that registers.
            evidence: one row for each piece that the release rests on. Left out, they are read from the release.
            why: the reason, for the history.
            note: what people should know about this version.
            version: a number to use in place of the next one; it must be above all that exist.
            unproven: the release lacks evidence that it should have. So does one that is structural, that lists no
                evidence or that the store does not have, whatever is said here. See ``promote``.
            accept_unproven: ``who`` accepts that, so that it may become production; the history says so. Only ``True``
                is consent.

        Raises:
            InvalidInput: a name, digest or text that is not allowed, or other evidence than the release lists.
            BundleRefused: the release does not verify, or is of another name, version or bundle.
            Conflict: ``version`` is taken or too low, or another name differs only in its separators.
        """
        check_name(name)
        _check_digests(bundle, *(row.digest for row in evidence))
        for what, text in {"why": why, "note": note}.items():
            _check_text(what, text)
        if version is not None:
            check_version(version)
        with self._write(who) as (connection, at):
            known = _known(connection, name, bundle)
            if known is not None:
                if version not in {None, known.version}:
                    raise Conflict(
                        f"The bundle {bundle} is version {known.version} of {name!r} already, not {version}."
                    )
                record = _find(connection, Reference(name, None, known.version))
                alias = self._take_free_place(connection, record, accept_unproven, at=at, who=who)
                return Registered(name, known.version, known.bundle, known.release, is_new=False, alias=alias)
            model_id = _add_model(connection, name, at)
            number = _next_version(connection, model_id, name, version)
            release_digest = release if isinstance(release, str) else release(number)
            _check_digests(release_digest)
            signed = signed_version(self._home, name, number, bundle=bundle, release=release_digest)
            rows = _rows(f"{name}:{number}", tuple(evidence), signed)
            connection.execute(
                insert(VERSIONS).values(
                    model_id=model_id, version=number, bundle=bundle, release=release_digest, created=at,
                    created_by=who, note=note, unproven=bool(unproven) or signed is None or signed.unproven,
                    evidence=canonical_json([asdict(row) for row in rows]).decode(),
                )
            )  # fmt: skip
            record = _find(connection, Reference(name, None, number))
            _append(connection, record, at=at, who=who, action="register", why=why)
            alias = self._take_free_place(connection, record, accept_unproven, at=at, who=who)
        return Registered(name, number, bundle, release_digest, is_new=True, alias=alias)

    def promote(
        self,
        name: str,
        version: int,
        alias: str = PRODUCTION,
        *,
        who: str,
        why: str = "",
        accept_unproven: bool = False,
    ) -> AliasMove:
        """Point an alias at a version. An alias that points there already stays, and nothing is written.

        What counts is the signed release in the store: a version whose release is structural, or not there, is
        unproven whatever the registry says of it.

        Raises:
            NotFound: there is no such name or version.
            GateRefused: the version is unproven and ``accept_unproven`` is not ``True``.
            BundleRefused: its release does not verify, or the registry says something else of it.
        """
        check_alias(alias)
        check_version(version)
        _check_text("why", why)
        with self._write(who) as (connection, at):
            record = _find(connection, Reference(check_name(name), None, version))
            current = _alias_version(connection, name, alias)
            if current == version and self._is_signed(connection, name, alias, version):
                return AliasMove(name, alias, version, version, changed=False)
            if lacking := self._lacking(record):
                _require_accepted(record, lacking, accept_unproven, command=f"promote {name}:{version}")
                why = _accepted(why)
            self._sign(connection, _move(connection, record, alias, current, at=at, who=who, action="promote", why=why))
        return AliasMove(name, alias, current, version, changed=True)

    def rollback(
        self, name: str, alias: str = PRODUCTION, *, who: str, why: str = "", accept_unproven: bool = False
    ) -> AliasMove:
        """Point an alias at the version that it had before. Done twice, it goes two versions back.

        Raises:
            NotFound: there is no such name or alias.
            Conflict: the alias had no version before.
            GateRefused: that version is unproven, nobody has accepted it for this alias, and ``accept_unproven`` is
                not ``True``.
            BundleRefused: its release does not verify, or the registry says something else of it.
        """
        check_alias(alias)
        _check_text("why", why)
        with self._write(who) as (connection, at):
            current = _find(connection, Reference(check_name(name), alias, None)).version
            self._require_signed(connection, name, alias, current)
            moves = [e for e in _history(connection, name=name) if e.alias == alias]
            been = previous_versions(moves)
            if len(been) < 2:
                raise Conflict(
                    f"{name}@{alias} had no version before its version {current}, so there is nothing to go back to. "
                    f"Use `lightship promote {name}:VERSION --alias {alias}`."
                )
            record = _find(connection, Reference(name, None, been[-2]))
            accepted = any(e.version == record.version and ACCEPTED in e.why for e in moves)
            if (lacking := self._lacking(record)) and not accepted:
                _require_accepted(record, lacking, accept_unproven, command=f"rollback {name}")
                why = _accepted(why)
            self._sign(
                connection, _move(connection, record, alias, current, at=at, who=who, action="rollback", why=why)
            )
        return AliasMove(name, alias, current, record.version, changed=True)

    def sign_old_moves(self) -> None:
        """Sign the last move of every alias that has none, if history and tables agree.

        Only for a registry from before moves were signed: later a missing signature is what tells of a change.

        Raises:
            BundleRefused: they do not agree, so nothing is signed.
        """
        with self._write("migration") as (connection, _):
            head = connection.execute(select(CHAIN_HEAD)).one()
            entries = list(_history(connection))
            problems = [*breaks(entries, head_count=head.lines, head_hash=head.hash)]
            if problems := [*problems, *_contradictions(connection, entries)]:
                raise BundleRefused(
                    f"The aliases of the old registry {self.path} are not signed, for its history does not hold: "
                    f"{' '.join(problems)} Put each where it should point: `lightship promote NAME:VERSION`."
                )
            for entry in {(e.name, e.alias): e for e in entries if e.alias is not None}.values():
                self._sign(connection, entry)

    def count_look(self, fingerprint: str, subject: str) -> int:
        """Note that ``subject`` was measured on a gate set, and return how many distinct subjects were so far.

        Args:
            fingerprint: names the gate set's rows.
            subject: digest of the graph that was measured on them. The same one again is no new look.
        """
        with self._write("gate") as (connection, at):
            row = {"fingerprint": fingerprint, "subject": subject, "at": at}
            connection.execute(insert_or(GATE_LOOKS).values(row).on_conflict_do_nothing())
            query = select(func.count()).where(GATE_LOOKS.c.fingerprint == fingerprint)
            return int(connection.execute(query).scalar_one())

    # -- trust --------------------------------------------------------------------------------------------------

    def _lacking(self, record: VersionRecord) -> str:
        """Return why a version is unproven, by its signed release; nothing if it is proven.

        Raises:
            BundleRefused: the release does not verify, or the registry says something else of it.
        """
        signed = self.signed(record)
        if signed is None:
            return f"its signed release {record.release} is not in the store"
        if problem := contradiction(record, signed):
            raise BundleRefused(problem)
        if signed.unproven or record.unproven:
            return "evidence that shows it to be right is missing"
        return ""

    def _take_free_place(
        self, connection: Connection, record: VersionRecord, accept_unproven: bool, *, at: str, who: str
    ) -> str | None:
        """Make a version production if the name never had one and this one may be it; return the alias it got."""
        if any(entry.alias == PRODUCTION for entry in _history(connection, name=record.name)):
            return None
        lacking = self._lacking(record)
        if lacking and accept_unproven is not True:
            return None
        why = _accepted("first version") if lacking else "first version"
        entry = _move(connection, record, PRODUCTION, None, at=at, who=who, action="promote", why=why)
        self._sign(connection, entry)
        return PRODUCTION

    def _sign(self, connection: Connection, entry: HistoryEntry) -> None:
        """Sign a line that moved an alias, with the key of this home, which it trusts."""
        key = PrivateKey.load_or_create(self._home.keys)
        TrustStore(self._home.trust).add_local(key)
        envelope = signed_move(entry, key=key)
        connection.execute(insert_or(ALIAS_MOVES).values(seq=entry.seq, envelope=envelope).on_conflict_do_nothing())

    def _require_signed(self, connection: Connection, name: str, alias: str, version: int) -> None:
        moves = [entry for entry in _history(connection, name=name) if entry.alias == alias]
        last = moves[-1] if moves else None
        query = select(ALIAS_MOVES.c.envelope).where(ALIAS_MOVES.c.seq == (last.seq if last else 0))
        envelope = connection.execute(query).scalar_one_or_none()
        require_signed((name, alias, version), last, envelope, trust=TrustStore(self._home.trust))

    def _is_signed(self, connection: Connection, name: str, alias: str, version: int) -> bool:
        try:
            self._require_signed(connection, name, alias, version)
        except BundleRefused:
            return False
        return True

    # -- transactions -------------------------------------------------------------------------------------------

    @contextmanager
    def _read(self) -> Iterator[Connection]:
        with self._our_errors(), self._reader.begin() as connection:
            yield connection

    @contextmanager
    def _write(self, who: str) -> Iterator[tuple[Connection, str]]:
        """Give a transaction and its moment: now, or that of the last line if the clock has gone back."""
        if self.read_only:
            raise LightshipError(f"The registry {self.path} was opened to read only.")
        _check_text("who", who, limit=_WHO_CHARACTERS)
        if not who.strip():
            raise InvalidInput("`who` must name the person or program that makes the change. Got an empty text.")
        with self._our_errors(), write_lock(self.path), self._writer.begin() as connection:
            last = connection.execute(select(func.max(HISTORY.c.at))).scalar_one()
            yield connection, max(stamp(self._clock()), last or "")

    @contextmanager
    def _our_errors(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as exc:
            if isinstance(exc.orig, sqlite3.Error):
                raise as_error(exc.orig, self.path) from exc
            raise
        except sqlite3.Error as exc:
            raise as_error(exc, self.path) from exc


def _check_digests(*digests: str) -> None:
    for digest in digests:
        if not _DIGEST.fullmatch(digest):
            raise InvalidInput(f"A digest must be 'sha256:' and 64 hex digits. Got {digest[:80]!a}.")


def _rows(what: str, given: tuple[EvidenceRow, ...], signed: SignedVersion | None) -> tuple[EvidenceRow, ...]:
    """Return the evidence of a version: what its release lists, which is what is said of it if anything is."""
    if signed is None or given == signed.evidence:
        return given
    if given:
        raise InvalidInput(
            f"`evidence` of {what} must be what its signed release lists: "
            f"{', '.join(row.check for row in signed.evidence) or 'none'}. "
            f"Got {', '.join(row.check for row in given)}, or the same with another verdict, summary or digest. "
            "Leave it out: it is read from the release."
        )
    return signed.evidence


def _require_accepted(record: VersionRecord, lacking: str, accepted: bool, *, command: str) -> None:
    if accepted is not True:  # a text such as "no" is no consent
        raise GateRefused(
            f"{record.name}:{record.version} was released unproven: {lacking}. "
            f"See `lightship show {record.name}:{record.version}`; go on all the same with "
            f"`lightship {command} --accept-unproven`."
        )


def _accepted(why: str) -> str:
    return f"{why} {ACCEPTED}".strip()


def _check_text(what: str, text: str, *, limit: int = _TEXT_CHARACTERS) -> None:
    if len(text) > limit or not text.replace("\n", " ").isprintable():
        raise InvalidInput(f"`{what}` must be at most {limit} printable characters. Got {text[:80]!a}.")


def _model_id(connection: Connection, name: str) -> int:
    found = connection.execute(select(MODELS.c.id).where(MODELS.c.name == check_name(name))).scalar_one_or_none()
    if found is None:
        raise unknown_name(name, list(connection.execute(select(MODELS.c.name).order_by(MODELS.c.name)).scalars()))
    return int(found)


def _alias_version(connection: Connection, name: str, alias: str) -> int | None:
    query = select(ALIASES.c.version).where(ALIASES.c.model_id == _model_id(connection, name), ALIASES.c.alias == alias)
    return connection.execute(query).scalar_one_or_none()


def _versions(connection: Connection, name: str, version: int | None = None) -> tuple[VersionRecord, ...]:
    model_id = _model_id(connection, name)
    aliases: dict[int, list[str]] = {}
    query = select(ALIASES).where(ALIASES.c.model_id == model_id).order_by(ALIASES.c.alias)
    for row in connection.execute(query):
        aliases.setdefault(row.version, []).append(row.alias)
    rows = select(VERSIONS).where(VERSIONS.c.model_id == model_id).order_by(VERSIONS.c.version)
    if version is not None:
        rows = rows.where(VERSIONS.c.version == version)
    return tuple(_version_record(name, row, aliases.get(row.version, [])) for row in connection.execute(rows))


def _version_record(name: str, row: Row[Any], aliases: Sequence[str]) -> VersionRecord:
    return VersionRecord(
        name=name,
        version=row.version,
        bundle=row.bundle,
        release=row.release,
        created=row.created,
        created_by=row.created_by,
        note=row.note,
        evidence=tuple(EvidenceRow(**item) for item in json.loads(row.evidence)),
        unproven=row.unproven,
        aliases=tuple(aliases),
    )


def _find(connection: Connection, wanted: Reference) -> VersionRecord:
    version = wanted.version
    if wanted.alias is not None:
        version = _alias_version(connection, wanted.name, wanted.alias)
        if version is None:
            versions = _versions(connection, wanted.name)
            if wanted.alias == PRODUCTION and versions and versions[-1].unproven:
                raise not_accepted(wanted.name, versions[-1].version)
            known = {alias for record in versions for alias in record.aliases}
            raise unknown_alias(wanted.name, wanted.alias, sorted(known))
    found = _versions(connection, wanted.name, version)
    if not found:
        raise unknown_version(wanted.name, version, [record.version for record in _versions(connection, wanted.name)])
    return found[0]


def _known(connection: Connection, name: str, bundle: str) -> Row[Any] | None:
    """Return the version of ``name`` that has this bundle."""
    query = select(VERSIONS).join(MODELS).where(MODELS.c.name == name, VERSIONS.c.bundle == bundle)
    return connection.execute(query).one_or_none()


def _add_model(connection: Connection, name: str, at: str) -> int:
    """Return the id of a name, new or not."""
    found = connection.execute(select(MODELS).where(MODELS.c.folded == fold(name))).one_or_none()
    if found is None:
        key = connection.execute(insert(MODELS).values(name=name, folded=fold(name), created=at)).inserted_primary_key
        return int(key[0]) if key is not None else 0
    if found.name != name:
        raise Conflict(
            f"The name {name!r} reads like {found.name!r}, which exists: '.', '_' and '-' count as one. "
            f"Use {found.name!r} for a new version of it, or a name that differs more."
        )
    return int(found.id)


def _next_version(connection: Connection, model_id: int, name: str, wanted: int | None) -> int:
    query = select(func.max(VERSIONS.c.version)).where(VERSIONS.c.model_id == model_id)
    latest = connection.execute(query).scalar_one() or 0
    if wanted is not None and wanted <= latest:
        raise Conflict(
            f"Version {wanted} of {name!r} is taken or was passed over: the latest is {latest} and numbers only grow. "
            f"Leave the version out to get {latest + 1}."
        )
    return check_version(wanted or latest + 1)


def _move(
    connection: Connection, record: VersionRecord, alias: str, current: int | None, *, at: str, who: str, action: str,
    why: str,
) -> HistoryEntry:  # fmt: skip
    model_id = _model_id(connection, record.name)
    values = {"model_id": model_id, "alias": alias, "version": record.version}
    connection.execute(
        insert_or(ALIASES)
        .values(values)
        .on_conflict_do_update(index_elements=["model_id", "alias"], set_={"version": record.version})
    )
    return _append(connection, record, at=at, who=who, action=action, why=why, alias=alias, current=current)


def _append(
    connection: Connection, record: VersionRecord, *, at: str, who: str, action: str, why: str,
    alias: str | None = None, current: int | None = None,
) -> HistoryEntry:  # fmt: skip
    """Write one line of the history and the new head of the chain; return the line."""
    head = connection.execute(select(CHAIN_HEAD)).one()
    entry = sealed(
        HistoryEntry(
            seq=head.lines + 1,
            at=at,
            who=who,
            action=action,
            name=record.name,
            version=record.version,
            alias=alias,
            from_version=current,
            to_version=None if alias is None else record.version,
            bundle=record.bundle,
            release=record.release,
            why=why,
            evidence=tuple(row.digest for row in record.evidence),
            prev_hash=head.hash,
            hash="",
        )
    )
    connection.execute(insert(HISTORY).values({**asdict(entry), "evidence": json.dumps(entry.evidence)}))
    connection.execute(update(CHAIN_HEAD).values(lines=entry.seq, hash=entry.hash))
    return entry


def _history(connection: Connection, *, name: str | None = None, until: str | None = None) -> Iterator[HistoryEntry]:
    query = select(HISTORY).order_by(HISTORY.c.seq)
    if name is not None:
        query = query.where(HISTORY.c.name == name)
    if until is not None:
        query = query.where(HISTORY.c.at <= until)
    for row in connection.execute(query).mappings():
        yield _entry(row)


def _entry(row: RowMapping) -> HistoryEntry:
    return HistoryEntry(**{**row, "evidence": tuple(json.loads(row["evidence"]))})


def _contradictions(connection: Connection, entries: Sequence[HistoryEntry]) -> Iterator[str]:
    """Yield where the tables say something else than the history."""
    said = {(e.name, e.version): e for e in entries if e.action == "register"}
    names = connection.execute(select(MODELS.c.name)).scalars()
    there = {(v.name, v.version): v for name in list(names) for v in _versions(connection, name)}
    for key in sorted(said.keys() | there.keys()):
        entry, record = said.get(key), there.get(key)
        if entry is None or record is None:
            yield f"{key[0]}:{key[1]} is in the {'history' if record is None else 'table of versions'} only."
        elif (entry.bundle, entry.release, entry.evidence) != (
            record.bundle,
            record.release,
            tuple(row.digest for row in record.evidence),
        ):
            yield f"{key[0]}:{key[1]} has other digests than it was registered with."
    pointed = {(record.name, alias): record.version for record in there.values() for alias in record.aliases}
    live = {(item.name, item.alias): item.version for item in live_aliases(entries)}
    for place in sorted(pointed.keys() | live.keys()):
        if pointed.get(place) != live.get(place):
            yield f"{place[0]}@{place[1]} points to {pointed.get(place)}; by the history it is {live.get(place)}."
