"""``--json``: what a command says to programs, one object on stdout, whether it worked or was refused.

A command that has its answer says it with `say_json`, also when it then refuses. Whatever ends a command before that
is said by `say_error`, in the shape that the server's errors have. So a program reads stdout first and needs the exit
code only to know what kind of trouble it was.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import click

__all__ = ["JsonAnswer", "json_option", "say_error", "say_json"]

_F = TypeVar("_F", bound=Callable[..., Any])


@dataclass(slots=True)
class JsonAnswer:
    """What one call has promised and kept; it is the root context's object.

    Attributes:
        asked: ``--json`` was given.
        said: an answer is on stdout.
    """

    asked: bool = False
    said: bool = False


def json_option(text: str = "Print one JSON object instead of text.") -> Callable[[_F], _F]:
    """Return the option ``--json``; the command gets it as ``as_json``."""
    # Eager: noted before the other options are read, so that a mistake in one of them is said as JSON, too.
    return click.option("--json", "as_json", is_flag=True, is_eager=True, callback=_note, help=text)


def _note(context: click.Context, parameter: click.Parameter, value: bool) -> bool:  # noqa: ARG001 - click's
    _answer(context).asked = value
    return value


def _answer(context: click.Context) -> JsonAnswer:
    return context.find_root().ensure_object(JsonAnswer)


def say_json(value: Mapping[str, Any]) -> None:
    """Print the answer: one line, without NaN and infinity, which JSON does not have."""
    click.echo(json.dumps(_finite(value), allow_nan=False))
    context = click.get_current_context(silent=True)
    if context is not None:
        _answer(context).said = True


def say_error(answer: JsonAnswer, message: str, exit_code: int, *, found: Mapping[str, Any] | None = None) -> None:
    """Print why there is no other answer, if JSON was asked for and none is there yet.

    Args:
        found: what was found out before it ended, such as the gate's decision.
    """
    if answer.asked and not answer.said:
        say_json({**(found or {}), "error": message, "exit_code": exit_code})


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_finite(item) for item in value]
    return value
