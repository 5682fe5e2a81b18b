"""The control plane: health, metrics and state on a port of its own, in a thread with its own event loop.

So that overload of the data plane never hides the server's health. Starlette on uvicorn: nothing
here is on the path of a prediction.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import re
import socket
import threading
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Protocol

from lightship.errors import Forbidden, LightshipError, status_of
from lightship.serve.access import OPEN, Access, Role, Roles
from lightship.serve.control_api import openapi
from lightship.serve.metrics import RequestFigures, registry_of
from lightship.serve.model import ServedModel
from lightship.serve.versions import Slot, Versions

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

__all__ = ["ControlPlane", "Watched", "control_app"]

log = logging.getLogger(__name__)

_READ = frozenset({Role.READ})
_ADMIN = frozenset({Role.ADMIN})
_OPEN_PATHS = ("/livez", "/readyz")
_OWN_HOST = re.compile(r"([0-9.]+|\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_-]*)(:[0-9]+)?")
_START_S = 10.0
_COMPLAINT_S = 10.0
_BACKLOG = 1_024
_TAKEN_AT_ONCE = 8  # what asyncio calls backlog too: each has a file, and goes through the loop before it can be closed


class Watched(Protocol):
    """What the control plane sees of a server."""

    requests: RequestFigures
    versions: Versions

    @property
    def models(self) -> tuple[ServedModel, ...]:
        """The versions that are served now."""

    @property
    def ready(self) -> bool:
        """Whether all models answer."""


def control_app(server: Watched, access: Access, loop: asyncio.AbstractEventLoop) -> Starlette:
    """Return the application of the control plane. Liveness and readiness are open, the rest needs ``read``.

    What changes something, the way back while the registry cannot be read, needs ``admin``, and keys at all.

    Whatever else is asked for needs a key too, before it is told that there is no such thing.
    """
    from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    registry = registry_of(server.requests, lambda: server.models, server.versions)

    async def livez(_request: Request) -> Response:
        return JSONResponse({"live": True})

    async def readyz(_request: Request) -> Response:
        return JSONResponse({"ready": server.ready}, status_code=200 if server.ready else 503)

    async def metrics(_request: Request) -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    async def models(_request: Request) -> Response:
        return JSONResponse(state_of(server))

    async def go_back(request: Request) -> Response:
        if access.open:
            raise Forbidden("Without keys (`--auth none`) nothing can be changed here. Start the server with keys.")
        asked = asyncio.run_coroutine_threadsafe(server.versions.go_back(request.path_params["name"]), loop)
        model = await asyncio.wrap_future(asked)
        return JSONResponse({"name": model.name, "version": model.source.version})

    async def document(_request: Request) -> Response:
        return JSONResponse(openapi())

    def refuse_pages(request: Request) -> None:
        if "origin" in request.headers:
            raise Forbidden("Requests from web pages (with an Origin header) are not taken here.")
        # Of its own site a page asks without an Origin, and whose site a name is, its owner says at any time.
        if access.open and _OWN_HOST.fullmatch(request.headers.get("host", "")) is None:
            raise Forbidden("Without keys (`--auth none`) the Host must be an address, or a name without a dot.")

    async def no_route(request: Request, error: Exception) -> Response:
        try:
            refuse_pages(request)
            if request.url.path not in _OPEN_PATHS:
                access.authenticate(request.headers.get("authorization"))
        except LightshipError as exc:
            return await failed(request, exc)
        status = getattr(error, "status_code", 404)
        text = (
            "This method is not taken here." if status == 405 else "There is nothing at this path. See /openapi.json."
        )
        return JSONResponse({"error": text}, status_code=status, headers=getattr(error, "headers", None))

    async def failed(_request: Request, error: Exception) -> Response:
        headers = {"www-authenticate": "Bearer"} if status_of(error).http == 401 else None
        return JSONResponse({"error": str(error)}, status_code=status_of(error).http, headers=headers)

    def route(path: str, handle: Callable[[Request], Awaitable[Response]], roles: Roles, method: str = "GET") -> Route:
        async def checked(request: Request) -> Response:
            refuse_pages(request)
            access.check(request.headers.get("authorization"), roles)
            return await handle(request)

        return Route(path, checked, methods=[method])

    routes = [
        route("/livez", livez, OPEN),
        route("/readyz", readyz, OPEN),
        route("/metrics", metrics, _READ),
        route("/monitoring/prometheus/metrics", metrics, _READ),
        route("/models", models, _READ),
        route("/models/{name}/rollback", go_back, _ADMIN, "POST"),
        route("/openapi.json", document, _READ),
    ]
    app = Starlette(routes=routes, exception_handlers={LightshipError: failed, HTTPException: no_route})
    app.router.redirect_slashes = False  # a redirect would tell a stranger which paths there are
    return app


def state_of(server: Watched) -> dict[str, Any]:
    """Return what a server serves and what became of the last changes."""
    versions = server.versions
    parked = [{**_state(model), "state": "parked"} for model in versions.parked.values()]
    return {
        "ready": server.ready,
        "degraded": versions.degraded or None,
        "references": [_reference(slot) for slot in versions.slots],
        "models": [*(_state(model) for model in server.models), *parked],
    }


def _reference(slot: Slot) -> dict[str, Any]:
    failure = slot.failure
    return {
        "reference": slot.reference,
        "name": slot.model.name,
        "version": slot.model.source.version,
        "loading": slot.loading,
        "held_off": None if slot.held_off is None else int(slot.held_off[1]),
        "failure": None
        if failure is None
        else {"version": failure.version, "reason": failure.reason, "at": round(failure.at, 3)},
    }


def _state(model: ServedModel) -> dict[str, Any]:
    return {
        "name": model.name,
        "version": model.source.version,
        "bundle": model.source.bundle,
        "status": model.source.status,
        "variant": model.source.variant.name,
        "instead_of": None
        if model.source.instead_of is None
        else dict(zip(("variant", "reason"), model.source.instead_of, strict=True)),
        "state": str(model.state),
        "worker_pids": list(model.worker_pids),
        "worker_deaths": model.deaths,
        "largest_batch": model.source.batch_rows or 1,
        "batch": model.batch_rows,
        "tuning": None
        if model.rows_per_s is None
        else {"rows_per_s": {str(rows): round(rate, 1) for rows, rate in model.rows_per_s.items()}},
        "threads": model.threads,
        "memory_bytes": model.memory_bytes,
        "memory_limit_bytes": model.memory_limit_bytes or None,
        "quarantined_inputs": model.quarantined,
        "waiting": model.waiting,
        "running": model.running,
    }


class ControlPlane:
    """Runs the control plane on a listening socket."""

    def __init__(self, server: Watched, *, access: Access, sock: socket.socket) -> None:
        self._server = server
        self._access = access
        self._sock = sock
        self._uvicorn: Any = None
        self._loop: asyncio.AbstractEventLoop  # of the server; what changes something runs there
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, name="control-plane", daemon=True)

    async def start(self) -> None:
        """Start the thread and wait until it serves."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()
        if not await asyncio.to_thread(self._started.wait, _START_S):
            raise LightshipError(f"The control plane did not start within {_START_S:g} s. The log tells why.")

    async def stop(self) -> None:
        """Stop the thread, if it runs."""
        if self._thread.ident is None:
            self._sock.close()
            return
        await asyncio.to_thread(self._started.wait, _START_S)  # uvicorn cannot be stopped before it has started
        if self._uvicorn is not None:
            self._uvicorn.should_exit = True
        await asyncio.to_thread(self._thread.join, 2.0)
        self._sock.close()

    def _run(self) -> None:
        import uvicorn

        from lightship.serve.control_http import ControlConnection

        class _Uvicorn(uvicorn.Server):
            async def startup(inner, sockets: list[socket.socket] | None = None) -> None:  # noqa: N805
                asyncio.get_running_loop().set_exception_handler(_Complaints())
                await super().startup(sockets)
                self._sock.listen(_BACKLOG)
                self._started.set()

        config = uvicorn.Config(
            control_app(self._server, self._access, self._loop),
            log_config=None,
            access_log=False,
            loop="asyncio",
            http=ControlConnection,
            lifespan="off",
            ws="none",
            server_header=False,
            backlog=_TAKEN_AT_ONCE,
            timeout_keep_alive=10,
            timeout_graceful_shutdown=1,
        )
        self._uvicorn = _Uvicorn(config)
        try:
            self._uvicorn.run(sockets=[self._sock])
        except Exception:
            log.exception("the control plane failed")


class _Complaints:
    """What the loop complains of; that there is no file for a connection, once in a while and without a trace.

    Asyncio tries again each second, and then complains for each connection that waits.
    """

    def __init__(self) -> None:
        self._next_s = 0.0

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not isinstance(error, OSError) or error.errno not in (errno.EMFILE, errno.ENFILE):
            loop.default_exception_handler(context)
        elif loop.time() >= self._next_s:
            self._next_s = loop.time() + _COMPLAINT_S
            log.warning("the control plane cannot take connections: %s", error.strerror)
