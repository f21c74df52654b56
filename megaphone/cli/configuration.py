"""`megaphone config`: say whether the configuration is in order, and what it amounts to."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, fields
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from megaphone.config import DEFAULT, VARIABLE, Config, ConfigError, load_here
from megaphone.settings import Settings

config_app = typer.Typer(help="Check and show the configuration.", no_args_is_help=True)

WRONG_CONFIGURATION = 2
"""The exit code of a configuration that cannot be taken."""

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="Read this file, not the one that is here."),
]


def load_or_exit(file: Path | None) -> Config:
    """Read the configuration, or exit with one line that says what is wrong with it."""
    try:
        return load_here(file)
    except ConfigError as error:
        typer.echo(f"megaphone: {error}", err=True)
        raise typer.Exit(WRONG_CONFIGURATION) from None


@config_app.command()
def check(config: ConfigOption = None) -> None:
    """Say whether the broker would start with the configuration that it finds here."""
    counts = Counter(kind_of(source) for source in load_or_exit(config).sources.values())
    found = [f"{count} from {kind}" for kind, count in counts.items()]
    typer.echo(f"The configuration is in order; settings: {', '.join(found)}.")


@config_app.command()
def show(config: ConfigOption = None) -> None:
    """Print every setting and where it comes from, in the form of a megaphone.toml."""
    loaded = load_or_exit(config)
    for setting in fields(Settings):
        value = getattr(loaded.settings, setting.name)
        if not isinstance(value, Mapping):
            typer.echo(line(setting.name, value, loaded.sources[setting.name]))
    show_table("agent.virtual", loaded.settings.agent, loaded.sources["agent"])
    for name, webhook in loaded.settings.webhooks.items():
        show_table(f"webhooks.{name}", asdict(webhook), loaded.sources["webhooks"])


def show_table(name: str, table: Mapping[str, Any], source: str) -> None:
    typer.echo(f"\n[{name}]  # {source}")
    for key, value in table.items():
        typer.echo(f"{key} = {toml(value)}")


def kind_of(source: str) -> str:
    if source == DEFAULT:
        return "defaults"
    return "the environment" if source.startswith(VARIABLE) else source


def line(key: str, value: Any, source: str) -> str:
    if value is None:  # TOML has no word for it
        return f"{f'# {key} is not set':<44}# {source}"
    return f"{f'{key} = {toml(value)}':<44}# {source}"


def toml(value: Any) -> str:
    return json.dumps(value.value if isinstance(value, Enum) else value)
