"""`megaphone serve`, from the settings to the exit code."""

import asyncio
import os

import typer
import uvloop

from megaphone import __version__
from megaphone.app import App, serve
from megaphone.errors import StoreUnavailable
from megaphone.listen.exposure import reachable
from megaphone.observe.logs import LineWriter, logging_to_stderr
from megaphone.process import descriptors
from megaphone.process.garbage import Freezer
from megaphone.process.memory import allowed_bytes, return_freed_memory
from megaphone.settings import Settings
from megaphone.store.errors import UnusableStore

STANDARD_OUTPUT = 1


def serve_until_stopped(settings: Settings) -> None:
    """Serve until a signal stops the process. Exits with 1 if the node cannot listen."""
    return_freed_memory()
    descriptors.raise_limit()
    with (
        Freezer(allowed_bytes()),
        logging_to_stderr(settings.log_format) as lines,
        asyncio.Runner(loop_factory=new_event_loop) as runner,
    ):
        try:
            runner.run(serve(settings, lambda app: announce(settings, app), lines))
        except (OSError, StoreUnavailable, UnusableStore) as error:
            lines.write(f"megaphone: cannot start: {error}\n".encode(errors="backslashreplace"))
            raise typer.Exit(1) from None


def new_event_loop() -> asyncio.AbstractEventLoop:
    return uvloop.new_event_loop()


def announce(settings: Settings, app: App) -> None:
    """Print the addresses of the node, if standard output is a terminal. Programs find them in the
    process log."""
    if not os.isatty(STANDARD_OUTPUT):
        return
    http = f"http://{reachable(settings.http_endpoint.with_port(app.http_port))}"
    text = (
        f"\n  Megaphone {__version__} is ready.\n\n"
        f"    HTTP   {http}\n"
        f"    gRPC   {reachable(settings.grpc_endpoint.with_port(app.grpc_port))}\n"
        f"    agent  {', '.join(settings.agent)}\n\n"
        f"  Make a channel:  curl -X POST {http}/create\n"
        "  Stop with Ctrl-C.\n\n"
    )
    # A LineWriter, because a terminal that Ctrl-S has stopped would block a plain write.
    LineWriter(STANDARD_OUTPUT, report=lambda count: b"").write(text.encode())
