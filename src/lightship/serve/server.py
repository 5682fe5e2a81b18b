"""The whole server: models, routes, both ports, and how it starts and stops.

    async with Server(sources, options) as server:
        await server.until_stopped()

Starting ends when every model has passed its self-test. Stopping: readiness off, a short while in which connections are
still taken, then no new ones; what was accepted is answered; then the workers end.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from lightship.data.home import Home
from lightship.engine.machine import usable_cores
from lightship.errors import Conflict, InvalidInput, LightshipError, Unavailable
from lightship.extensions import extension_names, load_extension
from lightship.serve.access import OPEN, Access, KeyFile
from lightship.serve.catalog import Catalog
from lightship.serve.control import ControlPlane
from lightship.serve.dispatch import Contract, Dispatcher, Exchange, Route
from lightship.serve.front import Front
from lightship.serve.http import Response
from lightship.serve.limits import Clocks, Limits
from lightship.serve.metrics import RequestFigures
from lightship.serve.model import ServedModel
from lightship.serve.request_log import RequestLog
from lightship.serve.rest import Rest
from lightship.serve.shares import worker_memory_bytes, worker_threads
from lightship.serve.source import ModelSource
from lightship.serve.tls import Certificate
from lightship.serve.tls_listener import TlsListener
from lightship.serve.tuning import Tuner
from lightship.serve.versions import Versions
from lightship.serve.worker_process import WorkerProcess

if TYPE_CHECKING:
    from lightship.serve.grpc_front import GrpcFront

__all__ = ["Server", "ServerOptions", "is_loopback"]

log = logging.getLogger(__name__)

_BACKLOG = 2_048
_CONTROL_WAITS_S = 1.0
_CONTROL_AFTER_S = 0.1
_SETTLE_S = 0.01
_TAKE_S = 1.0  # for the handshakes of connections that the kernel had made before the server stopped listening
_TLS_END_S = 1.0  # for a client's own end of the encryption; then the connection closes without it


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """How to serve.

    Attributes:
        port, control_port: 0 is any free port.
        grpc_port: of the V2 protocol over gRPC; ``None``: it is not spoken.
        key_file: ``None`` asks for no keys; then ``host`` must be a loopback address.
        certificate: for both doors of the data plane; ``None`` speaks plain text, which another address than loopback
            takes only with ``plain_text``: something in front encrypts.
        home: whose registry is watched for moved aliases; None watches nothing.
        keep_previous: keep the worker of the version before, so that a rollback needs no loading.
        workers: of each model version.
        threads: of each worker's engine; by default the workers share the cores.
        worker_memory_bytes: what each worker may hold; by default its share of the memory (``shares``).
        tune: find the best batch of each model when nobody asks for anything, and keep it in the home.
        retune: measure also what was measured before.
        strict_variant: a version whose proposed variant does not work on this machine is not served; else its
            reference answers, and log, state and metrics say so.
        log_requests: write one line for every request, not only for those that failed inside the server.
        backlog: connections that wait to be taken; all that wait are taken at once, each with a file.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    control_host: str = "127.0.0.1"
    control_port: int = 0
    grpc_port: int | None = None
    key_file: KeyFile | None = None
    certificate: Certificate | None = None
    plain_text: bool = False
    limits: Limits = field(default_factory=Limits)
    clocks: Clocks = field(default_factory=Clocks)
    home: Home | None = None
    keep_previous: bool = True
    workers: int = 1
    threads: int | None = None
    worker_memory_bytes: int | None = None
    tune: bool = True
    retune: bool = False
    strict_variant: bool = False
    log_requests: bool = False
    backlog: int = _BACKLOG
    depth: int | None = None

    def __post_init__(self) -> None:
        for host in (self.host, self.control_host):
            if self.key_file is None and not is_loopback(host):
                raise InvalidInput(
                    f"Without keys (`--auth none`) a server listens on a loopback address only. Got {host!r}. "
                    "Leave out --auth none, or use --host 127.0.0.1."
                )
        if not is_loopback(self.host) and self.certificate is None and not self.plain_text:
            raise InvalidInput(
                f"On {self.host} keys and data would cross a network in plain text. Give --tls-cert and --tls-key; "
                "or --plain-text, if something in front of the server encrypts."
            )


def is_loopback(host: str) -> bool:
    """Return whether nobody but this machine can reach ``host``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Server:
    """Serves models. An async context manager: entering it starts, leaving it drains and stops."""

    def __init__(
        self, sources: Sequence[ModelSource], options: ServerOptions, *, workers: Sequence[WorkerProcess] = ()
    ) -> None:
        if not sources:
            raise InvalidInput("A server needs at least one model.")
        self.options = options
        self._sharing = len({source.name for source in sources})
        self._rest = Rest(lambda: self.catalog.models, self._listens) if usable_cores() == 1 else None
        models: dict[tuple[str, int], ServedModel] = {}  # two references to one version share its worker
        for source in sources:
            if (source.name, source.version) not in models:
                models[(source.name, source.version)] = self._make(source)
        served = [(source.reference, models[(source.name, source.version)]) for source in sources]
        self.catalog = Catalog(models.values())
        self.versions = Versions(
            served,
            self.catalog,
            home=options.home,
            make=self._make,
            admitted=self._lets_in,
            keep_previous=options.keep_previous,
            longest_drain_s=options.clocks.longest_request_s,
            on_loaded=self._tune,
        )
        self._workers = list(workers)
        self._tuner: Tuner | None = None
        self._control_start: asyncio.Task[None] | None = None
        self.requests = RequestFigures()
        self.stopping = False
        self.host, self.port = options.host, options.port
        self.control_host, self.control_port = options.control_host, options.control_port
        self.grpc_port: int | None = None
        self._listener: asyncio.Server | TlsListener | None = None
        self._socket: socket.socket | None = None
        self._control: ControlPlane | None = None
        self._stop: asyncio.Event
        self._forced: asyncio.Event
        self._request_log: RequestLog
        self.front: Front
        self._grpc: GrpcFront | None = None
        self._tls: dict[str, Any] = {}  # what the loop's functions take

    @property
    def models(self) -> tuple[ServedModel, ...]:
        """The versions that are served now."""
        return self.catalog.models

    @property
    def ready(self) -> bool:
        """Whether all models answer and the server is not being stopped."""
        return self.catalog.ready and not self.stopping

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._stop, self._forced = asyncio.Event(), asyncio.Event()
        self._request_log = RequestLog(loop)
        access = Access(self.options.key_file, clock=loop.time)
        self.front = Front(
            self._dispatcher(access), limits=self.options.limits, clocks=self.options.clocks, served=self._served
        )
        # The ports first: a port that is taken should be known before models are loaded.
        data = _listen(self.host, self.port, self.options.backlog)
        control = _listen(self.control_host, self.control_port, _BACKLOG)
        self.port, self.control_port = data.getsockname()[1], control.getsockname()[1]
        self._prepare_tls()
        self._grpc = self._listen_grpc()
        self._control = ControlPlane(self, access=Access(self.options.key_file, clock=_monotonic), sock=control)
        models_ready = asyncio.Event()
        self._control_start = loop.create_task(self._start_control(models_ready))
        try:
            async with asyncio.TaskGroup() as group:
                for model in self.models:
                    group.create_task(model.start(self._workers.pop() if self._workers else None))
        except BaseException as exc:  # also when it is told to stop in the middle
            data.close()
            if self._grpc is not None:
                await self._grpc.abort()
            await self._close_models()
            await self._stop_control()
            self._request_log.close()
            if isinstance(exc, BaseExceptionGroup):
                raise _first_error(exc) from exc
            raise
        models_ready.set()
        await self._end_spare_workers()
        self.versions.start()
        if self.options.home is not None and self.options.tune:
            self._tuner = Tuner(self.options.home.tuning, busy=self._busy, again=self.options.retune)
            for model in self.models:
                self._tune(model)
        self._socket = data
        if self._tls:
            self._listener = TlsListener(self.front, data, self._tls)
        else:
            self._listener = await loop.create_server(self.front.connection, sock=data, backlog=self.options.backlog)
        if self._grpc is not None:
            self._grpc.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stopping = True
        try:
            await self._drain()
        finally:
            self.front.abort()
            if isinstance(self._listener, TlsListener):
                self._listener.abort()
            if self._grpc is not None:
                await self._grpc.abort()
            await self._close_models()
            await self._stop_control()
            self._request_log.close()

    def stop(self) -> None:
        """Ask the server to stop; a second time, to stop at once. Safe from a signal handler of the loop."""
        if self._stop.is_set():
            self._forced.set()
        self.stopping = True
        self.front.last_answers = True
        self._stop.set()

    async def until_stopped(self) -> None:
        """Wait until somebody calls ``stop``."""
        await self._stop.wait()

    async def _drain(self) -> None:
        drain = asyncio.ensure_future(self._drain_politely())
        forced = asyncio.ensure_future(self._forced.wait())
        await asyncio.wait((drain, forced), return_when=asyncio.FIRST_COMPLETED)
        for task in (drain, forced):
            task.cancel()
        if self._listener is not None:
            self._listener.close()

    async def _drain_politely(self) -> None:
        clocks = self.options.clocks
        self.front.last_answers = True
        await asyncio.sleep(clocks.lame_s)  # requests that are on their way, and connections the kernel has taken
        await asyncio.gather(self._drain_http(clocks.drain_s), self._drain_grpc(clocks.drain_s))

    async def _drain_http(self, timeout_s: float) -> None:
        await self._stop_listening()
        if not await self.front.drain(timeout_s):
            log.warning("%d connections were not done after %g s", len(self.front.connections), timeout_s)

    async def _drain_grpc(self, timeout_s: float) -> None:
        if self._grpc is not None and not await self._grpc.drain(timeout_s):
            log.warning("not all gRPC calls were done after %g s", timeout_s)

    async def _stop_listening(self) -> None:
        """Close the listening socket, but first take the connections that the kernel has made: closing resets them."""
        if self._listener is None or self._socket is None:
            return
        self._socket.listen(0)  # from here on the kernel makes next to none
        taken: list[asyncio.Task[None]] = []
        with contextlib.suppress(BlockingIOError):
            while True:
                accepted, _ = self._socket.accept()
                if (task := self._take(accepted)) is not None:
                    taken.append(task)
        if taken:
            await asyncio.wait(taken, timeout=_TAKE_S)
        self._listener.close()
        await asyncio.sleep(_SETTLE_S)  # what the listener took last has been told to the front

    def _take(self, accepted: socket.socket) -> asyncio.Task[None] | None:
        if isinstance(self._listener, TlsListener):
            return self._listener.take(accepted)
        accepted.setblocking(False)
        return asyncio.get_running_loop().create_task(self._connect(accepted))

    async def _connect(self, accepted: socket.socket) -> None:
        with contextlib.suppress(OSError):  # a client that has gone
            await asyncio.get_running_loop().connect_accepted_socket(self.front.connection, accepted)

    def _make(self, source: ModelSource) -> ServedModel:
        options = self.options
        memory, sharing = options.worker_memory_bytes, self._sharing * options.workers
        graphs = [source.manifest.file(variant.graph) for variant in source.manifest.variants]
        largest = max(entry.size for entry in graphs if entry is not None)
        return ServedModel(
            replace(source, fallback=None) if options.strict_variant else source,
            limits=options.limits,
            clocks=options.clocks,
            depth=options.depth,
            workers=options.workers,
            threads=options.threads or worker_threads(sharing),
            memory_bytes=worker_memory_bytes(largest, sharing) if memory is None else memory,
            rest=self._rest,
        )

    def _listens(self) -> int | None:
        return None if self._socket is None or self._socket.fileno() < 0 else self._socket.fileno()

    def _lets_in(self, model: ServedModel) -> bool:
        return self.front.lets_in(model)

    async def _start_control(self, models_ready: asyncio.Event) -> None:
        """Start the control plane: soon after the models, for its imports would hold up their first answers.

        But when they take long, beside them: whoever watches sees a server that is live and not yet ready.
        """
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(models_ready.wait(), _CONTROL_WAITS_S)
            await asyncio.sleep(_CONTROL_AFTER_S)
        if self._control is not None:
            try:
                await self._control.start()
            except LightshipError:
                log.exception("the control plane is not there")

    async def _stop_control(self) -> None:
        if self._control_start is not None:
            self._control_start.cancel()
        if self._control is not None:
            await self._control.stop()

    def _tune(self, model: ServedModel) -> None:
        if self._tuner is not None:
            self._tuner.begin(model)

    def _busy(self) -> bool:
        return any(model.waiting or model.running for model in self.models)

    async def _end_spare_workers(self) -> None:
        spare, self._workers = self._workers, []
        await asyncio.gather(*(worker.end() for worker in spare))

    async def _close_models(self) -> None:
        if self._tuner is not None:
            await self._tuner.close()
        await self.versions.close()
        await self._end_spare_workers()
        await asyncio.gather(*(model.close() for model in self.models))

    def _prepare_tls(self) -> None:
        if self.options.certificate is not None:
            self._tls = {
                "ssl": self.options.certificate.server_context(),
                "ssl_handshake_timeout": self.options.clocks.head_s,
                "ssl_shutdown_timeout": _TLS_END_S,
            }

    def _listen_grpc(self) -> GrpcFront | None:
        options = self.options
        if options.grpc_port is None:
            return None
        # Late: who does not speak gRPC does not wait for its libraries.
        from lightship.serve.contracts.v2_grpc import V2Grpc
        from lightship.serve.grpc_front import GrpcFront

        contract = V2Grpc(self.catalog, limits=options.limits, stopping=lambda: self.stopping)
        front = GrpcFront(
            contract.methods(),
            Access(options.key_file, clock=_monotonic),
            limits=options.limits,
            clocks=options.clocks,
            served=self._served,
            stream_error=contract.stream_error,
        )
        credentials = options.certificate.grpc_credentials() if options.certificate is not None else None
        self.grpc_port = front.listen(self.host, options.grpc_port, credentials)
        return front

    def _dispatcher(self, access: Access) -> Dispatcher:
        dispatcher = Dispatcher(access)
        dispatcher.register(Route("GET", "/livez", OPEN, _live, contract="health"))
        dispatcher.register(Route("GET", "/readyz", OPEN, self._readyz, contract="health"))
        for name in extension_names("contracts"):
            contract: Contract = load_extension("contracts", name)(
                self.catalog, limits=self.options.limits, stopping=lambda: self.stopping
            )
            for route in contract.routes():
                dispatcher.register(route)
        return dispatcher

    def _readyz(self, exchange: Exchange) -> None:
        if not self.ready:
            raise Unavailable("The server is not ready.")
        exchange.answer(Response(200, (b'{"ready":true}',)))

    def _served(self, exchange: Exchange, status: int, seconds: float) -> None:
        self.requests.add(exchange.contract, exchange.model, status, seconds)
        if status >= 500 or self.options.log_requests:
            self._request_log.add(exchange, status, seconds)


def _live(exchange: Exchange) -> None:
    exchange.answer(Response(200, (b'{"live":true}',)))


def _listen(host: str, port: int, backlog: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # said, so that asyncio sets TCP_NODELAY
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(backlog)
        sock.setblocking(False)
    except OSError as exc:
        sock.close()
        raise Conflict(
            f"The address {host}:{port} cannot be used: {exc.strerror}. "
            "Choose another --host, --port or --control-port."
        ) from exc
    return sock


def _first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            return _first_error(error)
        if isinstance(error, LightshipError):
            return error
    return group.exceptions[0]


def _monotonic() -> float:
    import time

    return time.monotonic()
