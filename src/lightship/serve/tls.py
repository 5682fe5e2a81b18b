"""TLS for the data plane: a certificate and its key from files, for both doors, looked at again when they change.

TLS 1.2 at least, with forward secrecy and authenticated ciphers only; no renegotiation, which a client could ask for
without end. The files are compared with what was read at each handshake, at most once a second: a renewed certificate
is used from the next connection on. A pair that is wrong is logged, and the last good one goes on.
"""

from __future__ import annotations

import logging
import os
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from lightship.errors import InvalidInput
from lightship.v2.grpc_library import load_grpc

if TYPE_CHECKING:
    from cryptography import x509

__all__ = ["Certificate"]

log = logging.getLogger(__name__)

_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"  # of TLS 1.2; those of 1.3 are all of this kind
_RECHECK_S = 1.0
_OTHERS = 0o007

_Stamp = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Pair:
    """A certificate with its chain, and the key to it, that fit each other."""

    chain: bytes
    key: bytes
    context: ssl.SSLContext


class Certificate:
    """A certificate chain and its private key, both PEM files.

    Raises:
        InvalidInput: a file cannot be read, holds something else, or is the key of another certificate; or everybody
            on this machine may read the key.
    """

    def __init__(self, chain_file: Path, key_file: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._chain_file = chain_file
        self._key_file = key_file
        self._clock = clock
        self._lock = threading.Lock()  # gRPC's handshakes are made in threads of its own
        self._stamp = self._stamp_now()
        self._pair = self._read()
        self._checked_s = clock()

    def server_context(self) -> ssl.SSLContext:
        """Return a context for a listening socket; each of its handshakes gets the certificate of that moment."""
        context = _context()
        context.load_cert_chain(self._chain_file, self._key_file)
        context.sni_callback = self._on_hello
        return context

    def grpc_credentials(self) -> Any:
        """Return the credentials for gRPC's port, which do the same."""
        grpc = load_grpc()
        given = self._pair

        def config(pair: _Pair) -> Any:
            return grpc.ssl_server_certificate_configuration(((pair.key, pair.chain),))

        def fetch() -> Any:
            nonlocal given
            pair = self._current()
            if pair is given:
                return None
            given = pair
            return config(pair)

        return grpc.dynamic_ssl_server_credentials(config(given), fetch)

    def _on_hello(self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        # Called for every hello, whether it names a server or not.
        connection.context = self._current().context

    def _current(self) -> _Pair:
        with self._lock:
            now = self._clock()
            if now - self._checked_s >= _RECHECK_S:
                self._checked_s = now
                self._read_again()
            return self._pair

    def _read_again(self) -> None:
        stamp = self._stamp_now()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._pair = self._read()
        except InvalidInput as exc:
            log.error("the last good certificate goes on, for the new one is wrong: %s", exc)
        else:
            log.info("the certificate was read again")

    def _stamp_now(self) -> _Stamp:
        stamp: list[int] = []
        for path in (self._chain_file, self._key_file):
            try:
                status = path.stat()
            except OSError:
                stamp.append(0)
            else:
                stamp += (status.st_mtime_ns, status.st_size, status.st_ino)
        return tuple(stamp)

    def _read(self) -> _Pair:
        chain, key = _content(self._chain_file, "certificate"), _content(self._key_file, "key")
        mode = self._key_file.stat().st_mode & 0o777
        if mode & _OTHERS:
            raise InvalidInput(
                f"Everybody on this machine may use the key file {self._key_file}: its mode is {mode:04o}. "
                f"Run: chmod o= {self._key_file}"
            )
        certificate = _first_certificate(chain, self._chain_file)
        _check_key(key, certificate, key_file=self._key_file, chain_file=self._chain_file)
        context = _context()
        try:
            context.load_cert_chain(self._chain_file, self._key_file, password=_no_password)
        except (ssl.SSLError, OSError) as exc:
            raise InvalidInput(f"TLS cannot use the certificate {self._chain_file} with its key: {exc}.") from exc
        if certificate.not_valid_after_utc < datetime.now(UTC):
            log.warning("the certificate is no longer valid: it ended on %s", certificate.not_valid_after_utc)
        return _Pair(chain, key, context)


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_CIPHERS)
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    return context


def _content(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        raise InvalidInput(f"The {what} file {path} cannot be read: {os.strerror(exc.errno or 0)}.") from exc


def _first_certificate(chain: bytes, path: Path) -> x509.Certificate:
    from cryptography.x509 import load_pem_x509_certificates

    try:
        return load_pem_x509_certificates(chain)[0]
    except ValueError as exc:
        raise InvalidInput(
            f"The certificate file {path} must hold certificates in PEM form, the server's first."
        ) from exc


def _check_key(key: bytes, certificate: x509.Certificate, *, key_file: Path, chain_file: Path) -> None:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        public = load_pem_private_key(key, password=None).public_key()
    except TypeError as exc:
        raise InvalidInput(f"The key file {key_file} is locked with a password. Store the key without one.") from exc
    except (ValueError, UnsupportedAlgorithm) as exc:
        raise InvalidInput(f"The key file {key_file} must hold one private key in PEM form.") from exc
    if public != certificate.public_key():
        raise InvalidInput(
            f"The key {key_file} is not that of the certificate {chain_file}. The first certificate of that file must "
            "be the server's own."
        )


def _no_password() -> NoReturn:
    raise ssl.SSLError("the key is locked with a password")  # without this OpenSSL would ask at the terminal
