"""Every error that Lightship raises on purpose, and what each one means to the outside.

    LightshipError                  something that a person can act on
    ├── InvalidInput                what came from outside is wrong
    │   ├── InvalidRecipe           a recipe.toml
    │   ├── InvalidData             a data source or its rows
    │   ├── InvalidTensor           an array: dtype, shape or values
    │   ├── InvalidMedia            an image (later: audio, text) that cannot be decoded
    │   ├── UnsupportedMedia        a media type that the task does not take
    │   └── TooLarge                over a limit; the message names limit and setting
    ├── CannotRun                   an input that passes all checks and that the graph cannot compute
    ├── RanTooLong                  a run took longer than its limit and was stopped
    ├── NotFound                    no model, version, alias, route or file of that name
    ├── Conflict                    the name or version is taken, or another process holds the lock
    ├── Unauthenticated             no key, or an unknown one
    ├── Forbidden                   a known key without the role
    ├── Refused                     a check said no
    │   ├── GateRefused             the evidence does not meet the policy
    │   └── BundleRefused           bytes, digests or signatures do not agree
    ├── Unavailable                 try again later
    │   ├── Overloaded              the queue is full
    │   ├── OutOfMemory             it needs more memory than there is
    │   ├── DeadlineExceeded        the answer would come too late
    │   └── WorkerFailed            the worker process died or hung
    └── MissingExtra                an optional dependency is not installed

A message says which thing, what was allowed, what came, and what to do next.
``status_of`` maps a class to its HTTP status, gRPC code and exit code; nothing else may choose one. Statuses that only
HTTP itself has (405, 408, 431 …) stand with its parser in ``serve/http.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

__all__ = [
    "BundleRefused",
    "CannotRun",
    "Conflict",
    "DeadlineExceeded",
    "Forbidden",
    "GateRefused",
    "InvalidData",
    "InvalidInput",
    "InvalidMedia",
    "InvalidRecipe",
    "InvalidTensor",
    "LightshipError",
    "MissingExtra",
    "NotFound",
    "OutOfMemory",
    "Overloaded",
    "RanTooLong",
    "Refused",
    "Status",
    "TooLarge",
    "Unauthenticated",
    "Unavailable",
    "UnsupportedMedia",
    "WorkerFailed",
    "status_of",
]


class LightshipError(Exception):
    """Base of all errors that are meant for a person."""


class InvalidInput(LightshipError):
    """What came from outside is wrong."""


class InvalidRecipe(InvalidInput):
    """A recipe file does not say what a recipe must."""


class InvalidData(InvalidInput):
    """A data source cannot be read, or its rows cannot be used."""


class InvalidTensor(InvalidInput):
    """An array has the wrong dtype, shape or values."""


class InvalidMedia(InvalidInput):
    """Bytes that should be an image cannot be decoded as one."""


class UnsupportedMedia(InvalidInput):
    """The media type is not one that the task takes."""


class TooLarge(InvalidInput):
    """Something is over a limit."""


class CannotRun(LightshipError):
    """The graph cannot be run on an input that its interface allows: a row number beyond its table, a size it refuses.

    Not an ``InvalidInput``: that is found before a graph runs, and who judges a graph lets it pass as the caller's own
    mistake, whereas this one tells against the graph. From a client both are the client's.
    """


class RanTooLong(LightshipError):
    """A run took longer than its limit and was stopped."""


class NotFound(LightshipError):
    """Nothing of that name exists."""


class Conflict(LightshipError):
    """The name or version is taken, or another process is at work on it."""


class Unauthenticated(LightshipError):
    """No key was given, or one that is not known."""


class Forbidden(LightshipError):
    """The key is known but lacks the role."""


class Refused(LightshipError):
    """A check said no; nothing was changed."""


class GateRefused(Refused):
    """The evidence does not meet the policy.

    Attributes:
        found: what the gate saw and decided, as plain JSON; empty where nothing was judged.
    """

    def __init__(self, message: str, *, found: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.found: Mapping[str, Any] = found or {}


class BundleRefused(Refused):
    """Bytes, digests or signatures of a bundle do not agree."""


class Unavailable(LightshipError):
    """The work cannot be done now; trying again later may help.

    Attributes:
        retry_after_s: how long to wait before the next try, in seconds.
    """

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Overloaded(Unavailable):
    """The queue is full."""


class OutOfMemory(Unavailable):
    """The work needs more memory than the process that does it has left."""


class DeadlineExceeded(Unavailable):
    """The answer would come after its deadline."""


class WorkerFailed(Unavailable):
    """The process that runs the model died or hung."""


class MissingExtra(LightshipError):
    """An optional dependency is needed and not installed."""

    def __init__(self, *, extra: str, needed_for: str) -> None:
        super().__init__(f"{needed_for} needs the extra {extra!r}. Install it: pip install 'lightship[{extra}]'")
        self.extra = extra


class Status(NamedTuple):
    """What an error class means at each door."""

    http: int
    grpc: str
    exit_code: int


_STATUS: dict[type[LightshipError], Status] = {
    LightshipError: Status(500, "INTERNAL", 1),
    InvalidInput: Status(400, "INVALID_ARGUMENT", 2),
    CannotRun: Status(400, "INVALID_ARGUMENT", 2),
    UnsupportedMedia: Status(415, "INVALID_ARGUMENT", 2),
    TooLarge: Status(413, "OUT_OF_RANGE", 2),
    NotFound: Status(404, "NOT_FOUND", 3),
    Conflict: Status(409, "ABORTED", 4),
    Unauthenticated: Status(401, "UNAUTHENTICATED", 5),
    Forbidden: Status(403, "PERMISSION_DENIED", 5),
    Refused: Status(409, "FAILED_PRECONDITION", 6),
    Unavailable: Status(503, "UNAVAILABLE", 7),
    Overloaded: Status(429, "RESOURCE_EXHAUSTED", 7),
    OutOfMemory: Status(503, "RESOURCE_EXHAUSTED", 7),
    DeadlineExceeded: Status(504, "DEADLINE_EXCEEDED", 7),
    MissingExtra: Status(501, "UNIMPLEMENTED", 8),
}


def status_of(error: BaseException | type[BaseException]) -> Status:
    """Return the status of an error: that of its nearest class in the table.

    An error that is not ours is ours to answer for: 500, INTERNAL, exit code 1.
    """
    cls = error if isinstance(error, type) else type(error)
    for base in cls.__mro__:
        if base in _STATUS:
            return _STATUS[base]
    return _STATUS[LightshipError]
