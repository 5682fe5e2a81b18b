"""Nobody passes without the right key, on any live route, however the request is twisted (R-20)."""

from __future__ import annotations

import random
import time

import httpx
import pytest

from lightship.errors import Forbidden, InvalidInput, Unauthenticated
from lightship.extensions import extension_names
from lightship.serve.access import ANY_KEY, OPEN, Access, KeyFile, Role
from lightship.serve.dispatch import Dispatcher, Exchange, Route
from lightship.serve.http import HttpRefused, parse_head
from lightship.serve.limits import Limits
from lightship.serve.server import Server, ServerOptions
from lightship.serve.source import read_source

HEALTH = {"/livez", "/readyz", "/v2/health/live", "/v2/health/ready"}


@pytest.fixture(scope="module")
def routes(home) -> list[Route]:
    """Return the live route table, as a server of `digits` builds it."""
    server = Server([read_source(home, "digits")], ServerOptions(key_file=KeyFile(home.keys)))
    return list(server._dispatcher(Access(None, clock=time.monotonic)))


def path_of(route: Route) -> str:
    """Return a path that the route matches."""
    return route.pattern.replace("{model}", "digits").replace("{version}", "1")


def test_the_table_has_every_contract_and_only_health_is_open(routes):
    """What is open is open on purpose."""
    assert {route.contract for route in routes} == {"health", *extension_names("contracts")}
    assert {route.pattern for route in routes if route.roles is OPEN} == HEALTH
    assert all(route.roles for route in routes if route.pattern not in HEALTH)


@pytest.mark.parametrize("role", ["none", "wrong", *Role])
def test_each_route_passes_exactly_the_roles_it_names(routes, locked_server, role):
    """Tried on the running server, for every route of the live table."""
    headers = {"none": {}, "wrong": {"authorization": "Bearer lsk_00000000_" + "A" * 43}}
    given = headers[role] if role in headers else locked_server.headers(role)
    with httpx.Client(base_url=locked_server.url) as client:
        for route in routes:
            status = client.request(route.method, path_of(route), headers=given).status_code
            if route.roles is OPEN or role == "admin" or role in route.roles:
                assert status in (200, 400, 415), (route, status)
            else:
                assert status == (401 if role in headers else 403), (route, status)


def test_without_a_key_unknown_paths_look_like_known_ones(locked_server):
    """A stranger learns nothing of what there is."""
    for path in ("/", "/none", "/v2/models/none", "/metrics", "/admin", "/v2/logging"):
        assert httpx.get(locked_server.url + path).status_code == 401


def test_the_control_port_has_the_same_rules(locked_server):
    """State and metrics for `read` and `admin`, health for all."""
    for path, statuses in {
        "/livez": (200, 200, 200, 200),
        "/readyz": (200, 200, 200, 200),
        "/metrics": (401, 403, 200, 200),
        "/models": (401, 403, 200, 200),
    }.items():
        for role, status in zip((None, "infer", "read", "admin"), statuses, strict=True):
            headers = locked_server.headers(role) if role else {}
            answer = httpx.get(locked_server.control_url + path, headers=headers)
            assert answer.status_code == status, (path, role)
    assert httpx.get(locked_server.control_url + "/livez", headers={"origin": "http://evil"}).status_code == 403


def mutations(path: str, random: random.Random) -> str:
    """Return a path that a careless program could take for another."""
    change = random.choice(
        [
            lambda p: p.replace("/", "//", 1),
            lambda p: "/livez/.." + p,
            lambda p: "/livez/../" + p,
            lambda p: "/v2/health/live/.." + p,
            lambda p: p + "/",
            lambda p: p + "/../../../livez",
            lambda p: p + "/%2e%2e/livez",
            lambda p: p + ";/livez",
            lambda p: p + "?x=/livez",
            lambda p: p + "%00",
            lambda p: p + "%2flivez",
            lambda p: p.replace("v2", "%76%32"),
            lambda p: p.replace("/", "/./", 1),
            lambda p: p.upper(),
            lambda p: p.replace("/", "\\", 1) if random.random() < 0.5 else "/" + p.replace("/", "\\"),
            lambda p: p + "." * random.randrange(1, 5),
            lambda _: "/" + "".join(random.choices("/.%2elivezv2health;?&=~", k=random.randrange(1, 25))),
        ]
    )
    return change(path)


def test_two_thousand_twisted_requests_pass_nobody(routes, home):
    """Paths, hosts and methods: either no request at all, or no key, or health itself."""
    access = Access(KeyFile(home.keys), clock=time.monotonic)
    dispatcher = Dispatcher(access)
    for route in routes:
        dispatcher.register(route)
    rng = random.Random(7)
    hosts = ["localhost", "127.0.0.1:8000", "livez", "a/livez", "a?", "a#", "x@y", "[::1]", "a, b"]
    methods = ["GET", "POST", "HEAD", "PUT", "OPTIONS", "TRACE", "CONNECT", "get", "PROPFIND"]
    extra = ["", "X-Original-URL: /livez\r\n", "X-Forwarded-Prefix: /livez\r\n", "X-HTTP-Method-Override: GET\r\n"]
    refused = 0
    for _ in range(3000):
        target = mutations(path_of(rng.choice(routes)), rng)
        head = f"{rng.choice(methods)} {target} HTTP/1.1\r\nHost: {rng.choice(hosts)}\r\n{rng.choice(extra)}\r\n"
        try:
            parsed = parse_head(head.encode("latin-1"), Limits())
            dispatcher.admit(Exchange(parsed, request_id="x", arrived_s=0.0, on_answer=lambda _: None))
        except (HttpRefused, Unauthenticated):
            refused += 1
        else:
            assert parsed.path in HEALTH, head
    assert refused > 2000


def test_a_route_must_say_whom_it_is_for():
    """Forgetting the roles is an error, not an open door."""
    with pytest.raises(InvalidInput, match="must name roles"):
        Route("GET", "/x", frozenset(), lambda _: None)


def test_two_routes_of_one_path_are_an_error():
    """It would not be clear which of them answers."""
    dispatcher = Dispatcher(Access(None, clock=time.monotonic))
    dispatcher.register(Route("GET", "/a/{model}", ANY_KEY, lambda _: None))
    with pytest.raises(InvalidInput, match="Two contracts want GET"):
        dispatcher.register(Route("GET", "/a/{model}", ANY_KEY, lambda _: None))
    with pytest.raises(InvalidInput, match=r"names .name."):
        dispatcher.register(Route("GET", "/a/{name}", ANY_KEY, lambda _: None))


def test_a_web_page_is_refused_even_with_a_key(home):
    """A visitor's browser must not be the way in."""
    _, key = KeyFile(home.keys).create(Role.ADMIN)
    dispatcher = Dispatcher(Access(KeyFile(home.keys), clock=time.monotonic))
    dispatcher.register(Route("GET", "/a", OPEN, lambda _: None))
    head = f"GET /a HTTP/1.1\r\nHost: a\r\nOrigin: http://evil\r\nAuthorization: Bearer {key}\r\n\r\n".encode()
    exchange = Exchange(parse_head(head, Limits()), request_id="x", arrived_s=0.0, on_answer=lambda _: None)

    with pytest.raises(Forbidden, match="Origin"):
        dispatcher.admit(exchange)
