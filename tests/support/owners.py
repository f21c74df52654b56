"""Other users of this machine than the user who runs the tests. Only root can act as them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ANOTHER_USER = 54_321
"""A user without a name."""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@contextmanager
def acting_as(user: int) -> Iterator[None]:
    """Be another user within this context. The context must not contain an `await`."""
    os.seteuid(user)
    try:
        yield
    finally:
        os.seteuid(0)


def open_to_all(folder: Path) -> None:
    """Allow everybody to write files in a folder, as in /tmp."""
    folder.chmod(0o1777)
