"""Times on the command line: `500ms`, `30s`, `2m`, `1h`, or a plain number of seconds."""

import re
from typing import Final

import typer

PATTERN: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)?")
SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3_600.0, None: 1.0}
MOST_OF_A_CALL_S: Final = 55.0
"""The broker forgets after a minute which writes it has taken."""


def duration(text: str | float) -> float:
    """Return a time in seconds. Raises: typer.BadParameter."""
    match = PATTERN.fullmatch(str(text))
    if match is None:
        raise typer.BadParameter("a time looks like 500ms, 30s, 2m or 1h")
    seconds = float(match[1]) * SECONDS[match[2]]
    if not seconds:
        raise typer.BadParameter("the time is more than 0")
    return seconds


def duration_of_a_call(text: str | float) -> float:
    """Do the same for the time that a call may take."""
    seconds = duration(text)
    if seconds > MOST_OF_A_CALL_S:
        raise typer.BadParameter(f"the time is at most {MOST_OF_A_CALL_S:g}s")
    return seconds
