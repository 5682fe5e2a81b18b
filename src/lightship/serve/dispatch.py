"""One dispatcher for all routes of all contracts: it finds the route, and decides who may pass. Default: nobody.

A route cannot be registered without saying which roles it is for. An unknown path is answered 401 without a key, so a
stranger cannot tell what there is. Paths are compared as they came: nothing is decoded, joined or rebuilt from the
Host header, so there is one opinion on where a request goes.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol

import msgspec

from lightship.errors import Forbidden, InvalidInput, LightshipError, NotFound
from lightship.serve.access import OPEN, Access, ApiKey, Roles
from lightship.serve.http import Head, HttpRefused, Response, error_response

__all__ = ["Contract", "Dispatcher", "Exchange", "Route"]


log = logging.getLogger(__name__)

_NO_PARAMS: Mapping[str, str] = MappingProxyType({})


class Exchange(msgspec.Struct, eq=False, weakref=False):
    """One request and the way to answer it. Used on the event loop only.

    Attributes:
        request_id: the client's own, or one of ours.
        arrived_s: monotonic time of the head's arrival.
        on_answer: takes the answer; ``None`` once there is one, or when nobody is left to take it.
        deadline_s: monotonic time after which the answer is of no use.
        params: what stood at the named places of the route's pattern.
        body: complete when the route's ``handle`` is called, empty in ``admit``.
        contract, model: bounded words for logs and metrics; the route's handler fills in the model.
        admitted: what the route's ``admit`` found, for its ``handle``.
        version: the model version that let the request in, if one did. It answers, also when it is replaced while the
            body comes in.
        on_gone: called if the client goes before there is an answer.
    """

    head: Head
    request_id: str
    arrived_s: float
    on_answer: Callable[[Response], None] | None
    deadline_s: float = math.inf
    params: Mapping[str, str] = _NO_PARAMS
    body: bytes = b""
    key: ApiKey | None = None
    contract: str = ""
    model: str = ""
    admitted: Any = None
    version: object = None
    gone: bool = False
    on_gone: Callable[[], None] | None = None

    @property
    def answered(self) -> bool:
        """Whether there is an answer, or nobody left to take one."""
        return self.on_answer is None

    def answer(self, response: Response) -> None:
        """Send the answer. Without effect if there is one already, or if the client has gone."""
        send, self.on_answer, self.on_gone = self.on_answer, None, None
        if send is not None:
            send(response)

    def fail(self, error: BaseException) -> None:
        """Answer with an error."""
        self.answer(error_response(error))

    def failed(self, error: Exception) -> None:
        """Answer with what a step of the work has raised; to be called while it is handled."""
        if not isinstance(error, LightshipError):
            log.exception("request %s failed inside the server", self.request_id)
        self.fail(error)

    def client_gone(self) -> None:
        """The client has gone: forget the answer, tell whoever works on it."""
        self.gone = True
        callback, self.on_answer, self.on_gone = self.on_gone, None, None
        if callback is not None:
            callback()


Handle = Callable[[Exchange], None]


@dataclass(frozen=True, slots=True)
class Route:
    """A method and a path pattern such as ``/v2/models/{model}/infer``, whom it is for, and what answers it.

    Attributes:
        roles: a key needs one of them; ``OPEN`` for the two health questions.
        handle: called with the whole body; answers now or later, through the exchange.
        admit: called when only the head is there; raises to refuse before a body is read.
    """

    method: str
    pattern: str
    roles: Roles
    handle: Handle
    admit: Handle | None = None
    contract: str = ""

    def __post_init__(self) -> None:
        if self.method not in ("GET", "POST") or not self.pattern.startswith("/"):
            raise InvalidInput(f"A route needs the method GET or POST and a path. Got {self.method} {self.pattern!r}.")
        if self.roles is not OPEN and not self.roles:
            raise InvalidInput(f"The route {self.pattern!r} must name roles, or be OPEN on purpose.")


class Contract(Protocol):
    """A wire protocol: the routes that it answers. Registered under the entry point group ``lightship.contracts``."""

    name: str

    def routes(self) -> Sequence[Route]:
        """Return the routes."""


@dataclass(slots=True)
class _Node:
    children: dict[str, _Node] = field(default_factory=dict)
    parameter: tuple[str, _Node] | None = None
    routes: dict[str, Route] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Place:
    """What is at a path: routes by method, and what stood at the named places of their pattern."""

    routes: Mapping[str, Route]
    params: Mapping[str, str]


class _Way(msgspec.Struct, frozen=True):
    """What the bytes of a head decide alone. Whether its key is good is asked for every request.

    Attributes:
        routes: of the dispatcher that found it.
    """

    routes: list[Route]
    route: Route
    params: Mapping[str, str]
    authorization: str | None


_NOWHERE = _Place({}, {})
_REMEMBERED_PLACES = 1_024
_REMEMBERED_CHARACTERS = 512  # of one path


class Dispatcher:
    """Finds the route of a request and lets it pass or not."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._root = _Node()
        self._routes: list[Route] = []
        self._places: dict[str, _Place] = {}  # of paths that were asked for; bounded

    def register(self, route: Route) -> None:
        """Add a route.

        Raises:
            InvalidInput: the same method and pattern are there already.
        """
        node = self._root
        for segment in route.pattern.split("/")[1:]:
            if segment.startswith("{"):
                if node.parameter is None:
                    node.parameter = (segment[1:-1], _Node())
                if node.parameter[0] != segment[1:-1]:
                    raise InvalidInput(f"The route {route.pattern!r} names {segment}, another {node.parameter[0]!r}.")
                node = node.parameter[1]
            else:
                node = node.children.setdefault(segment, _Node())
        if route.method in node.routes:
            raise InvalidInput(f"Two contracts want {route.method} {route.pattern}.")
        node.routes[route.method] = route
        self._routes.append(route)

    def __iter__(self) -> Iterator[Route]:
        """Iterate over the live routes, for tests and for people."""
        return iter(self._routes)

    def admit(self, exchange: Exchange) -> Route:
        """Return the route of a request whose head is there, or refuse the request.

        Raises:
            Unauthenticated, Forbidden: the key.
            NotFound, HttpRefused: no such path; no such method there.
            LightshipError: what the route's own ``admit`` says, e.g. ``Overloaded``.
        """
        head = exchange.head
        way: _Way | None = head.way
        if way is None or way.routes is not self._routes:
            way = head.way = self._way(head)
        route = way.route
        exchange.key = self._access.check(way.authorization, route.roles)
        exchange.params = way.params
        exchange.contract = route.contract
        if route.admit is not None:
            route.admit(exchange)
        return route

    def _way(self, head: Head) -> _Way:
        headers = head.headers
        if "origin" in headers:
            # No page of another site may use a key or a loopback address that its visitor's browser can reach.
            raise Forbidden("Requests from web pages (with an Origin header) are not taken here.")
        place = self._places.get(head.path) or self._find(head.path)
        route = place.routes.get("GET" if head.method == "HEAD" else head.method)
        if route is None:
            self._access.authenticate(headers.get("authorization"))
            raise self._no_route(head, place.routes)
        return _Way(self._routes, route, place.params, headers.get("authorization"))

    def _find(self, path: str) -> _Place:
        params: dict[str, str] = {}
        node = self._root
        for segment in path.split("/")[1:]:
            child = node.children.get(segment)
            if child is None:
                if node.parameter is None or not segment:
                    return _NOWHERE
                params[node.parameter[0]] = segment
                child = node.parameter[1]
            node = child
        if not node.routes:
            return _NOWHERE
        place = _Place(node.routes, params)
        if len(path) <= _REMEMBERED_CHARACTERS:
            if len(self._places) >= _REMEMBERED_PLACES:
                self._places.clear()
            self._places[path] = place
        return place

    @staticmethod
    def _no_route(head: Head, routes: Mapping[str, Route]) -> Exception:
        if not routes:
            return NotFound("There is nothing at this path. GET /v2 tells what this server speaks.")
        allowed = sorted({*routes, *({"HEAD"} if "GET" in routes else ())})
        return HttpRefused(
            405,
            f"This path takes {' and '.join(allowed)}. Got {head.method}.",
            headers=(("allow", ", ".join(allowed)),),
        )
