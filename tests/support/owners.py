"""Users of this machine other than the one who runs the tests. Only root can act as one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ANOTHER_USER = 54_321
"""One without a name."""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@contextmanager
def acting_as(user: int) -> Iterator[None]:
    """Within this context, and without an `await`, be another user."""
    os.seteuid(user)
    try:
        yield
    finally:
        os.seteuid(0)


def open_to_all(folder: Path) -> None:
    """Let everybody put files into a folder, as into /tmp."""
    folder.chmod(0o1777)
