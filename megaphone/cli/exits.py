"""How a command ends: the exit codes, and the line on standard error that says why."""

from enum import IntEnum
from typing import Never

import typer


class Exit(IntEnum):
    """The exit codes of the commands."""

    DONE = 0
    FAILED = 1
    """The broker refused, or is not there; or the output cannot be written."""
    WRONG_USAGE = 2
    GONE = 3
    """The channel does not exist, or does not exist any more."""
    TIME_IS_UP = 4
    EVENTS_LOST = 5
    STOPPED = 130
    """Ctrl-C, of a command that had more to do."""


def say(text: str) -> None:
    """Print a line for people, on standard error."""
    typer.echo(text, err=True)


def leave(code: Exit, reason: str) -> Never:
    """Print why the command ends, and end it."""
    say(f"megaphone: {reason}")
    raise typer.Exit(code)
