"""``lightship serve``: serve models over HTTP and gRPC until told to stop."""

from __future__ import annotations

import gc
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lightship.cli.examples import examples
from lightship.cli.json_answer import json_option, say_json

if TYPE_CHECKING:
    from lightship.serve.server import Server, ServerOptions
    from lightship.serve.tls import Certificate

__all__ = ["serve"]


@click.command(
    epilog=examples(
        "lightship serve digits --port 8080",
        "lightship serve digits leaves@staging --limit queue_requests=512 --limit body_bytes=1g",
        "lightship serve digits --host 0.0.0.0 --tls-cert chain.pem --tls-key key.pem --grpc-port 8081",
    )
)
@click.argument("names", nargs=-1, required=True, metavar="NAME[@ALIAS|:VERSION]…")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 is any free port.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--control-port",
    type=click.IntRange(0, 65535),
    default=0,
    show_default=True,
    help="Port of health, metrics and state, on loopback; 0 is any free port.",
)
@click.option(
    "--grpc-port",
    type=click.IntRange(0, 65535),
    help="Speak gRPC too, on this port; 0 is any free port. [default: off]",
)
@click.option(
    "--tls-cert",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Certificate, then its chain (PEM): speak https and gRPC over TLS only. Needs --tls-key.",
)
@click.option("--tls-key", type=click.Path(dir_okay=False, path_type=Path), help="Private key of --tls-cert (PEM).")
@click.option(
    "--plain-text",
    is_flag=True,
    help="Listen without TLS on an address other than loopback: something in front encrypts.",
)
@click.option(
    "--auth",
    type=click.Choice(["keys", "none"]),
    default="keys",
    show_default=True,
    help="keys: `Authorization: Bearer KEY`, see `lightship keys`. none: only on a loopback address.",
)
@click.option(
    "--limit",
    "limits",
    multiple=True,
    metavar="NAME=VALUE",
    help="Another value for a limit or a clock, e.g. queue_requests=512, body_bytes=1g, drain_s=10. Repeatable.",
)
@click.option(
    "--workers",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="Processes of each model: more answers a second on several cores, and one that dies stops no other.",
)
@click.option("--threads", type=click.IntRange(1, 1024), help="Most threads of each process. [default: its share]")
@click.option("--worker-memory", metavar="SIZE", help="Memory of each process, e.g. 2g. [default: its share]")
@click.option(
    "--keep-previous/--no-keep-previous",
    default=True,
    show_default=True,
    help="Keep the version before in memory, so that a rollback needs no loading.",
)
@click.option("--retune", is_flag=True, help="Measure the best batch of each model again, when the server is idle.")
@click.option(
    "--strict-variant",
    is_flag=True,
    help="Do not serve a version whose chosen variant fails on this machine. [default: its reference answers]",
)
@click.option("--log-requests", is_flag=True, help="Log every request, not only those that failed in the server.")
@json_option("Print the addresses as one JSON object.")
def serve(
    names: tuple[str, ...],
    port: int,
    host: str,
    control_port: int,
    grpc_port: int | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    plain_text: bool,
    auth: str,
    limits: tuple[str, ...],
    workers: int,
    threads: int | None,
    worker_memory: str | None,
    keep_previous: bool,
    retune: bool,
    strict_variant: bool,
    log_requests: bool,
    as_json: bool,
) -> None:
    """Serve the models NAME over HTTP, and over gRPC with --grpc-port.

    A bare NAME is NAME@production. Each release is verified and has to get its golden examples right on this machine
    before the server says that it is ready. SIGTERM or Ctrl-C lets accepted requests finish; a second one does not.
    """
    gc.disable()  # what is imported and read until the server is ready does not become garbage
    # Until the server is there to end by itself. Not by an exception, which an import or a finalizer could swallow.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os._exit(0))

    from lightship.serve.worker_process import WorkerProcess

    spawned = [WorkerProcess.spawn() for _ in dict.fromkeys(names)]  # they end with this process, whatever comes now

    from lightship.data.home import Home
    from lightship.serve.access import KeyFile
    from lightship.serve.limits import limits_of, size_of
    from lightship.serve.run import run_server
    from lightship.serve.server import ServerOptions

    home = Home.from_environment().ensure()
    key_file = KeyFile(home.keys) if auth == "keys" else None
    sizes, clocks = limits_of(limits)
    options = ServerOptions(
        host=host,
        port=port,
        control_port=control_port,
        grpc_port=grpc_port,
        key_file=key_file,
        certificate=_certificate(tls_cert, tls_key),
        plain_text=plain_text,
        home=home,
        limits=sizes,
        clocks=clocks,
        workers=workers,
        threads=threads,
        worker_memory_bytes=None if worker_memory is None else size_of(worker_memory),
        keep_previous=keep_previous,
        retune=retune,
        strict_variant=strict_variant,
        log_requests=log_requests,
    )
    if key_file is not None and (made := key_file.ensure_default()) is not None:
        click.echo(f"Made a first API key for inference: {made}", err=True)
    run_server(
        home,
        names,
        options,
        workers=spawned,
        when_ready=lambda server: _say_ready(server, options, as_json=as_json),
    )


def _certificate(cert: Path | None, key: Path | None) -> Certificate | None:
    from lightship.serve.tls import Certificate

    if cert is None and key is None:
        return None
    if cert is None or key is None:
        raise click.UsageError("--tls-cert and --tls-key go together. Give both.")
    return Certificate(cert, key)


def _say_ready(server: Server, options: ServerOptions, *, as_json: bool) -> None:
    said: dict[str, object] = {
        "models": [f"{model.name}:{model.version}" for model in server.models],
        "url": f"{'http' if options.certificate is None else 'https'}://{_bracketed(server.host)}:{server.port}",
        "control_url": f"http://{_bracketed(server.control_host)}:{server.control_port}",
        "auth": "none" if options.key_file is None else "keys",
        "structural": [f"{one.name}:{one.version}" for one in server.models if one.source.status == "structural"],
    }
    if server.grpc_port is not None:
        said["grpc_url"] = f"{_bracketed(server.host)}:{server.grpc_port}"  # as gRPC's clients take it
    if as_json:
        say_json(said)
        return
    names = ", ".join(
        f"{model.name}:{model.version}{' (structural)' if model.source.status == 'structural' else ''}"
        for model in server.models
    )
    grpc = f"gRPC: {said['grpc_url']}, " if "grpc_url" in said else ""
    click.echo(f"Serving {names} at {said['url']} ({grpc}control: {said['control_url']}, auth: {said['auth']})")


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
