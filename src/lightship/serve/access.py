"""Who may do what: API keys, their roles, and the check that every request meets.

A key is ``lsk_<id>_<secret>``: the id (8 hex digits) finds the record, the secret (256 random bits) proves it. The file
``keys/api_keys.json`` (0600) holds only SHA-256 digests: the secrets are random, so a slow hash would protect nothing.
A running server sees a created or revoked key within a second.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import logging
import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

import msgspec

from lightship.data.files import write_atomic
from lightship.errors import Conflict, Forbidden, InvalidInput, NotFound, Unauthenticated

__all__ = ["ANY_KEY", "OPEN", "Access", "ApiKey", "KeyFile", "Role", "Roles"]

log = logging.getLogger(__name__)

_KEY = re.compile(r"lsk_([0-9a-f]{8})_([A-Za-z0-9_-]{43})")
_RECHECK_S = 1.0


class Role(StrEnum):
    """What a key is for."""

    INFER = "infer"
    """Ask models, and see what they take and give."""
    READ = "read"
    """See models, state and metrics."""
    ADMIN = "admin"
    """Everything."""


Roles = frozenset[Role]
OPEN: Roles = frozenset()
"""The roles of a route that needs no key: liveness and readiness only. Compared by identity: an empty set of roles that
somebody made by mistake is not this one."""
ANY_KEY: Roles = frozenset(Role)


class ApiKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The record of one key. The key itself is not in it."""

    id: str
    role: Role
    sha256: str
    created: str
    note: str = ""


class _KeyDocument(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format_version: int
    keys: list[ApiKey]


class KeyFile:
    """The file of the API keys of one home."""

    def __init__(self, keys_dir: Path) -> None:
        self.path = keys_dir / "api_keys.json"
        self._dir = keys_dir

    def records(self) -> tuple[ApiKey, ...]:
        """Return all records; none if there is no file yet.

        Raises:
            InvalidInput: the file cannot be read as one of keys.
        """
        try:
            document = msgspec.json.decode(self.path.read_bytes(), type=_KeyDocument)
        except FileNotFoundError:
            return ()
        except (OSError, msgspec.MsgspecError) as exc:
            raise InvalidInput(f"The key file {self.path} cannot be read: {exc}. Restore it, or delete it.") from exc
        if document.format_version != 1:
            raise InvalidInput(
                f"The key file {self.path} must have format_version 1. Got {document.format_version}; "
                "a newer Lightship wrote it."
            )
        return tuple(document.keys)

    def create(self, role: Role, *, note: str = "") -> tuple[ApiKey, str]:
        """Make a key; return its record and the key itself, which is kept nowhere."""
        with self._locked():
            keys = self.records()
            key_id = secrets.token_hex(4)
            if any(key.id == key_id for key in keys):
                raise Conflict(f"The random key id {key_id} is taken. Try again.")
            text = f"lsk_{key_id}_{secrets.token_urlsafe(32)}"
            created = datetime.now(UTC).isoformat(timespec="seconds")
            record = ApiKey(id=key_id, role=role, sha256=_digest(text), created=created, note=note)
            self._write((*keys, record))
        return record, text

    def revoke(self, key_id: str) -> ApiKey:
        """Remove a key by its id.

        Raises:
            NotFound: there is no such key.
        """
        with self._locked():
            keys = self.records()
            gone = next((key for key in keys if key.id == key_id), None)
            if gone is None:
                raise NotFound(f"There is no API key with the id {key_id!r}. See `lightship keys list`.")
            self._write(tuple(key for key in keys if key.id != key_id))
        return gone

    def ensure_default(self) -> Path | None:
        """On the first start, when there is no key at all: make one for inference in ``keys/default.key`` (0600).

        Returns:
            the path of the new key's file, or ``None`` if there were keys already.
        """
        if self.records():
            return None
        record, text = self.create(Role.INFER, note="made at the first start")
        path = self._dir / "default.key"
        write_atomic(path, text.encode() + b"\n", mode=0o600)
        log.info("made the first API key %s", record.id)
        return path

    def _write(self, keys: tuple[ApiKey, ...]) -> None:
        data = msgspec.json.format(msgspec.json.encode(_KeyDocument(format_version=1, keys=[*keys])))
        write_atomic(self.path, data + b"\n", mode=0o600)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        # Two processes that make keys at once must not lose one: read, change and write are one step.
        self._dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(self._dir / ".api_keys.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


@dataclass(slots=True)
class _Seen:
    checked_s: float = float("-inf")
    stamp: tuple[int, int, int] | None = None


class Access:
    """Decides whether a request may pass. ``key_file=None``: no keys are asked for.

    The file is looked at again when it has changed, at most once a second. A file that is gone or broken lets nobody
    in: a revoked key must not come back to life because of a typing error.
    """

    def __init__(self, key_file: KeyFile | None, *, clock: Callable[[], float]) -> None:
        self._file = key_file
        self._clock = clock
        self._keys: dict[str, ApiKey] = {}
        self._seen = _Seen()

    @property
    def open(self) -> bool:
        """Whether no key is asked for."""
        return self._file is None

    def check(self, authorization: str | None, roles: Roles) -> ApiKey | None:
        """Let a request pass, or raise. ``roles``: those of which the key must have one; ``OPEN`` needs no key.

        Raises:
            Unauthenticated: there is no key, or an unknown one.
            Forbidden: the key has none of the roles.
        """
        if self._file is None or roles is OPEN:
            return None
        key = self._authenticate(authorization)
        if key.role is not Role.ADMIN and key.role not in roles:
            raise Forbidden(f"The key {key.id} has the role {key.role}; this needs {' or '.join(sorted(roles))}.")
        return key

    def authenticate(self, authorization: str | None) -> None:
        """Raise ``Unauthenticated`` unless the request has a known key of whatever role, or none is asked for."""
        if self._file is not None:
            self._authenticate(authorization)

    def _authenticate(self, authorization: str | None) -> ApiKey:
        self._refresh()
        scheme, _, text = (authorization or "").partition(" ")
        match = _KEY.fullmatch(text.strip()) if scheme.lower() == "bearer" else None
        key = self._keys.get(match[1]) if match else None
        if match is None or key is None or not hmac.compare_digest(key.sha256, _digest(match[0])):
            raise Unauthenticated(
                "Send a known API key in the header 'Authorization: Bearer KEY'. `lightship keys create` makes one."
            )
        return key

    def _refresh(self) -> None:
        now = self._clock()
        if self._file is None or now - self._seen.checked_s < _RECHECK_S:
            return
        self._seen.checked_s = now
        try:
            status = self._file.path.stat()
        except OSError:
            self._keys, self._seen.stamp = {}, None
            return
        stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
        if stamp == self._seen.stamp:
            return
        self._seen.stamp = stamp
        try:
            self._keys = {key.id: key for key in self._file.records()}
        except InvalidInput as exc:
            self._keys = {}
            log.error("no key is valid until the key file is right again: %s", exc)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("ascii")).hexdigest()
