"""Ed25519 keys: one private key that signs, and a folder of public keys that are trusted.

A key is known by its id, ``ed25519:`` and the first 32 hex digits of the SHA-256 of the 32 raw bytes of the public key.
Nobody is trusted because he came first: a signer is unknown until a person adds him.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from lightship.bundle.folder import open_regular
from lightship.data.files import fsync_dir
from lightship.errors import BundleRefused, Conflict, InvalidInput, Refused

__all__ = ["KEY_ID_PATTERN", "PrivateKey", "Signer", "TrustStore"]

KEY_ID_PATTERN = re.compile(r"ed25519:[0-9a-f]{32}")

_KEY_FILE = "signing.pem"
_MAX_PEM_BYTES = 4096
_LOCAL = "local-"
_NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,99}")


class PrivateKey:
    """An Ed25519 private key. It never shows its secret."""

    __slots__ = ("_key", "key_id", "public_pem")

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public_pem: bytes = _pem_of(key.public_key())
        self.key_id: str = _key_id(key.public_key())

    def __repr__(self) -> str:
        return f"PrivateKey({self.key_id})"

    @classmethod
    def generate(cls) -> PrivateKey:
        """Make a new key that is kept nowhere."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_pem(cls, pem: bytes) -> PrivateKey:
        """Return the key in an unencrypted PKCS #8 PEM.

        Raises:
            InvalidInput: it is not an Ed25519 private key.
        """
        try:
            key = serialization.load_pem_private_key(pem, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
            raise InvalidInput("A signing key must be an Ed25519 private key as unencrypted PKCS #8 PEM.") from exc
        if not isinstance(key, Ed25519PrivateKey):
            raise InvalidInput(f"A signing key must be an Ed25519 private key. Got a {type(key).__name__}.")
        return cls(key)

    @classmethod
    def load_or_create(cls, keys_dir: Path) -> PrivateKey:
        """Return the key in ``keys_dir``; make folder (0700) and key (0600) when there is none.

        Two processes that start at once end up with the same key.

        Raises:
            Refused: somebody else may read or change the key, or it is not an Ed25519 key.
        """
        path = keys_dir / _KEY_FILE
        if not os.path.lexists(path):
            keys_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            keys_dir.chmod(0o700)
            _write_new(path, cls.generate()._to_pem(), mode=0o600)
        _check_private(keys_dir, keys_dir.stat())
        try:
            with open_regular(path) as file:
                _check_private(path, os.fstat(file.fileno()))
                pem = file.read(_MAX_PEM_BYTES)
            return cls.from_pem(pem)
        except OSError as exc:
            raise Refused(f"The signing key {path} cannot be read: {exc.strerror}.") from exc
        except InvalidInput as exc:
            raise Refused(f"{path} cannot be used. {exc} Move it away and a new key is made.") from exc

    def sign(self, message: bytes) -> bytes:
        """Return the 64 bytes of the signature of ``message``."""
        return self._key.sign(message)

    def _to_pem(self) -> bytes:
        return self._key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )


@dataclass(frozen=True, slots=True)
class Signer:
    """Whose key it is.

    Attributes:
        name: the name under which the key was added.
        local: the key was made by this installation itself, so it says where something comes from and no more.
    """

    key_id: str
    name: str
    local: bool


class TrustStore:
    """The public keys in a folder, one file ``<name>.pem`` a signer. A folder that is not there trusts nobody.

    The folder is read at each question, so a key that is removed is not trusted any longer, at once.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, pem: bytes, name: str) -> Signer:
        """Trust the Ed25519 public key in ``pem`` (SubjectPublicKeyInfo) under ``name``.

        Raises:
            InvalidInput: not such a key, or ``name`` cannot be a file name or starts with ``local-``.
            Conflict: the name stands for another key, or the key has another name.
        """
        if not _NAME_PATTERN.fullmatch(name) or name.startswith(_LOCAL):
            raise InvalidInput(
                "A signer's name must have 1 to 100 of A-Z, a-z, 0-9, '.', '_', '@', '-', start with a letter or "
                f"digit and not with {_LOCAL!r}. Got {name[:100]!r}."
            )
        return self._add(_public_key(pem, what=f"The key of {name}"), name)

    def add_local(self, key: PrivateKey) -> Signer:
        """Trust this installation's own key. It is shown as local, and called ``local-<first 8 digits of its id>``."""
        return self._add(key._key.public_key(), _LOCAL + key.key_id.partition(":")[2][:8])

    def signers(self) -> tuple[Signer, ...]:
        """Return who is trusted, by name.

        Raises:
            BundleRefused: somebody else may change the folder or a file in it, or a file is not a public key.
        """
        return tuple(signer for signer, _ in self._read())

    def signer(self, key_id: str) -> Signer:
        """Return who has that key.

        Raises:
            BundleRefused: nobody who is trusted.
        """
        return self._find(key_id)[0]

    def verify(self, message: bytes, signature: bytes, *, key_id: str, what: str) -> Signer:
        """Return who signed ``message``. ``what`` names it in a refusal.

        Raises:
            BundleRefused: the key is not trusted, or the signature is not one of this message by that key.
        """
        try:
            signer, key = self._find(key_id)
            key.verify(signature, message)
        except InvalidSignature as exc:
            raise BundleRefused(
                f"{what}: the signature is not one of {signer.name} ({key_id}) for these bytes. "
                "They were changed after they were signed; fetch them again from their source."
            ) from exc
        except BundleRefused as exc:
            raise BundleRefused(f"{what}: {exc}") from exc
        return signer

    def _add(self, key: Ed25519PublicKey, name: str) -> Signer:
        key_id = _key_id(key)
        for signer in self.signers():
            if (signer.key_id == key_id) != (signer.name == name):
                raise Conflict(
                    f"{self.path} already trusts {signer.name!r} with the key {signer.key_id}. "
                    f"Remove {self.path / signer.name}.pem before {name!r} can stand for {key_id}."
                )
            if signer.name == name:
                return signer
        if not self.path.is_dir():
            self.path.mkdir(parents=True, exist_ok=True)
            self.path.chmod(0o755)  # whatever the umask: a folder that a group may write to is refused below
        _write_new(self.path / f"{name}.pem", _pem_of(key), mode=0o644)
        return self.signer(key_id)

    def _find(self, key_id: str) -> tuple[Signer, Ed25519PublicKey]:
        for signer, key in self._read():
            if signer.key_id == key_id:
                return signer, key
        raise BundleRefused(
            f"The signer {key_id[:64]} is not trusted here (trust folder: {self.path}). If you know whose key it is "
            "and have the public key from that person, add it: lightship trust add PUBLIC.pem --name NAME."
        )

    def _read(self) -> list[tuple[Signer, Ed25519PublicKey]]:
        try:
            _check_unchangeable(self.path, self.path.stat())
        except FileNotFoundError:
            return []
        return [self._read_one(path) for path in sorted(self.path.glob("*.pem")) if not path.name.startswith(".")]

    def _read_one(self, path: Path) -> tuple[Signer, Ed25519PublicKey]:
        try:
            file = open_regular(path)
        except OSError as exc:
            raise BundleRefused(f"{path} cannot be opened as a file: {exc.strerror}. Mend or remove it.") from exc
        with file:
            _check_unchangeable(path, os.fstat(file.fileno()))
            pem = file.read(_MAX_PEM_BYTES)
        try:
            key = _public_key(pem, what=str(path))
        except InvalidInput as exc:
            raise BundleRefused(f"{exc} Mend or remove it.") from exc
        name = path.name.removesuffix(".pem")
        return Signer(key_id=_key_id(key), name=name, local=name.startswith(_LOCAL)), key


def _key_id(key: Ed25519PublicKey) -> str:
    return "ed25519:" + hashlib.sha256(key.public_bytes_raw()).hexdigest()[:32]


def _pem_of(key: Ed25519PublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def _public_key(pem: bytes, *, what: str) -> Ed25519PublicKey:
    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as exc:
        raise InvalidInput(f"{what} must be an Ed25519 public key as PEM.") from exc
    if not isinstance(key, Ed25519PublicKey):
        raise InvalidInput(f"{what} must be an Ed25519 public key. Got a {type(key).__name__}.")
    return key


def _write_new(path: Path, data: bytes, *, mode: int) -> None:
    """Write ``data`` unless ``path`` is there: the first of several writers wins, and nobody sees half a file."""
    descriptor, temporary = tempfile.mkstemp(prefix=".tmp-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        try:
            os.link(temporary, path)  # unlike rename, this fails when the name is taken
        except FileExistsError:
            return
    finally:
        Path(temporary).unlink()
    fsync_dir(path.parent)


def _check_private(path: Path, status: os.stat_result) -> None:
    _check_owner(path, status, refusal=Refused)
    if stat.S_IMODE(status.st_mode) & 0o077:
        raise Refused(f"{path} may be open to its owner only, because it guards a private key: chmod go= '{path}'.")


def _check_unchangeable(path: Path, status: os.stat_result) -> None:
    _check_owner(path, status, refusal=BundleRefused)
    if stat.S_IMODE(status.st_mode) & 0o022:
        raise BundleRefused(
            f"{path} may be changed by its owner only, because it says who is trusted. Look at what is in it, then: "
            f"chmod go-w '{path}'."
        )


def _check_owner(path: Path, status: os.stat_result, *, refusal: type[Refused]) -> None:
    if status.st_uid not in (0, os.geteuid()):
        raise refusal(f"{path} must belong to the user who runs this (uid {os.geteuid()}). Got uid {status.st_uid}.")
