"""How commands reach a server: whose certificates they trust, and the key that they show."""

from __future__ import annotations

import ssl
from pathlib import Path

import click

__all__ = ["key_in", "trusted_by"]


def trusted_by(ca_file: Path | None) -> ssl.SSLContext | bool:
    """Return what decides about a server's certificate: the file of an authority, or what is usual."""
    if ca_file is None:
        return True
    try:
        return ssl.create_default_context(cafile=str(ca_file))
    except ssl.SSLError as exc:
        raise click.UsageError(f"--ca-file must hold certificates in PEM form. {ca_file} does not.") from exc


def key_in(key_file: Path | None) -> str | None:
    """Return the key that a file holds; without a file, None: the client looks at its variable."""
    # Bytes that are no text become characters that no key has; the client refuses those without showing them.
    return key_file.read_text(encoding="utf-8", errors="replace").strip() if key_file is not None else None
