"""What the client says and what it makes of the answers, without I/O: generators that a driver moves.

A call yields ``Send`` (do this request) or ``Pause`` (wait), and is sent a ``Reply`` or ``Broken``. The sync and the
async client drive the same generators, as httpx does for authentication; so retries are written, and tested, once.

Predictions change nothing on the server, so a POST may be sent again. It is, when the server said that it did not do it
(429, 503) and when no connection came about; not after a connection broke in the middle: an input that kills a worker
should not be given three of them. Waits: what ``Retry-After`` says plus full jitter over a doubling span, so that many
clients do not come back at once (M. Brooker, "Exponential backoff and jitter", 2015).
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any, TypeAlias, TypeVar
from urllib.parse import quote

import numpy as np

from lightship.apply.answers import Answer
from lightship.apply.tensors import HEAD_LENGTH, pack_request, unpack_response
from lightship.errors import (
    Conflict,
    DeadlineExceeded,
    Forbidden,
    InvalidInput,
    LightshipError,
    NotFound,
    Overloaded,
    TooLarge,
    Unauthenticated,
    Unavailable,
    UnsupportedMedia,
)
from lightship.types import TensorSpec

__all__ = [
    "Broken",
    "Call",
    "Inference",
    "ModelMetadata",
    "Pause",
    "Reply",
    "Retries",
    "Send",
    "error_of",
    "infer",
    "inference",
    "metadata",
    "plain_text",
    "predict",
    "ready",
    "retry_after_s",
]

T = TypeVar("T")

_AGAIN = {429, 503}
_SHOWN = 500


@dataclass(frozen=True, slots=True)
class Send:
    """Do this request within ``timeout_s``. ``path`` starts with a slash and comes after the base URL."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Reply:
    """The server answered. Names of headers are lowercase."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Broken:
    """No answer came.

    Attributes:
        sent: the request may have reached the server.
        late: the time was over.
    """

    reason: str
    sent: bool
    late: bool = False


Call: TypeAlias = "Generator[Send | Pause, Reply | Broken | None, T]"


@dataclass(frozen=True, slots=True)
class Retries:
    """How long and how often a call tries.

    Attributes:
        timeout_s: for the whole call: all tries and the waits between them.
        count: tries after the first one.
        base_s: span of the first wait's jitter; it doubles each time, up to ``most_s``.
        clock: seconds that never go back.
        wall: seconds since 1970, for a ``Retry-After`` that is a date.
        chance: a number in [0, 1).
    """

    timeout_s: float = 30.0
    count: int = 3
    base_s: float = 0.1
    most_s: float = 5.0
    clock: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    chance: Callable[[], float] = random.random

    def __post_init__(self) -> None:
        if not (math.isfinite(self.timeout_s) and self.timeout_s > 0):
            raise InvalidInput(f"`timeout_s` of a client must be above 0 and finite. Got {self.timeout_s}.")
        if self.count < 0:
            raise InvalidInput(f"`retries` of a client must be 0 or more. Got {self.count}.")


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """What a server says about a model: versions that it serves, inputs and outputs; a size of -1 is free.

    Attributes:
        parameters: what else it says. A Lightship server says ``version``, ``bundle`` and ``variant`` of what answers
            under this name, and ``instead_of``: the variant that does not work on its machine.
    """

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    parameters: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Inference:
    """What a graph gave, and who says so.

    Attributes:
        model, version: as the answer names them; empty when it does not.
        request_id: what the server's log calls the request.
    """

    outputs: dict[str, np.ndarray]
    model: str
    version: str
    request_id: str | None = None


def predict(model: str, body: bytes, kind: str, *, retries: Retries) -> Call[Answer]:
    """Ask for the answer to one raw input of the media type ``kind``."""
    reply = yield from _exchange("POST", f"/predict/{_place(model)}", {"content-type": kind}, body, retries)
    value = _json(reply)
    members = value if isinstance(value, dict) else {}
    return Answer.from_json(
        value,
        model=str(members.get("model", model)),
        version=_version(members.get("version")),
        request_id=reply.headers.get("x-request-id"),
    )


def infer(
    model: str, inputs: Mapping[str, np.ndarray], outputs: Sequence[str] | None, *, retries: Retries
) -> Call[dict[str, np.ndarray]]:
    """Run the graph's own tensors through a model."""
    found = yield from inference(model, inputs, outputs, retries=retries)
    return found.outputs


def inference(
    model: str, inputs: Mapping[str, np.ndarray], outputs: Sequence[str] | None, *, retries: Retries
) -> Call[Inference]:
    """Run the graph's own tensors through a model; the answer says of which version it is."""
    body, head_length = pack_request(inputs, outputs)
    headers = {"content-type": "application/octet-stream", HEAD_LENGTH: str(head_length)}
    reply = yield from _exchange("POST", f"/v2/models/{_place(model)}/infer", headers, body, retries)
    head, found = unpack_response(reply.body, reply.headers.get(HEAD_LENGTH))
    named, version = (str(head.get(key) or "") for key in ("model_name", "model_version"))
    return Inference(found, named, version, reply.headers.get("x-request-id"))


def metadata(model: str, *, retries: Retries) -> Call[ModelMetadata]:
    """Ask what a model takes and gives."""
    reply = yield from _exchange("GET", f"/v2/models/{_place(model)}", {}, b"", retries)
    value = _json(reply)
    try:
        return ModelMetadata(
            name=str(value["name"]),
            versions=tuple(str(version) for version in value.get("versions", ())),
            platform=str(value.get("platform", "")),
            inputs=tuple(_spec(item) for item in value["inputs"]),
            outputs=tuple(_spec(item) for item in value["outputs"]),
            parameters={str(key): str(said) for key, said in (value.get("parameters") or {}).items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise LightshipError(f"The server's description of {model!r} is not what the V2 protocol says.") from exc


def ready(model: str | None, *, retries: Retries) -> Call[bool]:
    """Ask once whether the server, or one model of it, would answer now. No answer is a no."""
    path = "/v2/health/ready" if model is None else f"/v2/models/{_place(model)}/ready"
    reply = yield Send("GET", path, {}, b"", retries.timeout_s)
    if isinstance(reply, Reply) and reply.status in {401, 403}:
        raise error_of(reply)
    return isinstance(reply, Reply) and reply.status == 200


def _exchange(method: str, path: str, headers: Mapping[str, str], body: bytes, retries: Retries) -> Call[Reply]:
    """Send a request until it is answered, the tries are used up, or the time would be over."""
    deadline = retries.clock() + retries.timeout_s
    for attempt in range(retries.count + 1):
        event = yield Send(method, path, headers, body, max(deadline - retries.clock(), 0.001))
        if isinstance(event, Reply) and event.status == 200:
            return event
        error = error_of(event, wall=retries.wall)
        again = event.status in _AGAIN if isinstance(event, Reply) else not (getattr(event, "sent", True))
        if not again or attempt == retries.count:
            raise error
        asked = retry_after_s(event.headers, wall=retries.wall) if isinstance(event, Reply) else None
        wait_s = (asked or 0.0) + retries.chance() * min(retries.most_s, retries.base_s * 2**attempt)
        if retries.clock() + wait_s >= deadline:
            raise error  # waiting would use up the time, and the server's own message says more than a timeout
        yield Pause(wait_s)
    raise LightshipError("A call ended without an answer.")  # not reached: the last attempt returns or raises


def retry_after_s(headers: Mapping[str, str], *, wall: Callable[[], float] = time.time) -> float | None:
    """Return the seconds that ``Retry-After`` asks for, as a number or as an HTTP date; None without a usable one."""
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return float(text) if len(text) < 10 else math.inf
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - wall())
    except (ValueError, TypeError, OverflowError):
        return None


def error_of(event: Reply | Broken | None, *, wall: Callable[[], float] = time.time) -> LightshipError:
    """Return our error for an answer that is not 200, or for none: the class by status, the server's own text."""
    if not isinstance(event, Reply):
        reason = event.reason if event is not None else "nothing came back"
        if event is not None and event.late:
            return DeadlineExceeded(f"The server did not answer in time: {reason}. Raise `timeout_s`, or look at it.")
        return Unavailable(f"The server cannot be reached: {reason}. Is it running, and is the address right?")
    text = _message(event)
    asked = retry_after_s(event.headers, wall=wall)
    wait_s = 1.0 if asked is None else min(asked, 86400.0)
    match event.status:
        case 401:
            return Unauthenticated(f"{text} Give a key: `key=` or LIGHTSHIP_KEY.")
        case 403:
            return Forbidden(text)
        case 404:
            return NotFound(text)
        case 408 | 504:
            return DeadlineExceeded(text, retry_after_s=wait_s)
        case 409:
            return Conflict(text)
        case 413:
            return TooLarge(text)
        case 415:
            return UnsupportedMedia(text)
        case 429:
            return Overloaded(text, retry_after_s=wait_s)
        case 502 | 503:
            return Unavailable(text, retry_after_s=wait_s)
        case status if 300 <= status < 400:
            place = plain_text(event.headers.get("location", "nowhere"))
            return LightshipError(f"The server answers {status} and points to {place}. Give that as base_url.")
        case status if 400 <= status < 500:
            return InvalidInput(text)
    return LightshipError(text)


def _message(reply: Reply) -> str:
    try:
        value = json.loads(reply.body)
        said = value["error"] if isinstance(value, dict) else ""
    except (ValueError, KeyError):
        said = ""
    text = plain_text(
        said if isinstance(said, str) and said else f"The server answered {reply.status} without a message."
    )
    request_id = reply.headers.get("x-request-id")
    return f"{text} (request {plain_text(request_id)})" if request_id else text


def plain_text(text: str) -> str:
    """Return a server's text in one line that cannot steer a terminal."""
    shown = text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
    return "".join(char if char.isprintable() else " " for char in shown)


def _json(reply: Reply) -> Any:
    try:
        return json.loads(reply.body)
    except ValueError as exc:
        raise LightshipError(
            f"The server answered 200 with {len(reply.body)} bytes that are not JSON. "
            "Is that the address of a Lightship server?"
        ) from exc


def _place(model: str) -> str:
    """Return the path of ``name`` or ``name:version``; a name stays one segment of it, whatever is in it."""
    name, _, version = model.partition(":")
    if name.strip(".") == "":
        raise InvalidInput(f"A model's name must not be empty or dots. Got {model!r}.")
    if "@" in name:
        raise InvalidInput(
            f"A server is asked for a name or a version, such as digits or digits:3; it alone follows the aliases that "
            f"it serves. Got {model!r}."
        )
    return quote(name, safe="") + (f"/versions/{quote(version, safe='')}" if version.strip(".") else "")


def _version(value: object) -> int | None:
    return int(value) if isinstance(value, int | str) and str(value).isdigit() else None


def _spec(item: Any) -> TensorSpec:
    return TensorSpec(str(item["name"]), str(item["datatype"]), tuple(int(size) for size in item["shape"]))
