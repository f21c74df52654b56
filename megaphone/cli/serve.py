"""`megaphone serve` in one process, from the settings to the exit code."""

import asyncio
from collections.abc import Callable

import typer
import uvloop

from megaphone.app import serve
from megaphone.cli.banner import announce
from megaphone.errors import StoreUnavailable
from megaphone.observe.logs import logging_to_stderr
from megaphone.process import descriptors
from megaphone.process.garbage import Freezer
from megaphone.process.memory import allowed_bytes, return_freed_memory
from megaphone.settings import Settings
from megaphone.store.errors import UnusableStore


def serve_until_stopped(settings: Settings, load: Callable[[Settings], Settings]) -> None:
    """Serve until a signal stops the process. Exits with 1 if the node cannot listen.

    `load` is as `megaphone.app.serve` needs it.
    """
    return_freed_memory()
    descriptors.raise_limit()
    with (
        Freezer(allowed_bytes()),
        logging_to_stderr(settings.log_format, settings.log_level) as lines,
        asyncio.Runner(loop_factory=new_event_loop) as runner,
    ):
        try:
            runner.run(
                serve(
                    settings,
                    lambda app: announce(settings, app.http_port, app.grpc_port),
                    load,
                    lines,
                )
            )
        except (OSError, StoreUnavailable, UnusableStore) as error:
            lines.write(f"megaphone: cannot start: {error}\n".encode(errors="backslashreplace"))
            raise typer.Exit(1) from None


def new_event_loop() -> asyncio.AbstractEventLoop:
    return uvloop.new_event_loop()
