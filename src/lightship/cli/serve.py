"""``lightship serve``: serve models over HTTP until told to stop."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from lightship.serve.server import Server, ServerOptions

__all__ = ["serve"]


@click.command()
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
    "--auth",
    type=click.Choice(["keys", "none"]),
    default="keys",
    show_default=True,
    help="keys: `Authorization: Bearer KEY`, see `lightship keys`. none: only on a loopback address.",
)
@click.option("--log-requests", is_flag=True, help="Log every request, not only those that failed in the server.")
@click.option("--json", "as_json", is_flag=True, help="Print the addresses as one JSON object.")
def serve(
    names: tuple[str, ...], port: int, host: str, control_port: int, auth: str, log_requests: bool, as_json: bool
) -> None:
    """Serve the models NAME over HTTP.

    A bare NAME is NAME@production. Each release is verified and has to get its golden examples right on this machine
    before the server says that it is ready. SIGTERM or Ctrl-C lets accepted requests finish; a second one does not.
    """
    from lightship.data.home import Home
    from lightship.serve.access import KeyFile
    from lightship.serve.run import run_server
    from lightship.serve.server import ServerOptions

    home = Home.from_environment().ensure()
    key_file = KeyFile(home.keys) if auth == "keys" else None
    options = ServerOptions(
        host=host, port=port, control_port=control_port, key_file=key_file, home=home, log_requests=log_requests
    )
    if key_file is not None and (made := key_file.ensure_default()) is not None:
        click.echo(f"Made a first API key for inference: {made}", err=True)
    run_server(home, names, options, when_ready=lambda server: _say_ready(server, options, as_json=as_json))


def _say_ready(server: Server, options: ServerOptions, *, as_json: bool) -> None:
    models = [f"{model.name}:{model.version}" for model in server.models]
    address = f"http://{_bracketed(server.host)}:{server.port}"
    control = f"http://{_bracketed(server.control_host)}:{server.control_port}"
    auth = "none" if options.key_file is None else "keys"
    if as_json:
        click.echo(json.dumps({"models": models, "url": address, "control_url": control, "auth": auth}))
    else:
        click.echo(f"Serving {', '.join(models)} at {address} (control: {control}, auth: {auth})")


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
