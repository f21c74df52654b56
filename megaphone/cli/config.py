"""`megaphone config`: check the configuration, and show the settings that it results in."""

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import fields, replace
from enum import Enum
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit, urlunsplit

import typer

from megaphone.config import COMPUTED, DEFAULT, KEYS, VARIABLE, Config, ConfigError, load_here
from megaphone.settings import Nodes, Settings, Webhook

config_app = typer.Typer(help="Check and show the configuration.", no_args_is_help=True)

WRONG_CONFIGURATION = 2
"""The exit code if the configuration is not allowed."""

HIDDEN = "…"

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="Read this file instead of the one in the working directory.",
    ),
]


def load_or_exit(file: Path | None, options: Mapping[str, Any] | None = None) -> Config:
    """Return the configuration, or print one line about its mistake and exit."""
    try:
        return load_here(file, options)
    except ConfigError as error:
        typer.echo(f"megaphone: {error}", err=True)
        raise typer.Exit(WRONG_CONFIGURATION) from None


def load_again(
    present: Settings, file: Path | None, options: Mapping[str, Any] | None = None
) -> Settings:
    """Return the configuration as it is now, for a broker that runs with the `present` settings.

    Defaults that were computed at its start stay as they were.

    Raises: ValueError, if the configuration is not allowed.
    """
    try:
        loaded = load_here(file, options)
    except ConfigError as error:
        raise ValueError(str(error)) from None
    kept = {key: getattr(present, key) for key in COMPUTED if loaded.sources[key] == DEFAULT}
    return replace(loaded.settings, **kept)


@config_app.command()
def check(config: ConfigOption = None) -> None:
    """Check whether the broker would start with this configuration."""
    sources = load_or_exit(config).sources
    counts = Counter(kind_of(sources[key]) for key in KEYS)
    found = [f"{count} from {kind}" for kind, count in counts.items()]
    typer.echo(f"The configuration is in order; settings: {', '.join(found)}.")


@config_app.command()
def show(
    config: ConfigOption = None,
    secrets: Annotated[bool, typer.Option("--secrets", help="Print secrets too.")] = False,
) -> None:
    """Print every setting and its source, as a megaphone.toml.

    Secrets appear only as comments: the secrets of nodes and webhooks, and the endpoint of a
    webhook if it has a user part or a query.
    """
    loaded = load_or_exit(config)
    for setting in fields(Settings):
        value = getattr(loaded.settings, setting.name)
        source = loaded.sources[setting.name]
        if isinstance(value, Nodes):
            continue
        if not isinstance(value, Mapping):
            show_member(setting.name, value, source, secrets)
        elif source == DEFAULT:  # because the agent gets another name at the next start
            typer.echo(line(setting.name, None, source))
    if (source := loaded.sources["agent"]) != DEFAULT:
        typer.echo(f"\n[agent.virtual]  # {source}")
        for name, mode in loaded.settings.agent.items():
            typer.echo(f"{name} = {toml(mode)}")
    show_table("nodes", loaded.settings.nodes, loaded.sources, secrets)
    for name, webhook in loaded.settings.webhooks.items():
        show_table(f"webhooks.{name}", webhook, loaded.sources, secrets)


def show_table(
    path: str, table: Nodes | Webhook, sources: Mapping[str, str], secrets: bool
) -> None:
    typer.echo(f"\n[{path}]")
    for member in fields(table):
        source = sources[f"{path}.{member.name}"]
        show_member(member.name, getattr(table, member.name), source, secrets)


def show_member(key: str, value: Any, source: str, secrets: bool) -> None:
    shown = value if secrets else without_secrets(key, value)
    if shown == value:
        typer.echo(line(key, value, source))
    else:
        comment = f'# {key} = "{shown}"'
        typer.echo(f"{comment:<43} # {source}; --secrets shows it")


def without_secrets(key: str, value: Any) -> Any:
    if key in ("secret", "previous_secret"):
        return value and HIDDEN
    if key not in ("endpoint", "store") or value is None:
        return value
    parts = urlsplit(value)
    if "@" not in parts.netloc and not parts.query:
        return value
    netloc = re.sub(".*@", f"{HIDDEN}@", parts.netloc)
    return urlunsplit(parts._replace(netloc=netloc, query=parts.query and HIDDEN))


def kind_of(source: str) -> str:
    if source == DEFAULT:
        return "defaults"
    return "the environment" if source.startswith(VARIABLE) else source


def line(key: str, value: Any, source: str) -> str:
    if value is None:  # TOML has no null
        return f"{f'# {key} is not set':<43} # {source}"
    return f"{f'{key} = {toml(value)}':<43} # {source}"


def toml(value: Any) -> str:
    return json.dumps(value.value if isinstance(value, Enum) else value, ensure_ascii=False)
