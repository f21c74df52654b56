"""`megaphone serve` with several workers, from the settings to the exit code.

The supervisor imports neither gRPC nor aiohttp: it serves nobody, and starts faster without them.
"""

import asyncio
from pathlib import Path

import typer

from megaphone.cli.banner import announce
from megaphone.cli.config import load_again
from megaphone.observe.logs import logging_to_stderr
from megaphone.process import descriptors
from megaphone.settings import Settings
from megaphone.workers.member import StartFailed
from megaphone.workers.supervisor import Supervisor


def supervise_until_stopped(settings: Settings, config: Path | None) -> None:
    """Run workers until a signal stops the process. Exits with 1 if one of them cannot start.

    `config` is the file of the settings, which SIGHUP reads again.
    """
    descriptors.raise_limit()

    def reload(present: Settings) -> Settings:
        # With the number of workers, because the default of some settings depends on it.
        return load_again(present, config, {"workers": present.workers, "store": present.store})

    with logging_to_stderr(settings.log_format, settings.log_level) as lines:
        supervisor = Supervisor(settings, reload)
        try:
            asyncio.run(
                supervisor.run(lambda http, grpc: announce(settings, http, grpc)),
            )
        except (OSError, StartFailed) as error:
            lines.write(f"megaphone: cannot start: {error}\n".encode(errors="backslashreplace"))
            raise typer.Exit(1) from None
