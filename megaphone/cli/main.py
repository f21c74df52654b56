"""`megaphone`: serve, look after a node, and use a broker as its clients do."""

import gc
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from megaphone import __version__
from megaphone.cli.admin import megactl_app
from megaphone.cli.bench import bench
from megaphone.cli.channels import ack, create, dispose, exists
from megaphone.cli.command import run_command
from megaphone.cli.config import config_app, file_here, load_again, load_or_exit
from megaphone.cli.contexts import context_app
from megaphone.cli.help import App
from megaphone.cli.store import store_app
from megaphone.cli.tail import first, tail
from megaphone.cli.token import token_app
from megaphone.cli.top import top
from megaphone.cli.ui import ui
from megaphone.cli.write import write
from megaphone.process.cores import workers_for

if TYPE_CHECKING:
    from megaphone.settings import Settings

app = App(
    name="megaphone",
    help="Push events to browsers, phones and services over HTTP streaming and gRPC.",
)
NODES, CLIENTS = "Nodes", "Clients"
app.command(rich_help_panel=CLIENTS)(create)
app.command(rich_help_panel=CLIENTS)(write)
app.command(rich_help_panel=CLIENTS)(tail)
app.command(rich_help_panel=CLIENTS)(first)
app.command(rich_help_panel=CLIENTS)(ack)
app.command(rich_help_panel=CLIENTS)(exists)
app.command(rich_help_panel=CLIENTS)(dispose)
app.command(rich_help_panel=CLIENTS)(bench)
app.add_typer(context_app, name="context", rich_help_panel=CLIENTS)
app.command(rich_help_panel=NODES)(top)
app.command(rich_help_panel=NODES)(ui)
app.add_typer(config_app, name="config", rich_help_panel=NODES)
app.add_typer(store_app, name="store", rich_help_panel=NODES)
app.add_typer(token_app, name="token", rich_help_panel=NODES)
app.add_typer(megactl_app, name="ctl", rich_help_panel=NODES)

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="Read this file instead of the one in the working directory.",
    ),
]


def show_version(wanted: bool) -> None:
    if wanted:
        from megaphone.build import build_kind

        typer.echo(f"megaphone {__version__} ({build_kind()})")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=show_version, help="Print the version."),
    ] = False,
) -> None:
    """Options that need no command."""


@app.command(rich_help_panel=NODES)
def serve(
    config: ConfigOption = None,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            metavar="N",
            help="Run so many processes on the same ports, 0 for one a core. They need a store"
            " that nodes share. SIGHUP replaces them one after the other.",
        ),
    ] = None,
    host: Annotated[
        str | None,
        typer.Option("--host", metavar="HOST", help="Listen here, on both ports: 0.0.0.0, ::."),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option("--port", metavar="PORT", min=0, max=65_535, help="The port of HTTP."),
    ] = None,
    grpc_port: Annotated[
        int | None,
        typer.Option("--grpc-port", metavar="PORT", min=0, max=65_535, help="The port of gRPC."),
    ] = None,
) -> None:
    """Start the broker; Ctrl-C or SIGTERM stops it in order.

    SIGHUP lets it read the configuration again.

    Nothing has to be set: HTTP is on port 3000 and gRPC on port 3001, both for this machine only.
    `megaphone config show` lists what can be set.
    """
    options: dict[str, object] = {} if workers is None else {"workers": workers}
    options |= addresses(load_or_exit(config).settings, host, port, grpc_port)
    settings = with_workers(load_or_exit(config, options).settings)
    # If this file is gone at SIGHUP, that must fail: without its name all defaults would count.
    config = config or file_here()
    if settings.workers > 1:
        from megaphone.cli.supervise import supervise_until_stopped

        supervise_until_stopped(settings, config)
        return
    # Without it gRPC prints lines to standard error for each client that fails to shake hands.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    # Imported here, because it is slow to import and no other command needs it. Nothing of that is
    # garbage, and looking for some takes a tenth of the time.
    gc.disable()
    from megaphone.cli.serve import serve_until_stopped

    gc.enable()
    serve_until_stopped(
        settings, lambda present: with_workers(load_again(present, config, options))
    )


def with_workers(settings: "Settings") -> "Settings":
    """Return settings with the number of workers that this machine shall have."""
    return replace(settings, workers=workers_for(settings.workers))


def addresses(
    settings: "Settings", host: str | None, port: int | None, grpc_port: int | None
) -> dict[str, str]:
    """Return the settings of the addresses that flags change, in whole or in part."""
    from megaphone.model import Endpoint

    changed = {}
    for name, endpoint, new_port in (
        ("address", settings.http_endpoint, port),
        ("grpc_address", settings.grpc_endpoint, grpc_port),
    ):
        if host is not None or new_port is not None:
            ports = endpoint.port if new_port is None else new_port
            changed[name] = str(Endpoint((host or endpoint.host).strip("[]"), ports))
    return changed


def main() -> NoReturn:
    run_command(app, "megaphone")
