"""The process of a server: from a home and names to a running server, and its end. What the command line calls."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace

from lightship.data.home import Home
from lightship.memory import keep_one_heap
from lightship.serve.log_lines import log_to_stderr
from lightship.serve.server import Server, ServerOptions, is_loopback
from lightship.serve.source import read_source
from lightship.serve.worker_process import WorkerProcess

__all__ = ["connections_within", "run_server"]

log = logging.getLogger(__name__)

_FORCED_S = 0.9
_OWN_FILES = 96  # models, registry, control plane
_WORKER_FILES = 6  # sockets and memory of a worker, and of the one that replaces it
_BURST = 8  # one in so many: for connections that are taken before others have been sent away


def run_server(
    home: Home,
    references: Sequence[str],
    options: ServerOptions,
    *,
    when_ready: Callable[[Server], None],
    workers: Sequence[WorkerProcess] = (),
) -> None:
    """Serve until SIGTERM or SIGINT; return when what was accepted has been answered.

    Args:
        references: names as in ``digits``, ``digits@staging``, ``digits:3``.
        workers: processes that were spawned already: they import their libraries while releases are being verified.
        when_ready: called once, when all models have passed their self-test and both ports listen.

    Raises:
        BundleRefused: a release does not verify, or a model gets a golden example wrong on this machine.
        LightshipError: a name, a port, a graph.
    """
    _prepare_process(options)
    options = _within_files(options, len(references))
    try:
        sources = [read_source(home, reference) for reference in dict.fromkeys(references)]
    except BaseException:
        for worker in workers:
            worker.kill()
        raise

    async def serve() -> None:
        stop = _Stop()
        try:
            async with Server(sources, options, workers=workers) as server:
                stop.server = server
                # What was made up to here stays: the collector need not look at it again in the middle of a request,
                # nor now: the few hundred objects that it would find are not worth a twentieth of the start.
                gc.freeze()
                gc.enable()
                when_ready(server)
                await server.until_stopped()
                log.info("stopping: accepted requests are finished first")
        except asyncio.CancelledError:
            if not stop.asked:
                raise
        log.info("stopped")

    _run(serve)


class _Stop:
    """What SIGTERM and SIGINT do: end the start; later, stop the server; the second time, end within a second.

    SIGHUP is the same when the terminal was closed. Elsewhere it asks to read settings again, and there is nothing to
    do: aliases, keys and certificates are followed anyway.
    """

    def __init__(self) -> None:
        self.server: Server | None = None
        self.asked = 0
        self._task = asyncio.current_task()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._signaled)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # which nohup has set
            hung_up = self._signaled if sys.stderr.isatty() else _nothing_to_read
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, hung_up)

    def _signaled(self) -> None:
        self.asked += 1
        if self.server is not None:
            self.server.stop()
        elif self.asked == 1 and self._task is not None:
            self._task.cancel()
        if self.asked == 2:
            force = threading.Timer(_FORCED_S, os._exit, (0,))  # a thread: whatever the loop is doing
            force.daemon = True
            force.start()


def _nothing_to_read() -> None:
    log.info("SIGHUP: aliases, keys and certificates are followed without it; it changes nothing")


def _run(main: Callable[[], object]) -> None:
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())  # type: ignore[arg-type]  # a coroutine


def _prepare_process(options: ServerOptions) -> None:
    keep_one_heap()  # versions are read by threads; what they took has to leave with the version
    log_to_stderr()
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))  # weights stay in memory
    if os.geteuid() == 0:
        log.warning("the server runs as root; give it a user of its own")
    if not is_loopback(options.host) and options.certificate is None:
        log.warning("listening on %s without TLS: nobody must reach it but what encrypts in front of it", options.host)


def _within_files(options: ServerOptions, models: int) -> ServerOptions:
    """Return the options with as many connections as there can be files, of which a process may have a few only.

    Without a file the registry cannot be read, no worker started and no health asked for.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    room = connections_within(most, more_workers=models * (options.workers - 1))
    if most == resource.RLIM_INFINITY or options.limits.connections <= room:
        return options
    log.warning(
        "at most %d connections instead of %d, for the process may open %d files; raise its limit (ulimit -n, "
        "LimitNOFILE=), or set --limit connections=%d",
        *(room, options.limits.connections, most, room),
    )
    backlog = min(options.backlog, max(1, most // _BURST // 2))
    return replace(options, limits=replace(options.limits, connections=room), backlog=backlog)


def connections_within(files: int, *, more_workers: int = 0) -> int:
    """Return how many connections leave room for the server's own files; ``more_workers``: than one a model."""
    return max(1, files - files // _BURST - _OWN_FILES - _WORKER_FILES * more_workers)
