"""Names of models and aliases, and the references that people type: ``digits``, ``digits@staging``, ``digits:3``.

Names are lowercase ASCII, so they are safe in paths, URLs and labels of every system that a model is deployed to.
Two names that differ only in their separators (``my-model``, ``my_model``) read as one to a person and to some package
systems; they fold equal and cannot both exist. Standard library only: servers import this.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from lightship.errors import InvalidInput

__all__ = ["PRODUCTION", "RAW_SUFFIX", "Reference", "check_alias", "check_name", "check_version", "fold"]

PRODUCTION = "production"
"""The alias that a bare name means, and that the first version of a name gets."""

RAW_SUFFIX = ".raw"
"""Reserved: a server offers the raw door of the model ``digits`` as ``digits.raw``."""

_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?")
_ALIAS = re.compile(r"[a-z][a-z0-9-]{0,31}")
_VERSION = re.compile(r"[1-9][0-9]{0,8}")
_SEPARATORS = re.compile(r"[._-]+")
_SHOWN_CHARACTERS = 80


def _shown(text: str) -> str:
    """Return ``text`` quoted for a message: escaped, and not longer than a line."""
    return ascii(text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "...")


def check_name(name: str) -> str:
    """Return ``name`` if it may name a model.

    Raises:
        InvalidInput: it may not; the message says what is allowed.
    """
    if not _NAME.fullmatch(name):
        raise InvalidInput(
            "A model's name must be 1 to 64 of a-z, 0-9, '.', '_' and '-', and start and end with a letter or digit. "
            f"Got {_shown(name)}."
        )
    if name.endswith(RAW_SUFFIX):
        raise InvalidInput(
            f"A model's name must not end in {RAW_SUFFIX!r}: servers use that ending for the model's raw door. "
            f"Got {_shown(name)}."
        )
    return name


def check_alias(alias: str) -> str:
    """Return ``alias`` if it may name a version.

    Raises:
        InvalidInput: it may not; the message says what is allowed.
    """
    if not _ALIAS.fullmatch(alias):
        raise InvalidInput(
            "An alias must start with a letter and have 1 to 32 of a-z, 0-9 and '-', e.g. 'production'. "
            f"Got {_shown(alias)}."
        )
    return alias


def check_version(version: int) -> int:
    """Return ``version`` if it can be one: an integer from 1 to 999,999,999."""
    if isinstance(version, bool) or not _VERSION.fullmatch(str(version)):
        raise InvalidInput(f"A version must be an integer from 1 to 999999999. Got {_shown(str(version))}.")
    return version


def fold(name: str) -> str:
    """Return the form in which names that a person could mix up are equal."""
    return _SEPARATORS.sub("-", name.lower())


@dataclass(frozen=True, slots=True)
class Reference:
    """What a person typed: a name with an alias or with a version, exactly one of the two."""

    name: str
    alias: str | None
    version: int | None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Read ``name``, ``name@alias`` or ``name:version``. A bare name means its alias ``production``.

        Raises:
            InvalidInput: ``text`` has another form.
        """
        if "@" in text:
            name, _, alias = text.partition("@")
            return cls(check_name(name), check_alias(alias), None)
        if ":" in text:
            name, _, version = text.partition(":")
            if not _VERSION.fullmatch(version):
                raise InvalidInput(
                    f"After the colon of a reference comes a version: an integer from 1 up. Got {_shown(version)} "
                    f"in {_shown(text)}; an alias is written with '@', e.g. 'digits@staging'."
                )
            return cls(check_name(name), None, int(version))
        return cls(check_name(text), PRODUCTION, None)

    def __str__(self) -> str:
        return f"{self.name}:{self.version}" if self.alias is None else f"{self.name}@{self.alias}"
