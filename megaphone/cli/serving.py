"""What `megaphone serve` does, from its settings to its exit code."""

import asyncio
import sys

import typer

from megaphone import __version__
from megaphone.app import App, serve
from megaphone.logs import configure_logs
from megaphone.settings import Settings


def serve_until_stopped(settings: Settings) -> None:
    """Serve in the fastest event loop there is. Exits with 1 when an address cannot be had."""
    configure_logs(settings.log_format)
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        try:
            runner.run(serve(settings, lambda app: announce(settings, app)))
        except OSError as error:
            typer.echo(f"megaphone: cannot start: {error}", err=True)
            raise typer.Exit(1) from None


def new_event_loop() -> asyncio.AbstractEventLoop:
    if sys.platform == "win32":
        return asyncio.new_event_loop()
    import uvloop

    return uvloop.new_event_loop()


def announce(settings: Settings, app: App) -> None:
    """Tell people where to go next; machines read the log."""
    if sys.stdout.isatty():
        typer.echo(
            f"\n  Megaphone {__version__} is ready.\n\n"
            f"    HTTP   http://127.0.0.1:{app.http_port}\n"
            f"    gRPC   127.0.0.1:{app.grpc_port}\n"
            f"    agent  {', '.join(settings.agent)}\n\n"
            f"  Make a channel:  curl -X POST http://127.0.0.1:{app.http_port}/create\n"
            "  Stop with Ctrl-C.\n"
        )
