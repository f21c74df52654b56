"""How `--help` and mistakes in a call are printed: as plain text, with bold headings.

rich, which typer would use, takes longer to import than all that `megaphone --help` needs.
"""

import re
from collections.abc import Callable
from inspect import cleandoc
from typing import Any, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

T = TypeVar("T", bound=Callable[..., Any])

OTHERS = "Commands"
"""The heading of the commands that name no panel."""


class Command(TyperCommand):
    """A command whose help has bold headings."""

    def get_help(self, ctx: typer.Context) -> str:  # type: ignore[override]
        return with_bold_headings(super().get_help(ctx))


class Group(TyperGroup):
    """Lists its commands by their panels, and of each the whole first paragraph of its help."""

    def get_help(self, ctx: typer.Context) -> str:  # type: ignore[override]
        return with_bold_headings(super().get_help(ctx))

    def format_commands(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]
        panels: dict[str, list[tuple[str, str]]] = {}
        for name, command in self.commands.items():
            panel = getattr(command, "rich_help_panel", None)
            panels.setdefault(panel or OTHERS, []).append((name, summary(command.help)))
        for panel, rows in panels.items():
            with formatter.section(panel):
                formatter.write_dl(rows)


class App(typer.Typer):
    """A group of commands with this help. `-h` is the same as `--help`."""

    def __init__(self, *, cls: type[Group] = Group, **options: Any) -> None:
        super().__init__(
            cls=cls,
            rich_markup_mode=None,
            pretty_exceptions_enable=False,
            no_args_is_help=True,
            context_settings={"help_option_names": ["-h", "--help"]},
            **options,
        )

    def command(self, name: str | None = None, **options: Any) -> Callable[[T], T]:
        return super().command(name, cls=Command, **options)


def summary(text: str | None) -> str:
    return " ".join(cleandoc(text or "").partition("\n\n")[0].split())


def with_bold_headings(text: str) -> str:
    """Return a help text for a terminal. typer prints it plain anywhere else."""
    heading = re.compile(r"^(\w+):$", re.MULTILINE)
    return heading.sub(lambda found: typer.style(found[0], bold=True), text)
