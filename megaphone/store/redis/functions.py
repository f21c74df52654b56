"""The library of functions that a store needs in its Redis, and how it gets there."""

from pathlib import Path

LAYOUT = 2
"""The version of the keys, their contents and the functions. Nodes with different versions cannot
share channels, but may share a Redis, because the names of library and functions have it."""
LIBRARY = f"megaphone_{LAYOUT}"


def name_of(function: str) -> str:
    """Return the name of a function of `functions.lua` in Redis."""
    return f"mp{LAYOUT}_{function}"


def source() -> str:
    """Return the text of the library, for FUNCTION LOAD."""
    return Path(__file__).with_name("functions.lua").read_text(encoding="utf-8")
