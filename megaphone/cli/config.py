"""`megaphone config`: check the configuration, and show the settings that it results in."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from megaphone.cli.help import App

if TYPE_CHECKING:
    from megaphone.config import Config
    from megaphone.settings import Settings

config_app = App(help="Check and show the configuration.")

WRONG_CONFIGURATION = 2
"""The exit code if the configuration is not allowed."""

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="Read this file instead of the one in the working directory.",
    ),
]


def load_or_exit(file: Path | None, options: Mapping[str, Any] | None = None) -> "Config":
    """Return the configuration, or print one line about its mistake and exit."""
    # Not above, because `--help` does not need what checks a configuration.
    from megaphone.config import ConfigError, load_here

    try:
        return load_here(file, options)
    except ConfigError as error:
        typer.echo(f"megaphone: {error}", err=True)
        raise typer.Exit(WRONG_CONFIGURATION) from None


def file_here() -> Path | None:
    """Return the file of settings in the working directory, if there is one."""
    from megaphone.config import find_file

    return find_file(Path.cwd())


def load_again(
    present: "Settings", file: Path | None, options: Mapping[str, Any] | None = None
) -> "Settings":
    """Return the configuration as it is now, for a broker that runs with the `present` settings.

    Defaults that were computed at its start stay as they were.

    Raises: ValueError, if the configuration is not allowed.
    """
    from megaphone.config import COMPUTED, DEFAULT, ConfigError, load_here

    try:
        loaded = load_here(file, options)
    except ConfigError as error:
        raise ValueError(str(error)) from None
    kept = {key: getattr(present, key) for key in COMPUTED if loaded.sources[key] == DEFAULT}
    return replace(loaded.settings, **kept)


@config_app.command()
def check(config: ConfigOption = None) -> None:
    """Check whether the broker would start with this configuration."""
    from megaphone.cli.config_lines import kinds_of_sources

    loaded = load_or_exit(config)
    check_files(loaded.settings)
    check_store(loaded.settings)
    counts = kinds_of_sources(loaded)
    found = [f"{count} from {kind}" for kind, count in counts.items()]
    typer.echo(f"The configuration is in order; settings: {', '.join(found)}.")


def check_files(settings: "Settings") -> None:
    """Exit if a file of a certificate, or of the key of an issuer, is missing or wrong."""
    from megaphone.access.issuers import UnusableKey, issuers_of
    from megaphone.listen.certificates import UnusableCertificate, load, nodes_files, public_files

    try:
        for files in (public_files(settings), nodes_files(settings)):
            if files is not None:
                load(files)
        issuers_of(settings)
    except (UnusableCertificate, UnusableKey) as error:
        typer.echo(f"megaphone: {error}", err=True)
        raise typer.Exit(WRONG_CONFIGURATION) from None


def check_store(settings: "Settings") -> None:
    """Exit if no broker could start with the store that the settings name, and with the files of
    its URL, whatever the server says. Asks no server."""
    from megaphone.settings import MEMORY
    from megaphone.store.errors import UnusableStore

    if settings.store == MEMORY:
        return
    try:
        # A broker with its channels in memory does not need the packages for it.
        from megaphone.store.redis.link import tls_of
        from megaphone.store.redis.url import StoreUrl

        tls_of(StoreUrl.of_settings(settings.store, settings.store_password_file))
    except (ImportError, UnusableStore) as error:
        typer.echo(f"megaphone: {error}", err=True)
        raise typer.Exit(WRONG_CONFIGURATION) from None


@config_app.command()
def show(
    config: ConfigOption = None,
    secrets: Annotated[bool, typer.Option("--secrets", help="Print secrets too.")] = False,
) -> None:
    """Print every setting and its source, as a megaphone.toml.

    Secrets appear only as comments: the secrets of nodes and webhooks, and the endpoint of a
    webhook if it has a user part or a query.
    """
    from megaphone.cli.config_lines import lines_of

    for line in lines_of(load_or_exit(config), secrets):
        typer.echo(line)
