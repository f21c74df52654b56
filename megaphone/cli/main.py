"""`megaphone`: serve, and look after a node and its configuration."""

import gc
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from megaphone import __version__
from megaphone.build import build_kind
from megaphone.cli.admin import megactl_app
from megaphone.cli.config import config_app, load_or_exit
from megaphone.cli.output import open_standard_streams
from megaphone.cli.store import store_app
from megaphone.process.cores import workers_for

app = typer.Typer(
    name="megaphone",
    help="Push events to browsers, phones and services over HTTP streaming and gRPC.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(config_app, name="config")
app.add_typer(store_app, name="store")
app.add_typer(megactl_app, name="ctl")

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


@app.command()
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
) -> None:
    """Start the broker; Ctrl-C, SIGTERM or SIGHUP stops it in order.

    Nothing has to be set: HTTP is on port 3000 and gRPC on port 3001, both for this machine only.
    `megaphone config show` lists what can be set.
    """
    options = {} if workers is None else {"workers": workers}
    settings = load_or_exit(config, options).settings
    settings = replace(settings, workers=workers_for(settings.workers))
    if settings.workers > 1:
        from megaphone.cli.supervise import supervise_until_stopped

        supervise_until_stopped(settings, config)
        return
    # Imported here, because it is slow to import and no other command needs it. Nothing of that is
    # garbage, and looking for some takes a tenth of the time.
    gc.disable()
    from megaphone.cli.serve import serve_until_stopped

    gc.enable()
    serve_until_stopped(settings)


def main() -> NoReturn:
    open_standard_streams()
    sys.exit(app())
