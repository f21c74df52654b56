"""On which build the tests run: on the pure code of the checkout, or on a compiled wheel."""

import os

import pytest

from megaphone.build import build_kind

WANTED_BUILD = "MEGAPHONE_TESTED_BUILD"
"""The variable that says on which build the tests must run. `tests.compiled` sets it."""


def refuse_another_build() -> None:
    """Raises: UsageError, if the tests would run on another build than the wanted one."""
    wanted = os.environ.get(WANTED_BUILD, build_kind())
    if build_kind() != wanted:
        raise pytest.UsageError(f"the tests would run on {build_kind()} code instead of {wanted}")


def pure_only(reason: str) -> pytest.MarkDecorator:
    """Mark a test that can be run only on the pure code of a checkout."""
    return pytest.mark.skipif(build_kind() != "pure", reason=f"compiled: {reason}")
